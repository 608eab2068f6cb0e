"""Shares of posted lists: the same to the byte by whoever does them; each way in which machines differ, in one line."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from audit.data.in_memory import DatasetSource
from audit.data.pixels import Images, ImagesHeld, ImagesOnce, ImagesOnDemand, centred_square, load_pixels
from audit.data.sources import FileSource
from audit.errors import InputError, NotWrittenError, UnfinishedError, WaitingError
from audit.extras import EXTRAS, needs
from audit.progress import Progress, silent
from audit.store import check_lock, locked
from audit.work import posted as lists
from audit.work import sending, shards
from audit.work.executors import Elsewhere
from audit.work.pool import Workers, run_tasks
from audit.work.shards import PLAN, Shard, Shards, check_clock, work_on
from audit.work.tasks import Task, merge, result_files
from tests.limits import files_of_at_most

pytestmark = [pytest.mark.unit, pytest.mark.cluster]
N = 7
quiet: Progress = silent("")


def counted(block: int, *, progress: Progress) -> pd.DataFrame:
    progress(1, 1)
    return pd.DataFrame({"image": [block], "value": [float(block) ** 2]})


def bad(block: int, *, progress: Progress) -> pd.DataFrame:
    raise ValueError(f"block {block} is odd")


def tasks(number: int = N) -> list[Task]:
    return [Task(f"block {i}", {"block": i}, 1, 1, partial(counted, i), portable=True) for i in range(number)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run that is laid out."""
    folder = tmp_path / "run"
    (folder / "work" / "stage").mkdir(parents=True)
    (folder / "work" / PLAN).write_text("{}", encoding="utf-8")
    return folder


def planned(run: Path, given: list[Task], *, wait: bool = False) -> None:
    run_tasks(given, run / "work" / "stage", Workers(executor=Shards(wait=wait)), quiet)


def content(folder: Path) -> dict[str, bytes]:
    return {key: result_files(folder, key)[0].read_bytes() for key in (task.key for task in tasks())}


def test_shares_give_what_one_process_gives_to_the_byte(run: Path, tmp_path: Path) -> None:
    run_tasks(tasks(), tmp_path / "one", Workers(1), quiet)
    with pytest.raises(WaitingError, match=r"^run, stage: 7 tasks are to be done; vit-audit work .* --shard I/N"):
        planned(run, tasks())
    assert work_on(run, Shard(1, 2), Workers(1), silent, wait=False) == 4
    with pytest.raises(WaitingError, match="3 tasks are to be done"):
        planned(run, tasks())
    assert work_on(run, Shard.read("2/2"), Workers(1), silent, wait=False) == 3
    assert work_on(run, Shard(2, 2), Workers(1), silent, wait=False) == 0
    planned(run, tasks())
    assert content(run / "work" / "stage") == content(tmp_path / "one")
    assert merge(tasks(), run / "work" / "stage", ["image"])["image"].tolist() == list(range(N))


def test_a_damaged_result_is_posted_again_and_what_holds_images_is_done_by_the_planner(run: Path) -> None:
    own = [replace(task, portable=False) for task in tasks(2)]
    planned(run, own)
    assert not list(run.glob("work/stage/*.tasks"))
    with pytest.raises(WaitingError):
        planned(run, tasks())
    work_on(run, Shard(1, 1), Workers(1), silent, wait=False)
    table, _ = result_files(run / "work" / "stage", tasks()[4].key)
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(WaitingError, match="1 tasks are to be done"):
        planned(run, tasks())


def test_a_task_that_fails_elsewhere_is_tried_by_the_planner_who_tells_why(run: Path) -> None:
    given = [*tasks(2), Task("block 9", {"block": 9}, 1, 1, partial(bad, 9), portable=True)]
    with pytest.raises(WaitingError):
        planned(run, given)
    with pytest.raises(UnfinishedError, match=r"^stage, share 1 of 1: block 9 is odd"):
        work_on(run, Shard(1, 1), Workers(1), silent, wait=False)
    with pytest.raises(ValueError, match="block 9 is odd"):
        planned(run, given)


def test_a_machine_on_which_the_first_tasks_fail_leaves_the_others(run: Path) -> None:
    given = [Task(f"block {i}", {"bad": i}, 1, 1, partial(bad, i), portable=True) for i in range(N)]
    with pytest.raises(WaitingError):
        planned(run, given)
    for tried in (1, 2):
        with pytest.raises(
            UnfinishedError, match=rf"of {N + 1 - tried} tasks 1 failed on this machine, and the others"
        ):
            work_on(run, Shard(1, 1), Workers(1), silent, wait=tried == 2)
        assert len(list(run.glob("work/stage/*.failed"))) == tried


