"""Figures of a benchmark in its page, between markers."""

from __future__ import annotations

import re
from pathlib import Path

MARKED = re.compile(r"<!-- figures: begin -->.*<!-- figures: end -->", re.DOTALL)


def write_figures(page: Path, tables: str) -> None:
    """Write tables between the markers of a page; the rest of it stays."""
    between = f"<!-- figures: begin -->\n{tables}\n<!-- figures: end -->"
    page.write_text(MARKED.sub(lambda _: between, page.read_text(encoding="utf-8")), encoding="utf-8")
