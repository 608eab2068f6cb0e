"""Pieces of work: the same to the byte by however many, whatever is killed; what is damaged is done again."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from audit.errors import DivergedError, InputError, MemoryExhaustedError, NotWrittenError, UnfinishedError
from audit.progress import Progress
from audit.work.pool import Workers, run_tasks
from audit.work.tasks import Task, do_task, is_done, list_hash, merge, result_files
from tests.limits import files_of_at_most

pytestmark = pytest.mark.unit
BY = ["image", "layer"]

ROWS = 400  # of a task of many
MANY = """
import json, sys, time
from functools import partial
from pathlib import Path

import numpy as np, pandas as pd, pyarrow.parquet as pq

from audit.pipeline.write_rows import write_sorted
from audit.work.pool import Workers, run_tasks
from audit.work.tasks import Task, do_task, read_results, result_files
from benchmarks.scale.flat import Peak


def perform(rows, block, progress):
    return pd.DataFrame({"position": np.arange(rows), **{f"p:{name}": np.zeros(rows) for name in range(8)}})


def silent(done, total):
    pass


def through(folder, rows, n):
    tasks = [Task(f"block {i}", {"block": i}, 1, rows, partial(perform, rows, i)) for i in range(n)]
    do_task(tasks[0], folder, silent, about={})
    for path, first in ((path, path.read_bytes()) for path in result_files(folder, tasks[0].key)):
        for task in tasks[1:-4]:
            path.with_stem(task.key).write_bytes(first)
    begun = time.perf_counter()
    run_tasks(tasks, folder, Workers(2), silent)
    found = (table.assign(position=i + n * table["position"]) for i, table in enumerate(read_results(tasks, folder)))
    write_sorted(folder / "merged", [found], ["position"], rows_at_once=1 << 15)
    assert pq.ParquetFile(folder / "merged").metadata.num_rows == n * rows
    return time.perf_counter() - begun


peak, told = Peak(), []
for number, n in enumerate([int(sys.argv[3]), *map(int, sys.argv[3:])]):  # the first use takes memory of its own
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    peak.begin()
    seconds = through(folder, int(sys.argv[2]), n)
    told.append((peak.mb(), seconds))
