"""Kill a run at random moments, start it again, and compare what it ends in with a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
CARD: dict[str, Any] = {
    "name": "Killed",
    "task": "emotion",
    "data": {"reader": "synthetic", "rendered": {"train_images": 120, "audit_images": 160, "association": 0.9}},
    "groups": {"skin_tone": {"column": "skin_tone", "reference": "lighter"}},
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 64,
        "overrides": {"patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4},
    },
    "training": {"seeds": [0], "epochs": 8, "learning_rate": 2e-3},
    "controls": {
        "card": "rendered", "train_images": 400, "eval_images": 96, "base_epochs": 12, "condition_epochs": 6,
        "learning_rate": 1e-3,
    },
    "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200, "min_group_size": 10},
}  # fmt: skip
CODE = "from audit.cli import entry; entry()"  # as the installed command does
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FINISHED = {0, 1, 3, 4}  # exit codes of an audit that came to its end
UNFINISHED = 5
DISTURBED = 8  # signals that a run gets, before it is let to its end
START = "start"  # before a run has told of anything
TOLD = 40  # lines that are kept of a run that ended as it should not
LOOK = 0.02  # seconds between two looks at what a run has told
AT_MOST = 300.0  # seconds until an attempt counts as hanging
EPOCH = "1790000000"  # SOURCE_DATE_EPOCH: all runs begin at one moment


@dataclass
class Killed:
    """What became of all attempts."""

    kills: int = 0
    runs: int = 0
    lost: int = 0  # a finished file unreadable afterwards, or a run that could not resume
    different: int = 0  # another audit.json than that of the run that nobody disturbed
    hangs: int = 0
    unclean: int = 0  # interruptions by SIGTERM or SIGINT that did not end with exit 5 and a line that says so
    stages: Counter[str] = field(default_factory=Counter)  # in which the signal came
    signals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def kill_runs(work: Path, kills: int, seed: int) -> Killed:
    """Disturb runs until so many signals were sent; the last run is let to its end.

    Of each run some steps are drawn, and a moment in each: drawn over the whole time, most moments would fall into the
    longest steps, and those of a run that resumes into the first and the last.

    Parameters
    ----------
    work : pathlib.Path
        A folder for runs and caches; emptied.
    kills : int
    seed : int
        Of the moments and the signals.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    card = work / "card.yaml"
    card.write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")
    code, whole, steps = _undisturbed(work / "whole", card)
    if code not in FINISHED:
        raise SystemExit(f"the undisturbed run ended with {code}; see {work / 'whole'}")
    draw, found = random.Random(seed), Killed()
    while found.kills < kills:
        place = work / f"run-{found.runs}"
        at_most = min(DISTURBED, len(steps), kills - found.kills)
        for wanted in sorted(draw.sample(range(len(steps)), at_most)):
            if _attempt(place, card, steps, wanted, draw, found):
                break
        else:
            _attempt(place, card, steps, None, draw, found)
        found.runs += 1
        records = list(place.glob("out/*/audit.json"))
        if len(records) != 1 or records[0].read_bytes() != whole:
            found.different += 1
            found.faults.append(f"run {found.runs}: another audit.json")
        shutil.rmtree(place)
    return found


def _undisturbed(place: Path, card: Path) -> tuple[int, bytes, dict[str, float]]:
    """Return exit code, record, and the seconds that each step takes, in their order."""
    process = _start(place, card)
    steps: dict[str, float] = {}
    before = begun = time.monotonic()
    while process.poll() is None:
        if before - begun > AT_MOST:
            process.kill()
            raise SystemExit(f"the undisturbed run does not end; see {place}")
        time.sleep(LOOK)
        now, step = time.monotonic(), read_stage(place)
        steps[step] = steps.get(step, 0.0) + now - before
        before = now
    records = list(place.glob("out/*/audit.json"))
    return process.wait(), records[0].read_bytes() if records else b"", steps


def _start(place: Path, card: Path, *, code: str = CODE) -> subprocess.Popen[bytes]:
    place.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ, "VIT_AUDIT_CACHE": str(place / "cache"), "SOURCE_DATE_EPOCH": EPOCH, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-c", code, "run", str(card), "--out", str(place / "out")]
    with (place / "stderr.txt").open("wb") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)


