"""The command line: what a person sees, and which code comes back."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from audit import __version__, terminal
from audit.cli import EXHAUSTED, STOPPED, in_one_line, main
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.errors import DataError
from audit.exit_codes import as_text
from audit.models.device import devices_here
from audit.records import Audit, Localisation, LocalisationStatus, Reason, ReasonCode
from audit.report import formats
from tests.report.examples import examples
from tests.report.forbidden import NO_CERTIFICATE, forbidden_words
from tests.small_world import without_pdf, write_card

pytestmark = pytest.mark.unit


def example_audit() -> Audit:
    return next(iter(examples().values()))


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom audit.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('heavy:', sorted({'torch', 'timm', 'pandas', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    code += "\nimport time\nprint(time.process_time())"  # other work on the machine is not what is measured
    took = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took.append(float(done.stdout.splitlines()[-1]))
    assert done.stdout.splitlines()[-2] == "heavy: []"
    assert as_text() in " ".join(done.stdout.split())
    assert min(took) < 0.5


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--memory", "much", "--memory: 'much' is no size of 1G or more; write 4G or 1.5G, as you mean"),
        pytest.param(
            "--device", "cuda",
            f"--device: torch {torch.__version__} sees no cuda device, only {' and '.join(devices_here())}; "
            f"choose {' or '.join(devices_here())}, or install torch for your device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong_is_refused_before_anything_is_opened(option: str, value: str, said: str) -> None:
    """There is no such card, and yet it is the option that is told of."""
    result = invoke("run", "no such card", option, value)
    assert (result.exit_code, result.stderr.splitlines()) == (2, [said])
    assert "no such card" in invoke("run", "no such card").stderr


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["init"], ["render"], ["reproduce"]])
def test_every_command_has_help(command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert not re.search(r"\w\.\.\.$", result.stdout, re.M)  # no sentence is cut off


def test_version() -> None:
    assert invoke("--version").stdout == f"vit-audit, version {__version__}\n"


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (DataError("a.csv", "is empty", "fill it"), "a.csv: is empty; fill it", 2),
        (
            ZeroDivisionError("two\nlines"),
            "internal error: ZeroDivisionError: two lines; run again with --debug and report it",
            5,
        ),
        (KeyboardInterrupt(), "stopped; what was finished is kept, give the same command again to resume", 5),
        (MemoryError(), EXHAUSTED, 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), EXHAUSTED, 5),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            "/x/y: No space left on device; make room or choose another --out",
            5,
        ),
        (
            OSError(errno.EPERM, "Operation not permitted", "/x/y"),
            "/x/y: Operation not permitted; make it writable or choose another --out",
            5,
        ),
    ],
)
def test_failures_in_one_line(error: BaseException, line: str, code: int) -> None:
    assert in_one_line(error) == (line, code)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the signals' handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "turned into an error by a library"])
def test_a_signal_ends_a_command_and_says_how_to_resume(
    number: signal.Signals, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_args: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if turned:
                raise ValueError("a callback failed") from None
            raise

    monkeypatch.setattr("audit.api.cards.find_card", killed)
    result = invoke("check", "synthetic-expressions")
    assert result.exit_code == 5
    assert result.stderr == f"{STOPPED}\n"
    monkeypatch.undo()
    assert invoke("check", "nothing").exit_code == 2  # the next command is told of its own fault


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_file_is_no_folder_for_runs_or_for_the_cache(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert "no such card" in invoke(command, "no such card").stderr
    result = invoke(command, "no such card", "--out", str(file))  # told of before anything is opened
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"{file}: is a file, and runs go to a folder; name a folder with --out"
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(file))
    result = invoke(command, "synthetic-expressions", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "the cache cannot be written" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("debug", [False, True])
def test_internal_error_shows_a_traceback_only_when_asked(monkeypatch: pytest.MonkeyPatch, debug: bool) -> None:
    def broken(*_args: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("audit.api.cards.find_card", broken)
    result = invoke("check", "synthetic-expressions", *(["--debug"] if debug else []))
    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1].startswith("internal error: ZeroDivisionError: by zero;")
    assert ("Traceback" in result.stderr) is debug
    assert result.stdout == ""


def test_check_counts_the_built_in_data() -> None:
    result = invoke("check", "synthetic-balanced")
    assert result.exit_code == 0, result.output
    assert "attribute    group    label    train  discovery  confirmation" in result.stdout
    assert "left out: 0 images" in result.stdout
    assert "what this audit can detect:" in result.stdout
    assert re.search(r"^decoded images take \d+ MB: held in memory \(data\.cache\)$", result.stdout, re.M)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write a table of eight faces."""
    faces = sample_faces(8, 0, split="train")
    for key in faces["image"]:
        SyntheticSource(faces).open(key).save(tmp_path / f"{key}.png")
    rows = pd.DataFrame({"image": faces["image"] + ".png", "expression": faces["expression"], "gender": ["f", "m"] * 4})
    rows.to_csv(tmp_path / "faces.csv", index=False)
    return tmp_path / "faces.csv"


