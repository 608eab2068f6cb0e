"""Models of a card with their weights: the audited one as it is, fresh copies of one start, and untrained ones."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from audit.card.load import resolve
from audit.card.schema import Card, Decision, ModelSpec, Named, Output, PreprocessSpec
from audit.errors import ModelError
from audit.models.adapters.registry import Model, adapter
from audit.models.architecture import make_architecture, try_pass, unit_of
from audit.models.checkpoint import Checkpoint, hash_state, open_checkpoint
from audit.models.converters import class_names, fetch_weights, is_foreign, read_conversion, weights_file
from audit.models.converters.conversion import TEXTS
from audit.models.fitting import Fitted
from audit.models.load import Tensors, check_heads, fit_tensors, without_classifier
from audit.models.modules import Layout, adopt, adopt_named, described, reset_classifier, reset_weights
from audit.models.outputs import FIELD, as_pair, has_one_logit, take_output
from audit.models.preprocessing import Preprocess, Preprocessing, preprocessing_of
from audit.models.readout import SOFTMAX, Readout, readout_of_card, with_readout
from audit.models.text_towers import embed_prompts
from audit.models.undrawn import Undrawn, without_memory
from audit.models.weight_sets import State
from audit.models.zero_shot import together, with_zero_shot_head
from audit.units import Unit


class Reading(TypedDict):
    """How a model's logits are read, as a card has it."""

    output: Output | None
    decision: Decision | None
    threshold: float | None


UNUSED = [0.5] * 3, [0.5] * 3  # normalisation of pixels that are normalised already
IN_MEMORY = "in memory"  # a card's model.weights, of a module that was given


@dataclass(frozen=True)
class LoadReport:
    """What of a file of weights became a model's."""

    path: Path  # what was opened
    kind: str  # "safetensors", "PyTorch", "sharded" or "torch.distributed"
    set_name: str  # where in the file the weights are; "" for the file itself
    state: State
    stripped: str  # what was before the names of all tensors
    classifier: str  # the file's name of the classifier, where it stood outside the model; else ""
    left_over: tuple[str, ...]  # tensors of these weights that are no part of the model
    stored: Mapping[str, int]  # how many tensors are stored in each type; floating-point ones are loaded as float32


