"""Puts llms.txt, and the Markdown of each page that it names, beside the pages that were built."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

NAME = "llms.txt"


def copy_pages(app: Sphinx, error: Exception | None) -> None:
    """Copy them, once all pages are there."""
    if error is not None or app.builder.name != "html":
        return
    source, built = Path(app.srcdir), Path(app.outdir)
    text = (source / NAME).read_text(encoding="utf-8")
    for name in [NAME, *re.findall(r"\]\(([^)#]+)", text)]:
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, built / name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Do so at the end of a build."""
    app.connect("build-finished", copy_pages)
    return {"parallel_read_safe": True}
