"""How a vision transformer of another library becomes timm's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.card.schema import Output
from audit.errors import ModelError
from audit.models.converters.positions import resampled
from audit.units import Unit

State = dict[str, torch.Tensor]
Names = Mapping[str, str]
TEXTS = "embeddings of the texts"  # among a checkpoint's tensors, where a card's prompts have been embedded


class ClassAndPatches(VisionTransformer):  # type: ignore[misc]
    """A vision transformer whose classifier reads the class token beside the mean of the patches, as DINOv2's does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, global_pool="avg", fc_norm=False)
        self.reset_classifier(self.num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give it a new classifier."""
        del global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(2 * self.embed_dim, num_classes)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the logits of normed tokens (B, tokens, width)."""
        both = torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(1)], dim=1)
        logits: torch.Tensor = both if pre_logits else self.head(both)
        return logits


@dataclass(frozen=True)
class Joint:
    """The space that images and texts share in a zero-shot model."""

    width: int  # numbers in an embedding
    projection: str  # the checkpoint's name of the matrix that leads from the image tower to it; "" where there is none
    biased: bool  # whether something is added to all logits, which are then questions of their own (a sigmoid each)

    @property
    def projects(self) -> bool:
        """Whether a matrix leads from the image tower to the space."""
        return bool(self.projection)

    @property
    def names(self) -> Names:
        """The checkpoint's names of what the classifier is made of, and that of the texts, to the classifier's."""
        names = {"logit_scale": "head.logit_scale", TEXTS: "head.weight"}
        names |= {"logit_bias": "head.logit_bias"} if self.biased else {}
        return names | ({self.projection: "head.proj.weight"} if self.projects else {})


@dataclass(frozen=True)
class Conversion:
    """How a checkpoint of another library becomes a timm model."""

    options: Mapping[str, Any]  # keyword arguments of ``made``; image size and classes are added
    image_size: int  # side of the images that it is shown
    # the checkpoint's names of tensors, or of the modules that hold them, to timm's. What is not named is left out.
    names: Names
    # what names of a layer's tensors begin with, before the number of the layer; "" where ``names`` has them all
    layers: str = ""
    # as ``names``, within a layer. "#q", "#k" and "#v" mark the thirds of a matrix that timm has in one
    parts: Names = field(default_factory=dict)
    prefix: str = ""  # what some checkpoints put before all names of the body
    made: Callable[..., Any] = VisionTransformer  # the timm class, or what makes one of its models
    head: str = "head"  # the classifier's name in it
    unit: Unit = "head"  # what is patched
    classes: list[str] | None = None  # what its outputs mean
    # by what pixels between 0 and 1 are normalised, where the folder says so
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: Output = "softmax"  # whether its classes exclude each other
    # how the library resamples the positions of patches to another image size
    antialias: bool = False
    align_corners: bool = False
    fix: Callable[[State], None] = field(default=lambda _state: None)  # whatever renaming and joining does not do
    joint: Joint | None = None  # the space that its images share with texts, of a checkpoint that has both
    # timm's names of the joined matrices that are read; others have a shape and no numbers. All where not given.
    read: Collection[str] | None = None

    def reading_texts(self) -> Conversion:
        """Return the same with the classifier of a zero-shot model in place of a linear one.

        Raises
        ------
        ModelError
            If there are no texts to it.
        """
        if self.joint is None:
            what = "the checkpoint has no text tower, or a classifier in its place"
            raise ModelError("model.prompts", what, "name a whole CLIP or SigLIP model, or remove them")

        def fix(state: State) -> None:
            self.fix(state)
            for name in ("head.logit_scale", "head.logit_bias"):
                if name in state:
                    state[name] = state[name].reshape(())

        output: Output = "sigmoid" if self.joint.biased else "softmax"
        return replace(self, names={**self.names, **self.joint.names}, output=output, fix=fix)

    def create(self, classes: int, image_size: int | None) -> Any:
        """Return the model with random weights."""
        side = image_size or self.image_size
        model = self.made(img_size=side, num_classes=classes, **self.options)
        model.pretrained_cfg = {"mean": self.mean, "std": self.std, "input_size": (3, side, side)}
        return model

    def renamed(self, state: Mapping[str, torch.Tensor]) -> State:
        """Return a checkpoint's tensors under timm's names; queries, keys and values are joined."""
        made: State = {}
        thirds: dict[str, State] = {}
        for name, tensor in state.items():
            new, _, third = self._new_name(name.removeprefix(self.prefix)).partition("#")
            if third:
                part, _, kind = third.partition(".")
                thirds.setdefault(f"{new}.{kind}", {})[part] = tensor
            elif new:
                made[new] = tensor
        for name, held in thirds.items():
            if set(held) == {"q", "k", "v"}:
                joined = [held["q"], held["k"], held["v"]]
                skipped = self.read is not None and name not in self.read
                made[name] = torch.cat([part.to("meta") for part in joined] if skipped else joined)
        self.fix(made)
        return made

    def resampled(self, model: nn.Module, tensors: State) -> State:
        """Return tensors under timm's names with positions resampled for a model, as the library does it."""
        made = dict(tensors)
        resampled(made, model, antialias=self.antialias, align_corners=self.align_corners)
        return made

    def takes(self, name: str) -> bool:
        """Tell whether a tensor of the checkpoint becomes one of timm's, or part of one."""
        return bool(self._new_name(name.removeprefix(self.prefix)))

    def _new_name(self, name: str) -> str:
        """Return timm's name of a tensor, or "" where it has none."""
        if not self.layers or not name.startswith(self.layers):
            return _looked_up(name, self.names)
        number, _, rest = name.removeprefix(self.layers).partition(".")
        part = _looked_up(rest, self.parts)
        return f"blocks.{number}.{part}" if part else ""


@dataclass(frozen=True)
class SameNames(Conversion):
    """A conversion to a model whose tensors have the names that they have in the checkpoint, behind its prefix."""

    def renamed(self, state: Mapping[str, torch.Tensor]) -> State:
        """Return the tensors without the prefix."""
        return {name.removeprefix(self.prefix): tensor for name, tensor in state.items()}

    def resampled(self, model: nn.Module, tensors: State) -> State:
        """Return the tensors: timm resamples what it has to."""
        del model
        return tensors

    def takes(self, name: str) -> bool:
        """Tell whether a tensor is one of timm's: all are."""
        return bool(name)


def _looked_up(name: str, names: Names) -> str:
    """Return the new name of a tensor, named itself or by its module, or ""."""
    if name in names:
        return names[name]
    module, _, kind = name.rpartition(".")
    return f"{names[module]}.{kind}" if module in names else ""