@dataclass(frozen=True)
class Backbone:
    """A recipe for fresh copies of one initialisation: same weights each time, any number of classes."""

    spec: ModelSpec  # the card's model
    weights: Path | None  # the weights file (of Hugging Face: the folder), found; None for ``pretrained`` and ``none``
    # the model itself, where it was given in Python; every copy is one of it. See ``from_module``.
    module: Model | None = None
    # the user's own preprocessing, in place of that which the weights or the card name
    preprocess: Preprocess | None = None

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        classes: Sequence[str] | None = None,
        *,
        preprocess: Preprocess | PreprocessSpec | Named = "deployed",
        **stated: Any,
    ) -> Backbone:
        """Take a model that is in memory: timm's, Hugging Face's or torchvision's, with its own weights.

        Parameters
        ----------
        module : torch.nn.Module
            Is copied, and stays as it is.
        classes : sequence of str, optional
            What its outputs mean, in order; of Hugging Face's, those of its configuration where not given.
        preprocess : Preprocess, PreprocessSpec or {"deployed", "test", "legacy"}
            The user's own, or as in a card.
        **stated
            Other fields of a card's model, which are the module's own where not given; see ``vit_audit.wrap``.

        Raises
        ------
        ModelError
            If it is of no family that can be patched, naming the part and the reason; if its pass is not that of its
            family; if its weights are not finite; or if its outputs are not as many as the classes.
        """
        own = preprocess if isinstance(preprocess, Preprocess) else None
        if own is not None:
            stated["mean"], stated["std"] = own.normalisation or UNUSED
        spec, adopted = adopt(module, classes, {**stated, "preprocess": "deployed" if own is not None else preprocess})
        return cls(spec.model_copy(update={"weights": IN_MEMORY}), None, adopted, own)

    def preprocessing(self, model: Model, *, weights: str | None = None) -> Preprocessing:
        """Return what is done to images before ``model``, a copy of this one, sees them.

        Parameters
        ----------
        model : Model
        weights : str, optional
            What the card names, where that is not what this copy was made of.

        Raises
        ------
        ModelError
            If nothing says it, or what comes out is not of the model's size.
        """
        spec = self.spec if weights is None else self.spec.model_copy(update={"weights": weights})
        return preprocessing_of(spec, model, folder=self.weights, given=self.preprocess)

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
        preprocess: Preprocess | PreprocessSpec | Named = "legacy",
        reading: Reading | None = None,
    ) -> Backbone:
        """Take a model of no known family that is in memory, whose parts are named.

        No library says how images are made for it: a centred square (``legacy``) where nothing else is stated.

        Raises
        ------
        ModelError
            If a part is not what it is named for; the part is named.
        """
        spec, adopted = adopt_named(
            module, layout, classes, mean=mean, std=std, image_size=image_size, channel_slices=channel_slices
        )
        own = preprocess if isinstance(preprocess, Preprocess) else None
        stated = "legacy" if own is not None or preprocess == "deployed" else preprocess
        update = {"weights": IN_MEMORY, "preprocess": stated, **(reading or {})}
        spec = spec.model_copy(update=update)
        return cls(spec, None, with_readout(adopted, readout_of_card(spec)), own)

    @property
    def state(self) -> State | None:
        """Which of the weights of its file the model has; None where there is no file."""
        if self.weights is None or self.spec.weights in ("none", "rendered"):
            return None
        return open_checkpoint(weights_file(self.spec.name, self.weights)).choose(self.spec.state).state

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
        return self.build_reported(classes, seed=seed)[0]

    def build_reported(self, classes: int, *, seed: int = 0) -> tuple[Model, LoadReport | None]:
        """Return what ``build`` does, and what became of the file of weights, where there is one."""
        report = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.module is not None:
                fresh = with_readout(reset_classifier(copy.deepcopy(self.module), classes), SOFTMAX)
                return _frozen(fresh), None
            fetched = self.weights is None and self.spec.weights == "pretrained"
            model = make_architecture(self.spec, classes, pretrained=fetched, weights=self.weights)
        if self.spec.weights != "none" and (self.weights is not None or is_foreign(self.spec.name)):
            report = self._load(model, keep_classifier=False)
        return _frozen(model), report

    def build_as_is(self, classes: int) -> Model:
        """Return the user's own model, classifier included; every tensor must fit."""
        return self.build_as_is_reported(classes)[0]

    def build_as_is_reported(self, classes: int) -> tuple[Model, LoadReport | None]:
        """Return what ``build_as_is`` does, and what became of the file of weights, where there is one."""
        if self.module is not None:
            return _frozen(copy.deepcopy(self.module)), None
        if self.weights is None:
            what = f"'{self.spec.weights}' with training: none"
            raise ModelError("model.weights", what, "name the weights file to audit")
        with torch.random.fork_rng(devices=[]), Undrawn():  # all of it is replaced by what is loaded
            model = self._with_texts(make_architecture(self.spec, classes, weights=self.weights))
        report = self._load(model, keep_classifier=True)
        return _frozen(model), report

    def build_stored(self, tensors: Mapping[str, torch.Tensor], classes: int) -> Model:
        """Return an audited model that a run has stored."""
        model = self.build(classes)
        if self.spec.prompts is not None:
            model = _frozen(self._with_texts(model))
        model.load_state_dict(tensors)
        return model

    def texts(self) -> list[torch.Tensor]:
        """Return the embeddings (texts, width) of each class' prompts; of a card that has prompts."""
        if self.weights is None:
            raise ModelError("model.weights", "no text tower without a file of weights", "name the file or folder")
        taken = open_checkpoint(weights_file(self.spec.name, self.weights)).take(self.spec.state)
        return self._embedded(self.weights, taken.tensors)

    def _embedded(self, weights: Path, tensors: Tensors) -> list[torch.Tensor]:
        conversion = read_conversion(self.spec.name, weights).reading_texts()
        return embed_prompts(self.spec.name, self.spec.prompts or {}, weights, tensors, conversion)

    def _with_texts(self, model: Model) -> Model:
        """Give a model of a card that has prompts a classifier that compares with texts; return it."""
        if self.spec.prompts is None:
            return model
        joint = read_conversion(self.spec.name, self.weights).reading_texts().joint
        assert joint is not None  # or reading_texts has refused
        return with_zero_shot_head(model, joint)

    def build_untrained(self, classes: int, *, seed: int = 0) -> Model:
        """Return a model of this architecture with random weights: it knows nothing, and is no quieter for that."""
        if self.module is None:
            model = Backbone(self.spec.model_copy(update={"weights": "none"}), self.weights).build(classes, seed=seed)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fresh = with_readout(reset_classifier(copy.deepcopy(self.module), classes), SOFTMAX)
                model = _frozen(reset_weights(fresh))
        body = adapter(model)
        for layer in range(body.depth):
            body.reset_layer_scale_(layer)
        return model

    def body_hash(self) -> str:
        """SHA-256 of the initial weights, classifier aside; of a module in memory also of how it is made up."""
        model = self.build(2)
        found = hash_state(without_classifier(model.state_dict(), model))
        return found if self.module is None else hashlib.sha256(f"{found}|{described(model)}".encode()).hexdigest()

    def read_report(self, classes: int, *, as_is: bool) -> LoadReport | None:
        """Return what of the file of weights becomes the model's, which is not made; None where there is no file."""
        if self.weights is None or self.spec.weights in ("none", "rendered"):
            return None
        with without_memory():
            model = make_architecture(self.spec, classes, weights=self.weights)
            model = self._with_texts(model) if as_is else model
        checkpoint = open_checkpoint(weights_file(self.spec.name, self.weights))
        checkpoint.take(self.spec.state)
        return self._fit(model, checkpoint, self._texts_of(checkpoint, as_is), keep_classifier=as_is)[1]

    def _load(self, model: Model, *, keep_classifier: bool) -> LoadReport | None:
        """Give a model the weights that the card asks for, a few at a time, so that few of a file's are in memory."""
        if self.weights is None:
            tensors, _, readout = self._fit(model, None, None, keep_classifier=keep_classifier)
            model.load_state_dict(tensors, strict=False)
            report = None
        else:
            checkpoint = open_checkpoint(weights_file(self.spec.name, self.weights))
            checkpoint.take(self.spec.state)
            texts = self._texts_of(checkpoint, keep_classifier)

            def fit(opened: Checkpoint, names: Collection[str]) -> tuple[Tensors, LoadReport | None, Readout]:
                return self._fit(model, opened, texts, keep_classifier=keep_classifier, read=names)

            report, readout = fit(checkpoint, ())[1:]
            for part in checkpoint.in_parts(lambda opened, names: fit(opened, names)[0]):
                model.load_state_dict(part, strict=False)
        if keep_classifier:
            with_readout(model, readout)
        return report

    def _texts_of(self, checkpoint: Checkpoint, as_is: bool) -> torch.Tensor | None:
        """Return what stands for each class in a zero-shot classifier (classes, width), of a card that has prompts."""
        if self.weights is None or not as_is or self.spec.prompts is None:
            return None
        tensors = checkpoint.choose(self.spec.state).tensors
        return torch.stack([together(t) for t in self._embedded(self.weights, tensors)])

    def _fit(
        self,
        model: Model,
        checkpoint: Checkpoint | None,
        texts: torch.Tensor | None,
        *,
        keep_classifier: bool,
        read: Collection[str] | None = None,
    ) -> tuple[Tensors, LoadReport | None, Readout]:
        """Return the weights that the card asks for, under the model's names, and how they are read."""
        conversion = read_conversion(self.spec.name, self.weights) if is_foreign(self.spec.name) else None
        if conversion is not None and keep_classifier and self.spec.prompts is not None:
            conversion = conversion.reading_texts()
        if conversion is not None:
            conversion = replace(conversion, read=read)
        readout = readout_of_card(self.spec, own="softmax" if conversion is None else conversion.output)

        def as_two(tensors: Tensors) -> Tensors:
            nonlocal readout
            if readout.output != "sigmoid" or not has_one_logit(model, tensors):
                return tensors
            readout = replace(readout, one_logit=True)
            return as_pair(model, tensors)

        def fit(given: Tensors, where: str) -> Fitted:
            if conversion is None:
                given = take_output(model, given, self.spec.output_key, where)
            elif self.spec.output_key is not None:
                raise ModelError(FIELD, f"{where} has one output", "remove it")
            return fit_tensors(
                model, given, where, keep_classifier=keep_classifier, conversion=conversion, classifier=as_two
            )

        if checkpoint is None:
            return fit(fetch_weights(self.spec.name), self.spec.weights).tensors, None, readout
        taken = checkpoint.choose(self.spec.state)
        check_heads(model, checkpoint, by_name=not self.spec.overrides)
        given = dict(taken.tensors)
        if texts is not None:
            given[TEXTS] = texts
        fitted = fit(given, str(checkpoint.path))
        before = "".join(taken.stripped)
        report = LoadReport(
            path=checkpoint.path,
            kind=checkpoint.kind,
            set_name=taken.name,
            state=taken.state,
            stripped=before + fitted.stripped,
            classifier=before + fitted.classifier if fitted.classifier else "",
            left_over=tuple(before + name for name in fitted.left_over),
            stored=taken.stored,
        )
        return fitted.tensors, report, readout


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
    with without_memory():
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
