from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    """Set aside what the imports left: statsmodels' multipletests collects garbage at every call."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
