"""Fixtures for every room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Two workers share two cores: threads of their own would only wait for each other (ten times the time was seen). It is
# set before torch is imported, and holds for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    return (yield from _skip_without_data())


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    return (yield from _skip_without_data())


def _skip_without_data() -> Any:
    """Skip what needs a data package that was not fetched; one that has other content than expected is an error."""
    from poise.data.package_file import DataNotFound

    try:
        return (yield)
    except DataNotFound as error:
        if error.fetched:
            raise
        pytest.skip(str(error))


@dataclass
class PageLog:
    """The messages and requests of a page during a test."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


# Per module: Playwright keeps an event loop running, in which a test of another module could not start its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on this machine (none of {', '.join(_BROWSERS)})")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[Page]:
    """A fresh page of a headless Chromium, 1280 x 800, light."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    yield context.new_page()
    context.close()


@pytest.fixture
def page_log(browser_page: Page) -> PageLog:
    """Console errors, uncaught exceptions and requests of ``browser_page``."""
    log = PageLog()
    browser_page.on("console", lambda message: message.type == "error" and log.errors.append(message.text))
    browser_page.on("pageerror", lambda error: log.errors.append(str(error)))
    browser_page.on("request", lambda request: log.requests.append(request.url))
    return log
