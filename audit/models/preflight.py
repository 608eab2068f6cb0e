"""All that a run will use of its models, opened before anything is trained or patched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit.card.load import resolve
from audit.card.schema import Card, ModelSpec
from audit.data.pixels import load_pixels
from audit.data.samples import Samples
from audit.errors import ModelError
from audit.models.adapters.registry import Model, adapter
from audit.models.architecture import make_architecture, try_pass
from audit.models.build import Backbone, check_model
from audit.models.checkpoint import State, check_finite
from audit.models.converters import is_foreign, read_conversion
from audit.models.predict import predict_logits
from audit.models.readout import READING, Readout, readout_of, readout_of_card

NOT_FILES = ("pretrained", "rendered", "none")
TRIED = 4  # images
EXAMPLES = 3


@dataclass(frozen=True)
class Opened:
    """Weights that were opened and fit.

    Parameters
    ----------
    field : str
        Of the card: "model.weights" or "controls.weights".
    weights : str
        The file or folder, or "pretrained".
    state : {"ema", "raw"} or None
        Which of a file's weights.
    tensors : int
        How many the model has.
    """

    field: str
    weights: str
    state: State | None
    tensors: int


@dataclass(frozen=True)
class PreflightReport:
    """What was opened, and what could not be because the run makes it itself.

    Parameters
    ----------
    opened : tuple of Opened
    not_opened : tuple of str
        Fields of the card whose weights the run trains, draws or fetches.
    side : int
        Of the images, in pixels.
    classes : int
        Outputs of the audited model.
    images : int
        How many of the audit's own images passed through it, with finite logits.
    readout : Readout
        How its logits are read.
    """

    opened: tuple[Opened, ...]
    not_opened: tuple[str, ...]
    side: int
    classes: int
    images: int
    readout: Readout


def preflight_model(
    card: Card,
    *,
    card_path: Path,
    data_root: Path | None,
    samples: Samples | None = None,
    fetch: bool = False,
) -> PreflightReport:
    """Open and load all weights that a card names, and run the audited model on a few images.

    Parameters
    ----------
    card : Card
        With its class names (``with_class_names``).
    card_path, data_root : pathlib.Path
        Where weights are looked for.
    samples : Samples, optional
        The audit's images and labels; without them a blank image is tried.
    fetch : bool
        Whether pretrained weights are fetched too.

    Raises
    ------
    ModelError
        If weights are missing, of another architecture or not finite, hold several sets of which the card names none,
        give another number of outputs than there are classes, or give logits that are not finite; or if the library
        that made the model would show it other pixels.
    """
    check_model(card, card_path=card_path, data_root=data_root)
    classes = _classes_of(card, samples)
    opened: list[Opened] = []
    own, taken = _open(card.model, "model.weights", card, classes, card_path, data_root, fetch=fetch)
    opened += [taken] if taken is not None else []
    closed = [] if taken is not None else [f"model.weights: {card.model.weights}"]
    if card.controls.weights is not None:
        spec = spec_of_controls(card)
        _, of_controls = _open(spec, "controls.weights", card, classes, card_path, data_root, fetch=fetch)
        opened += [of_controls] if of_controls is not None else []
        closed += [] if of_controls is not None else [f"controls.weights: {spec.weights}"]
    tried = _try_images(own, card.model, samples, card_path, data_root)
    readout = readout_of(own) if card.training == "none" else readout_of_card(card.model)
    return PreflightReport(tuple(opened), tuple(closed), adapter(own).side, classes, tried, readout)


def spec_of_controls(card: Card) -> ModelSpec:
    """Return the card's model with the weights that its control models start from."""
    if card.controls.weights is None:
        return card.model
    own = dict.fromkeys(READING)  # of the audited model's classifier
    return card.model.model_copy(update={"weights": card.controls.weights, "state": card.controls.state, **own})


def check_shapes(spec: ModelSpec, samples: Samples, *, card_path: Path, data_root: Path | None) -> None:
    """Raise where the folder's own processor would squash images that the audit crops to a centred square.

    Raises
    ------
    ModelError
        Naming the first images that are not square. Of square images both give the same.
    """
    if not is_foreign(spec.name) or spec.weights in NOT_FILES:
        return
    folder = resolve(spec.weights, card_path=card_path, data_root=data_root)
    if not read_conversion(spec.name, folder).squashes:
        return
    oblong = list(_oblong(samples, samples.frame["image"].tolist()))
    if oblong:
        shown = ", ".join(oblong[:EXAMPLES])
        what = f"resizes images without cropping, and {len(oblong)} of {len(samples.frame)} are not square ({shown})"
        fix = "crop them to squares beforehand; the audit crops what is not square, and would see other pixels"
        raise ModelError(str(folder / "preprocessor_config.json"), what, fix)


def _oblong(samples: Samples, keys: Iterable[str]) -> Iterable[str]:
    """Yield the images that are not square."""
    for key in keys:
        width, height = samples.source.open(key).size
        if width != height:
            yield f"{key} is {width} x {height}"


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
    *,
    fetch: bool,
) -> tuple[Model, Opened | None]:
    """Load the weights of a field; where the run makes or fetches them, return a model of random ones."""
    as_is = field == "model.weights" and card.training == "none"
    if spec.weights in NOT_FILES and not (fetch and spec.weights == "pretrained"):
        if as_is:
            what = f"'{spec.weights}' with training: none"
            raise ModelError("model.weights", what, "name the weights file to audit")
        return make_architecture(spec, classes).eval().requires_grad_(False), None
    path = None if spec.weights in NOT_FILES else resolve(spec.weights, card_path=card_path, data_root=data_root)
    backbone = Backbone(spec, path)
    model = backbone.build_as_is(classes) if as_is else backbone.build(classes)
    return model, Opened(field, spec.weights if path is None else str(path), backbone.state, len(model.state_dict()))


def _try_images(model: Model, spec: ModelSpec, samples: Samples | None, card_path: Path, data_root: Path | None) -> int:
    """Run a few images through the model; return how many."""
    if samples is None or not len(samples.frame):
        try_pass(model, model.num_classes)
        return 0
    check_shapes(spec, samples, card_path=card_path, data_root=data_root)
    keys = samples.frame["image"].tolist()[:TRIED]
    logits = predict_logits(model, load_pixels(samples.source, keys, adapter(model).side))
    if not np.isfinite(logits).all():
        check_finite(model.state_dict(), spec.weights)
        what = f"its logits of {keys[0]} are not finite, though its weights are"
        raise ModelError("model", what, "correct model.mean and model.std, or audit weights of an earlier epoch")
    return len(keys)
