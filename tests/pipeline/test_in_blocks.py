"""Sweeps and controls in blocks: what one piece finds, and a list of ten thousand blocks in bounded memory."""

from __future__ import annotations

import os
import pickle
import re
import signal
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from audit.batching import memory_limit
from audit.card.schema import AuditSpec, ControlsSpec
from audit.controls.looks import Found, Look, Measure, Measurement, measure_here
from audit.controls.spec import Channel, ChannelSpec
from audit.controls.trials import measure_channels
from audit.errors import MemoryExhaustedError
from audit.models.device import ON_CPU
from audit.models.named import PlainNetwork
from audit.patching.sites import Site, parts_swept
from audit.patching.sweep import DonorKind, sweep, sweep_parts, sweep_together
from audit.pipeline.context import RunContext
from audit.pipeline.in_blocks import (
    PATCH,
    do_blocks,
    estimate_in_blocks,
    measure_in_blocks,
    plan_measurement,
    plan_sweep,
    sweep_parts_in_blocks,
    sweep_sets_in_blocks,
)
from audit.pipeline.run_written import measure_written
from audit.pipeline.train_models import AuditedModels
from audit.records import WhyNoLedger
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
    card = SimpleNamespace(audit=AuditSpec(block=block), controls=ControlsSpec())
    return cast(RunContext, SimpleNamespace(**used, card=card, workers=workers))


