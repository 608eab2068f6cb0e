"""Models of a card with their weights: the audited one as it is, fresh copies of one start, and untrained ones."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from audit.card.load import resolve
from audit.card.schema import Card, ModelSpec
from audit.errors import ModelError
from audit.models.adapters.registry import Model, adapter
from audit.models.architecture import make_architecture, try_pass, unit_of
from audit.models.checkpoint import Checkpoint, State, hash_state, open_checkpoint
from audit.models.converters import class_names, fetch_weights, is_foreign, read_conversion, weights_file
from audit.models.load import check_heads, load_tensors, without_classifier
from audit.models.modules import Layout, adopt, adopt_named, described, reset_classifier, reset_weights
from audit.units import Unit

IN_MEMORY = "in memory"  # a card's model.weights, of a module that was given


@dataclass(frozen=True)
class Backbone:
    """A recipe for fresh copies of one initialisation: same weights each time, any number of classes.

    Parameters
    ----------
    spec : ModelSpec
        The card's model.
    weights : pathlib.Path, optional
        The weights file (of Hugging Face: the folder), found; None for ``pretrained`` and ``none``.
    module : torch.nn.Module, optional
        The model itself, where it was given in Python; every copy is one of it. See ``from_module``.
    """

    spec: ModelSpec
    weights: Path | None
    module: Model | None = None

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        classes: Sequence[str] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
        channel_slices: int | None = None,
    ) -> Backbone:
        """Take a model that is in memory: timm's, Hugging Face's or torchvision's, with its own weights.

        Parameters
        ----------
        module : torch.nn.Module
            Is copied, and stays as it is.
        classes : sequence of str, optional
            What its outputs mean, in order; of Hugging Face's, those of its configuration where not given.
        mean, std : sequence of float, optional
            Of red, green and blue, 0 to 1, by which its pixels are normalised; those of timm's configuration where it
            has one.
        image_size : int, optional
            Side in pixels; the model's own where not given.
        channel_slices : int, optional
            Of a convolutional network, as in a card.

        Raises
        ------
        ModelError
            If it is of no family that can be patched, naming the part and the reason; if its pass is not that of its
            family; if its weights are not finite; or if its outputs are not as many as the classes.
        """
        spec, adopted = adopt(module, classes, mean=mean, std=std, image_size=image_size, channel_slices=channel_slices)
        return cls(spec.model_copy(update={"weights": IN_MEMORY}), None, adopted)

    @classmethod
    def from_parts(
        cls,
        module: nn.Module,
        layout: Layout,
        classes: Sequence[str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        channel_slices: int | None = None,
    ) -> Backbone:
        """Take a model of no known family that is in memory, whose parts are named.

        Raises
        ------
        ModelError
            If a part is not what it is named for; the part is named.
        """
        spec, adopted = adopt_named(
            module, layout, classes, mean=mean, std=std, image_size=image_size, channel_slices=channel_slices
        )
        return cls(spec.model_copy(update={"weights": IN_MEMORY}), None, adopted)

    @property
    def state(self) -> State | None:
        """Which of the weights of its file the model has; None where there is no file."""
        if self.weights is None or self.spec.weights in ("none", "rendered"):
            return None
        return open_checkpoint(weights_file(self.spec.name, self.weights)).take(self.spec.state).state

    @property
    def unit(self) -> Unit:
        """What is patched: "head" or "slice" (of channels)."""
        return unit_of(self.spec.name, self.weights) if self.module is None else adapter(self.module).unit

    def build(self, classes: int, *, seed: int = 0) -> Model:
        """Return a model in evaluation mode whose body is this initialisation.

        Parameters
        ----------
        classes : int
            Outputs of the classifier, which is new.
        seed : int
            Of whatever is drawn: the classifier, or everything where ``weights: none``.

        Raises
        ------
        ModelError
            If timm does not know the model, this tool cannot patch it, or the weights do not fit.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.module is not None:
                return _frozen(reset_classifier(copy.deepcopy(self.module), classes))
            fetched = self.weights is None and self.spec.weights == "pretrained"
            model = make_architecture(self.spec, classes, pretrained=fetched, weights=self.weights)
        if self.spec.weights != "none" and (self.weights is not None or is_foreign(self.spec.name)):
            self._load(model, keep_classifier=False)
        return _frozen(model)

    def build_as_is(self, classes: int) -> Model:
        """Return the user's own model, classifier included; every tensor must fit."""
        if self.module is not None:
            return _frozen(copy.deepcopy(self.module))
        if self.weights is None:
            what = f"'{self.spec.weights}' with training: none"
            raise ModelError("model.weights", what, "name the weights file to audit")
        model = make_architecture(self.spec, classes, weights=self.weights)
        self._load(model, keep_classifier=True)
        return _frozen(model)

    def build_untrained(self, classes: int, *, seed: int = 0) -> Model:
        """Return a model of this architecture with random weights: it knows nothing, and is no quieter for that."""
        if self.module is None:
            model = Backbone(self.spec.model_copy(update={"weights": "none"}), self.weights).build(classes, seed=seed)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = _frozen(reset_weights(reset_classifier(copy.deepcopy(self.module), classes)))
        body = adapter(model)
        for layer in range(body.depth):
            body.reset_layer_scale_(layer)
        return model

    def body_hash(self) -> str:
        """SHA-256 of the initial weights, classifier aside; of a module in memory also of how it is made up."""
        model = self.build(2)
        found = hash_state(without_classifier(model.state_dict(), model))
        return found if self.module is None else hashlib.sha256(f"{found}|{described(model)}".encode()).hexdigest()

    def _load(self, model: Model, *, keep_classifier: bool) -> None:
        """Open the file, take the weights that the card asks for, and load them."""
        if self.weights is None:
            where, tensors = self.spec.weights, fetch_weights(self.spec.name)
        else:
            checkpoint: Checkpoint = open_checkpoint(weights_file(self.spec.name, self.weights))
            where, tensors = str(checkpoint.path), checkpoint.take(self.spec.state).tensors
            check_heads(model, checkpoint, by_name=not self.spec.overrides)
        if is_foreign(self.spec.name):
            tensors = read_conversion(self.spec.name, self.weights).tensors_for(model, tensors)
        load_tensors(model, tensors, where, keep_classifier=keep_classifier)


