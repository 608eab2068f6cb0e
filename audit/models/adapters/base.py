"""What patching must know of any architecture: a row of layers, each of which adds something to a residual stream.

What a layer adds is parted into units that are patched one by one: attention heads (``heads``) or slices of channels
(``channels``). ``z`` is what a layer's units hold before it is turned into what they write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from audit.units import Unit

Product = tuple[torch.Tensor, torch.Tensor]  # factors (units, width, inner) of the matrices left @ right'


@dataclass(frozen=True)
class Sizes:
    """Of a layer: tokens, and the widths of the stream, of all units together, and of what comes after them."""

    tokens: int
    width: int
    inner: int
    hidden: int


class Adapter(ABC):
    """Where the parts of a model are, and how its stream lies."""

    called: ClassVar[str]  # the family, in the table of supported models
    named: ClassVar[tuple[str, ...]]  # timm's names, as a shell matches them
    notes: ClassVar[str]
    unit: ClassVar[Unit]
    mark: ClassVar[str]  # a tensor that weights of the family have
    resampled: ClassVar[tuple[str, ...]] = ()  # parts of the names of tensors that another image size changes
    # Names of modules: of the model, but for ``writes`` and ``adds``, which are of a block.
    begins: ClassVar[str]  # whose output is the stream that enters the first layer
    ends: ClassVar[str]  # whose input is the stream that leaves the last layer
    follow: ClassVar[tuple[str, ...]]  # that follow the last block, where the model has them
    scores: ClassVar[tuple[str, ...]]  # linear layers that give the logits, where the model has them
    writes: ClassVar[str]  # whose output is what the units add to the stream
    adds: ClassVar[tuple[str, ...]]  # whose outputs are added to the stream, in order
    # How the names, within a block, of the tensors of its attention and of its MLP begin, each with the norm and the
    # scale that are its own; empty where a block is not parted so.
    halves: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    # The pass

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Any]:
        """The blocks, in order."""

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.blocks)

    @property
    @abstractmethod
    def side(self) -> int:
        """Side of the images, in pixels."""

    @abstractmethod
    def side_fault(self) -> tuple[str, str] | None:
        """Return what is wrong with images of this size, and the fix; None where they fit."""

    @abstractmethod
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""

    def block_arguments(self, layer: int) -> Mapping[str, Any]:
        """Return what a block is given besides the stream; it does not depend on the image."""
        del layer
        return {}

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a layer."""
        out: torch.Tensor = self.blocks[layer](stream, **self.block_arguments(layer))
        return out

    def residual_input(self, layer: int, entering: torch.Tensor) -> torch.Tensor:
        """Return what of the stream that enters a layer the units' writes are added to."""
        del layer
        return entering

    @abstractmethod
    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run what comes after a layer's writes were added."""

    @abstractmethod
    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of the stream that leaves the last layer."""

    # The units

    @abstractmethod
    def units(self, layer: int) -> int:
        """Return how many units a layer has."""

    @abstractmethod
    def listen(
        self, layer: int, head_activations: list[torch.Tensor], outputs: list[torch.Tensor], *, images: int
    ) -> list[RemovableHandle]:
        """Append z (images, tokens, inner) and what the units add to the stream, of every pass from now on."""

    @abstractmethod
    def head_output(self, layer: int, unit: int, head_activations: torch.Tensor) -> torch.Tensor:
        """Return what one unit writes, laid out as the stream, from its own part of z (..., tokens, inner / units)."""

    @abstractmethod
    def head_outputs(
        self, layer: int, head_activations: torch.Tensor, *, scale_from: Adapter | None = None
    ) -> torch.Tensor:
        """Return what each unit writes (units, ..., as the stream), from z (..., tokens, inner).

        ``scale_from`` names whose LayerScale is used instead of the model's own.
        """

    def bias(self, layer: int) -> torch.Tensor | float:
        """Return what belongs to no unit, and is added to the stream with their writes."""
        del layer
        return 0.0

    @abstractmethod
    def gradient_at_heads(self, layer: int, slope: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to z (B, tokens, inner), given that with respect to the writes."""

    def from_output(self, layer: int, out: torch.Tensor, images: int) -> torch.Tensor:
        """Lay out what ``output_module`` puts out as the stream after the layer's writes is."""
        del layer, images
        return out

    def to_output(self, layer: int, write: torch.Tensor) -> torch.Tensor:
        """Lay out what lies as the stream after the layer's writes does as the output of ``output_module``."""
        del layer
        return write

    @abstractmethod
    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Lay out (..., tokens, width), in the order of z, as the stream is."""

    @abstractmethod
    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Lay out what lies as the stream does in the order of z: (B, tokens, width)."""

    # Sizes

    @abstractmethod
    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of a layer, for estimates of memory."""

    def traced(self, layer: int) -> int:
        """Return how many numbers of one image a recorded pass keeps of a layer."""
        s = self.sizes(layer)
        return s.tokens * (2 * s.width + s.inner)

    # Parts and weights

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.get_submodule(self.begins)
        return module

    def end(self) -> nn.Module:
        """Return the module whose input is the stream that leaves the last layer."""
        module: nn.Module = self.model.get_submodule(self.ends)
        return module

    @property
    def last(self) -> tuple[str, ...]:
        """Names of the model's parts that follow the last block."""
        return tuple(name for name in self.follow if getattr(self.model, name, None) is not None)

    def classifiers(self) -> dict[str, Any]:
        """Return the linear layers that give the logits, by their names in the model."""
        modules = dict(self.model.named_modules())
        return {name: modules[name] for name in self.scores if name in modules}

    def output_module(self, layer: int) -> nn.Module:
        """Return the module whose output is what the units add to the stream."""
        module: nn.Module = self.blocks[layer].get_submodule(self.writes)
        return module

    def branches(self, layer: int) -> Sequence[nn.Module]:
        """Return the modules whose outputs are added to the stream, in order."""
        return [self.blocks[layer].get_submodule(name) for name in self.adds]

    def mlp(self, layer: int) -> nn.Module | None:
        """Return the module whose output is what a layer's MLP adds to the stream; None where it is not set apart."""
        added = self.branches(layer)
        return added[1] if len(added) == 2 else None

    @property
    def writes_apart(self) -> bool:
        """Tell whether all that a layer adds to the stream is known."""
        return True

    @property
    def prefix_tokens(self) -> int:
        """How many tokens, the first of the stream, are of no patch; 0 where the stream is parted otherwise."""
        return 0

    @abstractmethod
    def branch(self, layer: int) -> Sequence[nn.Parameter]:
        """Return the parameters that make what the units write."""

    def modules(self, layer: int) -> Sequence[nn.Module]:
        """Return the modules that are a layer's own."""
        return [self.blocks[layer]]

    @abstractmethod
    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a layer's tensors begin."""

    @abstractmethod
    def own_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the tensors that make what the units write of the stream they read, by their names in the block."""

    @abstractmethod
    def products(self, layer: int) -> Sequence[Product]:
        """Return the weights that make each unit what it is, by which units of two models of one start are matched.

        Of heads in a form that is free of the coordinates inside them; of slices in those of the start.
        """

    @abstractmethod
    def reparameterize_(self, layer: int, generator: torch.Generator) -> None:
        """Rewrite, in place, what is inside a layer in other coordinates; the function stays the same."""

    def output_channels(self, layer: int, unit: int) -> slice:
        """Return which channels of the stream a unit can write to."""
        del layer, unit
        return slice(None)

    def reset_layer_scale_(self, layer: int) -> None:
        """Let a layer of random weights write as loudly as one that has learned, where its start would silence it."""
        del layer

    @abstractmethod
    def fault(self) -> str:
        """Return why units cannot be separated, or "" if they can."""