print(json.dumps(told))
"""


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
    assert set(known) == {"format", "sha256", "rows", "seconds", "leaves", "device", "threads", "versions"}


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


def test_kills_cost_no_task_while_others_are_done(tmp_path: Path) -> None:
    """The worker of the first task is ended more often than a task is tried, each time once another is done."""
    work = tmp_path / "a"

    def deadly(block: int, progress: Progress) -> pd.DataFrame:
        if block != 0:
            time.sleep(0.02)
        elif len(list(tmp_path.glob("killed-*"))) < 5:
            (tmp_path / f"killed-{time.monotonic_ns()}").touch()
            there = len(list(work.glob("*.json")))
            while len(list(work.glob("*.json"))) == there:
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(block, progress)

    planned = [task(block, deadly) for block in range(60)]
    pd.testing.assert_frame_equal(done(work, 2, planned), done(tmp_path / "b", 1, tasks(60)), rtol=0, atol=0)
    assert len(list(tmp_path.glob("killed-*"))) == 5


def test_a_task_that_kills_every_worker_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    def deadly(block: int, progress: Progress) -> pd.DataFrame:
        if block == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(block, progress)

    planned = [task(block, deadly) for block in range(6)]
    with pytest.raises(UnfinishedError, match=r"^block 3: its worker was ended every time; .*fewer --workers"):
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
@pytest.mark.parametrize("error", [UnfinishedError("face-2.png", "could no longer be read"), ValueError("by chance")])
def test_what_fails_once_is_tried_again_and_nobody_hears_of_it(number: int, error: Exception, tmp_path: Path) -> None:
    def failing(block: int, progress: Progress) -> pd.DataFrame:
        mark = tmp_path / f"failed-{block}"
        if block in (2, 4) and not mark.exists():
            mark.touch()
            raise error
        return squares(block, progress)

    planned = [task(block, failing) for block in range(6)]
    pd.testing.assert_frame_equal(
        done(tmp_path / "a", number, planned), done(tmp_path / "b", 1, tasks(6)), rtol=0, atol=0
    )
    assert len(list(tmp_path.glob("failed-*"))) == 2


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("error", "tries"),
    [(lambda: InputError("card", "is wrong"), 1), (lambda: DivergedError(1, float("nan")), 1),
     (lambda: UnfinishedError("a", "b"), 3), (lambda: ValueError("a fault of the code"), 3)],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again_and_the_rest_goes_on(
    number: int, error: Callable[[], Exception], tries: int, tmp_path: Path
) -> None:
    def failing(block: int, progress: Progress) -> pd.DataFrame:
        if block == 1:
            with (tmp_path / "tried").open("a", encoding="ascii") as file:
                file.write(".")
            raise error()
        return squares(block, progress)

    planned = [task(block, failing) for block in range(4)]
    with pytest.raises(type(error())) as told:
        run_tasks(planned, tmp_path / "work", Workers(number), silent)
    assert told.value.__notes__ == ["in the task block 1"]
    assert (tmp_path / "tried").read_text(encoding="ascii") == "." * tries
    assert len(merge([t for t in planned if t.name != "block 1"], tmp_path / "work", BY)) == 24


@pytest.mark.parametrize("number", [1, 2])
def test_where_the_disk_is_full_it_is_named_and_no_task_is_done_in_vain(number: int, tmp_path: Path) -> None:
    """Some of 24 tasks are tried; what lay there stays, nothing is half-written, and the next run does the rest."""
    begun = tmp_path / "begun"
    begun.mkdir()

    def counted(block: int, progress: Progress) -> pd.DataFrame:
        (begun / f"{block}-{time.monotonic_ns()}").touch()
        return squares(block, progress)

    planned, work = [task(block, counted) for block in range(24)], tmp_path / "work"
    run_tasks(planned[:3], work, Workers(1), silent)
    kept = {path: path.read_bytes() for path in work.iterdir()}
    with files_of_at_most(500), pytest.raises(NotWrittenError) as told:
        run_tasks(planned, work, Workers(number), silent)
    assert re.match(rf"{work}/\w+\.parquet: cannot be written \(File too large\); make room", str(told.value))
    assert {path: path.read_bytes() for path in work.iterdir()} == kept
    assert len(list(begun.iterdir())) < 24
    with pytest.raises(UnfinishedError, match="is missing; run again"):
        merge(planned, work, BY)
    pd.testing.assert_frame_equal(done(work, number, planned), done(tmp_path / "b", 1, tasks(24)), rtol=0, atol=0)


@pytest.mark.parametrize(("number", "begun"), [(1, 1), (2, None)])
def test_where_memory_does_not_suffice_fewer_work_at_once(number: int, begun: int | None, tmp_path: Path) -> None:
    """By itself a task is not tried again: with what others held nothing changes."""

    def failing(block: int, progress: Progress) -> pd.DataFrame:
        mark = tmp_path / f"failed-{block}"
        if block == 0 and not mark.exists():
            mark.touch()
            raise MemoryError
        return squares(block, progress)

    planned = [task(block, failing) for block in range(6)]
    if begun is None:
        assert len(done(tmp_path / "work", number, planned)) == 48
        return
    what = "^block 0: memory does not suffice; take a smaller model or image_size, or a larger machine"
    with pytest.raises(MemoryExhaustedError, match=what):
        run_tasks(planned, tmp_path / "work", Workers(number), silent)
    assert not (tmp_path / "work").exists()


def sees(model: torch.nn.Linear, block: int, progress: Progress) -> pd.DataFrame:
    """Use a model that all tasks share, and say which device this process was given."""
    with torch.no_grad():
        value = float(model(torch.full((1, 2), float(block))).sum())
    time.sleep(0.2)
    return pd.DataFrame({"image": [block], "layer": 0, "value": value, "device": os.environ["STAND_IN"]})


def test_processes_of_several_devices_see_their_own_and_do_the_same(tmp_path: Path) -> None:
    """Environments stand in for devices; processes are spawned, and have everything sent to them."""
    model = torch.nn.Linear(2, 3)
    model.weight.data, model.bias.data = torch.ones(3, 2), torch.arange(3.0)
    planned = [Task(f"{i}", {"block": i}, 1, 1, partial(sees, model, i)) for i in range(8)]
    seen: list[int] = []
    each = tuple({"STAND_IN": name} for name in ("cuda:0", "cuda:1"))
    run_tasks(planned, tmp_path, Workers(2, alone=each), lambda done, _total: seen.append(done))
    found = merge(planned, tmp_path, BY)
    assert set(found["device"]) == {"cuda:0", "cuda:1"}
    assert found["value"].tolist() == [6.0 * i + 3.0 for i in range(8)]
    assert (seen[-1], "STAND_IN" in os.environ) == (8, False)


def test_what_cannot_be_sent_to_several_devices_is_told(tmp_path: Path) -> None:
    each = ({"STAND_IN": "0"}, {"STAND_IN": "1"})
    with pytest.raises(
        InputError, match=r"^--device: what is computed cannot be sent to other processes \(.*one device"
    ):
        run_tasks(tasks(2), tmp_path, Workers(2, alone=each), silent)


def test_no_more_work_at_once_than_there_is_memory_for(tmp_path: Path) -> None:
    def noted(block: int, progress: Progress) -> pd.DataFrame:
        (tmp_path / f"pid-{os.getpid()}").touch()
        time.sleep(0.1)
        return squares(block, progress)

    def planned(memory: int) -> list[Task]:
        return [
            Task(f"{block}", {"block": block, "memory": memory}, 4, 8, partial(noted, block), memory)
            for block in range(6)
        ]

    run_tasks(planned(2**60), tmp_path / "work", Workers(3), silent)
    (pid,) = tmp_path.glob("pid-*")
    assert pid.name != f"pid-{os.getpid()}"
    run_tasks(planned(2**20), tmp_path / "work", Workers(3), silent)
    assert len(list(tmp_path.glob("pid-*"))) > 2


def test_a_table_without_what_is_known_of_it_is_no_result(tmp_path: Path) -> None:
    """The disk is full once the table is written."""
    with files_of_at_most(20_000), pytest.raises(NotWrittenError, match=r"json: cannot be written \(File too large\)"):
        do_task(task(0), tmp_path, silent, about={"note": "x" * 20_000})
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]
    assert not is_done(task(0), tmp_path)
    with pytest.raises(UnfinishedError, match="the result of block 0 is missing"):
        merge([task(0)], tmp_path, BY)
    run_tasks([task(0)], tmp_path, Workers(1), silent)
    assert is_done(task(0), tmp_path)


@pytest.mark.parametrize("number", [1, 2])
def test_where_nothing_can_be_written_the_place_is_named(number: int, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    with pytest.raises(
        NotWrittenError, match=rf"^{tmp_path}/run/work/\w+.parquet: cannot be written \(Not a directory"
    ):
        run_tasks(tasks(3), tmp_path / "run" / "work", Workers(number), silent)


def test_results_of_other_code_are_neither_taken_nor_merged(tmp_path: Path) -> None:
    """The version is part of what a task is made of, as it is in an audit."""

    def of_version(version: int) -> list[Task]:
        return [
            Task(f"block {block}", {"block": block, "version": version}, 4, 8, partial(squares, block + version))
            for block in range(3)
        ]

    old, new = done(tmp_path, 1, of_version(1)), done(tmp_path, 1, of_version(2))
    assert old["image"].tolist() == list(range(8, 32))
    assert new["image"].tolist() == list(range(16, 40))
    assert len(list(tmp_path.iterdir())) == 12
    known = result_files(tmp_path, of_version(1)[0].key)[1]
    changed = json.loads(known.read_text(encoding="utf-8")) | {"format": 0}
    known.write_text(json.dumps(changed), encoding="utf-8")
    assert not is_done(of_version(1)[0], tmp_path)


def test_where_no_process_can_be_started_there_is_a_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 4, before[1]))
    try:
        with pytest.raises(
            UnfinishedError, match=r"^workers: cannot be started \(Too many open files\); .*fewer --workers"
        ):
            run_tasks(tasks(30), tmp_path, Workers(20), silent)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("most", [1_000, pytest.param(10_000, marks=[pytest.mark.scale, pytest.mark.long])])
def test_many_tasks_are_planned_and_merged_in_bounded_memory_and_time(most: int, tmp_path: Path) -> None:
    """Ten times the tasks, most of whose results are written by hand; their tables would take 72 bytes a row."""
    command = [sys.executable, "-c", MANY, str(tmp_path), str(ROWS), str(most // 10), str(most)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    _, (few_mb, few_s), (many_mb, many_s) = json.loads(run.stdout)
    assert many_mb - few_mb < 72 * ROWS * (most - most // 10) / 2**20
    assert many_s < 30 * few_s
