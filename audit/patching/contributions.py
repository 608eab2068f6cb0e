"""What each part of a network wrote into each image's log-odds: parts that sum to the whole; no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logsumexp

from audit.errors import ModelError
from audit.records import PartKind, WhyNoLedger

Array = npt.NDArray[np.floating]
Double = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


class NotSummedError(ModelError):
    """A network whose log-odds cannot be given as an exact sum of what was written; ``reason`` says why."""

    def __init__(self, reason: WhyNoLedger, part: str) -> None:
        self.reason = reason
        super().__init__(part, reason.value, "ask for the other ledgers, which need no such sum")


@dataclass(frozen=True, order=True)
class Component:
    """A part of the sum; layers and units are counted from 0."""

    kind: PartKind
    layer: int | None = None
    index: int | None = None


@dataclass(frozen=True)
class Contributions:
    """What K parts add to the log-odds of O outcomes, for each of N images."""

    components: tuple[Component, ...]
    outcomes: tuple[str, ...]
    values: Array  # (N, K, O), nats
    log_odds: Array  # (N, O), nats, of the model's own pass
    # log-odds at which an image begins to be called the outcome, where they are not 0
    decision: tuple[float, ...] = field(default=(), kw_only=True)

    def from_decision(self, outcome: str) -> Double:
        """Return how far each image's log-odds (N,) lie beyond where the decision does, in nats."""
        place = self.outcomes.index(outcome)
        found: Double = self.log_odds[:, place].astype(np.float64)
        return found - self.decision[place] if self.decision else found

    @property
    def closure(self) -> float:
        """Largest |sum - log-odds|, as a share of the largest |log-odds| or of 1 nat."""
        if not self.log_odds.size:
            return 0.0
        apart = np.abs(self.values.sum(axis=1, dtype=np.float64) - self.log_odds).max()
        return float(apart / max(1.0, float(np.abs(self.log_odds).max())))

    def to_frame(self, outcome: str | None = None) -> pd.DataFrame:
        """Return what each part adds to the log-odds of an outcome (by default the first): a row for each image.

        Columns are parts, by kind, layer and index; -1 where a part is in no layer, or the only one of its kind there.
        """
        place = 0 if outcome is None else self.outcomes.index(outcome)
        names = [
            (c.kind.value, -1 if c.layer is None else c.layer, -1 if c.index is None else c.index)
            for c in self.components
        ]
        columns = pd.MultiIndex.from_tuples(names, names=["part", "layer", "index"])
        return pd.DataFrame(self.values[:, :, place], columns=columns)


@dataclass(frozen=True)
class Written(Contributions):
    """What was written, with what its centring needs beside it.

    ``sums`` has each part's share of the logits, divided by the scale that the held norms gave it in each image
    (``scales``), added up over the images of each label. Of a convolutional network each part's share of the log-odds
    stands there, with a scale of 1: gates that are held differ from place to place, and stay with the slices.
    """

    logits: Array  # (N, classes)
    classes: tuple[int, ...]  # the outcomes'
    exclusive: bool  # whether the classes' probabilities sum to 1
    by_class: bool  # whether ``sums`` are of logits
    scales: Array  # (N, K)
    labels: Codes  # (N,)
    sums: Double  # (labels, K, classes); (labels, K, O) of log-odds where parts are not known class by class
    counts: Codes  # (labels,), images

    def centred(self) -> Contributions:
        """Return the same sums with what each part writes counted from its mean over the images of the same label.

        A part's value is ``d_i . w_ki``: what it wrote into image i, along what the held norms and the held other
        classes of that image make of it. It is split into ``d_i . (w_ki - mean w_k)`` and ``d_i . mean w_k``. Between
        images of one label the second differs by ``d_i`` alone; summed over the parts it is the row ``HELD``. So gaps
        of the rows do not depend on where the zero of a part is. Where a norm is taken token by token, w_ki is the
        mean over tokens with the held scales as weights, and d_i has the mean scale: how the scale is spread over the
        tokens stays with the parts. The entropy of the other classes is a number of the image, and is left as it is.
        """
        reference = np.zeros(self.values.shape, dtype=np.float64)
        for label in np.flatnonzero(self.counts):
            rows = np.flatnonzero(self.labels == label)
            mean = self.sums[label] / self.counts[label]  # (K, classes)
            for o, number in enumerate(self.classes):
                along = coefficients(self.logits[rows], number, exclusive=self.exclusive)
                reference[rows, :, o] = (along @ mean.T if self.by_class else mean[:, o]) * self.scales[rows]
        reference[:, [c.kind == PartKind.ENTROPY for c in self.components]] = 0.0
        values = np.concatenate([self.values - reference, reference.sum(axis=1, keepdims=True)], axis=1)
        return Contributions((*self.components, Component(PartKind.HELD)), self.outcomes, values, self.log_odds)


def coefficients(logits: Array, number: int, *, exclusive: bool) -> Double:
    """Return what each logit counts in the log-odds of a class, (N, classes): 1, and -q of the others, held.

    ``m_c = l_c - sum_j q_j l_j - H(q)`` with q the softmax over the other classes, exactly.
    """
    along = np.zeros(logits.shape, dtype=np.float64)
    if exclusive:
        others = np.delete(np.arange(logits.shape[1]), number)
        rest = logits[:, others].astype(np.float64)
        along[:, others] = -np.exp(rest - logsumexp(rest, axis=1, keepdims=True))
    along[:, number] = 1.0
    return along


def joined(parts: Sequence[Written]) -> Written:
    """Return what was written into all images of several parts of a sample, in order."""
    first, labels = parts[0], max(len(p.counts) for p in parts)
    sums = [np.pad(p.sums, ((0, labels - len(p.sums)), (0, 0), (0, 0))) for p in parts]
    counts = [np.pad(p.counts, (0, labels - len(p.counts))) for p in parts]
    return replace(
        first,
        values=np.concatenate([p.values for p in parts]),
        log_odds=np.concatenate([p.log_odds for p in parts]),
        logits=np.concatenate([p.logits for p in parts]),
        scales=np.concatenate([p.scales for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        sums=np.sum(sums, axis=0),
        counts=np.sum(counts, axis=0),
    )