def _attempt(
    place: Path, card: Path, steps: dict[str, float], wanted: int | None, draw: random.Random, found: Killed
) -> bool:
    """Start the run, send a signal at a random moment, and look at what is left.

    Parameters
    ----------
    steps : dict of str to float
        Seconds of each step, in their order.
    wanted : int or None
        The number of the step that the signal is sent in, or in a later one where the run resumes there; None: no
        signal is sent.

    Returns
    -------
    bool
        Whether the run came to its end.
    """
    share, kind = draw.random(), draw.choice(SIGNALS)
    process = _start(place, card)
    try:
        code = process.wait(AT_MOST) if wanted is None else wait_for_stage(process, place, steps, wanted, share)
    except (subprocess.TimeoutExpired, TimeoutError) as error:
        if wanted is None or isinstance(error, TimeoutError):
            process.kill()
            found.hangs += 1
            found.faults.append("an attempt did not end")
            return True
        process.send_signal(kind)
        try:
            code = process.wait(AT_MOST)
        except subprocess.TimeoutExpired:
            process.kill()
            found.hangs += 1
            found.faults.append(f"did not end on {kind.name}")
            code = process.wait()
        found.kills += 1
        stage = read_stage(place)
        found.stages[stage] += 1
        found.signals[kind.name] += 1
        unreadable = list(unreadable_files(place))
        found.lost += bool(unreadable)
        found.faults += unreadable
        if kind != signal.SIGKILL and stage != START and code not in FINISHED and not said_how_to_go_on(code, place):
            found.unclean += 1
            found.faults.append(f"on {kind.name} in {stage}: exit {code}: {_last_lines(place)}")
        return code in FINISHED  # the signal may have come too late
    if code not in FINISHED:
        found.lost += 1
        found.faults.append(f"could not resume, exit {code}: {_last_line(place)}")
        shutil.rmtree(place / "out", ignore_errors=True)
    return code in FINISHED


def wait_for_stage(
    process: subprocess.Popen[bytes], place: Path, steps: dict[str, float], wanted: int, share: float
) -> int:
    """Return the exit code of a run that ends before a share of a step, or of one that follows, is over.

    Raises
    ------
    subprocess.TimeoutExpired
        If it has not ended by then.
    TimeoutError
        If it does not come to the step, nor to its end.
    """
    order, begun = list(steps), time.monotonic()
    while process.poll() is None:
        if time.monotonic() - begun > AT_MOST:
            raise TimeoutError
        step = read_stage(place)
        if _number(order, step, -1) >= wanted:
            return process.wait(share * steps[step])
        time.sleep(LOOK)
    return process.wait()


def said_how_to_go_on(code: int, place: Path) -> bool:
    """Tell whether an interrupted run ended as it should: with exit 5, and a last line that says so."""
    return code == UNFINISHED and _last_line(place).startswith("stopped")


def _number(order: list[str], step: str, otherwise: int) -> int:
    return order.index(step) if step in order else otherwise


def _last_line(place: Path) -> str:
    lines = (place / "stderr.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""


def _last_lines(place: Path) -> str:
    """Return the end of what a run said, from which it can be found out why it ended as it did."""
    return "\n".join((place / "stderr.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-TOLD:])


def read_stage(place: Path) -> str:
    """Return the step that was last told of, without its percentage and how many models there are."""
    lines = (place / "stderr.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    steps = [line for line in lines if not line.startswith(("stopped", "internal error"))]
    told = ":".join(steps[-1].split(":")[:2]).split(" side by side")[0] if steps else START
    return re.sub(r"\b\d+ (model)s?\b", r"\1s", told)


def unreadable_files(place: Path) -> Iterator[str]:
    """Yield every file with a finished name that cannot be read to its end."""
    for path in sorted(p for p in place.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            _read(path)
        except Exception as error:  # whatever a reader raises
            yield f"{path.relative_to(place)}: {type(error).__name__}: {error}"


def _read(path: Path) -> None:
    if path.suffix == ".parquet":
        pd.read_parquet(path)
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                opened.get_tensor(name)
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as held:
            for name in held.files:
                held[name]
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line)
    elif path.suffix == ".pdf" and not path.read_bytes().rstrip().endswith(b"%%EOF"):
        raise ValueError("no end")


TIMED = """
import sys, time
from audit import store
from audit.cli import main

spent, to_disk = [0.0], store._to_disk

def timed(path):
    begun = time.perf_counter()
    to_disk(path)
    spent[0] += time.perf_counter() - begun

store._to_disk = timed
begun = time.perf_counter()
try:
    main()
finally:
    print(spent[0] / (time.perf_counter() - begun), file=sys.stderr)
"""


def durability_share(work: Path) -> float:
    """Return which share of an undisturbed run is spent on waiting until files are on the disk."""
    work.mkdir(parents=True, exist_ok=True)
    card = work / "card.yaml"
    card.write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")
    process = _start(work / "timed", card, code=TIMED)
    if process.wait(AT_MOST) not in FINISHED:
        raise SystemExit(f"the timed run did not finish; see {work}")
    return float(_last_line(work / "timed"))
