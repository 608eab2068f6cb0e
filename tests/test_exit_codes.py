"""One table of exit codes: in the code, in the docs, in the help, and what processes end with."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import vit_audit as va
from audit.cli import in_one_line, main
from audit.exit_codes import ExitCode, as_markdown, as_text
from tests.small_world import write_card

ROOT = Path(__file__).parents[1]
ENTRY = [sys.executable, "-c", "from audit.cli import entry; entry()"]
pytestmark = pytest.mark.unit


def test_codes_are_these() -> None:
    assert [code.value for code in ExitCode] == list(range(10))
    assert len({code.meaning for code in ExitCode}) == len(ExitCode)


def test_docs_and_help_hold_the_table() -> None:
    assert as_markdown() in (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    for command in ("run", "verify", "reproduce"):
        said = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
        assert as_text() in said


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], ExitCode.DONE),
        (["run"], ExitCode.BAD_INPUT),
        (["no-such-command"], ExitCode.BAD_INPUT),
        (["run", "no-such-card"], ExitCode.BAD_INPUT),
        pytest.param(["verify", "no-such-run"], ExitCode.BAD_INPUT, marks=pytest.mark.long),  # as in test_cli.py
    ],
)
def test_processes_end_with_them(arguments: list[str], code: ExitCode) -> None:
    assert subprocess.run([*ENTRY, *arguments], capture_output=True, check=False).returncode == code


def ended(arguments: list[str], **streams: Any) -> subprocess.CompletedProcess[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([*ENTRY, *arguments], **pipes, check=False)


SAYS_IT_IN = [
    ("stdout", ["run", "--help"]),
    ("stdout", ["--version"]),
    ("stderr", ["run"]),
    ("stderr", ["init", "nothing", "--out", "/dev/null"]),
    pytest.param("stdout", ["datasets"], marks=pytest.mark.long),
    pytest.param("stderr", ["verify", "nothing"], marks=pytest.mark.long),
]


@pytest.mark.parametrize(("stream", "arguments"), SAYS_IT_IN)
def test_a_closed_pipe_is_none_of_them(stream: str, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = ended(arguments, **{stream: write})
    os.close(write)
    assert process.returncode == -signal.SIGPIPE
    assert not process.stdout
    assert not process.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("stream", "arguments"), SAYS_IT_IN)
def test_what_cannot_be_shown_is_unfinished(stream: str, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = ended(arguments, **{stream: full})
    assert process.returncode == ExitCode.UNFINISHED
    assert not process.stdout
    if stream == "stdout":  # the other can say why
        (line,) = process.stderr.decode().splitlines()
        assert "No space left on device" in line


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [(">&-", "--version", ExitCode.DONE), ("2>&-", "run", ExitCode.BAD_INPUT), (">&- 2>&-", "run", ExitCode.BAD_INPUT)],
)
def test_a_stream_that_a_shell_has_closed_is_done_without(closed: str, arguments: str, code: ExitCode) -> None:
    command = f"{shlex.join([*ENTRY, arguments])} {closed}"
    process = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (code, b"", b"")


def test_an_internal_error_leaves_its_traceback_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_named: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("audit.pipeline.run_audit.check_known_effects", broken)
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache"))
    card = write_card(tmp_path / "card.yaml", model={"weights": "none"})
    process = CliRunner().invoke(main, ["run", str(card), "--out", str(tmp_path / "out")])
    assert process.exit_code == ExitCode.UNFINISHED
    assert "internal error: RuntimeError: a bug" in process.stderr
    (run,) = (tmp_path / "out").iterdir()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    (logged,) = [line for line in lines if "traceback" in line]
    assert "in broken" in logged["traceback"]


@pytest.mark.parametrize(
    ("error", "internal"),
    [
        (RuntimeError("a bug"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError("no number"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (PermissionError(errno.EPERM, "Operation not permitted"), False),
        (MemoryError(), False),
    ],
    ids=repr,
)
def test_what_is_called_an_internal_error_is_what_the_log_has_a_traceback_of(
    error: Exception, internal: bool, tmp_path: Path
) -> None:
    def broken(step: str, _done: int, _total: int) -> None:
        if step.startswith("rates"):  # the run has its folder by then
            raise error

    n = 200
    table = pd.DataFrame({"image": [f"{i}.jpg" for i in range(n)], "label": ["no", "yes"] * (n // 2)})
    table = table.assign(group=["a", "a", "b", "b"] * (n // 4))
    table.to_csv(tmp_path / "table.csv", index=False)
    answers = table[["image"]].assign(predicted=table["label"])
    card = {
        "name": "broken",
        "data": {"path": str(tmp_path / "table.csv")},
        "groups": {"group": {"column": "group"}},
    }
    plan = va.plan(card, va.predictions(answers, classes=["no", "yes"]))
    with pytest.raises(type(error)):
        va.audit(plan, tmp_path / "run", callback=broken)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["error"] for line in lines if "traceback" in line] == [repr(error)] * internal
    assert ("internal error" in in_one_line(error)[0]) == internal