@pytest.mark.parametrize(
    "workers",
    [
        Workers(1),
        Workers(2),
        pytest.param(Workers(2, alone=({"DEVICE": "0"}, {"DEVICE": "1"})), marks=[pytest.mark.scale, pytest.mark.long]),
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


def test_blocks_of_parts_find_what_one_sweep_finds(tmp_path: Path) -> None:
    parts, own = parts_swept(MODEL), DONORS[:1]
    blocks = sweep_parts_in_blocks(
        context(tmp_path), "stage", MODEL, ROWS, own, parts=parts, units=UNITS, progress=silent
    )
    whole = sweep_parts(MODEL, PIXELS, ROWS, own, parts=parts, outcomes=OUTCOMES, units=UNITS)
    by = ["position", "set", "direction", "donor_kind"]
    in_order = [t.sort_values(by, ignore_index=True) for t in (pd.concat(blocks, ignore_index=True), whole)]
    pd.testing.assert_frame_equal(*in_order, rtol=0, atol=0)


class Bent(nn.Module):
    """A stage, and logits that bend with how bright it is, beyond some brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.stage, self.linear = nn.Conv2d(3, 8, 16, 16), nn.Linear(32, 3)
        with torch.no_grad():
            self.stage.weight.abs_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        stream = self.stage(images)
        logits: torch.Tensor = self.linear(stream.flatten(1))
        return logits + nn.functional.relu(stream.mean((1, 2, 3)) - 1.0).square()[:, None] * logits.new_tensor(
            [1, -1, 0]
        )


def test_a_network_that_is_no_sum_on_a_later_image_has_no_ledger_and_the_run_goes_on(tmp_path: Path) -> None:
    network = PlainNetwork(Bent().eval(), ["stage"], classifier=None, input_size=(3, 32, 32))
    pixels = np.full((40, 32, 32, 3), 128, dtype=np.uint8)
    pixels[32:] = 255
    frame = pd.DataFrame({"split": "discovery", "image": [str(i) for i in range(40)]})
    needed = {
        "run": tmp_path, "samples": SimpleNamespace(frame=frame), "targets": np.zeros(40, dtype=np.int64),
        "pixels": pixels, "step": lambda _name: silent,
    }  # fmt: skip
    of = cast(RunContext, SimpleNamespace(**(vars(context(tmp_path / "work")) | needed)))
    network.pretrained_cfg |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    models = cast(AuditedModels, SimpleNamespace(primary=network))
    assert measure_written(of, models) is WhyNoLedger.CURVED


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
        found = estimate_in_blocks(
            of, "stage", MODEL, plan, ROWS, kinds, layers=LAYERS, outcomes=of.outcomes, progress=silent
        )
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
    """A mask of all recipients in each would take 256 KB for a thousand, 2.5 MB for ten thousand.

    Of each recipient some 60 bytes, then, of which 24 are rows and an order that all blocks share.
    """
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
    assert peak < 3_000 * blocks


# Controls

CHANNEL = Channel(
    spec=ChannelSpec("colour", "colour", "gray", LAYERS, 2),
    clean=(tiny(seed=11), tiny(seed=12)),
    corrupted=MODEL,
    null=(tiny(seed=13), tiny(seed=14)),
    untrained=tiny(seed=15),
    pixels=PIXELS,
    targets=ROWS % 3,
)
OTHER = replace(CHANNEL, spec=ChannelSpec("blur", "fine detail", "blur", LAYERS, 2), targets=(ROWS + 1) % 3)
MADE_OF = {"models": "whose"}


def looking(work: Path, workers: Workers = ONE, block: int | None = None) -> Look:
    """Return how control models are measured in tasks."""
    of = context(work, workers, block)
    return lambda _at, asked: measure_in_blocks(of, "stage", asked, made_of=MADE_OF, progress=silent)


def measured(look: Look, folder: Path) -> list[bytes]:
    """Measure both channels; return their files."""
    files = []
    for channel in measure_channels([CHANNEL, OTHER], seed=3, look=look):
        channel.save(folder / "measured.npz")
        files.append((folder / "measured.npz").read_bytes())
    return files


@pytest.fixture(scope="module")
def in_one_piece(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return measured(measure_here, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("workers", [Workers(1), Workers(2), Workers(7)])
def test_controls_in_blocks_find_what_one_process_finds_to_the_byte(
    workers: Workers, in_one_piece: list[bytes], tmp_path: Path
) -> None:
    """Each look of both channels is one list of tasks; of both ways, batches hold the same images."""
    looks: list[list[str]] = []
    look = looking(tmp_path, workers)

    def noted(at: str, asked: Sequence[Measurement]) -> dict[str, Found]:
        looks.append([m.name for m in asked])
        return look(at, asked)

    assert measured(noted, tmp_path) == in_one_piece
    assert len(set(in_one_piece)) == 2
    assert [len(names) for names in looks] == [8, 4, 4]
    assert len({name for names in looks for name in names}) == 16


def test_what_controls_measure_can_be_sent_to_other_processes(in_one_piece: list[bytes], tmp_path: Path) -> None:
    def sent(at: str, asked: Sequence[Measurement]) -> dict[str, Found]:
        return measure_here(at, pickle.loads(pickle.dumps(asked)))

    assert measured(sent, tmp_path) == in_one_piece


def struck(measure: Measure, mark: Path, *, images: range) -> Found:
    """Measure, but end this process the first time."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(images=images)


def refused(*, images: range) -> Found:
    raise AssertionError(images)


def test_controls_go_on_after_workers_are_killed_and_nothing_is_measured_twice(
    in_one_piece: list[bytes], tmp_path: Path
) -> None:
    look, marks = looking(tmp_path, Workers(2)), tmp_path / "marks"
    marks.mkdir()

    def deadly(at: str, asked: Sequence[Measurement]) -> dict[str, Found]:
        first, *others = asked
        return look(at, [replace(first, measure=partial(struck, first.measure, marks / at)), *others])

    assert measured(deadly, tmp_path) == in_one_piece
    assert len(list(marks.iterdir())) == 3

    def done(at: str, asked: Sequence[Measurement]) -> dict[str, Found]:
        return look(at, [replace(m, measure=refused) for m in asked])

    assert measured(done, tmp_path) == in_one_piece


def test_what_is_measured_of_controls_is_in_the_key(tmp_path: Path) -> None:
    """What all measurements are made of, what was decided, the images, and how many are taken at once."""
    plain = Measurement("colour", MODEL, range(40), {"shift": ()}, refused, 1)

    def keys(measurement: Measurement = plain, made_of: str = "whose", block: int | None = None) -> set[str]:
        tasks = plan_measurement(context(tmp_path, block=block), measurement, {"models": made_of})
        assert sum(task.rows for task in tasks) == len(measurement.images)
        return {task.key for task in tasks}

    assert len(keys()) == 2
    assert len(keys(replace(plain, whole=True))) == 1
    assert keys() == keys(block=64)  # so many go through at once at most
    for other in (
        keys(replace(plain, name="blur")),
        keys(replace(plain, made_of={"heads": [[0, 1]]})),
        keys(replace(plain, images=range(1, 39))),
        keys(made_of="others'"),
        keys(block=16),
    ):
        assert not other & keys()
    with memory_limit(2**32):
        limited = keys()
    assert not limited & keys()


def test_where_memory_does_not_suffice_for_controls_the_line_names_a_smaller_block(tmp_path: Path) -> None:
    what = r"^\w+, exchanges, block 1 of 2: memory does not suffice; plan smaller blocks: audit.block: 16 in the card$"
    with room_for(20):
        with pytest.raises(MemoryExhaustedError) as told:
            measured(looking(tmp_path / "32"), tmp_path)
        assert len(measured(looking(tmp_path / "16", block=16), tmp_path)) == 2
    assert re.match(what, str(told.value))
