"""Models: opened as a card names them, or the user's own module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from audit.card.load import check_card, resolve
from audit.card.schema import PREDICTIONS, Decision, ModelSpec, Output, PreprocessSpec
from audit.controls.identities import Subject, run_identities
from audit.data.assemble import as_texts
from audit.errors import InputError, ModelError
from audit.given import as_path, check_kind, said_of
from audit.models.adapters.registry import Model
from audit.models.black_box import IN_MEMORY, PredictionTable, hash_table, predictions_of
from audit.models.build import UNUSED, Backbone, Reading, with_class_names
from audit.models.device import CPU, computing_on
from audit.models.modules import Layout
from audit.models.predict import predict
from audit.models.preflight import NOT_FILES
from audit.models.preprocessing import Preprocess
from audit.models.supported import families, refusals
from audit.records import PreprocessingInfo

__all__ = ["Net", "Predictions", "Preprocess", "adapt", "load_model", "predictions", "supported_models", "wrap"]

IDENTITY_IMAGES = 2  # drawn at random, on which an adapted model must patch as it should


@dataclass(frozen=True)
class Net:
    """An image classifier that can be audited.

    Made by :func:`load_model` or :func:`wrap`.

    Parameters
    ----------
    backbone : Backbone
        Makes fresh copies of the model.
    classes : tuple of str
        Names of the outputs, in their order.

    Examples
    --------
    >>> import timm, vit_audit as va
    >>> from PIL import Image
    >>> module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=2)
    >>> net = va.wrap(module, ["no", "yes"])
    >>> net.predict([Image.new("RGB", (48, 40))]).shape
    (1, 2)
    >>> net.preprocessing.input_size
    [3, 32, 32]
    """

    backbone: Backbone
    classes: tuple[str, ...]

    @property
    def spec(self) -> ModelSpec:
        """The model as the section ``model`` of a card has it."""
        return self.backbone.spec

    @property
    def module(self) -> Model:
        """A fresh copy of the model, in evaluation mode."""
        return self.backbone.build_as_is(len(self.classes))

    @property
    def unit(self) -> str:
        """What is patched: "head" or "slice" (of channels)."""
        return self.backbone.unit

    def predict(self, images: Sequence[str | Path | Image.Image], *, device: str = CPU) -> npt.NDArray[np.float32]:
        """Return the logits of images, through the model's own preprocessing.

        Parameters
        ----------
        images : sequence of str, pathlib.Path or PIL.Image.Image
            N files or images.
        device : {"auto", "cpu", "cuda", "mps"}
            Where the model is run.

        Returns
        -------
        numpy.ndarray (N, classes), float32

        Raises
        ------
        DataError
            If a file cannot be read as an image.

        Examples
        --------
        >>> import timm, vit_audit as va
        >>> from PIL import Image
        >>> module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=2)
        >>> va.wrap(module, ["no", "yes"]).predict([Image.new("RGB", (64, 48))]).shape
        (1, 2)
        """
        check_kind("images", images, Collection, "give a list of files or images")
        model = self.module
        preprocessing = self.backbone.preprocessing(model)
        with computing_on(device) as opened:
            return predict(model.to(opened), images, preprocessing)

    @property
    def preprocessing(self) -> PreprocessingInfo:
        """What is done to an image file before the model sees it."""
        return self.backbone.preprocessing(self.module).info

    def __repr__(self) -> str:
        return f"Net({self.spec.name}, {len(self.classes)} classes)"


@dataclass(frozen=True)
class Predictions:
    """What a classifier answered to images, for an audit of its rates.

    Made by :func:`predictions`.

    Parameters
    ----------
    table : PredictionTable

    Examples
    --------
    >>> import pandas as pd, vit_audit as va
    >>> net = va.predictions(pd.DataFrame({"image": ["a", "b"], "predicted": ["no", "yes"]}), classes=["no", "yes"])
    >>> net.classes
    ('no', 'yes')
    """

    table: PredictionTable

    @property
    def spec(self) -> ModelSpec:
        """The section ``model`` of a card."""
        return self.table.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.table.classes

    def __repr__(self) -> str:
        return f"Predictions({len(self.table.answers)} images, {len(self.classes)} classes)"


def predictions(
    frame: pd.DataFrame,
    classes: Sequence[str] | None = None,
    *,
    image: str = "image",
    scores: Literal["probability", "logit"] | None = None,
) -> Predictions:
    """Take predictions that were made elsewhere, in place of a model: rates can be audited, heads cannot.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per image: its key, and a column for each class with its probability or logit, or ``predicted`` with
        the class's name, or both.
    classes : sequence of str, optional
        Names of the classes; by default all other columns.
    image : str
        Column of the keys, which are those of the data.
    scores : {"probability", "logit"}, optional
        What the columns hold; by default logits where one is below 0 or above 1.

    Returns
    -------
    Predictions
        To be given to :func:`vit_audit.plan` as ``net``.

    Raises
    ------
    ModelError
        If an image occurs twice, a class is unknown, or a value is no number or no probability.

    Examples
    --------
    >>> import pandas as pd, vit_audit as va
    >>> va.predictions(pd.DataFrame({"image": ["a", "b"], "no": [0.2, 0.9], "yes": [0.8, 0.1]}))
    Predictions(2 images, 2 classes)
    """
    if not isinstance(frame, pd.DataFrame) or frame.empty:
        raise ModelError("predictions", f"are {type(frame).__name__}, or have no row", "give a data frame of them")
    if not frame.columns.is_unique:
        raise ModelError("predictions", "have two columns of one name", "rename one of them")
    named = None if classes is None else [str(name) for name in classes]
    try:
        spec = ModelSpec(name=PREDICTIONS, path=IN_MEMORY, classes=named, scores=scores)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{first['loc'][0]}: {said_of(first)}"
        raise ModelError("predictions", what, "correct what was given") from None
    texts = as_texts(frame)
    return Predictions(predictions_of(spec, texts, hash_table(texts), image, "predictions"))


def load_model(spec: Mapping[str, Any] | ModelSpec, *, folder: str | Path = ".") -> Net:
    """Open a trained classifier.

    Parameters
    ----------
    spec : mapping or ModelSpec
        As the section ``model`` of a card: ``name``, ``weights``, ``classes``, ``image_size``, ...; ``preprocess`` may
        be a :class:`Preprocess` too.
    folder : str or pathlib.Path
        Where a relative path to the weights starts.

    Returns
    -------
    Net

    Raises
    ------
    ModelError
        If the architecture is not supported or the weights do not fit; it names the tensor.
    CardError
        If the section has faults.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.load_model({"name": "vit_tiny_patch16_224", "weights": "nowhere.safetensors", "classes": ["no", "yes"]})
    Traceback (most recent call last):
        ...
    audit.errors.DataError: load_model 'nowhere.safetensors': no such file or folder at ...
    """
    check_kind("load_model", spec, (Mapping, ModelSpec), "give the section model of a card, as a mapping")
    section = spec.model_dump(exclude_unset=True) if isinstance(spec, ModelSpec) else dict(spec)
    own = section.pop("preprocess") if isinstance(section.get("preprocess"), Preprocess) else None
    if own is not None:
        section["mean"], section["std"] = own.normalisation or UNUSED
    sections = {"data": {"path": "."}, "groups": {"any": {"column": "any"}}, "training": "none", "model": section}
    card, place = check_card(sections, "load_model"), as_path("folder", folder) / "load_model"
    if card.model.weights in NOT_FILES:
        raise ModelError("model.weights", f"'{card.model.weights}' is no trained classifier", "name the weights file")
    model = with_class_names(card, card_path=place, data_root=None).model
    weights = resolve(model.weights, card_path=place, data_root=None).absolute()
    assert model.classes is not None  # or with_class_names has refused
    backbone = Backbone(model.model_copy(update={"weights": str(weights)}), weights, preprocess=own)
    backbone.preprocessing(backbone.build_as_is(len(model.classes)))  # what does not fit shows now
    return Net(backbone, tuple(model.classes))


def wrap(
    module: nn.Module,
    classes: Sequence[str],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    channel_slices: int | None = None,
    preprocess: Preprocess | Mapping[str, Any] | str = "deployed",
    output: Output | None = None,
    decision: Decision | None = None,
    threshold: float | None = None,
    output_key: str | int | None = None,
    stages: Sequence[str] | None = None,
    channels: int = 3,
) -> Net:
    """Take any module of a supported family, or of stages in a row, as it is.

    Parameters
    ----------
    module : torch.nn.Module
        A model of timm, Hugging Face or torchvision, or one of their classes built by hand; or any network whose
        stages run one after the other, such as convolutions without residuals. It is copied.
    classes : sequence of str
        Names of the outputs, in their order.
    mean, std : sequence of float, optional
        Of red, green and blue, 0 to 1, by which its pixels are normalised; needed where the module does not say it, as
        torchvision's do not.
    image_size : int, optional
        Side in pixels; by default the module's own.
    channel_slices : int, optional
        Of a convolutional network, as in a card.
    preprocess : Preprocess, mapping or str
        Your own, or as in a card: "deployed" (what the module's configuration or library says), "test", "legacy", or
        what is done: ``{"resize": 256, "crop": 224, ...}``.
    output : {"softmax", "sigmoid"}, optional
        Whether classes exclude each other, or each logit is a question of its own; by default what a Hugging Face
        module says of itself, else "softmax". A module of one logit, that of the second of two classes: "sigmoid".
    decision : {"argmax", "threshold"}, optional
        What an image is called: the class of the highest logit, or each class whose probability reaches
        ``threshold``. By default "argmax" of a softmax and "threshold" of sigmoids.
    threshold : float, optional
        In (0, 1); 0.5 where not given.
    output_key : str or int, optional
        Which output of a module that returns several: its key in the mapping, or its place, from 0. It is given by one
        linear layer on what the body of a supported family gives.
    stages : sequence of str, optional
        Of a network of no known family: names of modules, in the order in which they run, through which alone images
        reach what follows. What is patched are slices of the channels that each hands on. Those of a
        ``torch.nn.Sequential`` are found. ``mean``, ``std`` and ``image_size`` are needed with them.
    channels : int
        Of an image: 1 where such a network reads gray ones.

    Returns
    -------
    Net

    Raises
    ------
    ModelError
        If it cannot be patched; it names the part and the reason.

    Examples
    --------
    >>> import timm, vit_audit as va
    >>> net = va.wrap(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=2), ["no", "yes"])
    >>> net.unit
    'head'
    >>> import torch
    >>> va.wrap(torch.nn.Linear(2, 2), ["no", "yes"])
    Traceback (most recent call last):
        ...
    audit.errors.ModelError: the given module: it is a Linear; ...
    """
    names = _checked(module, classes)
    for name, given in (("mean", mean), ("std", std)):
        if given is not None:
            check_kind(name, given, Iterable, "give three numbers: of red, green and blue")
    if stages is not None or type(module) is nn.Sequential:
        layout = Layout(parts=stages, channels=channels)
        reading: Reading = {"output": output, "decision": decision, "threshold": threshold}
        return _of_parts(module, layout, names, mean, std, image_size, channel_slices, preprocess, reading)
    try:
        stated = PreprocessSpec(**preprocess) if isinstance(preprocess, Mapping) else preprocess
        backbone = Backbone.from_module(
            module,
            names,
            mean=None if mean is None else list(mean),
            std=None if std is None else list(std),
            image_size=image_size,
            channel_slices=channel_slices,
            preprocess=stated,  # type: ignore[arg-type]  # a word that is none of them is refused by the schema
            output=output,
            decision=decision,
            threshold=threshold,
            output_key=None if output_key is None else str(output_key),
        )
        backbone.preprocessing(backbone.build_as_is(len(names)))
    except ValidationError as error:
        raise _fault(error) from None
    return Net(backbone, tuple(names))


def adapt(
    module: nn.Module,
    classes: Sequence[str],
    *,
    blocks: Sequence[str],
    projection: str,
    heads: int,
    qkv: Sequence[str],
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classifier: str | None = None,
    channels: int = 3,
    preprocess: Preprocess | Mapping[str, Any] | str = "deployed",
    output: Output | None = None,
    decision: Decision | None = None,
    threshold: float | None = None,
) -> Net:
    """Take a transformer of no known family: its blocks, and in each what its heads write through.

    Parameters
    ----------
    module : torch.nn.Module
        Is copied.
    classes : sequence of str
        Names of the outputs, in their order.
    blocks : sequence of str
        Names of the blocks, in order. Each takes the stream alone and hands it on.
    projection : str
        Name, within a block, of the linear layer that all heads write through, head after head.
    heads : int
        Of each block.
    qkv : sequence of str
        Names, within a block, of the linear layers of queries, keys and values; or of the one that holds all three.
    image_size : int
        Side in pixels.
    mean, std : sequence of float
        By which pixels of 0 to 1 are normalised, one number for each channel; needed but with a ``Preprocess``.
    classifier : str, optional
        Name of the linear layer that gives the logits; by default the last one that runs.
    channels : int
        Of an image.
    preprocess : Preprocess, mapping or str
        Your own, or what is done: ``{"resize": 256, "crop": 224, ...}``. No library says it of such a module: by
        default a centred square ("legacy").
    output, decision, threshold : optional
        How its logits are read, as in :func:`wrap`.

    Returns
    -------
    Net

    Raises
    ------
    ModelError
        If a part is not what it is named for, or an identity of patching does not hold; the part is named.

    Examples
    --------
    >>> import timm, vit_audit as va
    >>> module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=2)
    >>> parts = {"blocks": ["blocks.0", "blocks.1"], "projection": "attn.proj", "heads": 3, "qkv": ["attn.qkv"]}
    >>> va.adapt(module, ["no", "yes"], **parts, image_size=32, mean=[0.5] * 3, std=[0.5] * 3).unit
    'head'
    """
    names, size = _checked(module, classes), (channels, image_size, image_size)
    layout = Layout(blocks, classifier, projection, heads, qkv, channels)
    reading: Reading = {"output": output, "decision": decision, "threshold": threshold}
    net = _of_parts(module, layout, names, mean, std, image_size, None, preprocess, reading)
    generator = torch.Generator().manual_seed(0)
    images, donors = (torch.randn(IDENTITY_IMAGES, *size, generator=generator) for _ in range(2))
    failed = [c.id for c in run_identities(Subject(net.module, images, donors)) if not c.passed]
    if failed:
        what = f"does not patch as it should: {', '.join(failed)} (docs/method.md)"
        raise ModelError(projection, what, "name the layer that heads write through, and their number")
    return net


def _checked(module: nn.Module, classes: Sequence[str]) -> list[str]:
    """Return the names of the outputs, once it is known that there is a module and a name for each."""
    if not isinstance(module, nn.Module):
        raise ModelError(type(module).__name__, "is no torch.nn.Module", "a card's section model goes to load_model")
    listed = isinstance(classes, Iterable) and not isinstance(classes, str)
    names = [str(name) for name in classes] if listed else []
    if not names or len(set(names)) < len(names):
        raise ModelError("classes", f"are {classes!r}", "name each output once, in their order, as a list")
    return names


def _of_parts(
    module: nn.Module,
    layout: Layout,
    names: list[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | None,
    channel_slices: int | None,
    preprocess: Preprocess | Mapping[str, Any] | str,
    reading: Reading,
) -> Net:
    own = preprocess if isinstance(preprocess, Preprocess) else None
    if own is not None:
        mean, std = own.normalisation or ([v[0]] * layout.channels for v in UNUSED)
    if mean is None or std is None or image_size is None:
        fix = "give mean and std, a number for each channel, and image_size"
        raise ModelError("mean, std, image_size", "nothing beside the module says what images it reads", fix)
    try:
        stated = PreprocessSpec(**preprocess) if isinstance(preprocess, Mapping) else preprocess
        ModelSpec(classes=names, **reading, **({} if own is not None else {"preprocess": stated}))  # raises
    except ValidationError as error:
        raise _fault(error) from None
    backbone = Backbone.from_parts(
        module,
        layout,
        names,
        mean=mean,
        std=std,
        image_size=image_size,
        channel_slices=channel_slices,
        preprocess=stated,  # type: ignore[arg-type]  # a word that is none of them has been refused
        reading=reading,
    )
    backbone.preprocessing(backbone.build_as_is(len(names)))
    return Net(backbone, tuple(names))


def _fault(error: ValidationError) -> ModelError:
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"])) or "model"
    return ModelError(place, said_of(fault), "as docs/card.md has it under model")


def supported_models(pattern: str | None = None) -> pd.DataFrame:
    """List the families that can be audited, or timm's models whose names match a pattern.

    Parameters
    ----------
    pattern : str, optional
        As a shell has it: ``vit_*dinov2*``.

    Returns
    -------
    pandas.DataFrame
        Columns ``library``, ``family``, ``name``, ``unit``, ``notes``; with a pattern ``name`` and ``refused`` (why it
        cannot be patched, or "").

    Raises
    ------
    InputError
        If no name matches.

    Examples
    --------
    >>> import vit_audit as va
    >>> "Swin" in set(va.supported_models()["family"])
    True
    """
    if pattern is None:
        return pd.DataFrame([asdict(row) for row in families()])
    check_kind("pattern", pattern, str, "give a name as a shell has it, vit_*dinov2*")
    found = pd.DataFrame(list(refusals(pattern)), columns=["name", "refused"])
    if found.empty:
        raise InputError(pattern, "no model of a supported family has such a name", "'vit-audit models' lists them")
    return found