def _frozen(model: Model) -> Model:
    """Return a model in evaluation mode without gradients; training asks for them itself."""
    return model.eval().requires_grad_(False)


def check_model(card: Card, *, card_path: Path, data_root: Path | None) -> None:
    """Raise where a card's model cannot be audited; it is made without memory for weights, and none are fetched.

    Raises
    ------
    ModelError
        If timm does not know the model, or this tool cannot patch it.
    DataError
        If a file or folder of weights that the card names is not there.
    """
    spec = card.model
    named = spec.weights not in ("pretrained", "rendered", "none")
    weights = resolve(spec.weights, card_path=card_path, data_root=data_root) if named else None
    with torch.device("meta"):
        try_pass(make_architecture(spec, 2, weights=weights).eval(), 2)


def with_class_names(card: Card, *, card_path: Path, data_root: Path | None, folder: Path | None = None) -> Card:
    """Return the card with the class names that a Hugging Face folder gives, where it names none itself.

    Parameters
    ----------
    card : Card
    card_path, data_root : pathlib.Path
        Where the folder is looked for.
    folder : pathlib.Path, optional
        The folder, where it is known.

    Raises
    ------
    ModelError
        If neither does, and the model is to be audited as it is.
    """
    spec = card.model
    if card.training != "none" or spec.classes is not None:
        return card
    folder = folder or resolve(spec.weights, card_path=card_path, data_root=data_root)
    classes = class_names(spec.name, folder)
    return card.model_copy(update={"model": spec.model_copy(update={"classes": classes})})
