"""The benchmark of faults sees what it is there to see."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
import yaml

from audit.card.load import load_card
from benchmarks.faults import kills, mutations, run
from benchmarks.faults.kills import Killed
from benchmarks.faults.mutations import Mutated, mutate

ROOT = Path(__file__).parents[2] / "benchmarks" / "faults"


@pytest.mark.unit
def test_what_is_damaged_is_noticed(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.safetensors", "c.npz", "d.json", "e.jsonl", "f.pdf"):
        (tmp_path / name).write_bytes(b"half of it")
    (tmp_path / ".g.json.part").write_bytes(b"{")
    (tmp_path / "h.json").write_text("{}", encoding="utf-8")
    assert [fault.split(":")[0] for fault in kills.unreadable_files(tmp_path)] == [
        "a.parquet", "b.safetensors", "c.npz", "d.json", "e.jsonl", "f.pdf",
    ]  # fmt: skip


@pytest.mark.unit
def test_the_card_that_is_killed_and_the_one_that_is_mutated_are_right(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    for card in (kills.CARD, mutations.CARD):
        path.write_text(yaml.safe_dump(card), encoding="utf-8")
        assert load_card(path).name == card["name"]


@pytest.mark.unit
def test_tracebacks_and_hangs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.argument("what")
    def damaged(what: str) -> None:
        while what == "hangs":
            pass
        if what == "raises":
            raise KeyError(what)
        click.echo("internal error: x" if what == "internal" else "fine")

    monkeypatch.setattr(mutations, "main", damaged)
    monkeypatch.setattr(mutations, "LIMIT", 1)
    found = Mutated()
    for what in ("hangs", "raises", "internal", "fine"):
        mutations.try_input("kind", [what], found)
    assert (found.mutations, found.hangs, found.tracebacks) == (4, 1, 2)
    assert len(found.faults) == 3


STEPS = {"start": 0.2, "data: reading": 0.2, "controls: models": 0.2}


def telling(place: Path, *lines: str, code: int = 0) -> subprocess.Popen[bytes]:
    """Start a process that tells of steps, a tenth of a second apart."""
    told = "".join(f"import time; time.sleep(.1); print({line!r}, file=sys.stderr, flush=True)\n" for line in lines)
    place.mkdir(exist_ok=True)
    with (place / "stderr.txt").open("wb") as errors:
        return subprocess.Popen([sys.executable, "-c", f"import sys\n{told}\nsys.exit({code})"], stderr=errors)


@pytest.mark.unit
def test_a_run_is_waited_for_until_it_comes_to_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = telling(tmp_path / "a", "data: reading: 3%", *["controls: 12 models side by side: 40%"] * 30)
    with pytest.raises(subprocess.TimeoutExpired):
        kills.wait_for_stage(process, tmp_path / "a", STEPS, 2, 0.5)
    assert kills.read_stage(tmp_path / "a") == "controls: models"
    process.kill()
    process.wait()
    ended = telling(tmp_path / "b", "data: reading: 3%", code=3)
    assert kills.wait_for_stage(ended, tmp_path / "b", STEPS, 2, 0.5) == 3
    monkeypatch.setattr(kills, "AT_MOST", 0.3)
    process = telling(tmp_path / "c", *["data: reading: 3%"] * 30)
    with pytest.raises(TimeoutError):
        kills.wait_for_stage(process, tmp_path / "c", STEPS, 2, 0.5)
    process.kill()
    process.wait()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("last", "code", "clean"),
    [("stopped; what was finished is kept", 5, True), ("internal error: ValueError", 5, False), ("stopped", 1, False)],
)
def test_an_interruption_that_is_not_told_as_one_is_seen(tmp_path: Path, last: str, code: int, clean: bool) -> None:
    (tmp_path / "stderr.txt").write_text(f"data: reading: 3%\n{last}\n", encoding="utf-8")
    assert kills.said_how_to_go_on(code, tmp_path) is clean
    assert kills.read_stage(tmp_path) == "data: reading"


@pytest.mark.long
@pytest.mark.property
@pytest.mark.usefixtures("no_pdf")
def test_damaged_input_is_refused_in_a_line() -> None:
    found = mutate(60, 5)
    assert found.mutations == 60
    assert set(found.by_kind) == {"card, bytes", "card, values", "table", "image", "review"}
    assert found.refused["card, bytes"] > 6
    assert (found.tracebacks, found.hangs, found.faults) == (0, 0, [])


@pytest.mark.unit
def test_bytes_are_changed_and_parts_add_up() -> None:
    draw = random.Random(1)
    assert sum(mutations.bytes_changed(b"name: x\n" * 9, draw) != b"name: x\n" * 9 for _ in range(50)) > 40
    killed = [
        Killed(kills=2, lost=1, unclean=1, stages=Counter(a=2)),
        Killed(kills=3, hangs=1, stages=Counter(a=1, b=2)),
    ]
    made = run.summary(killed, [Mutated(mutations=5, tracebacks=2, faults=["x"])])
    assert {k: made[k] for k in ("kills", "mutations", "lost", "different", "unclean", "tracebacks", "hangs")} == {
        "kills": 5, "mutations": 5, "lost": 1, "different": 0, "unclean": 1, "tracebacks": 2, "hangs": 1,
    }  # fmt: skip
    assert made["stages"] == {"a": 3, "b": 2}


@pytest.mark.unit
def test_the_published_run_is_whole_and_the_readme_says_the_same() -> None:
    result = json.loads((ROOT / "results.json").read_text(encoding="utf-8"))
    assert result["kills"] >= 200
    assert result["mutations"] >= 5000
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for key in ("kills", "mutations", "lost", "different", "tracebacks", "hangs"):
        assert f"| {key} | {result[key]} |" in text
