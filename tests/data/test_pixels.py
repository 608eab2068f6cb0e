"""Images held or decoded as they are needed: the same bits, whoever decodes them and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from audit.batching import memory_limit
from audit.data.ahead import ahead, in_image_batches
from audit.data.pixels import (
    Cache,
    Images,
    ImagesOnDemand,
    Pixels,
    centred_square,
    fits,
    load_pixels,
    mirrored,
    select,
)
from audit.data.sources import FileSource
from audit.errors import DataError
from audit.models.checkpoint import hash_state
from audit.models.finetune import Recipe, finetune, make_views
from audit.patching.sweep import DonorKind, sweep
from tests.models_for_tests import tiny

pytestmark = pytest.mark.unit
SIZE, N = 32, 20
GEOMETRY = centred_square(SIZE)
EVERY = np.arange(N)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of noise, each another."""
    path = tmp_path_factory.mktemp("noise")
    for i in range(N):
        noise = np.random.default_rng(i).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path / f"{i}.png")
    return path


def on_demand(folder: Path, workers: int = 0) -> ImagesOnDemand:
    return ImagesOnDemand(FileSource(folder), [f"{i}.png" for i in range(N)], GEOMETRY, workers)


def held(folder: Path) -> Pixels:
    images = on_demand(folder)
    return load_pixels(images.source, images.keys, GEOMETRY)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_images_on_demand_are_those_that_are_held(folder: Path) -> None:
    images, pixels = on_demand(folder), held(folder)
    assert len({p.tobytes() for p in pixels}) == N
    assert (len(images), images.shape, images.dtype) == (N, pixels.shape, pixels.dtype)
    for rows in (np.array([7, 3, 3, 19]), slice(2, 9), slice(0), np.array([], dtype=np.int64)):
        assert np.array_equal(images[rows], pixels[rows])


@pytest.mark.parametrize("kind", ["held", "on demand"])
def test_some_rows_and_mirror_images(folder: Path, kind: str) -> None:
    pixels = held(folder)
    images: Images = pixels if kind == "held" else on_demand(folder)
    rows = np.array([5, 2, 11, 2])
    some = select(images, rows)
    assert np.array_equal(some[:], pixels[rows])
    assert np.array_equal(mirrored(some)[np.array([2, 0])], pixels[[11, 5], :, ::-1])
    assert np.array_equal(mirrored(mirrored(images))[:], pixels)
    assert np.array_equal(select(mirrored(some), np.array([1]))[:], pixels[[2], :, ::-1])


def test_an_image_that_is_held_back_is_black_and_never_opened(folder: Path) -> None:
    images = ImagesOnDemand(FileSource(folder), ["0.png", None, "no such.png"], GEOMETRY)
    assert not images[np.array([1])].any()
    with pytest.raises(DataError, match="no such"):
        images[np.array([2])]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whoever_decodes_them(folder: Path, workers: int) -> None:
    images, pixels = on_demand(folder, workers), held(folder)
    rows = np.random.default_rng(0).permutation(N)
    found = in_image_batches(lambda batch: batch.copy(), images, rows, size=3)
    assert [len(batch) for batch in found] == [3] * 6 + [2]
    assert np.array_equal(np.concatenate(found), pixels[rows])
    assert not children()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_opened_is_named_by_whoever_asks(folder: Path, workers: int) -> None:
    whole = on_demand(folder, workers)
    keys = [*whole.keys[:9], "gone.png", *whole.keys[10:]]
    images = ImagesOnDemand(whole.source, keys, GEOMETRY, workers)
    with pytest.raises(DataError, match=r"^gone\.png: missing file; check the path"):
        in_image_batches(len, images, size=2)


def test_a_batch_keeps_the_row_numbers_of_each_view(folder: Path) -> None:
    images, pixels = on_demand(folder, 1), held(folder)
    views = [images, mirrored(images)]
    needed = [[np.array([4, 2]), np.array([9])], [np.array([0]), np.array([3, 3])]]
    for rows, seen in zip(needed, ahead(views, needed), strict=True):
        assert np.array_equal(seen[0][rows[0]], pixels[rows[0]])
        assert np.array_equal(seen[1][rows[1]], pixels[rows[1], :, ::-1])
        assert len(seen[0]) == N


def test_what_is_left_off_leaves_no_process(folder: Path) -> None:
    def first(batches: Iterator[object]) -> int:
        next(batches)
        return len(children())

    batches = ahead([on_demand(folder, 2)], [[np.array([i])] for i in range(N)])
    assert first(batches) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not children()


ENDLESS = """
import signal
import sys
from pathlib import Path
import numpy as np
from audit.data.ahead import ahead
from audit.data.pixels import ImagesOnDemand, centred_square
from audit.data.sources import FileSource

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
images = ImagesOnDemand(FileSource(Path(sys.argv[1])), [f"{i}.png" for i in range(20)], centred_square(32), 2)
for _ in ahead([images], [[np.array([i % 20])] for i in range(10**4)]):
    print("one", flush=True)
    sys.stdin.read(1)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process(folder: Path, how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"one\n"
        workers = psutil.Process(run.pid).children(recursive=True)
        assert len(workers) == 2
        os.kill(run.pid, how)
        run.wait(20)
    end = time.monotonic() + 20
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_images_are_held_while_they_fit(folder: Path) -> None:
    images = on_demand(folder)
    wanted: dict[Cache, bool] = {"memory": True, "none": False, "auto": True}
    assert {cache: fits(images, cache) for cache in wanted} == wanted
    with memory_limit(1):  # nothing is left of it
        assert {cache: fits(images, cache) for cache in wanted} == wanted | {"auto": False}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("train_blocks", [None, 1])
def test_a_model_trains_to_the_same_bits(folder: Path, train_blocks: int | None, workers: int) -> None:
    hashes = []
    for images in (held(folder), on_demand(folder, workers)):
        model = tiny(classes=2)
        recipe = Recipe(2, 8, 1e-3, 0.05, 0.1, seed=0, train_blocks=train_blocks)
        views = make_views(model, [select(images, EVERY), mirrored(images)], train_blocks, kept_at_most=0)
        finetune(model, views, EVERY % 2, recipe)
        hashes.append(hash_state(model.state_dict()))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sweep_gives_the_same_bits(folder: Path, workers: int) -> None:
    model = tiny(classes=2).eval()
    tables = [
        sweep(
            model,
            images,
            EVERY,
            [DonorKind("one", model, np.roll(EVERY, 1)), DonorKind("two", model, np.roll(EVERY, 2))],
            layers=range(2),
            outcomes={"a": 0},
            units=EVERY % 7,
        )
        for images in (held(folder), on_demand(folder, workers))
    ]
    assert tables[0].equals(tables[1])
    assert len(tables[0]) > N
