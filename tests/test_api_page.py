"""docs/api.md is what the docstrings say, and has every public name."""

from __future__ import annotations

import runpy
from pathlib import Path

import dcgan_dist

ROOT = Path(__file__).parent.parent


def test_the_page_is_made_from_the_docstrings() -> None:
    maker = runpy.run_path(str(ROOT / "docs/make_api.py"))
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert page == maker["page"](), "python docs/make_api.py writes it again"
    missing = [
        name for name in dcgan_dist.__all__ if name not in ("Config", "__version__") and f"`dd.{name}`" not in page
    ]
    assert missing == []
