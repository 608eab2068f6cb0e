"""Nothing lost: whatever cannot be written, read or computed ends in one line and exit 5, and the run resumes later."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from click.testing import Result

from audit import store
from audit.errors import UnfinishedError
from audit.models.checkpoint import save_weights
from audit.report.render import read_run
from benchmarks.faults.kills import CARD, EPOCH, FINISHED
from tests.end_to_end.conftest import TABLE, TONE, Invoke, Run, write_card

pytestmark = pytest.mark.end_to_end
CONTROL_NUMBERS = "effects/controls.parquet"  # grows by stages, and is laid out again by each run that resumes
# Which stage writes what, in the order of the stages; "again": what an earlier stage has written too.
STAGES = {
    "data": ("log.jsonl", "preregistration.json", "effects/samples.parquet"),
    "known effects": ("cache/", "effects/control-", CONTROL_NUMBERS, f"{store.WORK}/controls"),
    "models": ("models/", f"{store.WORK}/models"),
    "identities": (f"{CONTROL_NUMBERS} again",),
    "patching": ("effects/unpatched", "effects/swap", "effects/first-order", "effects/reference", "effects/transplant",
                 "effects/pairs", f"{store.WORK}/"),
    "evidence, heads together": ("effects/together", "effects/attention"),
    "ledgers": ("effects/written", "effects/read", "effects/trained", "effects/parts", "effects/smallest",
                f"{store.WORK}/written", f"{store.WORK}/read", f"{store.WORK}/trained"),
    "record": ("card.yaml", "log.jsonl again", "audit.json"),
    "manifest": ("manifest.json",),
}  # fmt: skip
CODES = (errno.ENOSPC, errno.EROFS)
PIECES = 3  # of the first stage that has some: a table, what is known of it, and the next table; of others the first
ALONE = (f"{CONTROL_NUMBERS} again", "effects/together.parquet", "manifest.json")  # the one file of its stage


def failure(code: int, named: str | None = None) -> OSError:
    """Return the error that the system raises: of a full disk it does not say which file."""
    return OSError(code, os.strerror(code), *([named] if named else []))


def stage_of(name: str) -> str:
    """Return the stage that writes a file: the one of the longest beginning."""
    return max((len(p), stage) for stage, known in STAGES.items() for p in known if name.startswith(p))[1]


@dataclass
class Disk:
    """Refuses the writing of one file after the other, by turns as a full disk and as one to read only.

    Where a stage writes one file only, that is refused in both ways. ``failed`` holds the codes by the file's name in
    the run or the cache; ``last`` is the file that was refused in this attempt, or "".
    """

    root: Path
    failed: dict[str, list[int]] = field(default_factory=dict)
    last: str = ""
    begun: Counter[str] = field(default_factory=Counter)  # how often in this attempt

    def name_of(self, temporary: Path) -> str:
        """Return the name of the file that a temporary one will be: without the folders of run and cache."""
        folders = temporary.parent.relative_to(self.root).parts
        name = "/".join([*folders[2:], temporary.name.removeprefix(".").rsplit(".", 2)[0]])
        return f"cache/{name}" if folders[0] == "cache" else name

    def stands_for(self, name: str) -> bool:
        """Tell whether files like this one were refused: the models before the donors, and enough pieces."""
        folders = [other.rpartition("/")[0] for other in self.failed if other.startswith(f"{store.WORK}/")]
        folder = name.rpartition("/")[0]
        most = PIECES if folder in folders[:1] else 1
        pieces = name.startswith(f"{store.WORK}/") and folders.count(folder) >= most
        return "_donor_" in name or (pieces and name not in self.failed)

    def next_attempt(self) -> None:
        """Let the next file be refused."""
        self.last = ""
        self.begun.clear()

    def refuses(self, temporary: Path, code: int) -> bool:
        """Tell whether to refuse now; a file is begun when it may turn out to be read only."""
        name = self.name_of(temporary)
        self.begun[name] += code == errno.EROFS
        if self.last == name and code == self.failed[name][-1]:
            return True  # however often it is tried
        name += " again" if self.begun[name] > 1 else ""
        if self.last or self.stands_for(name):
            return False
        of_stage = sum(len(known) for other, known in self.failed.items() if stage_of(other) == stage_of(name))
        codes = self.failed.setdefault(name, [])
        if code != CODES[(of_stage + list(STAGES).index(stage_of(name))) % 2] or len(codes) == (
            2 if name in ALONE else 1
        ):
            return False
        codes.append(code)
        self.last = name
        return True


@contextmanager
def beginning(check: Callable[[Path], None]) -> Iterator[None]:
    """Let ``check`` see each temporary file before it is begun; it may raise in its place."""
    make = tempfile.mkstemp

    def begin(**named: Any) -> tuple[int, str]:
        if "prefix" in named:
            check(Path(named["dir"]) / f"{named['prefix']}x{named['suffix']}")
        return make(**named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.store.tempfile.mkstemp", begin)
        yield


@contextmanager
def refusing(disk: Disk) -> Iterator[None]:
    """Let a full disk show when a file is complete, and one to read only when it is begun."""
    to_disk = os.fsync

    def begin(path: Path) -> None:
        if disk.refuses(path, errno.EROFS):
            raise failure(errno.EROFS, str(path))

    def complete(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.endswith(store.UNFINISHED) and disk.refuses(path, errno.ENOSPC):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise failure(errno.ENOSPC)
        to_disk(descriptor)

    with beginning(begin), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", complete)
        yield


def told(result: Result) -> str:
    """Return the one line that a command ended with, once it is known to be one, with exit 5 and no traceback."""
    assert result.exit_code == 5, result.output
    assert "Traceback" not in result.output
    assert "internal error" not in result.output
    line = result.stderr.splitlines()[-1]
    assert "; " in line
    return line


def finished_files(root: Path) -> dict[str, bytes]:
    """Return what stands under a finished name, but for what every attempt lays out again."""
    every = [p for p in root.rglob("*") if p.is_file()]
    assert not [p for p in every if p.name.endswith((store.UNFINISHED, store.LOCK))]
    again = ("log.jsonl", "controls.parquet", "recipe.json", "card.yaml")
    return {str(p.relative_to(root)): p.read_bytes() for p in every if p.name not in again}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the card of the benchmark of faults, and let its runs begin at one moment."""
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run, and of its cache, that nothing happened to."""
    root = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        patch.setenv("VIT_AUDIT_CACHE", str(root / "cache"))
        (root / "card.yaml").write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")
        assert invoke("run", root / "card.yaml", "--out", root / "out", "--no-report").exit_code in FINISHED
    return root


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record but for when it was made."""
    record["provenance"].pop("started")
    record["controls"]["setup"].pop("measured_on")
    return record


