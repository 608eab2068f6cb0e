"""The served report: to this machine and whoever has the token, nothing else of the disk, saved whole or not at all."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.errors import InputError
from audit.records import Review
from audit.report import serve as serving
from audit.report.manifest import MANIFEST, hash_files, manifest_rows
from audit.report.reviews import LARGEST, read_decisions
from audit.report.serve import Served
from audit.store import locked

from .examples import examples
from .run_folder import decision, digest_of, write_run

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pdf")]
AUDIT = examples()["passed"]
JSON = {"Content-Type": "application/json"}
Answer = tuple[int, str, dict[str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    return write_run(tmp_path / "run", AUDIT)


@pytest.fixture
def served(run: Path) -> Iterator[Served]:
    with Served(run) as server:
        yield server


def place_of(served: Served) -> tuple[str, int]:
    host, _, port = served.url.split("/")[2].partition(":")
    return host, int(port)


def ask(
    served: Served, path: str = "", method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None,
    *, below: bool = True,
) -> Answer:  # fmt: skip
    connection = http.client.HTTPConnection(*place_of(served), timeout=60)
    target = f"/{served.token}/{path}" if below else path
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": served.url.split("/")[2], **(headers or {})}.items():
        connection.putheader(name, value)
    if body and "Content-Length" not in (headers or {}):
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def review(run: Path, *decisions: Any) -> bytes:
    return Review(audit_sha256=digest_of(run), decisions=list(decisions)).model_dump_json().encode()


def of_report(**update: Any) -> Any:
    return decision("", section="report", **update)


def test_the_page_has_its_policy_and_strict_headers(served: Served) -> None:
    status, page, headers = ask(served)
    assert status == 200
    assert "default-src &#39;none&#39;" in page
    assert "connect-src &#39;self&#39;" in page
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Server"].strip() == "vit-audit"
    assert place_of(served)[0] == "127.0.0.1"
    assert served.token not in page


@pytest.mark.parametrize(
    "path",
    ["/", "/{token}", "/{token}/../secret.txt", "/{token}/..%2fsecret.txt", "/{token}//etc/passwd", "/{wrong}/",
     "/{token}/manifest.json", "/{token}/decisions.jsonl", "/{token}/.lock", "/{token}/audit.json/", "/{token}x/",
     "/{token}/audit.json%00", "/{token}/./audit.json", "http://127.0.0.1/{token}/", "file:///etc/passwd",
     "/{token}/report.pdf"],
)  # fmt: skip
def test_nothing_else_is_given_out(served: Served, path: str) -> None:
    """``report.pdf`` is a link out of the run here."""
    (served.run / "report.pdf").symlink_to(served.run.parent / "secret.txt")
    wrong = served.token[:-1] + ("A" if served.token[-1] != "A" else "B")
    status, content, _ = ask(served, path.format(token=served.token, wrong=wrong), below=False)
    assert status == 404
    assert "secret" not in content


def test_the_record_is_given_out_as_it_is(served: Served) -> None:
    assert ask(served, "audit.json")[:2] == (200, (served.run / "audit.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost:1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_another_name_of_this_machine_and_other_pages_are_refused(served: Served, headers: dict[str, str]) -> None:
    for method, body in (("GET", b""), ("POST", review(served.run, of_report()))):
        assert ask(served, "decisions", method, body, {**JSON, **headers})[0] == 403
    assert read_decisions(served.run, digest_of(served.run)) == []


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("decisions", {"Content-Type": "text/plain"}, b"{}", 415),
        ("decisions", {**JSON, "Content-Length": "many"}, b"{}", 411),
        ("decisions", {**JSON, "Content-Length": "-1"}, b"{}", 411),
        ("decisions", {**JSON, "Content-Length": str(LARGEST + 1)}, b"{}", 413),
        ("decisions", {**JSON, "Content-Length": "9" * 5000}, b"{}", 413),
        ("decisions", JSON, b"[" * 10_000, 409),
        ("decisions", JSON, b'{"audit_sha256": "' + b"0" * 64 + b'", "decisions": []}', 409),
        ("audit.json", JSON, b"{}", 404),
    ],
)
def test_what_is_no_review_of_this_audit_is_refused_in_a_line(
    served: Served, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    before = hash_files(served.run)
    found, said, _ = ask(served, path, "POST", body, headers)
    assert (found, "\n" in said) == (status, False)
    assert hash_files(served.run) == before


def test_without_the_token_nothing_is_saved(served: Served) -> None:
    body = review(served.run, of_report())
    assert ask(served, "/decisions", "POST", body, JSON, below=False)[0] == 404
    assert ask(served, "/wrong/decisions", "POST", body, JSON, below=False)[0] == 404
    assert read_decisions(served.run, digest_of(served.run)) == []
    assert ask(served, "decisions", "PUT", body, JSON)[0] == 501


def test_a_browser_that_closes_in_mid_save_leaves_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before, body = hash_files(served.run), review(served.run, of_report())
    head = f"POST /{served.token}/decisions HTTP/1.1\r\nHost: {served.url.split('/')[2]}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(place_of(served)) as browser:
        browser.sendall(head.encode() + body[:-1])
    assert ask(served)[0] == 200  # and the next is served
    assert hash_files(served.run) == before


def test_two_reviewers_at_once_are_both_kept_and_their_dispute_is_shown(served: Served) -> None:
    made = [of_report(), of_report(name="S. Second", decision="reject")]
    answers: list[Answer] = []

    def save(mine: Any) -> None:
        answers.append(ask(served, "decisions", "POST", review(served.run, mine), JSON))

    threads = [threading.Thread(target=save, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in answers] == [200, 200]
    assert any("Reviewers disagree about 1 finding or section" in said for _, said, _ in answers)
    there = read_decisions(served.run, digest_of(served.run))
    assert sorted(d.name for d in there) == ["R. Reader", "S. Second"]
    assert manifest_rows((served.run / MANIFEST).read_bytes()) == hash_files(served.run)
    for page in (ask(served)[1], (served.run / "report.html").read_text(encoding="utf-8")):
        assert "Reviewers disagree about the report as a whole" in page


def test_another_command_in_the_run_and_an_edited_record_are_told_of(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.store.ORPHANED", 0.0)
    body = review(served.run, of_report())
    with locked(served.run):
        status, said, _ = ask(served, "decisions", "POST", body, JSON)
    assert (status, "another run is at work in this folder" in said) == (503, True)
    record = json.loads((served.run / "audit.json").read_text(encoding="utf-8"))
    (served.run / "audit.json").write_text(json.dumps({**record, "name": "x"}), encoding="utf-8")
    status, said, _ = ask(served, "decisions", "POST", body, JSON)
    assert (status, "was changed after manifest.json was written" in said) == (409, True)
    (served.run / "audit.json").write_text("{", encoding="utf-8")
    status, said, _ = ask(served)
    assert (status, "damaged" in said) == (500, True)


def test_a_port_that_is_taken_is_named(served: Served) -> None:
    port = place_of(served)[1]
    with pytest.raises(InputError, match=f"port {port}: cannot be listened on"):
        Served(served.run, port)


def test_once_closed_nothing_is_saved(run: Path) -> None:
    server = Served(run)
    server.close()
    with pytest.raises(serving.UnfinishedError, match="is no longer served"):
        server.save(Review(audit_sha256=digest_of(run), decisions=[of_report()]))


def test_the_command_serves_until_it_is_stopped(run: Path) -> None:
    code = "from audit.cli import entry; entry()"
    with subprocess.Popen([sys.executable, "-c", code, "serve", run], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        address = command.stdout.readline().strip()
        with urllib.request.urlopen(f"{address}audit.json", timeout=60) as answer:
            assert answer.read() == (run / "audit.json").read_bytes()
        command.send_signal(signal.SIGINT)
        assert command.wait(300) == 0
