"""Bring pages that live in the root of the repository into the site."""

from __future__ import annotations

from pathlib import Path

import mkdocs_gen_files

_ROOT = Path(__file__).parents[1]

with mkdocs_gen_files.open("contributing.md", "w") as page:
    page.write((_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
