"""Check that every link inside built pages leads to a file, and to a place in it: python docs/check_links.py FOLDER."""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places that can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and places of an element."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" or (tag, name) == ("a", "name"):
                self.places.add(value or "")


@cache
def opened(path: Path) -> Page:
    """Return a page, read once."""
    return Page(path.read_text(encoding="utf-8"))


def fault_of(page: Path, link: str, root: Path) -> str | None:
    """Return what is wrong with a link of a page; None where it leads somewhere, or out of the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_relative_to(root):
        return "leads out of the site"
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "no such file"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in opened(target).places:
        return "no such place in the file"
    return None


def links_in(root: Path) -> list[tuple[Path, str]]:
    """Return every link of every page and of llms.txt, with the file that has it."""
    said = []
    for page in sorted(root.rglob("*.html")):
        if "_downloads" not in page.parts:  # a report, whose links are to the files of its own run
            said += [(page, link) for link in opened(page).links]
    text = root / "llms.txt"
    return said + [(text, link) for link in re.findall(r"\]\(([^)]+)\)", text.read_text(encoding="utf-8"))]


def main(root: Path) -> int:
    """Say which links lead nowhere; returns 1 where one does."""
    said = links_in(root)
    wrong = [(page, link, fault) for page, link in said if (fault := fault_of(page, link, root))]
    for page, link, fault in wrong:
        print(f"{page.relative_to(root)}: {link}: {fault}", file=sys.stderr)
    if not wrong:
        print(f"{len(said)} links in {len({page for page, _ in said})} pages lead somewhere")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
