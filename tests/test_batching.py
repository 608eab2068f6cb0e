"""The allocator is told where there is one to tell; a limit decides how many images are computed at once."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audit import batching
from audit.batching import in_halves
from audit.errors import InputError, MemoryExhaustedError, UnfinishedError
from audit.patching.engine import ROWS_AT_ONCE, rows_at_once
from audit.patching.sweep import RECIPIENTS_AT_ONCE, recipients_at_once
from tests.models_for_tests import tiny

pytestmark = pytest.mark.unit
MIB = 2**20
HOLD = """
import numpy as np
from audit.batching import keep_freed_memory, used
keep_freed_memory()
before = used()
held = [np.ones(8 * 2**20, dtype=np.uint8) for _ in range(9)]
during = used()
del held[:8]
print(before, during, used())
"""
SWEEP = """
import re, sys
import numpy as np, timm, torch
from pathlib import Path
from audit.batching import keep_freed_memory, memory_limit
from audit.patching.sweep import DonorKind, sweep
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
torch.set_num_threads(1)
keep_freed_memory()
limit, images, depth = map(int, sys.argv[1:])
model = timm.create_model("vit_small_patch16_224", num_classes=2, depth=depth).eval().requires_grad_(False)
rows = np.arange(images)
image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
pixels = np.broadcast_to(image, (images, *image.shape))
donors = [DonorKind(k, model, np.roll(rows, i)) for i, k in enumerate(("cross", "placebo"), 1)]
with memory_limit(limit or None):
    sweep(model, pixels, rows, donors, layers=range(depth - 1, depth), outcomes={"a": 0})
