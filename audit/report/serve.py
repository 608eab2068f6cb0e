"""A run's report on the loopback, so that decisions made in the page go straight into the run.

Only this machine can reach the server, and only whoever has its address: that holds a token, a new one each time. It
gives out the report and two files of the run by name, and nothing else of the disk.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from audit.errors import AuditError, InputError, UnfinishedError
from audit.records import Review
from audit.report.manifest import PDF
from audit.report.render import page_of, read_run
from audit.report.reviewed import Reviewed
from audit.report.reviewing import add_review
from audit.report.reviews import LARGEST, parsed_review
from audit.report.text import saved_sentence

LOOPBACK = "127.0.0.1"
PATIENCE = 30.0  # seconds that a browser may be silent in the middle of a request
HTML, TEXT, JSON = "text/html; charset=utf-8", "text/plain; charset=utf-8", "application/json"
GIVEN_OUT = {PDF: "application/pdf", "audit.json": JSON}  # besides the page; looked up, never joined to a path
SAVE = "decisions"
# The page's own policy, in its head, admits its style sheet and script by their hashes; both policies hold.
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'; object-src 'none'; connect-src 'self'; form-action 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Served:
    """A report that is being served, until it is closed.

    Parameters
    ----------
    run : pathlib.Path
        A finished run.
    port : int
        0 takes one that is free.

    Raises
    ------
    InputError
        If the run is damaged, or the port is taken.
    """

    def __init__(self, run: Path, port: int = 0) -> None:
        read_run(run)  # a damaged one shows now
        self.run, self.token = run, secrets.token_urlsafe(32)
        self._saving, self._closed = threading.Lock(), False
        try:
            self._server = _Server((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            what = f"cannot be listened on ({getattr(error, 'strerror', None) or error})"
            raise InputError(f"port {port}", what, "name another, or none") from None
        self._server.served = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The report's address; whoever has it can decide."""
        return f"http://{LOOPBACK}:{self._server.server_port}/{self.token}/"

    def wait(self) -> None:
        """Serve until the process is told to end."""
        self._thread.join()

    def close(self) -> None:
        """End; a save that is under way is finished first."""
        with self._saving:
            self._closed = True
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def page(self) -> str:
        """Print the report as it stands, with forms that save here."""
        source = read_run(self.run)
        return page_of(source, served=True)

    def save(self, review: Review) -> str:
        """Add a review to the run, one after the other, and say what came of it."""
        with self._saving:
            if self._closed:
                raise UnfinishedError(str(self.run), "is no longer served", "serve it again")
            new = add_review(self.run, review)
            source = read_run(self.run)
        return saved_sentence(len(new), len(Reviewed(source.audit, source.decisions).disputed))


class _Server(ThreadingHTTPServer):
    served: Served
    daemon_threads = True  # a browser that is silent keeps nobody waiting


class _Handler(BaseHTTPRequestHandler):
    """One request; whatever is not known is answered with 404, as is a wrong token."""

    server: _Server
    timeout = PATIENCE

    def version_string(self) -> str:
        return "vit-audit"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: an address holds the token."""

    def do_GET(self) -> None:
        name = self._asked_for()
        if name is None:
            return
        try:
            if name == "":
                self._answer(HTTPStatus.OK, self.server.served.page().encode(), HTML)
            elif name in GIVEN_OUT:
                self._answer(HTTPStatus.OK, _content(self.server.served.run / name), GIVEN_OUT[name])
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        except AuditError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such file in the run")

    def do_POST(self) -> None:
        name = self._asked_for()
        if name is None:
            return
        if name != SAVE:
            self._refuse(HTTPStatus.NOT_FOUND, "nothing can be saved there")
            return
        content = self._body()
        if content is None:
            return
        try:
            said = self.server.served.save(parsed_review(content, "review"))
        except InputError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except AuditError as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        else:
            self._answer(HTTPStatus.OK, said.encode(), TEXT)

    def _asked_for(self) -> str | None:
        """Return what is asked for below the token; None where the request is refused already.

        The Host header is compared because a page elsewhere may have its own name resolve to this machine.
        """
        own = f"{LOOPBACK}:{self.server.server_port}"
        origin = self.headers.get("Origin", f"http://{own}")
        if self.headers.get("Host") != own or origin != f"http://{own}":
            self._refuse(HTTPStatus.FORBIDDEN, "this report is served to its own address only")
            return None
        parts = self.path.split("/")
        token = parts[1] if len(parts) == 3 and not parts[0] else ""
        if not hmac.compare_digest(token.encode(), self.server.served.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return None
        return parts[2]

    def _body(self) -> bytes | None:
        """Read a review; None where it is refused, or the browser has gone before all of it was sent."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != JSON:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a review is JSON")
        elif not length.isascii() or not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "how long the review is was not said")
        elif len(length) > len(str(LARGEST)) or int(length) > LARGEST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"larger than {LARGEST:,} bytes")
        else:
            try:
                content = self.rfile.read(int(length))
            except OSError:
                return None
            return content if len(content) == int(length) else None
        return None

    def _refuse(self, status: HTTPStatus, line: str) -> None:
        self._answer(status, line.encode("utf-8", "replace"), TEXT)

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # nobody reads any more; what was saved is saved
            self.close_connection = True


def _content(path: Path) -> bytes:
    """Read a file that is no link."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        return file.read()
