"""From a card's model to an architecture that can be patched: the library's model, its adapter, the checks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from audit.card.schema import ONNX, PREDICTIONS, ModelSpec, PreprocessSpec
from audit.errors import ModelError
from audit.models.adapters.channels import SLICES_FIELD, Channels
from audit.models.adapters.registry import ADAPTERS, FAMILIES, Model, adapter, family_of, input_channels
from audit.models.carried import read_carried
from audit.models.checkpoint import check_finite
from audit.models.converters import (
    HUGGING_FACE,
    OPEN_CLIP,
    TORCHVISION,
    is_foreign,
    keeps_configuration,
    read_conversion,
)
from audit.models.converters.timm_folder import reserved_among
from audit.models.pretrained import kept_by_timm, not_loaded
from audit.units import Unit

SUPPORTED = (
    *(name for made in FAMILIES.values() for name in made.named),
    f"{TORCHVISION}vit_*",
    HUGGING_FACE,
    f"{OPEN_CLIP}ViT-*",
)
BLOCKS = {"depth", "depths", "layers"}  # arguments that count blocks, each of which is made one by one
MOST_BLOCKS, LARGEST = 500, 2**17  # no network has so many, or is so wide


def make_architecture(spec: ModelSpec, classes: int, *, pretrained: bool = False, weights: Path | None = None) -> Model:
    """Make a card's model and refuse what cannot be patched.

    Parameters
    ----------
    spec : ModelSpec
    classes : int
        Outputs of the classifier.
    pretrained : bool
        Fetch timm's weights; else they are random.
    weights : pathlib.Path, optional
        The folder of a Hugging Face model, which says what its architecture is; or a file, which may carry how images
        are made for it.

    Raises
    ------
    ModelError
        If there is no such model, or its parts cannot be separated.
    """
    if spec.channel_slices is not None and unit_of(spec.name, weights) == "head":
        what = f"{spec.name} has attention heads, no slices of channels"
        raise ModelError("model.channel_slices", what, "remove it")
    if is_foreign(spec.name):
        return fit_to_card(_converted(spec, classes, weights), spec)
    carried = read_carried(spec, weights)
    if carried is None:
        return fit_to_card(_of_timm(spec, classes, pretrained), spec)
    spec = carried.of_card(spec)
    model = fit_to_card(_of_timm(spec, classes, pretrained), spec)
    model.pretrained_cfg |= {**carried.config, "carried": carried}
    return model


def fit_to_card(model: Model, spec: ModelSpec) -> Model:
    """Give a library's model the pixels' mean and scale and the slices that the card names, and check it.

    Raises
    ------
    ModelError
        If its parts cannot be separated, images of its size do not fit, or nothing says how pixels are normalised.
    """
    own = getattr(model, "pretrained_cfg", {})
    stated = spec.preprocess if isinstance(spec.preprocess, PreprocessSpec) else spec
    given: dict[str, tuple[float, ...]] = {}
    given |= {k: tuple(v) for k in ("mean", "std") if (v := getattr(stated, k) or getattr(spec, k)) is not None}
    if (size := image_size(spec, own)) is not None:
        given["input_size"] = (own.get("input_size", (3,))[0], size, size)
    model.pretrained_cfg = {**own, **given}
    if spec.channel_slices is not None:
        model.channel_slices = spec.channel_slices
    reason = why_not_patchable(model)
    if reason:
        parts = adapter(model) if isinstance(model, tuple(ADAPTERS)) else None
        if isinstance(parts, Channels) and not parts.blocks_fault():
            raise ModelError(SLICES_FIELD, f"{spec.name}: {parts.slices_fault()}", "take a divisor of that")
        what = f"'{spec.name}' is not supported: {reason}"
        raise ModelError("model.name", what, f"supported: {', '.join(SUPPORTED)}")
    if any(model.pretrained_cfg.get(k) is None for k in ("mean", "std")):
        what = "nothing beside the weights says how pixels are normalised"
        raise ModelError("model.mean", what, "give model.mean and model.std")
    if fault := adapter(model).side_fault():
        what, fix = fault
        raise ModelError("model.image_size", f"{what} of {spec.name}", fix)
    return model


def image_size(spec: ModelSpec, own: Mapping[str, Any]) -> int | None:
    """Return the side of the images that a card asks for, or None where it leaves that to the model."""
    if spec.image_size is not None:
        return spec.image_size
    if isinstance(spec.preprocess, PreprocessSpec):
        return spec.preprocess.crop
    test = own.get("test_input_size") if spec.preprocess == "test" else None
    return None if test is None else int(test[-1])


def why_not_patchable(model: nn.Module) -> str:
    """Return why the parts of ``model`` cannot be separated where they write, or "" if they can."""
    if isinstance(model, tuple(ADAPTERS)):
        return adapter(model).fault()
    inside = next((f"; its part '{n}' is a {type(m).__name__}: take that" for n, m in model.named_modules()
                   if isinstance(m, tuple(ADAPTERS))), "")  # fmt: skip
    return f"it is a {type(model).__name__}{inside}"


def unit_of(name: str, weights: Path | None = None) -> Unit:
    """Return what is patched of a model that a card names; the name is known to be supported.

    Of a Hugging Face folder, ``weights``, its configuration tells.
    """
    if is_foreign(name):
        return "head" if keeps_configuration(name) and weights is None else read_conversion(name, weights).unit
    made = None if name in (PREDICTIONS, ONNX) else family_of(name)
    return "head" if made is None else made.unit


def try_pass(model: Model, classes: int) -> None:
    """Raise where an image of the model's size does not pass through it; on the "meta" device nothing is computed.

    Raises
    ------
    ModelError
    """
    side, device = adapter(model).side, next(model.parameters()).device
    try:
        logits = model(torch.zeros(1, input_channels(model), side, side, device=device))
    except NotImplementedError:  # an operation that is not known without numbers
        return
    except Exception as error:  # whatever an architecture of odd arguments raises
        what = f"an image of {side} x {side} pixels does not pass through it ({type(error).__name__})"
        raise ModelError("model", what, "correct image_size or overrides") from error
    if logits.shape != (1, classes):
        what = "the model gives no logits, one for each class"
        raise ModelError("model.overrides", what, "remove what takes the pool away")


def _of_timm(spec: ModelSpec, classes: int, pretrained: bool) -> Model:
    """Create a model of timm's by name."""
    options = dict(spec.overrides)
    if reserved := reserved_among(options):
        what = f"'{reserved[0]}' is no part of an architecture, or has a field of its own"
        raise ModelError("model.overrides", what, "remove it")
    _check_sizes(options, "model.overrides")
    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, timm.list_models(), n=3)
        fix = f"did you mean {', '.join(near) or SUPPORTED[0]}"
        raise ModelError("model.name", f"timm has no model '{spec.name}'", fix)
    made = family_of(spec.name)
    if made is None:
        what = f"'{spec.name}' is not supported: it is of no known family"
        raise ModelError("model.name", what, f"supported: {', '.join(SUPPORTED)}")
    config = timm.get_pretrained_cfg(spec.name)
    size = image_size(spec, config.to_dict() if config is not None else {})
    if size is not None and not issubclass(made, Channels):  # convolutions take any size
        options["img_size"] = size
    try:
        model = timm.create_model(spec.name, pretrained=pretrained, num_classes=classes, **options)
    except Exception as error:  # whatever odd arguments make of an architecture
        if pretrained and (kept := kept_by_timm(spec.name)):
            raise not_loaded(kept, error, "take back model.overrides, or " if options else "") from error
        if pretrained and isinstance(error, OSError | RuntimeError):
            what = f"pretrained weights of {spec.name} could not be fetched ({type(error).__name__})"
            fix = "connect to the network once, or name a weights FILE"
            raise ModelError("model.weights", what, fix) from error
        said = " ".join(f"{type(error).__name__}: {error}".split())
        what = f"timm refuses {spec.name} with {options} ({said})"
        raise ModelError("model", what, "correct image_size or overrides") from error
    if pretrained:
        check_finite(model.state_dict(), f"pretrained weights of {spec.name}")
    if issubclass(made, Channels):
        model.to(memory_format=torch.channels_last)  # on a processor several times as fast to train
    return model


def _converted(spec: ModelSpec, classes: int, weights: Path | None) -> Model:
    """Create a model of another library, converted to timm's."""
    if spec.overrides:
        raise ModelError("model.overrides", f"{spec.name} takes none", "remove them; its own files say what it is")
    conversion = read_conversion(spec.name, weights)
    _check_sizes({**conversion.options, "image_size": conversion.image_size}, "model.weights")
    try:
        return conversion.create(classes, image_size(spec, {}))
    except (TypeError, AssertionError, ValueError, ZeroDivisionError) as error:
        raise ModelError("model", f"timm refuses {spec.name} as it is described ({error})", "correct it") from error


def _check_sizes(options: Mapping[str, object], where: str) -> None:
    """Refuse what would be built for hours, or fill the memory before a weight is read."""
    for name, value in options.items():
        numbers = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int | float)]
        most = MOST_BLOCKS if name in BLOCKS else LARGEST
        if sum(map(abs, numbers)) > most:
            raise ModelError(where, f"{name} is {value}: no network is so large", f"write {most} or less")
