"""timm models from a card: by name, with pretrained, given or random weights."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from audit.card.schema import ModelSpec
from audit.errors import ModelError
from audit.models.checkpoint import hash_state, read_weights

SUPPORTED = (
    "vit_*",
    "deit_*",
    "deit3_*",
    "vit_*_dinov2",
    "vit_*_reg4_dinov2",
    "vit_*_clip_*",
    "flexivit_*",
)
FAULTS_SHOWN = 3


@dataclass(frozen=True)
class Backbone:
    """A recipe for fresh copies of one initialisation: same weights each time, any number of classes.

    Parameters
    ----------
    spec : ModelSpec
        The card's model.
    weights : pathlib.Path, optional
        The weights file, found; None for ``pretrained`` and ``none``.
    """

    spec: ModelSpec
    weights: Path | None

    def build(self, classes: int, *, seed: int = 0) -> VisionTransformer:
        """Return a model in evaluation mode whose body is this initialisation.

        Parameters
        ----------
        classes : int
            Outputs of the classifier. Where the weights hold another number, the classifier is new.
        seed : int
            Of whatever is drawn: the classifier, or everything where ``weights: none``.

        Raises
        ------
        ModelError
            If timm does not know the model, this tool cannot patch it, or the weights do not fit.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create_architecture(
                self.spec, classes, pretrained=self.weights is None and self.spec.weights == "pretrained"
            )
        if self.weights is not None:
            load_into(model, self.weights, keep_classifier=False)
        return model.eval().requires_grad_(False)  # training asks for gradients itself

    def build_as_is(self, classes: int) -> VisionTransformer:
        """Return the user's own model, classifier included; every tensor must fit."""
        if self.weights is None:
            raise ModelError(
                "model.weights", f"'{self.spec.weights}' with training: none", "name the weights file to audit"
            )
        model = create_architecture(self.spec, classes, pretrained=False)
        load_into(model, self.weights, keep_classifier=True)
        return model.eval().requires_grad_(False)  # training asks for gradients itself

    def build_untrained(self, classes: int, *, seed: int = 0) -> VisionTransformer:
        """Return a model of this architecture with random weights, which knows nothing."""
        return Backbone(self.spec.model_copy(update={"weights": "none"}), None).build(classes, seed=seed)

    def body_hash(self) -> str:
        """SHA-256 of the initial weights, classifier aside."""
        state = self.build(2).state_dict()
        return hash_state({k: v for k, v in state.items() if not k.startswith("head.")})


