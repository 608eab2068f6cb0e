"""The profile of data loading, on a handful of images."""

from __future__ import annotations

import pytest

from benchmarks.finetune.run import jobs, measure

pytestmark = pytest.mark.unit


def test_waiting_is_a_part_of_the_whole() -> None:
    demo, photographs = jobs(16)
    assert photographs.source.open("3").size == (640, 480)
    found = measure(demo, epochs=1)
    assert 0 < found["waiting_share_of_steps"] < 1
    assert 0 < found["waiting_share_of_all"] < 1
    assert found["index_and_convert_seconds"] < found["steps_seconds"]
