"""The images of a repair: which rows, decoded; predictions as statistics take them, and how a model does on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from audit.card.load import resolve
from audit.card.schema import Shares
from audit.data.assemble import read_samples
from audit.data.pixels import Images, ImagesOnDemand, fits, load_pixels
from audit.data.samples import UNKNOWN, Samples
from audit.errors import DataError
from audit.evidence.called import is_called_its_label
from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.evidence.stats import combine_cells, rate_interval
from audit.models.device import idle_cores
from audit.models.predict import Floats
from audit.patching.sweep import measure_logits
from audit.pipeline.analyze import predictions, questions
from audit.pipeline.context import RunContext
from audit.pipeline.prepare import still_there
from audit.pipeline.run_sweeps import with_class_names
from audit.records import ContrastRow, Estimate
from audit.records.repair_run import CellChange, Figures
from audit.repair.base import UNKNOWN_GROUP, Split

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Some rows of samples, which may be others than the audited ones."""

    context: RunContext  # with the samples that the rows count into
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, attribute: str, *, opened: bool = True) -> Split:
        """Return the images with what a repair is told of them; those of the whole run where none shall be opened."""
        frame = self.context.samples.frame.iloc[self.rows]
        groups = list(self.context.samples.attributes[attribute].groups)
        codes = pd.Index(groups).get_indexer(pd.Index(frame[attribute])).astype(np.int64)
        return Split(
            self._images() if opened else self.context.pixels,
            self.context.targets[self.rows],
            np.where(codes < 0, UNKNOWN_GROUP, codes),
            pd.factorize(frame["subject"])[0].astype(np.int64),
        )

    def _images(self) -> Images:
        """Decode them, or return what decodes them when they are asked for; held-back images are opened only here."""
        context = self.context
        keys = context.samples.frame["image"].iloc[self.rows].tolist()
        images = ImagesOnDemand(
            context.samples.source, keys, context.preprocessing.geometry, idle_cores(context.compute.device)
        )
        if not fits(images, context.card.data.cache):
            return images
        with still_there(context.samples):
            return load_pixels(context.samples.source, keys, context.preprocessing.geometry)

    def frame(self, logits: Floats) -> pd.DataFrame:
        """Return samples with predictions, a row an image, as :mod:`audit.evidence.disparity` takes them."""
        outcomes = {name: number for number, name in enumerate(self.context.samples.labels)}
        measured = measure_logits(torch.from_numpy(logits), outcomes, self.context.readout)
        table = pd.DataFrame({"recipient": self.rows, "seed": 0, **measured})
        return predictions(self.context, with_class_names(table, self.context.samples.labels), 0)


def figures(part: Part, logits: Floats, before: Floats | None, gap: ContrastRow) -> Figures:
    """Return how a model does on some images: gap, accuracy, and of a repaired one the cell that loses most.

    Parameters
    ----------
    part : Part
    logits, before : numpy.ndarray (N, classes)
        Of the model, and of the audited one where it is another.
    gap : ContrastRow
        Which gap is meant.
    """
    frame = part.frame(logits)
    subjects = pd.factorize(frame["subject"])[0].astype(np.int64)
    right = is_called_its_label(frame)
    cells = [] if before is None else cell_changes(frame, right, is_called_its_label(part.frame(before)), gap.attribute)
    return Figures(
        images=len(frame),
        gap=_gap(part, frame, gap),
        accuracy=rate_interval(right, subjects),
        worst=min(cells, key=lambda cell: cell.change.value or 0.0, default=None),
        loss_shown=loss_shown(cells),
    )


def _gap(part: Part, frame: pd.DataFrame, gap: ContrastRow) -> Estimate:
    asked: Sequence[Question] = [q for q in questions(part.context) if q.attribute == gap.attribute]
    spec, policy = part.context.card.audit, part.context.card.policy
    limits = Thresholds(spec.alpha, 1, policy.impact_ratio_below, policy.gap_above)
    rows = contrasts(frame, asked, [gap.outcome], limits)
    return next(r.estimate for r in rows if (r.group, r.metric) == (gap.group, gap.metric))


def loss_shown(cells: Sequence[CellChange]) -> float:
    """Return the accuracy that some cell is shown to lose: its change's interval ends so far below 0."""
    return max([0.0, *(-cell.change.high for cell in cells if cell.change.high is not None)])


def cell_changes(
    frame: pd.DataFrame, after: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_], attribute: str
) -> list[CellChange]:
    """Return what every group x label cell gains in accuracy, with intervals; images of unknown group are left out."""
    up, down = (after & ~before).astype(np.float64), (before & ~after).astype(np.float64)
    groups, labels = frame[attribute].to_numpy(dtype=object), frame["label"].to_numpy(dtype=object)
    found = []
    for group, label in sorted(set(zip(groups, labels, strict=True)) - {(UNKNOWN, name) for name in set(labels)}):
        rows = np.flatnonzero((groups == group) & (labels == label))
        subjects = pd.factorize(frame["subject"].iloc[rows])[0].astype(np.int64)
        # combine_cells takes outcomes in [0, 1]: the share that is newly right, less the share that is newly wrong
        values, kinds = np.concatenate([up[rows], down[rows]]), np.repeat([0, 1], len(rows))
        change = combine_cells(values, kinds, [1.0, -1.0], np.concatenate([subjects, subjects])).interval()
        found.append(CellChange(group=str(group), label=str(label), change=change))
    return found


def sealed_table(context: RunContext, table: Path) -> Samples:
    """Read other people's images for a certificate, with the card's columns and classes.

    Raises
    ------
    DataError
        If the table cannot serve, or has images or subjects of the audit.
    """
    card = context.card
    data = card.data.model_copy(
        update={
            "reader": "table",
            "path": str(table.resolve()),
            "split": None,
            "plant": [],
            "balance_training": False,
            "labels": card.data.labels if context.training is None else list(context.samples.labels),
            "shares": Shares(train=0.0, discovery=0.5, confirmation=0.5, repair=0.0, sealed=0.0),
        }
    )
    asked = card.model_copy(update={"data": data, "training": "none"})
    path = resolve(str(table), card_path=context.card_path, data_root=context.data_root)
    samples = read_samples(asked, card_path=context.card_path, data_root=context.data_root)
    if samples.labels != context.samples.labels:
        missing = sorted(set(context.samples.labels) - set(samples.labels))
        raise DataError(str(path), f"has no image of {', '.join(missing)}", "seal images of every label")
    for column, what in (("subject", "subjects"), ("image", "images")):
        known = sorted(set(samples.frame[column]) & set(context.samples.frame[column]))
        if known:
            named = f"{len(known)} {what} of the audit are in it (e.g. {', '.join(map(str, known[:3]))})"
            raise DataError(str(path), named, "seal people whom nobody has used")
    return replace(samples, frame=samples.frame.assign(split="sealed"), attributes=context.samples.attributes)
