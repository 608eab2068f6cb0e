"""What statistics hold of each image while they are computed: ten times the images must not take much more memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from audit.card.schema import Card
from audit.data.samples import AUDIT_SPLITS, Samples
from audit.data.sources import FileSource
from audit.pipeline.analyze import judge_rates
from audit.pipeline.context import Scope
from audit.pipeline.run_sweeps import make_plans, what_can_be_asked
from audit.records import AttributeInfo
from benchmarks.scale.flat import CARD

pytestmark = [pytest.mark.unit, pytest.mark.scale]
LABELS, TONES = ("neutral", "smiling"), ["darker", "lighter"]
SMALL, LARGE = 2_000, 6_000
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
    return Scope(Card.model_validate(CARD), Path(), samples, "head")


def answers_of(scope: Scope) -> pd.DataFrame:
    """Return what a model that is mostly right answers to the images kept out of training."""
    frame = scope.samples.frame[scope.samples.frame["split"] != "train"]
    rng = np.random.default_rng(1)
    p = np.where(frame["label"] == "smiling", 0.7, 0.3) + rng.uniform(-0.25, 0.25, len(frame))
    called = np.array(LABELS)[(p > 0.5).astype(int)]
    answers = {"recipient": frame.index, "predicted": called, "p:smiling": p, "m:smiling": np.log(p / (1 - p))}
    return pd.DataFrame(answers).assign(seed=0, image=frame["image"].to_numpy())


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


WORK: dict[str, tuple[Callable[[Scope, pd.DataFrame], object], int]] = {
    "rates of groups": (judge_rates, 250),
    "what can be asked": (lambda scope, _answers: what_can_be_asked(scope), 250),
    "who donates to whom": (lambda scope, _answers: make_plans(scope), 250),
}


@pytest.mark.parametrize("name", WORK)
def test_an_image_takes_a_few_hundred_bytes(name: str) -> None:
    work, at_most = WORK[name]
    peaks = []
    for n in (SMALL, SMALL, LARGE):  # what the first use takes is no part of it
        scope = scope_of(n)
        answers = answers_of(scope)
        peaks.append(peak_of(partial(work, scope, answers)))
    assert (peaks[2] - peaks[1]) / (LARGE - SMALL) < at_most
