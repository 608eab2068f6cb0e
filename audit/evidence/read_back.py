"""What the largest writers of a gap read: a writer's row of the sum as a sum over what was written before it.

Whatever a source wrote counts from its mean, token by token, over the images of the same label, as in the first sum.
What differs between images in what is held - an attention pattern, gates, the scales of norms, the other classes - is a
row of its own, so that the rows of a writer sum to its gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.bootstrap import draw_bootstrap, gaps_and_shares
from audit.evidence.disparity import Question, label_shares
from audit.evidence.ledgers import CLIP, CLOSES, counted_images, laid_out, near_the_decision
from audit.evidence.stats import Array, Codes, excludes_zero
from audit.evidence.stored_rows import Rows, by_image
from audit.patching.contributions import Array as Floats
from audit.patching.contributions import Component, Contributions
from audit.records import (
    Contrast,
    ContrastRow,
    Estimate,
    LedgerImages,
    LedgerRow,
    Metric,
    PartKind,
    ReadMap,
    ReadRow,
    ReadWriter,
    WhyNotRead,
)

WRITERS = 3  # of a gap, at most, whose reading is asked
PREFIX = -1  # in place of row and column, of tokens that are of no patch


@dataclass(frozen=True)
class Asked:
    """A gap that was detected, and the parts whose reading is asked."""

    question: Question
    contrast: Contrast
    gap: ContrastRow  # in rates
    writers: tuple[Component, ...]
    has_slices: bool = False  # whether it is of a convolutional network


@dataclass(frozen=True)
class Readings:
    """What K sources add to what their writers write into the log-odds of O outcomes, for each of N images."""

    entries: tuple[tuple[Component, Component], ...]  # writer and source, K
    outcomes: tuple[str, ...]
    values: npt.NDArray[np.floating]  # (N, K, O), nats

    def of(self, writer: Component, outcome: str) -> dict[Component, Floats]:
        """Return the sources of a writer, and what each adds (N,), as it is held."""
        place = self.outcomes.index(outcome)
        return {source: self.values[:, i, place] for i, (own, source) in enumerate(self.entries) if own == writer}


def largest_writers(ledger: Sequence[LedgerRow], contrast: str, outcome: str) -> tuple[Component, ...]:
    """Return the heads and MLPs that write most of a gap beyond noise: near the decision, where there is that sum."""
    parts = [r for r in ledger if (r.contrast, r.outcome, r.level) == (contrast, outcome, "part")]
    near = [r for r in parts if r.among != "all"]
    shown = [
        r
        for r in (near if any(r.gap.value for r in near) else parts)
        if r.part in (PartKind.HEAD, PartKind.MLP) and r.gap.value is not None and excludes_zero(r.gap)
    ]
    largest = sorted(shown, key=lambda r: -abs(r.gap.value or 0.0))[:WRITERS]
    return tuple(Component(PartKind(r.part), r.layer, r.head) for r in largest if r.part is not None)


def gather_read(table: Rows, outcomes: Sequence[str]) -> Readings:
    """Put together what was stored of what writers read.

    Parameters
    ----------
    table : Rows
        A row for each image, writer and source, image by image: ``recipient``, ``part``, ``layer``, ``head``,
        ``read_part``, ``read_layer``, ``read_head`` (-1: none) and ``m:<outcome>``.
    outcomes : sequence of str
    """
    names = ["part", "layer", "head", "read_part", "read_layer", "read_head"]
    _, named, values = by_image(table, names, [f"m:{name}" for name in outcomes])
    rows = named.itertuples(index=False, name=None)
    entries = tuple((_component(*row[:3]), _component(*row[3:])) for row in rows)
    return Readings(entries, tuple(outcomes), values)


def _component(kind: str, layer: int, index: int) -> Component:
    return Component(PartKind(kind), *(None if at < 0 else int(at) for at in (layer, index)))


def judge_read(
    readings: Readings | WhyNotRead,
    contributions: Contributions,
    frame: pd.DataFrame,
    asked: Sequence[Asked],
    *,
    resamples: int,
    seed: int,
) -> tuple[list[ReadWriter], list[ReadRow]]:
    """Give the row that each of the largest writers has in the sum of a gap as a sum over what it read.

    Parameters
    ----------
    readings : Readings or WhyNotRead
        Of N images; or why there are none.
    contributions : Contributions
        Of the same images, centred on the means of their labels.
    frame : pandas.DataFrame
        The same images: ``label``, ``subject``, and the columns of the attributes.
    asked : sequence of Asked
    resamples, seed : int
        Of the bootstrap: those of the sum of which the writers are rows.

    Returns
    -------
    tuple of list
        Writers, and the rows of what they read; a writer without rows says why.
    """
    writers: list[ReadWriter] = []
    rows: list[ReadRow] = []
    for one in asked:
        named = {"contrast": str(one.contrast), "outcome": one.gap.outcome}
        if not one.writers:
            reason = WhyNotRead.SLICES if one.has_slices else WhyNotRead.NO_WRITER
            writers.append(ReadWriter(**named, metric=one.gap.metric, among="all", why_not=reason))
            continue
        sums = _Sums.of(contributions, frame, one, resamples=resamples, seed=seed)
        for writer in one.writers:
            found, of_writer = _of_writer(readings, contributions, sums, writer, named)
            writers += found
            rows += of_writer
    return writers, rows


@dataclass(frozen=True)
class _Sums:
    """The images of one gap, and what its estimates have in common."""

    asked: Asked
    rows: npt.NDArray[np.int64]  # images of both groups that count
    beyond: Array  # their log-odds, from where the decision lies
    frame: pd.DataFrame  # of these images
    shares: Mapping[str, float]
    resamples: int
    seed: int

    @classmethod
    def of(cls, contributions: Contributions, frame: pd.DataFrame, asked: Asked, *, resamples: int, seed: int) -> _Sums:
        counted, some = counted_images(frame, asked.gap)
        pair = some[asked.question.attribute].isin([asked.contrast.group, asked.question.reference]).to_numpy()
        rows = np.flatnonzero(counted)[pair]
        beyond = contributions.from_decision(asked.gap.outcome)[rows]
        return cls(asked, rows, beyond, some[pair], label_shares(some, asked.question), resamples, seed)

    def estimates(self, parts: Sequence[Floats]) -> list[tuple[LedgerImages, list[Estimate], list[Estimate]]]:
        """Return gaps and shares of parts (N,), the first of them the whole, over all images and near the decision."""
        effects = laid_out(self.frame, self.asked.question, self.asked.contrast.group, dict(self.shares))
        bootstrap = draw_bootstrap(effects, resamples=self.resamples, seed=self.seed)
        near = np.abs(self.beyond) <= CLIP

        def values(part: Floats) -> Array:
            return np.asarray(part[self.rows], dtype=np.float64)

        def inside(part: Floats) -> Array:
            return near_the_decision(values(part), self.beyond, near, effects.label, CLIP)[0]

        kinds: list[tuple[LedgerImages, Callable[[Floats], Array]]] = [("all", values), ("near the decision", inside)]
        columns = [(among, [partial(kind, part) for part in parts]) for among, kind in kinds]
        return [(among, *gaps_and_shares(some, effects, bootstrap)) for among, some in columns]


def _of_writer(
    readings: Readings | WhyNotRead,
    contributions: Contributions,
    sums: _Sums,
    writer: Component,
    named: dict[str, str],
) -> tuple[list[ReadWriter], list[ReadRow]]:
    """Return what is said of one writer, over all images and near the decision."""
    outcome = sums.asked.gap.outcome
    place = contributions.outcomes.index(outcome)
    own = contributions.values[:, contributions.components.index(writer), place]
    sources = {} if isinstance(readings, WhyNotRead) else readings.of(writer, outcome)
    apart = _apart(own, sources.values()) if sources else None
    why_not = readings if isinstance(readings, WhyNotRead) else None if sources else WhyNotRead.NOT_PLAIN
    why_not = why_not if apart is None or apart <= CLOSES else WhyNotRead.NOT_CLOSED
    part = {"part": writer.kind, "layer": writer.layer, "head": writer.index}
    writers: list[ReadWriter] = []
    rows: list[ReadRow] = []
    for among, gaps, shares in sums.estimates([own, *sources.values()]):
        about = {**named, "among": among, **part}
        closure = None if why_not else abs(math.fsum(gap.value or 0.0 for gap in gaps[1:]) - (gaps[0].value or 0.0))
        writers.append(
            ReadWriter(
                **about,
                metric=sums.asked.gap.metric,
                gap=gaps[0],
                closure=closure,
                closure_of_images=apart,
                why_not=why_not,
            )
        )
        if why_not is None:
            rows += [
                ReadRow(**about, source=s.kind, source_layer=s.layer, source_head=s.index, gap=gap, share=share)
                for s, gap, share in zip(sources, gaps[1:], shares[1:], strict=True)
            ]
    return writers, rows


def _apart(whole: Floats, parts: Iterable[Floats]) -> float:
    """Return the largest |sum of parts - whole|, as a share of the largest |whole| or of 1 nat."""
    total = np.zeros(len(whole))
    for part in parts:
        total += part
    return float(np.abs(total - whole).max() / max(1.0, float(np.abs(whole).max())))


def group_weights(
    counts: Codes, labels: Sequence[str], asked: Asked, shares: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """Return what one image of each label counts, (L,)."""
    present = np.maximum(counts, 1)
    metric, outcome = asked.gap.metric, asked.gap.outcome
    if metric == Metric.STANDARDISED_GAP:
        return np.array([shares.get(label, 0.0) for label in labels]) / present
    counted = np.array([(label == outcome) == (metric == Metric.TPR_GAP) for label in labels])
    return counted / max(1, int(counts[counted].sum()))


def maps_read(table: pd.DataFrame) -> list[ReadMap]:
    """Return the difference of the stored means of two groups.

    Parameters
    ----------
    table : pandas.DataFrame
        ``contrast``, ``asked`` (the outcome), ``part``, ``layer``, ``head`` (-1: none), ``side`` ("group" or
        "reference"), ``images``, ``row``, ``column`` (-1: of no patch) and ``value``.
    """
    named, maps = ["contrast", "asked", "part", "layer", "head"], []
    for contrast, outcome, kind, layer, head in table[named].drop_duplicates().itertuples(index=False, name=None):
        rows = table[(table[named] == [contrast, outcome, kind, layer, head]).all(axis=1)]
        sides = dict(iter(rows.groupby("side")))
        gap = sides["group"]["value"].to_numpy() - sides["reference"]["value"].to_numpy()
        places = sides["group"].assign(value=gap)
        prefix = places["row"] == PREFIX
        grid = places[~prefix].pivot(index="row", columns="column", values="value")
        writer = _component(kind, layer, head)
        maps.append(
            ReadMap(
                contrast=str(contrast),
                outcome=str(outcome),
                part=writer.kind,
                layer=int(layer),
                head=writer.index,
                images_group=int(sides["group"]["images"].iloc[0]),
                images_reference=int(sides["reference"]["images"].iloc[0]),
                prefix=float(gap[prefix.to_numpy()].sum()),
                values=[[float(v) for v in line] for line in grid.to_numpy()],
            )
        )
    return maps