print(peak())
"""


def peak_of_sweep(limit: int, images: int, *, depth: int = 2) -> int:
    arguments = [sys.executable, "-c", SWEEP, str(limit), str(images), str(depth)]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def test_glibc_is_told() -> None:
    assert batching.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize(("text", "gib"), [("4G", 4), ("1.5g", 1.5), ("2 GiB", 2), ("2048M", 2), ("1073741824", 1)])
def test_sizes(text: str, gib: float) -> None:
    assert batching.parse_size(text) == gib * 2**30


@pytest.mark.parametrize("text", ["", "four", "-4G", "4X", "512M", "0"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match="--memory"):
        batching.parse_size(text)


def test_memory_in_use_grows_by_what_is_held_and_not_by_what_was_freed() -> None:
    """Nine pieces of 8 MiB, of which the last stays: what lies below it is kept by the C library, and free."""
    printed = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=True).stdout
    before, during, after = (int(n) for n in printed.split())
    assert during - before == pytest.approx(9 * 8 * MIB, rel=0.15)
    assert after - before == pytest.approx(8 * MIB, abs=8 * MIB)


def test_without_a_limit_batches_are_as_large_as_pays() -> None:
    assert recipients_at_once(tiny(), 2) == RECIPIENTS_AT_ONCE
    assert rows_at_once(tiny(), 0) == ROWS_AT_ONCE


def test_a_limit_makes_batches_smaller_and_says_when_nothing_fits() -> None:
    assert batching.max_batch_size(100, 10 * MIB) == 100
    with batching.memory_limit(batching.used() + 105 * MIB):
        assert 8 <= batching.max_batch_size(100, 10 * MIB) <= 10
        assert 3 <= batching.max_batch_size(100, 10 * MIB, share=0.5) <= 5
        with batching.memory_limit(None):
            assert batching.max_batch_size(100, 10 * MIB) == 100
        with pytest.raises(UnfinishedError, match=r"does not fit into .* give --memory"):
            batching.max_batch_size(100, 1000 * MIB)
    assert batching.max_batch_size(100, 10 * MIB) == 100


def test_of_a_plan_sizes_depend_on_the_limit_and_not_on_what_is_left_of_it() -> None:
    with batching.memory_limit(210 * MIB), batching.as_planned():
        assert batching.used() > 105 * MIB
        assert batching.max_batch_size(100, 10 * MIB) == 10
        assert batching.max_batch_size(100, 10 * MIB, share=0.5) == 5
        assert batching.max_batch_size(3, 10 * MIB) == 3
        with pytest.raises(UnfinishedError, match=r"does not fit into 0.2G; give --memory 2.0G or more"):
            batching.max_batch_size(100, 1024 * MIB)


def test_on_an_accelerator_as_many_fit_as_it_has_room_for_and_one_is_always_tried() -> None:
    assert batching.max_batch_size(100, 10 * MIB, free=105 * MIB) == 10
    assert batching.max_batch_size(100, 10 * MIB, share=0.5, free=105 * MIB) == 5
    assert batching.max_batch_size(3, 10 * MIB, free=105 * MIB) == 3
    assert batching.max_batch_size(100, 10 * MIB, free=0) == 1
    with batching.memory_limit(batching.used() + 45 * MIB):
        assert 1 <= batching.max_batch_size(100, 10 * MIB, free=105 * MIB) <= 4


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_a_sweep_stays_within_its_limit() -> None:
    free = peak_of_sweep(0, 32, depth=8)
    limit = int(0.8 * free)
    assert peak_of_sweep(limit, 32, depth=8) <= 1.2 * limit < free


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_ten_times_the_images_take_hardly_more_memory() -> None:
    """Of the last layer's heads, which are quick, and beside the images' own bytes: here they are one image.

    Ten times took 1.03 to 1.09 times as much; where the C library puts things is worth 5% from run to run.
    """
    assert peak_of_sweep(0, 640) <= 1.15 * peak_of_sweep(0, 64)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone grants what it has not")
def test_what_the_machine_has_no_room_for_fails_in_time_and_is_done_in_halves() -> None:
    """Of eight pieces of 64 MiB the machine, as far as it is told, has room for fewer than eight at once."""
    before, tried, done = resource.getrlimit(resource.RLIMIT_DATA), [], []

    def work(part: slice) -> int:
        tried.append(part.stop - part.start)
        torch.empty(tried[-1] * 64 * MIB, dtype=torch.uint8)
        done.append(tried[-1])
        return tried[-1]

    with batching.failing_in_time(room=300 * MIB):
        assert sum(batching.in_batches(work, 8, 8)) == 8
    assert tried[0] == 8
    assert max(done) <= 4
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_room_is_what_machine_and_control_group_leave(tmp_path: Path) -> None:
    for name, text in (
        ("limit", f"{900 * MIB}\n"),
        ("used", f"{600 * MIB}\n"),
        ("memory.stat", f"inactive_file {MIB}\n"),
    ):
        (tmp_path / name).write_text(text, encoding="ascii")
    groups = {"": ("limit", "used", str(tmp_path)), "memory": ("limit", "used", str(tmp_path))}
    whole = batching.available({})
    assert whole > 301 * MIB
    assert batching.available(groups) == 301 * MIB
    (tmp_path / "limit").write_text("max\n", encoding="ascii")
    assert batching.available(groups) == pytest.approx(whole, rel=0.2)


def halved(numbers: list[int]) -> tuple[list[int], list[int]] | None:
    middle = len(numbers) // 2
    return (numbers[:middle], numbers[middle:]) if middle else None


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
              RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryExhaustedError("memory", "x")],
)  # fmt: skip
def test_what_does_not_fit_is_done_in_halves(error: Exception) -> None:
    tried = []

    def work(numbers: list[int]) -> int:
        tried.append(len(numbers))
        if len(numbers) > 3:
            raise error
        return sum(numbers)

    assert sum(in_halves(work, list(range(10)), halved)) == 45
    assert tried == [10, 5, 2, 3, 5, 2, 3]


def test_what_is_planned_is_not_done_in_halves() -> None:
    tried = []

    def work(numbers: list[int]) -> int:
        tried.append(len(numbers))
        raise MemoryError

    with batching.as_planned(), pytest.raises(MemoryError):
        in_halves(work, list(range(10)), halved)
    assert tried == [10]


def test_what_does_not_fit_by_itself_ends_the_run_and_other_errors_are_no_want_of_memory() -> None:
    def never(_numbers: list[int]) -> int:
        raise MemoryError

    with pytest.raises(MemoryExhaustedError, match="does not suffice, with as few images at once as there can be"):
        in_halves(never, [1, 2, 3], halved)

    def wrong(_numbers: list[int]) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_halves(wrong, [1, 2, 3], halved)
