"""What statistics hold of each image while they are computed: ten times the images must not take much more memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest

from audit.card.schema import Card
from audit.data.samples import AUDIT_SPLITS, Samples
from audit.data.sources import FileSource
from audit.evidence.stored_rows import StoredRows
from audit.patching.contributions import Component
from audit.pipeline.analyze import EMPTY, judge_rates
from audit.pipeline.context import Scope
from audit.pipeline.judge_ledgers import asked_to_read, judge_reading, judge_writers
from audit.pipeline.run_sweeps import make_plans, what_can_be_asked
from audit.records import AttributeInfo, PartKind
from benchmarks.scale.flat import CARD

pytestmark = [pytest.mark.unit, pytest.mark.scale]
LABELS, TONES = ("neutral", "smiling"), ["darker", "lighter"]
SMALL, LARGE = 2_000, 6_000
AUDITED = CARD | {"audit": CARD["audit"] | {"ledger": {"depth": 2}, "bootstrap": 2_000}}
PARTS = [
    Component(PartKind.TOKENS),
    *(Component(PartKind.HEAD, layer, head) for layer in range(2) for head in range(2)),
    *(Component(PartKind.MLP, layer) for layer in range(2)),
    Component(PartKind.CONSTANT),
]
Values = npt.NDArray[np.float64]
POOLS: list[pa.MemoryPool] = []  # that memory of is still in use somewhere


def scope_of(n: int) -> Scope:
    """Return the questions of the benchmark on so many images, half of which are kept out of training."""
    rng = np.random.default_rng(0)
    keys = [f"faces/{i:07d}.jpg" for i in range(n)]
    label = np.array(LABELS)[rng.integers(2, size=n)]
    split = np.where(np.arange(n) % 2 == 0, "train", np.array(AUDIT_SPLITS)[np.arange(n) // 2 % 2])
    about = {"image": keys, "label": label, "subject": keys, "split": split, "skin_tone": rng.choice(TONES, n)}
    info = AttributeInfo(
        attribute="skin_tone", assigned_by="chance", groups=TONES, reference="lighter", unknown_images=0
    )
    samples = Samples(pd.DataFrame(about).astype(str), FileSource(Path()), LABELS, {"skin_tone": info})
    return Scope(Card.model_validate(AUDITED), Path(), samples, "head")


def answers_of(scope: Scope) -> pd.DataFrame:
    """Return what a model that is mostly right answers to the images kept out of training."""
    frame = scope.samples.frame[scope.samples.frame["split"] != "train"]
    rng = np.random.default_rng(1)
    p = np.where(frame["label"] == "smiling", 0.7, 0.3) + rng.uniform(-0.25, 0.25, len(frame))
    p = np.clip(p - 0.1 * (frame["skin_tone"] == "darker"), 0.01, 0.99)
    called = np.array(LABELS)[(p > 0.5).astype(int)]
    answers = {"recipient": frame.index, "predicted": called, "p:smiling": p, "m:smiling": np.log(p / (1 - p))}
    return pd.DataFrame(answers).assign(seed=0, image=frame["image"].to_numpy())


def written(answers: pd.DataFrame, folder: Path) -> StoredRows:
    """Store what eight parts write into each image's log-odds."""
    sums = answers["m:smiling"].to_numpy()
    values = np.random.default_rng(2).normal(size=(len(sums), len(PARTS)))
    values[:, 1] += sums - values.sum(axis=1)
    return store(folder / "written.parquet", answers["recipient"], [("", PARTS)], values)


def store(path: Path, recipients: pd.Series, named: list[tuple[str, list[Component]]], values: Values) -> StoredRows:
    """Store numbers (N, K) as a run does: a row for each image and part."""
    images, places = values.shape
    columns = {"recipient": np.repeat(recipients.to_numpy(), places)}
    for prefix, parts in named:
        told = {
            "part": [str(c.kind) for c in parts],
            "layer": [c.layer for c in parts],
            "head": [c.index for c in parts],
        }
        columns |= {f"{prefix}{name}": np.tile(pd.Series(of).fillna(-1), images) for name, of in told.items()}
    pd.DataFrame(columns | {"m:smiling": values.reshape(-1)}).to_parquet(path, row_group_size=1024)
    return StoredRows([path])


def rates_prepared(scope: Scope, answers: pd.DataFrame, _folder: Path) -> Callable[[], object]:
    return partial(judge_rates, scope, answers)


def writers_prepared(scope: Scope, answers: pd.DataFrame, folder: Path) -> Callable[[], object]:
    rates = judge_rates(scope, answers)
    assert rates.asked(scope.contrasts)
    return partial(judge_writers, scope, rates, written(answers, folder), EMPTY)


def reading_prepared(scope: Scope, answers: pd.DataFrame, folder: Path) -> Callable[[], object]:
    """Every writer reads of each part an eighth of what it writes."""
    rates, table = judge_rates(scope, answers), written(answers, folder)
    judged = judge_writers(scope, rates, table, EMPTY)
    (asked,) = asked_to_read(scope, rates, judged)
    given = pd.read_parquet(table.files[0])["m:smiling"].to_numpy().reshape(-1, len(PARTS))
    own = np.repeat(given[:, [PARTS.index(writer) for writer in asked.writers]] / len(PARTS), len(PARTS), axis=1)
    entries = [("", [w for w in asked.writers for _ in PARTS]), ("read_", PARTS * len(asked.writers))]
    read = store(folder / "read.parquet", answers["recipient"], entries, own)
    return partial(judge_reading, scope, rates, table, read, None, judged)


def peak_of(work: Callable[[], object]) -> int:
    """Return the bytes that some work takes at once, of Python's and NumPy's memory and of Arrow's."""
    before, own = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    POOLS.append(own)
    pa.set_memory_pool(own)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + int(own.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


Prepare = Callable[[Scope, pd.DataFrame, Path], Callable[[], object]]
# Work, by how many times more images it is measured, and the bytes that an image may take. As many rows as are read at
# once are held anyway; ledgers hold what eight parts write, and what the writers read of each.
WORK: dict[str, tuple[Prepare, int, int]] = {
    "rates of groups": (rates_prepared, 1, 250),
    "what can be asked": (lambda scope, _answers, _folder: partial(what_can_be_asked, scope), 1, 250),
    "who donates to whom": (lambda scope, _answers, _folder: partial(make_plans, scope), 1, 250),
    "who writes a gap": (writers_prepared, 2, 350),
    "what the largest writers read": (reading_prepared, 2, 500),
}


@pytest.mark.parametrize("name", WORK)
def test_an_image_takes_a_few_hundred_bytes(name: str, tmp_path: Path) -> None:
    prepared, times, at_most = WORK[name]
    small, large = times * SMALL, times * LARGE
    peaks = []
    for n in (small, small, large):  # what the first use takes is no part of it
        scope = scope_of(n)
        peaks.append(peak_of(prepared(scope, answers_of(scope), tmp_path)))
    assert (peaks[2] - peaks[1]) / (large - small) < at_most
