"""Debian's chromium, driven by playwright; every page is opened from a file, as from a mail attachment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audit.records import Audit
from audit.report.html import render_html
from tests.report.examples import examples

if TYPE_CHECKING:  # installed by `make test-browser`
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000  # milliseconds, however busy the machine is
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 800}


@dataclass(frozen=True)
class Opened:
    """A page in a browser, the audit that it shows, and all that it asked for or complained of."""

    page: Page
    audit: Audit
    digest: str
    asked: list[str]
    errors: list[str]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "no chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Opener:
    """Opens the page of an example audit."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self._contexts: list[object] = []

    def __call__(self, name: str, *, dark: bool = False, scripts: bool = True, narrow: bool = False) -> Opened:
        audit = examples()[name]
        content = audit.model_dump_json().encode()
        digest = sha256(content).hexdigest()
        file = self.folder / f"{name}.html"
        file.write_text(render_html(audit, digest), encoding="utf-8")
        return self.open(file, audit, digest, dark=dark, scripts=scripts, narrow=narrow)

    def open(self, file: Path, audit: Audit, digest: str, **named: bool) -> Opened:
        return self.address(file.as_uri(), audit, digest, **named)

    def address(
        self, address: str, audit: Audit, digest: str, *, dark: bool = False, scripts: bool = True, narrow: bool = False
    ) -> Opened:
        context = self.browser.new_context(
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            viewport=NARROW if narrow else WIDE,
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
