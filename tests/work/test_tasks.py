"""Pieces of work: the same to the byte by however many, whatever is killed; what is damaged is done again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from audit.errors import InputError, UnfinishedError
from audit.progress import Progress
from audit.work.pool import Workers, run_tasks
from audit.work.tasks import Task, list_hash, merge, result_files

pytestmark = pytest.mark.unit
BY = ["image", "layer"]


def squares(block: int, progress: Progress) -> pd.DataFrame:
    """Every task has the products that a model has, and draws nothing but from its key."""
    rng = np.random.default_rng(block)
    x = torch.from_numpy(rng.standard_normal((64, 64)).astype(np.float32))
    for step in range(4):
        x = torch.tanh(x @ x)
        progress(step + 1, 4)
    images = np.arange(block * 8, block * 8 + 8)
    return pd.DataFrame({"image": images[::-1], "layer": 0, "value": x[:8, 0].double().numpy()})


def task(block: int, perform: Callable[[int, Progress], pd.DataFrame] = squares) -> Task:
    return Task(f"block {block}", {"block": block}, 4, 8, lambda progress: perform(block, progress))


def tasks(number: int = 12) -> list[Task]:
    return [task(block) for block in range(number)]


def silent(_done: int, _total: int) -> None:
    """Tell nobody."""


def done(folder: Path, number: int, planned: list[Task] | None = None) -> pd.DataFrame:
    planned = planned or tasks()
    run_tasks(planned, folder, Workers(number), silent)
    return merge(planned, folder, BY)


@pytest.mark.parametrize("number", [2, 7])
def test_any_number_of_workers_gives_the_same_to_the_byte(number: int, tmp_path: Path) -> None:
    one, more = (done(tmp_path / str(n), n) for n in (1, number))
    pd.testing.assert_frame_equal(one, more, rtol=0, atol=0)
    assert one["image"].tolist() == sorted(one["image"])
    for planned in tasks():
        files = [result_files(tmp_path / str(n), planned.key)[0].read_bytes() for n in (1, number)]
        assert files[0] == files[1]


def test_what_is_done_is_not_done_again_and_what_is_damaged_is(tmp_path: Path) -> None:
    before = done(tmp_path, 1)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    cut, changed, lost = (result_files(tmp_path, planned.key) for planned in tasks()[:3])
    cut[1].write_text(cut[1].read_text(encoding="utf-8")[:40], encoding="utf-8")
    changed[0].write_bytes(changed[0].read_bytes() + b"!")
    lost[0].unlink()
    pd.testing.assert_frame_equal(done(tmp_path, 2), before, rtol=0, atol=0)
    again = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert again == {*cut, *changed, *lost}


@pytest.mark.parametrize("number", [1, 2])
def test_where_all_is_done_nothing_is_left_to_do(number: int, tmp_path: Path) -> None:
    before = done(tmp_path, 1)
    pd.testing.assert_frame_equal(done(tmp_path, number), before, rtol=0, atol=0)
    run_tasks([], tmp_path, Workers(number), silent)
    assert len(list(tmp_path.iterdir())) == 2 * len(tasks())


def test_a_result_says_what_it_is(tmp_path: Path) -> None:
    done(tmp_path, 2)
    known = json.loads(result_files(tmp_path, task(0).key)[1].read_text(encoding="utf-8"))
    assert (known["rows"], known["threads"], known["device"]) == (8, 1, "cpu")
    assert set(known) == {"format", "sha256", "rows", "seconds", "device", "threads", "versions"}


def test_a_killed_worker_costs_its_task_and_nothing_else(tmp_path: Path) -> None:
    """Three of twelve tasks kill their worker, the first time."""

    def deadly(block: int, progress: Progress) -> pd.DataFrame:
        mark = tmp_path / f"killed-{block}"
        if block % 5 == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(block, progress)

    planned = [task(block, deadly) for block in range(12)]
    pd.testing.assert_frame_equal(done(tmp_path / "a", 2, planned), done(tmp_path / "b", 1), rtol=0, atol=0)
    assert len(list(tmp_path.glob("killed-*"))) == 3


def test_a_task_that_kills_every_worker_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    def deadly(block: int, progress: Progress) -> pd.DataFrame:
        if block == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(block, progress)

    planned = [task(block, deadly) for block in range(6)]
    with pytest.raises(UnfinishedError, match=r"^block 3: its worker was ended 3 times; .*fewer --workers"):
        run_tasks(planned, tmp_path, Workers(2), silent)
    assert len(merge([t for t in planned if t.name != "block 3"], tmp_path, BY)) == 40


@pytest.mark.parametrize("number", [1, 2])
def test_a_task_that_fails_is_named_and_the_others_are_done(number: int, tmp_path: Path) -> None:
    def failing(block: int, progress: Progress) -> pd.DataFrame:
        if block in (2, 4):
            raise InputError(f"face-{block}.png", "could no longer be read", "restore it")
        return squares(block, progress)

    planned = [task(block, failing) for block in range(6)]
    with pytest.raises(InputError, match=r"^face-2.png: could no longer be read; restore it\n") as told:
        run_tasks(planned, tmp_path, Workers(number), silent)
    assert told.value.__notes__ == ["in the task block 2, and 1 more"]
    assert told.value.where == "face-2.png"
    assert len(merge([t for t in planned if t.name not in ("block 2", "block 4")], tmp_path, BY)) == 32


@pytest.mark.parametrize("number", [1, 2])
def test_progress_is_over_all_workers_and_begins_where_an_earlier_run_ended(number: int, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run_tasks(tasks(3), tmp_path, Workers(1), silent)
    run_tasks(tasks(), tmp_path, Workers(number), lambda done, total: seen.append((done, total)))
    assert (seen[0], seen[-1]) == ((12, 48), (48, 48))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_workers_end_with_their_coordinator(tmp_path: Path) -> None:
    """It is killed while two workers sleep; they are gone soon, and nothing of theirs is left half-written."""

    def sleepy(block: int, _progress: Progress) -> pd.DataFrame:
        (tmp_path / f"pid-{os.getpid()}").touch()
        time.sleep(60)
        return squares(block, _progress)

    coordinator = os.fork()
    if coordinator == 0:
        run_tasks([task(block, sleepy) for block in range(2)], tmp_path / "work", Workers(2), silent)
        os._exit(0)
    deadline = time.monotonic() + 30
    while len(workers := [int(p.name[4:]) for p in tmp_path.glob("pid-*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(coordinator, signal.SIGKILL)
    os.waitpid(coordinator, 0)
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2
    assert not any(map(_alive, workers))


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").split()[2] != "Z"
    except OSError:
        return False


def test_results_are_merged_whole_or_not_at_all(tmp_path: Path) -> None:
    planned = tasks(3)
    run_tasks(planned[:2], tmp_path, Workers(1), silent)
    with pytest.raises(UnfinishedError, match=r"the result of block 2 is missing; run again$"):
        merge(planned, tmp_path, BY)
    twice = [task(0), Task("copy", {"block": "copy"}, 4, 8, lambda progress: squares(0, progress))]
    run_tasks(twice, tmp_path, Workers(1), silent)
    with pytest.raises(UnfinishedError, match="two results have the same image, layer"):
        merge(twice, tmp_path, BY)
    with pytest.raises(ValueError, match="two tasks of a stage have one key"):
        list_hash([task(0), task(0)])


def test_a_result_with_other_rows_than_planned_is_none(tmp_path: Path) -> None:
    short = Task("short", {"block": 0}, 4, 9, lambda progress: squares(0, progress))
    with pytest.raises(UnfinishedError, match=r"^short: gave 8 rows in place of 9"):
        run_tasks([short], tmp_path, Workers(1), silent)
    assert list(tmp_path.iterdir()) == []


def test_ten_thousand_tasks_are_planned_and_merged_in_bounded_time_and_order(tmp_path: Path) -> None:
    """Their results are written by hand: what is tried is the planner and the merge."""
    planned = [
        Task(f"{i}", {"i": i}, 1, 1, lambda progress, i=i: pd.DataFrame({"image": [9_999 - i], "layer": [0]}))  # type: ignore[misc]
        for i in range(300)
    ]
    run_tasks(planned, tmp_path, Workers(1), silent)
    assert merge(planned, tmp_path, BY)["image"].is_monotonic_increasing
    assert len({t.key for t in tasks(10_000)}) == 10_000
