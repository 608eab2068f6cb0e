"""What all tests share: one small audit and its trained models in a session, however many processes it has."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests import small_world
from tests.small_world import Invoke, Run, World, write_card


def pytest_collection_finish() -> None:
    """Set aside what the imports left, which no collection of garbage need look at again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter end as it does elsewhere."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> World:
    """Return the folder that all processes of this session share."""
    own = tmp_path_factory.getbasetemp()
    return World(own.parent if hasattr(request.config, "workerinput") else own)


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Return a call of the command line in this process."""
    return small_world.invoke


@pytest.fixture(scope="session")
def small_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the small audit once."""

    def prepare(folder: Path) -> Path:
        return write_card(folder / "card.yaml")

    return world.audited("small", prepare, tmp_path_factory.mktemp("small"))
