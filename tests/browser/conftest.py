"""Debian's chromium, driven by playwright; every page is opened from a file, as from a mail attachment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audit.records import Audit
from audit.report.html import render_html
from tests.report.examples import examples, many_pairs

if TYPE_CHECKING:  # installed by `make test-browser`
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000  # milliseconds, however busy the machine is
WIDE, PHONE, SMALL_PHONE = 1280, 390, 320  # px across; WCAG 1.4.10 asks for the last
MANY_PAIRS = "many-pairs"
WCAG: dict[str, object] = {
    "type": "tag",
    "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}
OF_COLOURS: dict[str, object] = {
    "type": "rule",
    "values": ["color-contrast", "link-in-text-block"],
}  # all that depends on the theme


@dataclass(frozen=True)
class Opened:
    """A page in a browser, the audit that it shows, and all that it asked for or complained of."""

    page: Page
    audit: Audit
    digest: str
    asked: list[str]
    errors: list[str]


def violations(
    opened: Opened, *, rules: dict[str, object] = WCAG, within: str | None = None, folded: bool = False
) -> list[str]:
    """Run axe-core over everything with its folds opened, or over what a selector names."""
    from axe_playwright_python.sync_playwright import Axe

    if not folded:
        opened.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = Axe().run(opened.page, context=within, options={"runOnly": rules})
    return [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}" for v in found.response["violations"]]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "no chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@cache
def printed(name: str) -> tuple[Audit, str, str]:
    """Return an example or the audit of 144 heads and 6 pairs, its hash and its page, printed once for all tests."""
    audit = many_pairs() if name == MANY_PAIRS else examples()[name]
    digest = sha256(audit.model_dump_json().encode()).hexdigest()
    return audit, digest, render_html(audit, digest)


class Opener:
    """Opens the page of an example audit."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self._contexts: list[object] = []

    def __call__(self, name: str, *, dark: bool = False, scripts: bool = True, width: int = WIDE) -> Opened:
        audit, digest, page = printed(name)
        file = self.folder / f"{name}.html"
        file.write_text(page, encoding="utf-8")
        return self.open(file, audit, digest, dark=dark, scripts=scripts, width=width)

    def audit(self, audit: Audit, name: str, *, dark: bool = False, scripts: bool = True, width: int = WIDE) -> Opened:
        """Open the page of an audit that is no example."""
        content = audit.model_dump_json().encode()
        digest = sha256(content).hexdigest()
        file = self.folder / f"{name}.html"
        file.write_text(render_html(audit, digest), encoding="utf-8")
        return self.open(file, audit, digest, dark=dark, scripts=scripts, width=width)

    def open(
        self, file: Path, audit: Audit, digest: str, *, dark: bool = False, scripts: bool = True, width: int = WIDE
    ) -> Opened:
        return self.address(file.as_uri(), audit, digest, dark=dark, scripts=scripts, width=width)

    def address(
        self, address: str, audit: Audit, digest: str, *, dark: bool = False, scripts: bool = True, width: int = WIDE
    ) -> Opened:
        context = self.browser.new_context(
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            viewport={"width": width, "height": 900},
            reduced_motion="reduce",
        )
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        opened = Opened(page, audit, digest, [], [])
        page.on("request", lambda request: opened.asked.append(request.url))
        page.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.on("dialog", lambda dialog: opened.errors.append(f"dialog: {dialog.message}"))
        page.goto(address)
        return opened

    def close(self) -> None:
        for context in self._contexts:
            context.close()  # type: ignore[attr-defined]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    opener = Opener(browser, tmp_path)
    yield opener
    opener.close()
