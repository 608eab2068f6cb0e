"""A control: the audited model answers what the deployed one answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from audit.card.load import resolve
from audit.card.schema import Card
from audit.controls.verdict import MeasuredControl, judge_numbers
from audit.data.pixels import load_pixels
from audit.data.samples import Samples
from audit.data.served import read_served
from audit.models.adapters.registry import Model
from audit.models.black_box import BlackBox
from audit.models.device import held_on, in_double
from audit.models.predict import predict_logits
from audit.models.preprocessing import Preprocessing
from audit.models.readout import readout_of

Rows = npt.NDArray[np.int64]  # of the samples
Floats = npt.NDArray[np.float64]  # probabilities (rows, classes)
SERVED = "served"
MOST = 500  # images that are compared, spread over the file


def compare_served(
    card: Card,
    samples: Samples,
    model: Model,
    preprocessing: Preprocessing,
    *,
    card_path: Path,
    data_root: Path | None,
    device: torch.device,
) -> MeasuredControl | None:
    """Compare a model's answers with those that the card's ``model.served`` holds; None where it names none.

    Raises
    ------
    DataError
        If the table cannot be used.
    """
    if card.model.served is None:
        return None
    readout = readout_of(model)

    def answers(rows: Rows) -> Floats:
        keys = samples.frame["image"].iloc[rows].tolist()
        with held_on(device, model):
            logits = predict_logits(model, load_pixels(samples.source, keys, preprocessing.geometry))
        return readout.probabilities(in_double(torch.from_numpy(logits))).numpy()

    return _compare(card, samples, answers, card_path, data_root, exclusive=readout.exclusive)


def compare_box_served(
    card: Card, samples: Samples, box: BlackBox, *, card_path: Path, data_root: Path | None
) -> MeasuredControl | None:
    """Compare likewise the answers of a model whose inside is not given."""
    if card.model.served is None:
        return None

    def answers(rows: Rows) -> Floats:
        found = box.answer(samples, rows, lambda _done, _total: None).probabilities
        assert found is not None  # of a table of predictions alone, with which a card may name no served answers
        return found

    return _compare(card, samples, answers, card_path, data_root, exclusive=box.readout.exclusive)


def _compare(
    card: Card,
    samples: Samples,
    answers: Callable[[Rows], Floats],
    card_path: Path,
    data_root: Path | None,
    *,
    exclusive: bool,
) -> MeasuredControl:
    """Compare probabilities with those of production, on images spread over its file."""
    assert card.model.served is not None
    path = resolve(card.model.served, card_path=card_path, data_root=data_root)
    keys = [key for key in samples.keys if key is not None]
    served = read_served(path, card.data.image, samples.labels, keys, exclusive=exclusive).probabilities
    some = served.iloc[np.unique(np.linspace(0, len(served) - 1, MOST, dtype=int))]
    rows = pd.Index(samples.frame["image"]).get_indexer(some.index).astype(np.int64)
    own = answers(rows)
    apart = np.abs(own - some.to_numpy())
    differ = int((own.argmax(axis=1) != some.to_numpy().argmax(axis=1)).sum())
    return judge_numbers(
        apart.max(axis=1).tolist(),
        "largest",
        "<=",
        card.model.served_tolerance,
        id=SERVED,
        check=SERVED,
        kind="served",
        figures={"differ": float(differ)},
        n=len(some),
    )