def lacks_a_package(_block: int, *, progress: Progress) -> pd.DataFrame:
    return pd.DataFrame({"image": [needs("no_such_package", "model.name")]})


def imports_what_is_not_there(_block: int, *, progress: Progress) -> pd.DataFrame:
    return pd.DataFrame({"image": [import_module("no_such_package")]})


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("perform", "said"),
    [
        (
            lacks_a_package,
            r"^model.name: needs no_such_package, which is not installed; pip install 'vit-audit\[none\]'",
        ),
        (imports_what_is_not_there, r": cannot import what tasks need \(No module named 'no_such_package'\); install"),
    ],
)
def test_a_machine_without_a_package_marks_no_task_and_ends_with_a_line(
    number: int, perform: Callable[..., pd.DataFrame], said: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRAS, "no_such_package", "none")
    given = [Task(f"block {i}", {"block": i}, 1, 1, partial(perform, i), portable=True) for i in range(N)]
    with pytest.raises(WaitingError):
        planned(run, given)
    with pytest.raises(InputError, match=said) as caught:
        work_on(run, Shard(1, 1), Workers(number), silent, wait=True)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in run.glob("work/stage/*")] == [".tasks"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_machine_whose_disk_is_full_marks_no_task_and_another_does_them(number: int, run: Path) -> None:
    with pytest.raises(WaitingError):
        planned(run, tasks())
    with files_of_at_most(500), pytest.raises(NotWrittenError, match=r"parquet: cannot be written \(File too large\)"):
        work_on(run, Shard(1, 1), Workers(number), silent, wait=True)
    assert [path.suffix for path in run.glob("work/stage/*")] == [".tasks"]
    assert work_on(run, Shard(1, 1), Workers(1), silent, wait=False) == N


def slow(block: int, *, progress: Progress) -> pd.DataFrame:
    time.sleep(0.6)
    return counted(block, progress=progress)


def test_who_waits_gives_up_once_nobody_works_and_not_before(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task takes three times as long as is waited; the clock of the process that does it is three minutes behind."""
    monkeypatch.setattr(shards, "POLL", 0.02)
    monkeypatch.setattr(shards, "BEAT", 0.05)
    given = [Task(f"block {i}", {"block": i}, 1, 1, partial(slow, i), portable=True) for i in range(2)]
    with pytest.raises(WaitingError):
        planned(run, given)
    behind = time.time() - 180
    worker = os.fork()
    if worker == 0:
        try:
            monkeypatch.setattr(time, "time", lambda: behind)
            work_on(run, Shard(1, 2), Workers(1), silent, wait=False)
        finally:
            os._exit(0)
    with pytest.raises(WaitingError) as told:
        run_tasks(given, run / "work" / "stage", Workers(executor=Shards(wait=True, patience=0.2)), quiet)
    os.waitpid(worker, 0)
    assert str(told.value) == (
        "run, stage: 1 tasks are to be done, and for 0.2 s nobody has done any; look whether the workers live, then "
        f"vit-audit work {run} --shard I/N for every I, then vit-audit merge {run} --wait again"
    )
    assert told.value.exit_code == 9
    assert not list(run.glob("work/*.at-work"))
    assert work_on(run, Shard(2, 2), Workers(1), silent, wait=False) == 1


def test_work_in_a_run_that_is_finished_is_none(run: Path) -> None:
    (run / "work" / PLAN).unlink()
    (run / "audit.json").write_text("{}", encoding="utf-8")
    for wait in (False, True):
        assert work_on(run, Shard(1, 1), Workers(1), silent, wait=wait) == 0


@dataclass(frozen=True)
class Sum:
    images: Images

    def __call__(self, *, progress: Progress) -> pd.DataFrame:
        progress(1, 1)
        return pd.DataFrame({"image": [0], "value": [int(self.images[np.array([1, 0, 1])].sum())]})


def test_no_pixel_is_in_a_list_and_the_worker_opens_what_it_needs(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    on_demand = ImagesOnDemand(FileSource(tmp_path), ["a.png", "b.png"], centred_square(16))
    held = ImagesHeld(on_demand, load_pixels(on_demand.source, ["a.png", "b.png"], on_demand.geometry))
    task = Task("sum", {"sum": 0}, 1, 1, Sum(held), portable=True)
    with pytest.raises(WaitingError):
        planned(run, [task])
    (path,) = run.glob("work/stage/*.tasks")
    assert path.stat().st_mode & 0o777 == 0o600
    assert held.pixels[0].tobytes()[:64] not in path.read_bytes()
    (sent,) = sending.unpack(sending.pack([task]), "cpu")
    assert isinstance(sent.perform, Sum)
    assert isinstance(sent.perform.images, ImagesOnce)
    np.testing.assert_array_equal(sent.perform.images[np.array([1, 0, 1])], held[np.array([1, 0, 1])])
    assert sorted(sent.perform.images.held) == [0, 1]
    assert isinstance(pickle.loads(pickle.dumps(held)), ImagesHeld)  # to a process of the same machine it goes as it is
    work_on(run, Shard(1, 1), Workers(1), silent, wait=False)
    planned(run, [task])
    in_memory = ImagesOnDemand(DatasetSource([], {}), [], centred_square(16))
    with pytest.raises(InputError, match=r"^data: images that are held in memory are sent to no other machine; save"):
        planned(run, [Task("sum", {"sum": 1}, 1, 1, Sum(in_memory), portable=True)])


def test_what_machines_differ_in_is_told_in_a_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WaitingError):
        planned(run, tasks())

    def refused(what: str) -> None:
        with pytest.raises(InputError, match=what) as caught:
            work_on(run, Shard(1, 1), Workers(1), silent, wait=False)
        assert "\n" not in str(caught.value)
        assert not list(run.glob("work/stage/*.json"))

    real = sending.made_with()
    for name, said in (("torch", "torch is 0.1 here, and "), ("code", "vit-audit has other source code here than")):
        with monkeypatch.context() as other:
            other.setattr(sending, "made_with", lambda name=name: real | {name: "0.1"})
            refused(said)
    with monkeypatch.context() as other:
        other.setattr(time, "time", lambda: 1e9)
        refused(r": this machine's clock is \d+ s behind its disk's; set both by NTP")
    with monkeypatch.context() as other:
        other.setattr(os, "getuid", lambda: 12345)
        refused("belongs to another user, and tasks are programs; work as the user who planned the run")
    with pytest.raises(InputError, match=r"^--device: the run was planned for cpu, and this works on cuda"):
        work_on(run, Shard(1, 1), Workers(1, "cuda"), silent, wait=False)
    (path,) = run.glob("work/stage/*.tasks")
    path.chmod(0o620)
    refused("may be written by others, and tasks are programs; chmod 600 it, if nobody has")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnfinishedError, match="is damaged; plan again: vit-audit merge RUN"):
        work_on(run, Shard(1, 1), Workers(1), silent, wait=False)


def test_what_must_agree_is_read_once_and_names_what_models_import(monkeypatch: pytest.MonkeyPatch) -> None:
    known = sending.made_with()
    assert known["torchvision"] == version("torchvision")
    assert known["CPU capability"] == torch.backends.cpu.get_cpu_capability()

    def again(*_: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(sending, "source_hash", again)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert "transformers" not in sending.made_with()
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    assert sending.made_with()["transformers"] == version("transformers")


@pytest.mark.parametrize(
    ("planned_with", "said"),
    [
        (
            {"transformers": "0.1"},
            "transformers is .* here, and 0.1 where the run was planned; install the same versions",
        ),
        ({"no-such-package": "2.0"}, "no-such-package is not installed here, and 2.0 where the run was planned"),
        (
            {"CPU capability": "VSX"},
            "CPU capability is .* here, and VSX where .*; take machines with processors of one",
        ),
    ],
)
def test_another_version_of_what_a_model_needs_and_another_processor_are_refused(
    planned_with: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        sending.refuse_others(sending.made_with() | planned_with)
    assert caught.value.of_machine


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/", "-1/2"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--shard: .* write I/N, the first of eight as 1/8"):
        Shard.read(text)


def test_a_folder_that_is_not_laid_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run that is laid out for several machines; lay it out"):
        check_clock(tmp_path)


def test_a_planner_that_comes_back_keeps_the_list_and_a_new_one_takes_done_ones_away(run: Path) -> None:
    folder = run / "work" / "stage"
    first = lists.post(Elsewhere(tasks(), folder, "cpu", 1), again=False)
    assert lists.post(Elsewhere(tasks(3), folder, "cpu", 1), again=False).path == first.path
    again = lists.post(Elsewhere(tasks(), folder, "cpu", 1), again=True)
    assert (again.path, again.rounds) == (first.path, 2)
    assert lists.post(Elsewhere(tasks(3), folder, "cpu", 1), again=True).rounds == 1


def test_a_disk_that_gives_a_lock_twice_or_keeps_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    run = tmp_path / "run"
    with locked(run):
        check_lock(run)
        (run / ".lock").write_text("somebody else", encoding="utf-8")
        with pytest.raises(UnfinishedError, match="another run took this folder, though its disk had given this one"):
            check_lock(run)
    assert (run / ".lock").read_text(encoding="utf-8") == "somebody else"

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UnfinishedError, match=r"its disk keeps no locks \(No locks available\); mount it"), locked(run):
        pass