def test_init_writes_a_card_that_check_accepts(table: Path) -> None:
    card = table.parent / "dataset.yaml"
    result = invoke("init", table, "--out", card)
    assert result.exit_code == 0, result.output
    fix = "read it, replace what its comments call a guess, then"
    assert result.stdout == f"wrote {card}; {fix}: vit-audit check {card}\n"
    assert "8 images" in invoke("check", card).stdout


def test_init_overwrites_nothing(table: Path) -> None:
    result = invoke("init", table, "--out", table)
    assert result.exit_code == 2
    assert result.stderr == f"{table}: exists already; remove it, or name another with --out\n"
    assert table.read_text(encoding="utf-8").startswith("image,")


def test_init_of_nothing(tmp_path: Path) -> None:
    result = invoke("init", tmp_path / "no.csv", "--out", tmp_path / "card.yaml")
    assert result.exit_code == 2
    assert "no such file or folder" in result.stderr
    assert not (tmp_path / "card.yaml").exists()


def test_render_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "reports" / "faces"
    run.mkdir(parents=True)
    (run / "audit.json").write_text(example_audit().model_dump_json(), encoding="utf-8")
    assert invoke("render", run).exit_code == 0
    page = (run / "report.html").read_bytes()
    monkeypatch.chdir(tmp_path)
    with without_pdf():
        result = invoke("render", "faces")
    assert result.exit_code == 0, result.output
    assert "reports/faces/report.html" in result.stdout.splitlines()
    assert (run / "report.html").read_bytes() == page
    subjects = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["subject"]
    assert "report.pdf" in {subject["name"] for subject in subjects}


@pytest.mark.parametrize("command", [["render"], ["reproduce"], ["verify"]])
def test_missing_run(tmp_path: Path, command: list[str]) -> None:
    result = invoke(*command, tmp_path / "gone", *(["F-1"] if command == ["reproduce"] else []))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{tmp_path / 'gone'}: no such run directory; ")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("command", ["render", "verify"])
