"""Models that are in memory: what library they are of, and copies of them with another classifier or other weights."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from audit.card.schema import ModelSpec
from audit.errors import ModelError
from audit.models.adapters.registry import ADAPTERS, Model, adapter, input_channels
from audit.models.architecture import fit_to_card, why_not_patchable
from audit.models.checkpoint import StateDict, check_finite, open_checkpoint
from audit.models.converters import HUGGING_FACE, TORCHVISION
from audit.models.converters.conversion import Conversion
from audit.models.converters.huggingface import find_weights, read_folder
from audit.models.converters.processors import open_processor
from audit.models.converters.torchvision import convert_resnet, convert_vit
from audit.models.load import fit_tensors
from audit.models.named import AdaptedNetwork, PlainNetwork, grouped
from audit.models.outputs import OneOutput, body_within, keys_of, one_head, with_pair
from audit.models.readout import readout_of, readout_of_card, with_readout

WHERE = "the given module"
PASS_TOLERANCE = 1e-3  # of the largest logit; two libraries add up in other orders
INITIAL_SCALE = 0.02  # standard deviation of tokens and positions before any training


def adopt(
    module: nn.Module,
    classes: Sequence[str] | None,
    given: Mapping[str, Any],
) -> tuple[ModelSpec, Model]:
    """Return a copy of a module as timm's model of the same function, and what a card would say of it.

    Parameters
    ----------
    module : torch.nn.Module
    classes : sequence of str, optional
    given : mapping
        Further fields of a card's model, as ``Backbone.from_module`` takes them.

    Raises
    ------
    ModelError
        If its parts cannot be separated where they write, or its pass is not that of its family.
    """
    original = copy.deepcopy(module).cpu().float().eval()
    check_finite(original.state_dict(), WHERE)
    key = given.get("output_key")
    if key is not None:
        name, model, named = _as_timm(one_head(original, key, WHERE))
        original = OneOutput(original, key)
    else:
        _refuse_several(original)
        name, model, named = _as_timm(original)
    names = list(classes) if classes is not None else named
    if names is None:
        raise ModelError("classes", "nothing says what the outputs mean", "name every class, in their order")
    spec = ModelSpec(name=name, classes=names, **given)
    one_logit = spec.output == "sigmoid" and model.num_classes == 1 and len(names) == 2
    readout = readout_of_card(spec, own=readout_of(model).output, one_logit=one_logit)
    model = with_readout(with_pair(model) if one_logit else model, readout)
    fit_to_card(model, spec)
    _check_pass(original, model, len(names))
    return spec, model


def _refuse_several(module: nn.Module) -> None:
    """Raise where a module returns several outputs, of which one has to be named."""
    body = None if isinstance(module, tuple(ADAPTERS)) else body_within(module)
    keys = [] if body is None else keys_of(module, body)
    if keys and keys != ["logits"]:
        raise ModelError("output_key", f"the module returns {', '.join(keys)}", "name the one to audit")


@dataclass(frozen=True)
class Layout:
    """How the parts of a module of no known family are named; ``va.wrap`` and ``va.adapt`` say what each is."""

    parts: Sequence[str] | None = None  # stages or blocks; those of a row of modules are found
    classifier: str | None = None
    # of a transformer's blocks; None where slices of channels are patched
    projection: str | None = None
    heads: int = 0
    inner: Sequence[str] = ()
    channels: int = 3  # of an image

    def named(self, module: nn.Module, side: int) -> PlainNetwork | AdaptedNetwork | None:
        """Return the module with its parts named; None where nothing names or finds them.

        Raises
        ------
        ModelError
            If a part is not what it is named for; the part is named.
        """
        size, parts = (self.channels, side, side), self.parts
        if self.projection is not None:
            return AdaptedNetwork(
                module, parts or (), projection=self.projection, heads=self.heads, inner=self.inner,
                classifier=self.classifier, input_size=size,
            )  # fmt: skip
        if parts is None:
            found = grouped(module)
            if found is None:
                return None
            module, parts = found
        return PlainNetwork(module, parts, classifier=self.classifier, input_size=size)


def adopt_named(
    module: nn.Module,
    layout: Layout,
    classes: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    channel_slices: int | None,
) -> tuple[ModelSpec, Model]:
    """Return a copy of a module of no known family with its parts named, and what a card would say of it.

    Raises
    ------
    ModelError
        If a part is not what it is named for, or the pass is not that of the parts.
    """
    original = copy.deepcopy(module).cpu().float().eval()
    check_finite(original.state_dict(), WHERE)
    if len(mean) != layout.channels or len(std) != layout.channels or min(std) <= 0:
        raise ModelError("mean, std", f"are {mean}, {std}", f"give {layout.channels} numbers each, std above 0")
    try:
        model: Any = layout.named(original, image_size)
    except RuntimeError as error:  # whatever the module's own code raises
        what = f"{layout.channels} x {image_size} x {image_size} numbers do not pass through it ({error})"
        raise ModelError(WHERE, " ".join(what.split()), "give image_size and channels") from error
    if model is None:
        fix = "name its stages, or give a model that 'vit-audit models' lists"
        raise ModelError(WHERE, f"{why_not_patchable(original)}; no row of convolutions", fix)
    model.pretrained_cfg |= {"mean": tuple(mean), "std": tuple(std)}
    spec = ModelSpec(
        name=type(module).__name__, classes=list(classes), image_size=image_size, channel_slices=channel_slices
    )
    if channel_slices is not None:
        model.channel_slices = channel_slices
    if reason := why_not_patchable(model):
        raise ModelError(WHERE, reason, "name other parts, or give another number of channel_slices")
    _check_pass(original if layout.parts is not None else model.network, model, len(classes))
    return spec, model


def as_patchable(module: nn.Module) -> Model:
    """Return a copy of a module as timm's model of the same function, whatever its outputs and pixels mean.

    Raises
    ------
    ModelError
        As :func:`adopt`.
    """
    original = copy.deepcopy(module).cpu().float().eval()
    check_finite(original.state_dict(), WHERE)
    _, model, _ = _as_timm(original)
    _check_pass(original, model, int(model.num_classes))
    return model.eval()


def _as_timm(module: nn.Module) -> tuple[str, Model, list[str] | None]:
    """Return a name for a card, timm's model with the module's weights, and the classes that it names itself."""
    if isinstance(module, TorchvisionTransformer):
        return f"{TORCHVISION}vit_b_16", _convert(convert_vit(module), module.state_dict(), "VisionTransformer"), None
    if isinstance(module, TorchvisionResNet):
        return f"{TORCHVISION}resnet50", _convert(convert_resnet(module), module.state_dict(), "ResNet"), None
    if hasattr(module, "save_pretrained") and hasattr(getattr(module, "config", None), "model_type"):
        return HUGGING_FACE, *_convert_saved(module)
    kind = next((kind for kind in ADAPTERS if isinstance(module, kind)), None)
    if kind is None:
        raise ModelError(WHERE, why_not_patchable(module), "give a model that 'vit-audit models' lists")
    own = str((getattr(module, "pretrained_cfg", None) or {}).get("architecture", ""))
    family = ADAPTERS[kind].named[0]
    return own if timm.is_model(own) else timm.list_models(family)[0], module, None


def _convert(conversion: Conversion, state: StateDict, kind: str) -> Model:
    """Return timm's model of a conversion with these weights, of as many classes as its classifier has outputs."""
    tensors = conversion.renamed(state)
    classifier = tensors.get(f"{conversion.head}.weight")
    if classifier is None:
        raise ModelError(WHERE, f"a {kind} has no classifier", "give the model with its classifier")
    model = conversion.create(len(classifier), None)
    model.load_state_dict(fit_tensors(model, tensors, WHERE, keep_classifier=True).tensors, strict=False)
    return with_readout(model, readout_of_card(ModelSpec(), own=conversion.output))


