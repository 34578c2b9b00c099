"""Report before the tests whether the pages are tested too."""

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> None:
    if not any(map(shutil.which, BROWSERS)):
        print("no Chromium on this machine: the tests of HTML pages are left out (install the package `chromium`)")


if __name__ == "__main__":
    main()
