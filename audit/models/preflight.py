"""All that a run will use of its models, opened before anything is trained or patched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit.card.load import resolve
from audit.card.schema import Card, ModelSpec
from audit.data.pixels import load_pixels
from audit.data.samples import Samples
from audit.data.sources import opening_of
from audit.errors import ModelError
from audit.models.adapters.registry import Model
from audit.models.architecture import make_architecture, try_pass
from audit.models.build import Backbone, LoadReport, check_model
from audit.models.checkpoint import check_finite
from audit.models.converters import kept_weights
from audit.models.predict import predict_logits
from audit.models.preprocessing import Preprocessing, preprocessing_of
from audit.models.readout import READING, Readout, readout_of, readout_of_card
from audit.models.weight_sets import State

NOT_FILES = ("pretrained", "rendered", "none")
TRIED = 4  # images


@dataclass(frozen=True)
class Opened:
    """Weights that were opened and fit."""

    field: str  # of the card: "model.weights" or "controls.weights"
    weights: str  # the file or folder, or "pretrained"
    state: State | None  # which of a file's weights
    tensors: int  # how many the model has
    loaded: LoadReport | None = None  # what of a file became the model's


@dataclass(frozen=True)
class PreflightReport:
    """What was opened, and what could not be because the run makes it itself."""

    opened: tuple[Opened, ...]
    # weights that the run trains ("rendered"), draws ("none") or fetches ("pretrained"), by the card's field
    not_opened: Mapping[str, str]
    preprocessing: Preprocessing  # what is done to images before the model sees them
    classes: int  # outputs of the audited model
    images: int  # how many of the audit's own images passed through it, with finite logits
    readout: Readout  # how its logits are read


def preflight_model(
    card: Card,
    *,
    card_path: Path,
    data_root: Path | None,
    samples: Samples | None = None,
) -> PreflightReport:
    """Open and load all weights that a card names, and run the audited model on a few images.

    Pretrained weights are opened where they lie on this machine; none are fetched.

    Parameters
    ----------
    card : Card
        With its class names (``with_class_names``).
    card_path, data_root : pathlib.Path
        Where weights are looked for.
    samples : Samples, optional
        The audit's images and labels; without them a blank image is tried.

    Raises
    ------
    ModelError
        If weights are missing, of another architecture or not finite, hold several sets of which the card names none,
        give another number of outputs than there are classes, or give logits that are not finite.
    """
    check_model(card, card_path=card_path, data_root=data_root)
    classes = _classes_of(card, samples)
    own, taken, preprocessing = _open(card.model, "model.weights", card, classes, card_path, data_root)
    of_controls = preflight_controls(card, classes, card_path=card_path, data_root=data_root)
    opened = tuple(each for each in (taken, of_controls) if each is not None)
    named = {"model.weights": card.model.weights, "controls.weights": card.controls.weights}
    preprocessing = preprocessing.opened(opening_of(card))
    return PreflightReport(
        opened,
        {field: weights for field, weights in named.items() if weights and field not in {o.field for o in opened}},
        preprocessing,
        classes,
        _try_images(own, card.model, samples, preprocessing),
        readout_of(own) if card.training == "none" else readout_of_card(card.model),
    )


def preflight_controls(card: Card, classes: int, *, card_path: Path, data_root: Path | None) -> Opened | None:
    """Open the weights that the control models start from; None where that is what the audited model starts from.

    None also where they are not to be opened yet.
    """
    if card.controls.weights is None:
        return None
    return _open(spec_of_controls(card), "controls.weights", card, classes, card_path, data_root)[1]


def spec_of_controls(card: Card) -> ModelSpec:
    """Return the card's model with the weights that its control models start from."""
    if card.controls.weights is None:
        return card.model
    own = dict.fromkeys(READING)  # of the audited model's classifier
    return card.model.model_copy(update={"weights": card.controls.weights, "state": card.controls.state, **own})


def _classes_of(card: Card, samples: Samples | None) -> int:
    """Return how many outputs the audited model has."""
    if card.training == "none" and card.model.classes is not None:
        return len(card.model.classes)
    labels = samples.labels if samples is not None else card.data.labels
    return 2 if labels is None else len(labels)


def _open(
    spec: ModelSpec,
    field: str,
    card: Card,
    classes: int,
    card_path: Path,
    data_root: Path | None,
) -> tuple[Model, Opened | None, Preprocessing]:
    """Load the weights of a field; where the run makes or fetches them, return a model of random ones."""
    as_is = field == "model.weights" and card.training == "none"
    if spec.weights in NOT_FILES and not (spec.weights == "pretrained" and kept_weights(spec.name)):
        if as_is:
            what = f"'{spec.weights}' with training: none"
            raise ModelError("model.weights", what, "name the weights file to audit")
        model = make_architecture(spec, classes).eval().requires_grad_(False)
        return model, None, preprocessing_of(spec, model)
    path = None if spec.weights in NOT_FILES else resolve(spec.weights, card_path=card_path, data_root=data_root)
    backbone = Backbone(spec, path)
    model, loaded = backbone.build_as_is_reported(classes) if as_is else backbone.build_reported(classes)
    state = None if loaded is None else loaded.state
    file = spec.weights if path is None else str(path)
    opened = Opened(field, file, state, len(model.state_dict()), loaded)
    return model, opened, backbone.preprocessing(model)


def _try_images(model: Model, spec: ModelSpec, samples: Samples | None, preprocessing: Preprocessing) -> int:
    """Run a few images through the model; return how many."""
    if samples is None or not len(samples.frame):
        try_pass(model, model.num_classes)
        return 0
    keys = samples.frame["image"].tolist()[:TRIED]
    logits = predict_logits(model, load_pixels(samples.source, keys, preprocessing.geometry))
    if not np.isfinite(logits).all():
        check_finite(model.state_dict(), spec.weights)
        what = f"its logits of {keys[0]} are not finite, though its weights are"
        raise ModelError("model", what, "correct model.mean and model.std, or audit weights of an earlier epoch")
    return len(keys)
