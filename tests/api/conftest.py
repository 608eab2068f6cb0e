"""The API's tests use the cache of the session, and a small rendered base."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.small_world import World


@pytest.fixture(scope="package", autouse=True)
def small_world(world: World) -> Iterator[None]:
    with world.entered():
        yield
