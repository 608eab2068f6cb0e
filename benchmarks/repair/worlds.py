"""Sealed sets whose truth is known: rates of both models in every cell, images of a person alike or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from audit.evidence.gap_cells import Question
from audit.records import Aim, HarmfulError, Metric

GENDERS, TONES, LABELS = ("female", "male"), ("dark", "light"), ("smile", "frown")
QUESTIONS = [Question("gender", "male", GENDERS), Question("tone", "light", TONES)]
AIM = Aim(
    attribute="gender",
    group="female",
    reference="male",
    outcome="smile",
    metric=Metric.TPR_GAP,
    harm=HarmfulError.BOTH,
)


@dataclass(frozen=True)
class Cell:
    """What both models do in one cell, in shares of images.

    Parameters
    ----------
    wrong : float
        Of the repaired model.
    lost, gained : float
        Newly wrong (a part of ``wrong``) and newly right.
    """

    wrong: float = 0.05
    lost: float = 0.005
    gained: float = 0.005


@dataclass(frozen=True)
class World:
    """Sealed images of as many people in each gender and tone, each with as many images of either label.

    Parameters
    ----------
    images_each : int
        Of either label, for each person.
    alike : float
        Share of images that are answered as one image of their person and label would be, in [0, 1).
    cells : mapping of (gender, tone, label) to Cell
        Where they are not the plain ones; "" stands for any.
    plain : Cell
    """

    images_each: int = 1
    alike: float = 0.0
    cells: Mapping[tuple[str, str, str], Cell] = field(default_factory=dict)
    plain: Cell = Cell()

    def cell(self, gender: str, tone: str, label: str) -> Cell:
        """Return what holds of one cell."""
        for key in ((gender, tone, label), (gender, "", label), ("", tone, label)):
            if key in self.cells:
                return self.cells[key]
        return self.plain

    @property
    def within_subject(self) -> float:
        """Correlation of two images of a person and label."""
        return self.alike**2

    def layout(self, people: int) -> pd.DataFrame:
        """Return the sealed images without predictions: ``people`` in each gender and tone."""
        rows = [
            (gender, tone, f"{gender}-{tone}-{person}", label)
            for gender in GENDERS
            for tone in TONES
            for person in range(people)
            for label in LABELS
            for _ in range(self.images_each)
        ]
        frame = pd.DataFrame(rows, columns=["gender", "tone", "subject", "label"]).astype("category")
        return frame.assign(label=pd.Categorical(frame["label"], LABELS))

    def draw(self, layout: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Draw what both models say of a layout, before and after the repair."""
        n = len(layout)
        block = np.arange(n) // self.images_each
        own, shared = rng.random(n), rng.random(n // self.images_each)[block]
        u = np.where(rng.random(n) < self.alike, shared, own)
        key = block // len(LABELS) // (n // len(LABELS) // self.images_each // (len(GENDERS) * len(TONES)))
        label = block % len(LABELS)
        limits = np.array([_limits(cell) for cell in self._in_order()])[key * len(LABELS) + label]
        what = (u[:, None] >= limits).sum(axis=1)  # 0 newly wrong, 1 wrong as before, 2 newly right, 3 right as before
        before = np.where((what == 1) | (what == 2), 1 - label, label)
        after = np.where(what <= 1, 1 - label, label)
        said = (pd.Categorical(np.array(LABELS)[codes], categories=list(LABELS)) for codes in (before, after))
        first, second = (layout.assign(predicted=answers) for answers in said)
        return first, second

    def _in_order(self) -> Sequence[Cell]:
        return [self.cell(gender, tone, label) for gender in GENDERS for tone in TONES for label in LABELS]


def _limits(cell: Cell) -> tuple[float, float, float]:
    return cell.lost, cell.wrong, cell.wrong + cell.gained