def _convert_saved(module: Any) -> tuple[Model, list[str] | None]:
    """Return timm's model of a Hugging Face module, as it is saved: names in memory change with transformers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module.save_pretrained(folder)
        try:
            conversion, saved = read_folder(folder), open_checkpoint(find_weights(folder))
        except ModelError as error:
            raise ModelError(WHERE, error.what, error.fix) from None
        model = _convert(conversion, saved.take(None).tensors, type(module).__name__)
        with suppress(ModelError):  # a kind that has none: whoever needs it says so
            model.image_processor = open_processor(folder)[0]
        return model, conversion.classes


@torch.inference_mode()
def _check_pass(original: nn.Module, model: Model, classes: int) -> None:
    """Raise where the module itself gives other logits than its family's parts, run one after the other."""
    body = adapter(model.eval())
    images = torch.randn(2, input_channels(model), body.side, body.side, generator=torch.Generator().manual_seed(0))
    try:
        answer: Any = original(images)
    except Exception as error:  # whatever a module of another size raises
        what = f"images of {body.side} x {body.side} pixels do not pass through it ({type(error).__name__}: {error})"
        raise ModelError(WHERE, " ".join(what.split()), "give image_size") from error
    wanted = getattr(answer, "logits", answer)
    if readout_of(model).one_logit and isinstance(wanted, torch.Tensor) and wanted.shape == (len(images), 1):
        wanted = torch.cat([torch.zeros_like(wanted), wanted], dim=1)
    stream = body.embed(images)
    for layer in range(body.depth):
        stream = body.run(layer, stream)
    found = body.classify(stream)
    if not isinstance(wanted, torch.Tensor) or wanted.shape != (len(images), classes):
        shape = tuple(wanted.shape)[1:] if isinstance(wanted, torch.Tensor) else type(wanted).__name__
        what = f"its output is {shape}, for {classes} classes"
        raise ModelError(WHERE, what, "name every class, in the order of the outputs")
    if found.shape != wanted.shape or not torch.allclose(
        found, wanted, rtol=0, atol=PASS_TOLERANCE * float(wanted.abs().max())
    ):
        what = f"its forward pass is not that of a {type(model).__name__}: the logits of its parts differ from its own"
        raise ModelError(WHERE, what, "give the model without what was added to it or changed in it")


def described(model: Model) -> str:
    """Return what makes a model besides its weights: modules and their plain settings, such as a number of heads."""
    settings = [
        (name, type(module).__name__, sorted((k, v) for k, v in vars(module).items() if type(v) in (int, float, str)))
        for name, module in model.named_modules()
    ]
    return repr(settings)


def reset_classifier(model: Model, classes: int) -> Model:
    """Give a model a new classifier, in place, and return it."""
    model.reset_classifier(classes)
    return model


@torch.no_grad()
def reset_weights(model: Model) -> Model:
    """Give a model random weights, in place, and return it: as each of its modules begins, tokens and positions small.

    Statistics of norms are set to those of the start.
    """
    begun: set[int] = set()
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and any(True for _ in module.parameters(recurse=False)):
            reset()
            begun |= {id(p) for p in module.parameters(recurse=False)}
    for parameter in model.parameters():
        if id(parameter) not in begun:
            nn.init.trunc_normal_(parameter, std=INITIAL_SCALE)
    return model
