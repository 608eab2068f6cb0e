"""Ray: what tasks become, and, long, two nodes on loopback, one of which is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from audit.errors import InputError, UnfinishedError
from audit.extras import EXTRAS
from audit.progress import Progress
from audit.work.on_ray import OnRay, on_ray
from audit.work.pool import Workers, run_tasks
from audit.work.sending import made_with
from audit.work.settings import TorchSettings
from audit.work.tasks import Task, merge, result_files
from tests.work.test_shards import bad, counted, imports_what_is_not_there, lacks_a_package, quiet

pytestmark = [pytest.mark.unit, pytest.mark.cluster]
N = 24


def slow(block: int, *, progress: Progress) -> pd.DataFrame:
    time.sleep(0.5)
    return counted(block, progress=progress)


def tasks() -> list[Task]:
    return [Task(f"block {i}", {"block": i}, 1, 1, partial(slow, i), portable=True) for i in range(N)]


class LostError(Exception):
    """Anything that Ray raises."""


class OfTaskError(LostError):
    """What a task has raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class StandIn:
    """Has of Ray what is used of it, in this process: the quick tests start no cluster."""

    exceptions = SimpleNamespace(
        RayError=LostError,
        RayTaskError=OfTaskError,
        WorkerCrashedError=LostError,
        NodeDiedError=LostError,
        OutOfMemoryError=LostError,
    )

    def put(self, what: Any) -> Any:
        return what

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **_options: Any) -> Callable[[Callable[..., Any]], Any]:
        return lambda work: SimpleNamespace(remote=partial(partial, work))

    def wait(self, given: list[Any], **_options: Any) -> tuple[list[Any], list[Any]]:
        return given[:1], given[1:]

    def get(self, reference: partial[Any]) -> Any:
        try:
            return reference()
        except Exception as error:
            raise OfTaskError(error) from error


def test_tasks_are_done_or_told_and_a_node_that_cannot_do_any_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = [Task(f"{i}", {"block": i}, 1, 1, partial(counted, i), portable=True) for i in range(5)]
    workers = Workers(1, executor=OnRay(StandIn(), "cpu"))
    monkeypatch.setattr(TorchSettings, "take", lambda _self: None)  # this process goes on
    monkeypatch.setitem(EXTRAS, "no_such_package", "none")
    told: list[int] = []
    run_tasks(fast, tmp_path / "ray", workers, lambda done, _total: told.append(done))
    run_tasks(fast, tmp_path / "one", Workers(1), quiet)
    for task in fast:
        ray, one = (result_files(tmp_path / name, task.key)[0].read_bytes() for name in ("ray", "one"))
        assert ray == one
    assert (told[:5], len(list((tmp_path / "ray").iterdir()))) == ([1, 2, 3, 4, 5], 10)
    with pytest.raises(ValueError, match="block 9 is odd"):
        run_tasks([Task("9", {"block": 9}, 1, 1, partial(bad, 9), portable=True)], tmp_path / "ray", workers, quiet)
    with pytest.raises(InputError, match=r"^--ray: no node of the cluster has a GPU; add one, or choose another"):
        run_tasks(fast, tmp_path / "none", Workers(1, "cuda", executor=OnRay(StandIn(), "cuda")), quiet)
    with monkeypatch.context() as unseen:
        unseen.setattr("audit.work.on_ray.is_done", lambda *_: False)
        with pytest.raises(InputError, match=r"^--ray: a node wrote the result of \d where this machine does not"):
            run_tasks(fast, tmp_path / "unseen", workers, quiet)
    for perform, said in (
        (
            lacks_a_package,
            r"^model.name: needs no_such_package, which is not installed; pip install 'vit-audit\[none\]'",
        ),
        (
            imports_what_is_not_there,
            r"^--ray: a node cannot import what tasks need \(No module named 'no_such_package'\)",
        ),
    ):
        lacking = [Task(f"{i}", {said: i}, 1, 1, partial(perform, i), portable=True) for i in range(3)]
        with pytest.raises(InputError, match=said):
            run_tasks(lacking, tmp_path / "lacking", workers, quiet)
    assert not list((tmp_path / "lacking").iterdir())
    monkeypatch.setattr("audit.work.on_ray.made_with", lambda: made_with() | {"torch": "0.1"})
    with pytest.raises(InputError, match=r": torch is .* here, and 0.1 where the run was planned; install the same"):
        run_tasks(fast, tmp_path / "other", workers, quiet)
    assert not list((tmp_path / "other").iterdir())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a head and a second node."""
    found = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield found
    found.shutdown()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_node_is_lost_and_the_results_are_those_of_one_process_to_the_byte(cluster: Any, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    lost: list[int] = []

    def told(done: int, total: int) -> None:
        if done >= 4 and not lost:
            lost.append(done)
            cluster.remove_node(second, allow_graceful=False)

    with on_ray(cluster.address, "cpu") as executor:
        run_tasks(tasks(), tmp_path / "ray", Workers(1, executor=executor), told)
        failing = [Task("block 9", {"block": 9, "bad": True}, 1, 1, partial(bad, 9), portable=True)]
        with pytest.raises(ValueError, match="block 9 is odd"):
            run_tasks(failing, tmp_path / "ray", Workers(1, executor=executor), quiet)
    assert lost
    fast = [Task(t.name, t.made_of, 1, 1, partial(counted, i)) for i, t in enumerate(tasks())]
    run_tasks(fast, tmp_path / "one", Workers(1), quiet)
    for task in fast:
        ray, one = (result_files(tmp_path / name, task.key)[0].read_bytes() for name in ("ray", "one"))
        assert ray == one
    assert len(merge(tasks(), tmp_path / "ray", ["image"])) == N


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_node_with_another_version_and_a_cluster_without_an_accelerator_are_a_line(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        on_ray(cluster.address, "cuda") as executor,
        pytest.raises(InputError, match="no node of the cluster has"),
    ):
        run_tasks(tasks(), tmp_path, Workers(1, "cuda", executor=executor), quiet)
    monkeypatch.setattr("audit.work.on_ray.made_with", lambda: made_with() | {"torch": "0.1"})
    with (
        on_ray(cluster.address, "cpu") as executor,
        pytest.raises(InputError, match=r"torch is .* here, and 0.1"),
    ):
        run_tasks(tasks(), tmp_path, Workers(1, executor=executor), quiet)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_an_address_where_no_cluster_is_ends_in_a_line() -> None:
    pytest.importorskip("ray")
    said = r"^--ray 127.0.0.1:9: no Ray cluster answers there"
    with pytest.raises(UnfinishedError, match=said), on_ray("127.0.0.1:9", "cpu"):
        pass
