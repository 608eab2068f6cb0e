"""A control: the audited model answers what the deployed one answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from audit.card.load import resolve
from audit.card.schema import Card
from audit.controls.verdict import MeasuredControl, judge_numbers
from audit.data.pixels import load_pixels
from audit.data.samples import Samples
from audit.data.served import read_served
from audit.models.adapters.registry import Model
from audit.models.device import held_on, in_double
from audit.models.predict import predict_logits
from audit.models.preprocessing import Preprocessing
from audit.models.readout import readout_of

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
    path = resolve(card.model.served, card_path=card_path, data_root=data_root)
    readout = readout_of(model)
    keys = [key for key in samples.keys if key is not None]
    served = read_served(path, card.data.image, samples.labels, keys, exclusive=readout.exclusive).probabilities
    some = served.iloc[np.unique(np.linspace(0, len(served) - 1, MOST, dtype=int))]
    pixels = load_pixels(samples.source, [str(key) for key in some.index], preprocessing.geometry)
    with held_on(device, model):
        answers = predict_logits(model, pixels)
    logits = in_double(torch.from_numpy(answers))
    own = readout.probabilities(logits).numpy()
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