def create_architecture(spec: ModelSpec, classes: int, *, pretrained: bool) -> VisionTransformer:
    """Create a timm model by name and refuse what cannot be patched head by head."""
    options = dict(spec.overrides)
    if spec.image_size is not None:
        options["img_size"] = spec.image_size
    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, timm.list_models(), n=3)
        raise ModelError(
            "model.name", f"timm has no model '{spec.name}'", f"did you mean {', '.join(near) or SUPPORTED[0]}"
        )
    entry = timm.model_entrypoint(spec.name)
    if inspect.getmodule(entry) is not inspect.getmodule(VisionTransformer) and not spec.name.startswith("deit"):
        raise unsupported(spec.name, "it is not a plain vision transformer")
    try:
        model = timm.create_model(spec.name, pretrained=pretrained, num_classes=classes, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise ModelError(
            "model", f"timm refuses {spec.name} with {options} ({error})", "correct image_size or overrides"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ModelError(
            "model.weights",
            f"pretrained weights of {spec.name} could not be fetched ({type(error).__name__})",
            "connect to the network once, or name a weights FILE",
        ) from error
    given = {k: tuple(v) for k, v in (("mean", spec.mean), ("std", spec.std)) if v is not None}
    model.pretrained_cfg = {**model.pretrained_cfg, **given}
    side, patch = int(model.patch_embed.img_size[0]), int(model.patch_embed.patch_size[0])
    if side % patch:
        mend = f"take {max(1, side // patch) * patch} or {(side // patch + 1) * patch}"
        raise ModelError("model.image_size", f"{side} is no multiple of the patch size {patch} of {spec.name}", mend)
    reason = why_not_patchable(model)
    if reason:
        raise unsupported(spec.name, reason)
    return model


def unsupported(name: str, reason: str) -> ModelError:
    """Refuse a model by name, with the list of what is supported."""
    return ModelError("model.name", f"'{name}' is not supported: {reason}", f"supported: {', '.join(SUPPORTED)}")


def why_not_patchable(model: nn.Module) -> str:
    """Return why heads of ``model`` cannot be told apart at ``attn.proj``, or "" if they can."""
    if not isinstance(model, VisionTransformer):
        return "it is not a timm VisionTransformer"
    if len(model.blocks) == 0:
        return "it has no block; give a depth of 1 or more in model.overrides"
    for i, block in enumerate(model.blocks):
        attention = getattr(block, "attn", None)
        if not all(hasattr(block, part) for part in ("norm1", "norm2", "mlp", "ls1", "ls2")) or attention is None:
            return f"block {i} is a {type(block).__name__}, not attention then MLP"
        if not isinstance(attention, Attention):
            return f"attention of block {i} is a {type(attention).__name__}"
        if not isinstance(attention.norm, nn.Identity):
            return f"block {i} normalises across heads before the projection"
        if getattr(attention, "gate", None) is not None:
            return f"block {i} scales its heads by a gate, so that what they hold cannot be rotated"
    return ""


def load_into(model: VisionTransformer, path: Path, *, keep_classifier: bool) -> None:
    """Load a weights file, resampling the position grid; name what does not fit."""
    state = read_weights(path)
    wanted = model.state_dict()
    if "patch_embed.proj.weight" not in state:
        found = ", ".join(sorted(state)[:FAULTS_SHOWN])
        raise ModelError(str(path), f"not weights of a timm vision transformer (it has {found} ...)", mend_of(model))
    if keep_classifier:
        check_outputs(state, wanted, path)
    else:
        state, wanted = without_classifier(state), without_classifier(wanted)
    check_shapes(state, wanted, path, model, free=("pos_embed", "patch_embed"))
    try:
        state = checkpoint_filter_fn(state, model)
    except RuntimeError:  # a position grid that cannot be resampled
        check_shapes(state, wanted, path, model)
        raise
    missing = [k for k in wanted if k not in state]
    surplus = [k for k in state if k not in wanted]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which the model lacks"
        more = len(missing) + len(surplus) - 1
        raise ModelError(str(path), f"another architecture: it {what} (and {more} more)", mend_of(model))
    check_shapes(state, wanted, path, model)
    model.load_state_dict(state, strict=False)


def without_classifier(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict without the tensors that depend on the classes."""
    return {k: v for k, v in state.items() if not k.startswith(("head.", "head_dist."))}


def check_outputs(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise where the weights' own classifier has another number of outputs than the card names classes."""
    found, named = (len(part["head.bias"]) if "head.bias" in part else None for part in (state, own))
    if found is not None and found != named:
        raise ModelError(
            str(path),
            f"the classifier has {found} outputs, the card names {named} classes",
            "name every class, in the order of the outputs, under model.classes",
        )


def check_shapes(
    state: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    path: Path,
    model: VisionTransformer,
    *,
    free: tuple[str, ...] = (),
) -> None:
    """Raise for the first tensor whose shape differs, but for those ``free`` ones that are resampled."""
    for name, tensor in state.items():
        if name in own and tensor.shape != own[name].shape and not name.startswith(free):
            shapes = f"{tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}"
            raise ModelError(str(path), f"another architecture: {name} is {shapes}", mend_of(model))


def mend_of(model: VisionTransformer) -> str:
    """Return what to change when weights do not fit."""
    name = model.pretrained_cfg.get("architecture", "the model")
    return f"name weights of {name}, or the model that these weights belong to"
