"""Sweeps in blocks: what a sweep in one piece finds, and a list of ten thousand blocks in bounded memory."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from audit.batching import memory_limit
from audit.card.schema import AuditSpec
from audit.errors import MemoryExhaustedError
from audit.models.device import ON_CPU
from audit.patching.sites import Site
from audit.patching.sweep import DonorKind, sweep, sweep_together
from audit.pipeline.context import RunContext
from audit.pipeline.in_blocks import PATCH, do_blocks, estimate_in_blocks, plan_sweep, sweep_sets_in_blocks
from audit.work.pool import Workers
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
MODEL, PIXELS, LAYERS, OUTCOMES = tiny(), noise_pixels(40), range(2), {"anger": 0}
ROWS = np.arange(40, dtype=np.int64)
DONORS = [DonorKind("cross", MODEL, ROWS[::-1].copy()), DonorKind("other", tiny(seed=3), np.roll(ROWS, 1))]
UNITS = np.repeat(np.arange(20, dtype=np.int64), 2)[::-1].copy()
ONE = Workers()
HEADS = np.random.default_rng(0).random((40, 8)) < 0.4


def silent(_done: int, _total: int) -> None:
    """Tell nobody."""


def context(work: Path, workers: Workers = ONE, block: int | None = None) -> RunContext:
    """Return of a run what sweeps use."""
    used = {"pixels": PIXELS, "compute": ON_CPU, "outcomes": OUTCOMES, "question": "whose", "work": work}
    card = SimpleNamespace(audit=AuditSpec(block=block))
    return cast(RunContext, SimpleNamespace(**used, card=card, workers=workers))


@pytest.mark.parametrize(
    "workers",
    [
        Workers(1),
        Workers(2),
        pytest.param(Workers(2, alone=({"DEVICE": "0"}, {"DEVICE": "1"})), marks=pytest.mark.scale),
    ],
)
def test_blocks_find_what_one_sweep_finds(workers: Workers, tmp_path: Path) -> None:
    """Of both, batches hold the same recipients, so that they round alike."""
    whole = sweep(MODEL, PIXELS, ROWS, DONORS, layers=LAYERS, outcomes=OUTCOMES, chosen=HEADS, units=UNITS)
    of = context(tmp_path, workers=workers)
    tasks = plan_sweep(of, "stage", MODEL, ROWS, DONORS, layers=LAYERS, chosen=HEADS, units=UNITS)
    found = pd.concat(do_blocks(of, "stage", tasks, silent), ignore_index=True)
    in_order = [table.sort_values(PATCH, ignore_index=True) for table in (found, whole)]
    pd.testing.assert_frame_equal(*in_order, rtol=0, atol=0)
    assert len(found) == 2 * HEADS.sum()


def test_blocks_of_sets_find_what_one_sweep_finds(tmp_path: Path) -> None:
    sets = {"two": [Site(0, 1), Site(1, 2)], "one": [Site(1, 0)]}
    blocks = sweep_sets_in_blocks(
        context(tmp_path), "stage", MODEL, ROWS, DONORS, sets=sets, units=UNITS, progress=silent
    )
    whole = sweep_together(MODEL, PIXELS, ROWS, DONORS, sets=sets, outcomes=OUTCOMES, units=UNITS)
    by = ["position", "set", "donor_kind"]
    found = pd.concat(blocks).sort_values(by, ignore_index=True)
    pd.testing.assert_frame_equal(found, whole.sort_values(by, ignore_index=True), rtol=0, atol=0)


@contextmanager
def room_for(images: int) -> Iterator[None]:
    """Let the model's first layer fail for more than so many images."""

    def allocate(_part: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > images:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    handle = MODEL.patch_embed.register_forward_pre_hook(allocate)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_block_that_memory_does_not_suffice_for_is_not_cut_and_the_line_names_a_smaller_one(
    workers: int, tmp_path: Path
) -> None:
    """Of blocks of 8 up to 16 images go through the recipients' model at once, of blocks of 32 all 40."""

    def swept(block: int | None) -> pd.DataFrame:
        of = context(tmp_path / str(block), Workers(workers), block)
        blocks = do_blocks(of, "stage", plan_sweep(of, "stage", MODEL, ROWS, DONORS, layers=LAYERS), silent)
        return pd.concat(blocks, ignore_index=True).sort_values(PATCH, ignore_index=True)

    whole = swept(None)
    for path in (tmp_path / "None" / "stage").iterdir():
        path.unlink()
    what = r"^stage, block 1 of 2: memory does not suffice; plan smaller blocks: audit.block: 16 in the card$"
    with room_for(20):
        with pytest.raises(MemoryExhaustedError) as told:
            swept(None)
        found = swept(8)
    assert re.match(what, str(told.value))
    pd.testing.assert_frame_equal(found, whole, rtol=1e-5, atol=1e-6)
    assert swept(8).equals(found)


def test_estimates_of_blocks_take_as_few_images_at_once_as_the_card_says(tmp_path: Path) -> None:
    plan = pd.DataFrame(
        {"recipient": ROWS, "cross": ROWS[::-1], "placebo": np.roll(ROWS, 2), "unit": ROWS // 2, "stratum": 0,
         "side": ["group", "reference"] * 20, "label": "smile"}
    )  # fmt: skip

    def estimated(block: int | None) -> pd.DataFrame:
        of = context(tmp_path / str(block), ONE, block)
        kinds = ("cross", "placebo")
        found = estimate_in_blocks(of, "stage", MODEL, plan, ROWS, kinds, layers=LAYERS, progress=silent)
        return pd.concat(found, ignore_index=True)

    whole = estimated(None)
    with room_for(8):
        pd.testing.assert_frame_equal(estimated(8), whole, rtol=1e-4, atol=1e-6)
        with pytest.raises(MemoryExhaustedError, match=r"audit.block: 8 in the card"):
            estimated(16)


def test_what_a_limit_does_is_in_the_key(tmp_path: Path) -> None:
    def keys() -> list[str]:
        return [task.key for task in plan_sweep(context(tmp_path), "stage", MODEL, ROWS, DONORS, layers=LAYERS)]

    plain = keys()
    with memory_limit(2**32):
        limited = keys()
    assert keys() == plain
    assert not set(limited) & set(plain)


def test_what_a_block_is_made_of_is_in_its_key(tmp_path: Path) -> None:
    """Rows, donors, heads, units, the model, the question and the order in which they come."""
    many, heads = np.tile(ROWS, 3), np.tile(HEADS, (3, 1))

    def keys(**changed: Any) -> list[str]:
        given: dict[str, Any] = {"model": MODEL, "recipients": many, "donors": donors(many[::-1]), "chosen": heads}
        about = {name: changed.pop(name) for name in ("question",) if name in changed}
        asked = given | changed
        of = context(tmp_path)
        vars(of).update(about)
        return [
            task.key
            for task in plan_sweep(
                of, "stage", asked["model"], asked["recipients"], asked["donors"], layers=LAYERS, chosen=asked["chosen"]
            )
        ]

    def donors(rows: Any, model: Any = MODEL) -> list[DonorKind]:
        return [DonorKind("cross", model, np.ascontiguousarray(rows))]

    other_heads = heads.copy()
    other_heads[0, 0] ^= True
    plain = keys()
    assert len(set(plain)) == 4
    assert keys() == plain
    assert [a != b for a, b in zip(keys(chosen=other_heads), plain, strict=True)] == [True, False, False, False]
    for changed in (
        {"question": "another"},
        {"model": tiny(seed=5)},
        {"donors": donors(many[::-1], tiny(seed=3))},
        {"recipients": (many + 1) % 40},
        {"donors": donors((many[::-1] + 1) % 40)},
    ):
        assert not set(keys(**changed)) & set(plain), changed


@pytest.mark.scale
@pytest.mark.parametrize("blocks", [1_000, 10_000])
def test_blocks_are_planned_in_memory_of_a_few_kilobytes_each(blocks: int, tmp_path: Path) -> None:
    """A mask of all recipients in each would take 256 KB for a thousand, 2.5 MB for ten thousand."""
    rows = np.arange(32 * blocks, dtype=np.int64)
    donors = [DonorKind("cross", MODEL, rows[::-1].copy())]
    tracemalloc.start()
    try:
        tasks = plan_sweep(context(tmp_path), "stage", MODEL, rows, donors, layers=LAYERS)
        keys = {task.key for task in tasks}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(keys) == blocks
    assert peak < 8_000 * blocks
