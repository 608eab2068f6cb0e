"""What is recorded of the weights that put a gap there: from hybrids' stored answers to rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.covariates import NO_COVARIATES, Covariates
from audit.evidence.stats import Array, excludes_zero
from audit.evidence.stored_rows import Rows, columns_of, read, some
from audit.evidence.trained import (
    BETWEEN_REFERENCES,
    IN_REFERENCE,
    Along,
    Compared,
    OfSets,
    Trained,
    Values,
    compare,
    ledger_of_paths,
    ledger_of_sets,
)
from audit.patching.parts import Kind, Part
from audit.records import Contrast, HybridOrder, Metric, TrainedRow, TrainedTotal
from audit.units import layers_in

ON_PATHS = (HybridOrder.INPUT_FIRST, HybridOrder.OUTPUT_FIRST)


def judge_trained(
    table: Rows,
    frame: pd.DataFrame,
    asked: Sequence[tuple[Contrast, str, Metric]],
    *,
    resamples: int,
    seed: int,
    covariates: Covariates = NO_COVARIATES,
) -> tuple[list[TrainedTotal], list[TrainedRow]]:
    """Share out each detected gap, in every order that was measured.

    Parameters
    ----------
    table : Rows
        What hybrids answer: ``recipient``, ``reference``, ``order``, ``step``, ``exchanged``, ``players``, ``orders``,
        ``same``, ``predicted``, and ``called:``, ``p:`` and ``m:<outcome>``.
    frame : pandas.DataFrame
        All audited images: ``label``, ``subject`` and attributes.
    asked : sequence of (Contrast, outcome, Metric)
    resamples, seed : int
        Of the bootstrap over subjects.
    covariates : Covariates
        Gaps are adjusted for them besides.

    Returns
    -------
    tuple of list
        Gaps, and their rows; nothing of a gap where the images that were drawn lack a label that counts.
    """
    totals: list[TrainedTotal] = []
    rows: list[TrainedRow] = []
    for contrast, outcome, metric in asked:
        for order in HybridOrder:
            answers = _answers(table, order, outcome)
            if answers.empty:
                continue
            recipients = np.sort(answers["recipient"].unique())
            images = frame.loc[recipients]
            compared = compare(
                images,
                contrast,
                outcome,
                audited=frame,
                metric=metric,
                resamples=resamples,
                seed=seed,
                covariates=covariates,
            )
            if compared.effects.lacks_a_cell:  # among the images that were drawn
                continue
            found = _shared_out(answers, images, compared, outcome, order)
            if found.total.rate.estimate.value is not None:
                totals.append(_total(found, contrast, outcome, metric, order, answers, len(images)))
                rows += _recorded(found, contrast, outcome, order)
    return totals, rows


def _answers(table: Rows, order: HybridOrder, outcome: str) -> pd.DataFrame:
    """Return what hybrids of one order answer, of one outcome."""
    others = [name for name in columns_of(table) if ":" in name and name.partition(":")[2] != outcome]
    columns = [name for name in columns_of(table) if name not in (*others, "order", "image")]
    parts = list(read(some(table, order=str(order)), columns))
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns)


def _shared_out(
    answers: pd.DataFrame, images: pd.DataFrame, compared: Compared, outcome: str, order: HybridOrder
) -> Trained:
    """Put a gap's answers together, and share it out."""
    labels = images["label"].to_numpy()
    parts = {str(name): part for name, part in answers.groupby("reference", sort=False)}
    values = {name: _values(part, labels, outcome) for name, part in parts.items()}
    references = [name for name in parts if name != BETWEEN_REFERENCES]
    if order != HybridOrder.SHAPLEY:
        along = {name: Along(*_players(part), values[name]) for name, part in parts.items()}
        nulls = [along[BETWEEN_REFERENCES]] if BETWEEN_REFERENCES in along else []
        return ledger_of_paths([along[name] for name in references], compared, nulls=nulls)
    first = parts[references[0]].drop_duplicates("step").sort_values("step")
    players = tuple(str(first["players"].iloc[0]).split("|"))
    members = np.array([[bit == "1" for bit in row] for row in first["exchanged"]], dtype=np.bool_)
    drawn = str(first["orders"].iloc[0])
    orders = np.array([order.split(",") for order in drawn.split("|")], dtype=np.int64) if drawn else None
    return ledger_of_sets([OfSets(players, members, orders, values[name]) for name in references], compared)


def _players(part: pd.DataFrame) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    steps = part.drop_duplicates("step").sort_values("step").iloc[1:]
    return tuple(steps["exchanged"]), tuple(bool(same) for same in steps["same"])


def _values(part: pd.DataFrame, labels: npt.NDArray[np.object_], outcome: str) -> Values:
    """Lay answers out by image and hybrid."""

    def wide(column: str) -> Array:
        values: Array = part.pivot(index="recipient", columns="step", values=column).to_numpy()
        return values

    return Values(
        called=wide(f"called:{outcome}").astype(np.bool_),
        probability=wide(f"p:{outcome}").astype(np.float64),
        log_odds=wide(f"m:{outcome}").astype(np.float64),
        right=wide("predicted") == labels[:, None],
    )


def _total(
    found: Trained,
    contrast: Contrast,
    outcome: str,
    metric: Metric,
    order: HybridOrder,
    answers: pd.DataFrame,
    images: int,
) -> TrainedTotal:
    return TrainedTotal(
        contrast=str(contrast),
        outcome=outcome,
        metric=metric,
        order=order,
        images=images,
        references=int((answers["reference"].unique() != BETWEEN_REFERENCES).sum()),
        rate=found.total.rate.estimate,
        probability=found.total.probability.estimate,
        log_odds=found.total.log_odds.estimate,
        adjusted=found.total.rate.adjusted,
        by_training=found.by_training.rate.estimate,
        closure=found.closure["rate"],
    )


def _recorded(found: Trained, contrast: Contrast, outcome: str, order: HybridOrder) -> list[TrainedRow]:
    accuracy = {after.after: after.estimate for after in found.accuracy}
    return [
        TrainedRow(
            contrast=str(contrast),
            outcome=outcome,
            order=order,
            player="" if row.name == IN_REFERENCE else row.name,
            same_weights=row.same_weights,
            rate=row.rate.estimate,
            probability=row.probability.estimate,
            log_odds=row.log_odds.estimate,
            adjusted=row.rate.adjusted,
            between=row.rate.between,
            null=row.rate.null,
            order_error=row.rate.order_error,
            accuracy=accuracy.get("" if row.name == IN_REFERENCE else row.name),
        )
        for row in found.rows
    ]


def layer_to_part(rows: Sequence[TrainedRow]) -> int | None:
    """Return the layer whose attention training changed most, for its heads to be exchanged one by one.

    The mean of its rows of both orders, over all questions; None where no interval of them excludes 0.
    """
    found: dict[int, list[float]] = {}
    sure: set[int] = set()
    for row in rows:
        span = layers_in(row.player)
        if row.order not in ON_PATHS or span is None or row.player != str(Part(Kind.ATTENTION, span[0])):
            continue
        found.setdefault(span[0], []).append(row.rate.value or 0.0)
        if excludes_zero(row.rate):
            sure.add(span[0])
    return max(sure, key=lambda layer: (abs(float(np.mean(found[layer]))), -layer), default=None)