def record_of(root: Path) -> bytes:
    (record,) = (root / "out").glob("*/audit.json")
    return record.read_bytes()


@pytest.mark.long
def test_every_write_of_every_stage_may_fail_and_nothing_is_lost(
    place: Path, undisturbed: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt is refused one file more, so that stages are computed once, as they are after a fault."""
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(place / "cache"))
    disk = Disk(place)
    command = ("run", place / "card.yaml", "--out", place / "out", "--no-report")
    with refusing(disk):
        while True:
            disk.next_attempt()
            before = finished_files(place)
            result = invoke(*command)
            if not disk.last:
                break
            line = told(result)
            assert Path(line.split(": ")[0]).name == Path(disk.last.removesuffix(" again")).name, line
            assert "No space left on device); make room" in line or "Read-only file system); make it writable" in line
            after = finished_files(place)
            over = stage_of(disk.last) in ("record", "manifest")  # all pieces are in the run's tables, and gone
            kept = {name: was for name, was in before.items() if not (over and f"/{store.WORK}/" in name)}
            assert {name: after.get(name) for name in kept} == kept, disk.last
    assert result.exit_code in FINISHED, result.output[-300:]
    assert record_of(place) == record_of(undisturbed)
    for stage in STAGES:
        refused_in = {code for n, codes in disk.failed.items() if stage_of(n) == stage for code in codes}
        assert len(refused_in) == len(CODES), stage
    (run,) = (undisturbed / "out").iterdir()
    written = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    passing = ("cache/", f"{store.WORK}/")
    refused = {name for name in disk.failed if not name.startswith(passing) and not name.endswith(" again")}
    assert refused == written
    assert all(disk.failed.values())
    stages = [json.loads(line) for line in next((place / "out").glob("*/log.jsonl")).read_text().splitlines()]
    assert len(stages) == 9  # its start, and eight stages
    assert invoke("verify", next((place / "out").iterdir())).exit_code == 0


def can_mount(folder: Path) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


def test_a_disk_that_is_really_full(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    place, card = tmp_path, small_run.card
    (place / "out").mkdir()
    if shutil.which("mount") is None or not can_mount(place / "out"):
        pytest.skip("no small disk can be mounted here")
    try:
        where = []
        for size in ("64k", "1100k", "2100k"):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(place / "out")], check=True)
            line = told(invoke("run", card, "--out", place / "out", "--no-report"))
            assert "cannot be written (No space left on device); make room" in line
            where.append(Path(line.split(": ")[0]).name)
        assert "seed-0.safetensors" in where or "balanced-0.safetensors" in where or "seed-1.safetensors" in where
        assert any(name.endswith(".parquet") for name in where)
        subprocess.run(["mount", "-o", "remount,size=64m", str(place / "out")], check=True)
        result = invoke("run", card, "--out", place / "out", "--no-report")
        assert result.exit_code == small_run.result.exit_code, result.output
        assert without_times(json.loads(record_of(place))) == without_times(small_run.record)
    finally:
        subprocess.run(["umount", str(place / "out")], check=True)


def test_a_disk_that_is_really_read_only(place: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "out").mkdir()
    if shutil.which("mount") is None or not can_mount(place / "out"):
        pytest.skip("no small disk can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(place / "out")], check=True)
        line = told(invoke("run", place / "card.yaml", "--out", place / "out"))
        assert "cannot be written (Read-only file system); make it writable or name another" in line
        monkeypatch.setenv("VIT_AUDIT_CACHE", str(place / "out" / "cache"))
        line = told(invoke("run", place / "card.yaml", "--out", place / "other"))
        assert "out/cache: cannot be written (Read-only file system); make it writable or name another with VIT" in line
    finally:
        subprocess.run(["umount", str(place / "out")], check=True)


def test_weights_that_do_not_fit_on_the_disk(tmp_path: Path) -> None:
    if shutil.which("mount") is None or not can_mount(tmp_path):
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(UnfinishedError, match=r"w\.safetensors: cannot be written \(No space left on device\)"):
            save_weights({"w": torch.zeros(100_000)}, tmp_path / "w.safetensors")
        with pytest.raises(UnfinishedError, match=r"t\.parquet: cannot be written \(No space left on device\)"):
            store.write_table(tmp_path / "t.parquet", pd.DataFrame({"x": torch.rand(100_000).numpy()}))
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Commands on a finished run


@pytest.fixture
def copy(small_run: Run, tmp_path: Path, no_pdf: None) -> Path:
    """Copy the small run."""
    shutil.copytree(small_run.folder, tmp_path / "run")
    return tmp_path / "run"


def refuse(name: str, code: int) -> AbstractContextManager[None]:
    """Return a context in which one file of a run cannot be written."""

    def check(path: Path) -> None:
        if path.name.startswith(f".{name}."):
            raise failure(code, str(path.parent))

    return beginning(check)


@pytest.mark.parametrize(
    ("name", "code"),
    [("report.html", errno.EROFS), ("rates.csv", errno.ENOSPC), ("junit.xml", errno.EACCES),
     ("audit.schema.json", errno.EDQUOT), ("manifest.json", errno.ENOSPC)],
)  # fmt: skip
def test_pages_that_cannot_be_written_are_printed_by_the_next_command(
    copy: Path, invoke: Invoke, name: str, code: int
) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "report.pdf"}
    with refuse(name, code):
        line = told(invoke("render", copy))
    assert Path(line.split(": ")[0]).name == name
    assert {p: p.read_bytes() for p in before} == before
    assert invoke("render", copy).exit_code == 0
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("name", "code"), [("decisions.jsonl", errno.ENOSPC), ("report.html", errno.EROFS), ("manifest.json", errno.EACCES)]
)
def test_a_review_that_cannot_be_written_is_added_by_the_next_command(
    copy: Path, invoke: Invoke, tmp_path: Path, name: str, code: int
) -> None:
    source = read_run(copy)
    decision = {"finding": source.audit.findings[0].id, "decision": "accept", "name": "R.", "role": "c.",
                "reason": "seen", "decided": "2026-03-02T10:00:00Z"}  # fmt: skip
    review = tmp_path / "review.json"
    review.write_text(json.dumps({"audit_sha256": source.digest, "decisions": [decision]}), encoding="utf-8")
    with refuse(name, code):
        line = told(invoke("review", copy, review))
    assert Path(line.split(": ")[0]).name == name
    assert invoke("review", copy, review).exit_code == 0
    assert len(read_run(copy).decisions) == 1
    assert "seen" in (copy / "report.html").read_text(encoding="utf-8")


def test_other_commands_that_write_say_what_they_could_not(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("image,label,gender\na.png,x,f\nb.png,y,m\n", encoding="utf-8")
    with refuse("dataset.yaml", errno.EROFS):
        assert "dataset.yaml: " in told(invoke("init", tmp_path / "faces.csv", "--out", tmp_path / "dataset.yaml"))
    with refuse("diff.json", errno.ENOSPC):
        line = told(invoke("diff", small_run.folder, small_run.folder, "--out", tmp_path / "d"))
    assert "diff.json: cannot be written (No space left on device); make room" in line


def test_a_number_is_reproduced_though_the_run_is_read_only(small_run: Run, invoke: Invoke) -> None:
    """Nothing is written where a finding is measured again, into the run least of all."""

    def check(path: Path) -> None:
        raise failure(errno.EROFS, str(path.parent))

    with beginning(check):
        assert invoke("reproduce", small_run.folder, small_run.record["findings"][0]["id"]).exit_code == 0


# What vanishes, and what cannot be computed


@pytest.fixture
def faces(face_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the faces, of which some will vanish."""
    shutil.copytree(face_folder, tmp_path / "faces")
    return tmp_path / "faces"


@pytest.mark.parametrize("where", ["audit.pipeline.prepare.load_pixels", "audit.controls.control_images.load_pixels"])
def test_an_image_that_vanishes_between_check_and_load_is_named(
    faces: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from audit.data.pixels import load_pixels

    gone = []

    def vanished(source: Any, keys: list[str], size: int, **named: Any) -> Any:
        gone.append((keys[3], (faces / keys[3]).read_bytes()))
        (faces / keys[3]).unlink()
        return load_pixels(source, keys, size, **named)

    card = write_card(faces / "card.yaml", data=TABLE, groups=TONE, controls={"card": "same"})
    assert invoke("check", card).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(where, vanished)
        line = told(invoke("run", card, "--out", tmp_path / "out"))
    key, content = gone[0]
    assert line == f"{key}: could no longer be read (missing file); restore it, and run again"
    assert not (tmp_path / "out").exists()
    (faces / key).write_bytes(content)
    assert invoke("check", card).exit_code == 0


@pytest.mark.parametrize("part", ["training", "controls"])
def test_a_loss_that_is_no_number_ends_in_a_line(small_run: Run, tmp_path: Path, invoke: Invoke, part: str) -> None:
    card = write_card(tmp_path / "card.yaml", **{part: {"learning_rate": 1e9}})
    line = told(invoke("run", card, "--out", tmp_path / "out"))
    assert "the loss is " in line
    assert f"lower {part}.learning_rate" in line
    (run,) = (tmp_path / "out").iterdir()
    assert (run / "preregistration.json").is_file()
    assert (run / "effects" / "control-colour.npz").is_file() == (part == "training")
    assert not (run / "audit.json").exists()