def test_a_folder_that_is_no_run(tmp_path: Path, command: str) -> None:
    result = invoke(command, tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{tmp_path}: is no finished run: it holds no audit.json; name one")


def test_damaged_run_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text("{", encoding="utf-8")
    result = invoke("render", tmp_path)
    assert result.exit_code == 2
    assert "damaged" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["audit.json"]


class Screen(io.StringIO):
    """What is drawn on a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal_of(columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Let stderr be a terminal of so many columns, and return what is drawn on it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    with redirect_stderr(Screen()) as screen:
        yield screen


@pytest.mark.parametrize("columns", [40, 80])
def test_progress_shows_one_bar_and_a_line_for_each_part(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_of(columns, monkeypatch) as screen, terminal.progress() as show:
        names = []
        for part, steps in (("controls", 12), ("patching", 8)):
            for i in range(steps):
                names.append(f"{part}: a very long name of a step, number {i} of many, that fills the line")
                show(names[-1], 0, 0)
                show(names[-1], 1, 2)
        show(names[0], 2, 2)  # a step that is over is not drawn again
    lines = [line.strip() for line in screen.getvalue().replace("\r", "\n").split("\n")]
    assert sum(line.endswith("controls: 0 s") for line in lines) == 1
    assert sum(line.endswith("patching: 0 s") for line in lines) == 1
    drawn = [line for line in terminal_text(screen.getvalue()) if "%" in line]
    assert drawn
    assert max(map(len, drawn)) <= columns


def terminal_text(drawn: str) -> list[str]:
    """Return the lines without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n").split("\n")


def test_progress_elsewhere_is_a_line_a_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 1.0, 20.0, 21.0, 30.0, 40.0, 70.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with terminal.progress() as show:
        for done in (0, 1, 5, 6):
            show("controls: base", done, 10 if done else 0)
        for done in (600, 1000):  # of which an earlier run has done 600
            show("patching: swap", done, 2000)
    assert capsys.readouterr().err.splitlines() == [
        "controls: base",
        "controls: base: 50%, 0.2/s, 20 s left",
        "patching: swap",
        "patching: swap: 50%, 10/s, 100 s left",
    ]


@pytest.mark.parametrize("columns", [None, 80, 40])
def test_summary_fits_the_terminal(columns: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "terminal_width", lambda: columns)
    audit = example_audit()
    text = terminal.summary(audit, Path("reports/faces"))
    lines = text.splitlines()
    assert lines[0] == f"outcome: {audit.outcome}"
    assert lines[-1] == "report: reports/faces/report.html"
    assert terminal.summary(audit, Path("reports/faces"), report=False).splitlines()[-1] == "run: reports/faces"
    assert sum(line.startswith(("largest gap:", "carried by:", "controls:")) for line in lines) == 3
    flat = " ".join(text.split())
    every = audit.accuracy[0]
    assert f"accuracy, all: {formats.rate(every.accuracy)}; balanced {formats.rate(every.balanced_accuracy)}" in flat
    assert "199 of 664 images of 'female' (30.0%) and 73 of 707 images of 'male' (10.3%) are called 'happiness'" in flat
    assert "54 of 540 images of 'female' (10.0%) and 52 of 480 images of 'male' (10.8%) are missed" in flat
    if columns is not None:
        assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("name", sorted(set(examples()) - {"hostile"}))
def test_the_summary_uses_no_forbidden_word(name: str) -> None:
    text = terminal.summary(examples()[name], Path("reports") / "a-run")
    assert NO_CERTIFICATE in text or "does not show" in text
    assert forbidden_words(text) == []


def test_summary_names_three_heads_and_counts_the_rest() -> None:
    audit = example_audit()
    row = audit.heads[0]
    sizes = [0.01, -0.05, 0.03, 0.02, 0.04]
    heads = [
        row.model_copy(
            update={
                "name": f"L0H{i}",
                "verdict": "confirmed",
                "confirmation": row.confirmation.model_copy(update={"value": size}),
            }
        )
        for i, size in enumerate(sizes)
    ]
    attribute, pair = row.contrast.split(":")
    group, reference = pair.split("-")
    gap = next(c for c in audit.contrasts if c.metric == "standardised_gap").model_copy(
        update={"attribute": attribute, "group": group, "reference": reference, "outcome": row.outcome}
    )
    changed = audit.model_copy(
        update={
            "heads": heads,
            "contrasts": [gap],
            "answers": [],  # of a version that gave none
            "localisation": {
                f"{row.contrast}:{row.outcome}": Localisation(
                    status=LocalisationStatus.LOCALISED, heads=[h.name for h in heads]
                )
            },
            "reasons": [Reason(code=ReasonCode.NO_GAP_ABOVE_POLICY)] * 5,
        }
    )
    text = terminal.summary(changed, Path("r"))
    assert "carried by: L0H1, L0H4, L0H2 and 2 more (5 of 5 heads)" in text.splitlines()
    assert "  and 2 more, see the report" in text.splitlines()


def test_counts_take_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data = example_audit().data
    odd = [row.model_copy(update={"group": "[bold]x[/]"}) for row in data.counts[:1]]
    text = terminal.data_summary(data.model_copy(update={"counts": odd}), "Odd")
    assert "[bold]x[/]" in text


def test_closed_output_is_no_internal_error() -> None:
    command = f"'{sys.executable}' -c 'from audit.cli import entry; entry()' datasets >&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_broken_pipe_is_no_internal_error(tmp_path: Path) -> None:
    rendered = {"train_images": 16, "audit_images": 16}
    card = write_card(
        tmp_path / "card.yaml", data={"reader": "synthetic", "rendered": rendered}, model={"weights": "none"}
    )
    read, write = os.pipe()
    os.close(read)
    script = Path(sys.executable).with_name("vit-audit")
    done = subprocess.run([script, "check", card], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert b"internal error" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_labels_cannot_steer_the_terminal() -> None:
    from audit.terminal import wrapped

    assert wrapped("  a label \x1b[2K\u202e that erases") == "  a label \\u001b[2K\\u202e that erases"


def test_a_signal_that_comes_when_all_is_done_changes_no_exit_code() -> None:
    """What is registered first is done last: the signal comes when the command has ended and Python is taken down."""
    code = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
    code += "import sys; sys.argv = ['vit-audit', 'datasets']\nfrom audit.cli import entry; entry()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "synthetic-expressions" in done.stdout
