"""Networks of no known family, whose parts are named: slices of stages, or heads of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from audit.models.adapters.base import Sizes
from audit.models.adapters.channels import Channels
from audit.models.adapters.heads import Heads


class Named:
    """What the adapters of both kinds of networks have alike: parts that their owner has named."""

    model: Any
    begins: ClassVar[str] = "entry"
    ends: ClassVar[str] = "exit"

    @property
    def last(self) -> tuple[str, ...]:
        """Names of the model's parts that follow the last part."""
        return tuple(f"network.{name}" for name in self.model.segment(len(self.model.parts)))

    def classifiers(self) -> dict[str, Any]:
        """Return the linear layer that gives the logits, by its name in the model."""
        return {f"network.{self.model.classifier_name}": self.model.get_classifier()}

    def modules(self, layer: int) -> Sequence[nn.Module]:
        """Return the modules that are a part's own: what leads to the next belongs to it."""
        return [self.model.get_submodule(name.rstrip(".")) for name in self.names(layer)]

    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a part's tensors begin, and of what runs between it and the next."""
        part = self.model.parts[layer]
        leading = [name for name in self.model.segment(layer) if name != part and not name.startswith(f"{part}.")]
        return tuple(f"network.{name}." for name in (part, *leading))


class Plain(Named, Channels):
    """A network without residual stream: nothing goes around a stage, which hands on what its slices write.

    Stages hand on channels with rows and columns (B, channels, rows, columns), or alone (B, channels).
    """

    called: ClassVar[str] = "any network of stages in a row"
    named: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[str] = ""
    mark: ClassVar[str] = ""
    writes: ClassVar[str] = ""  # the stage itself

    @property
    def stages(self) -> Sequence[Sequence[Any]]:
        """The stages, as one row."""
        return [[self.model.network.get_submodule(name) for name in self.model.parts]]

    def side_fault(self) -> tuple[str, str] | None:
        """Return None: the network has run on images of its size."""
        return None

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return what enters the first stage."""
        entering: torch.Tensor = self.model.entering(images)
        return entering

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a stage, and what leads to the next."""
        return self.after(layer, self.blocks[layer](stream))

    def residual_input(self, layer: int, entering: torch.Tensor) -> torch.Tensor:
        """Return zeros: nothing goes around a stage."""
        return entering.new_zeros((len(entering), *self._shape(layer)))

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run what leads from a stage to the next."""
        out: torch.Tensor = stream if layer + 1 == self.depth else self.model.between(layer, stream)
        return out

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of what leaves the last stage."""
        logits: torch.Tensor = self.model.logits(stream)
        return logits

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Turn (..., tokens, channels) into what the stage hands on."""
        stream: torch.Tensor = tokens.mT.reshape(*tokens.shape[:-2], *self._shape(layer))
        return stream

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Turn what the stage hands on into (..., tokens, channels)."""
        shape = self._shape(layer)
        return stream.reshape(*stream.shape[: stream.ndim - len(shape)], shape[0], -1).mT

    def branch(self, layer: int) -> Sequence[nn.Parameter]:
        """Return the parameters that make what the slices write."""
        return list(self.blocks[layer].parameters())

    def own_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the tensors of the stage, by their names in it."""
        return dict(self.blocks[layer].state_dict())

    def filters(self, layer: int) -> Any:
        """Return the last convolution or linear layer of a stage; None where it has none."""
        made = [m for m in self.blocks[layer].modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return made[-1] if made else None

    def reduction(self, layer: int) -> int:
        """Return by how much the image has shrunk after a stage."""
        return self.side // max(self._shape(layer)[1:] or (1,))

    def tokens(self, layer: int) -> int:
        """Return how many places a stage writes to."""
        return prod(self._shape(layer)[1:])

    def width(self, layer: int) -> int:
        """Return how many channels a stage hands on."""
        return self._shape(layer)[0]

    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of a stage, for estimates of memory."""
        return Sizes(self.tokens(layer), self.width(layer), 0, self.width(layer))

    def reparameterize_(self, layer: int, generator: torch.Generator) -> None:
        """Leave a stage as it is: it has no coordinates of its own inside."""
        del layer, generator

    def blocks_fault(self) -> str:
        """Return why its stages cannot be parted, or "" if they can."""
        for i, name in enumerate(self.model.parts):
            if len(self._shape(i)) not in (1, 3):
                return f"stage {name} hands on {self._shape(i)}, no channels first"
            if self.filters(i) is None or len(self.filters(i).weight) != self.width(i):
                return f"stage {name} does not end in a convolution or linear layer of the channels that it hands on"
        return ""

    def _shape(self, layer: int) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.model.leaving[layer]
        return shape


class Adapted(Named, Heads):
    """A transformer of no known family: heads of named blocks.

    What a block's heads have written together is kept beside the stream that enters the block, in one row of numbers:
    what the block makes of both is its own code's.
    """

    called: ClassVar[str] = "any transformer of blocks in a row"
    named: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[str] = ""
    mark: ClassVar[str] = ""
    adds: ClassVar[tuple[str, ...]] = ("",)  # the block itself, all of which a donor's may replace
    halves: ClassVar[tuple[tuple[str, ...], ...]] = ()  # what else a block holds is not known
    resampled: ClassVar[tuple[str, ...]] = ()

    @property
    def blocks(self) -> Sequence[Any]:
        """The blocks, in order."""
        return [self.model.network.get_submodule(name) for name in self.model.parts]

    @property
    def side(self) -> int:
        """Side of the images, in pixels."""
        return int(self.model.pretrained_cfg["input_size"][-1])

    def side_fault(self) -> tuple[str, str] | None:
        """Return None: the network has run on images of its size."""
        return None

    def units(self, layer: int) -> int:
        """Return how many heads a block has."""
        del layer
        return int(self.model.heads)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first block."""
        entering: torch.Tensor = self.model.entering(images)
        return entering

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a block, and what leads to the next."""
        return self._lead_on(layer, self.blocks[layer](stream))

    def residual_input(self, layer: int, entering: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters a block, with room for what its heads write."""
        return F.pad(entering.flatten(1), (0, self._written(layer)))

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a block whose heads have written what stands beside the stream, and what leads to the next."""
        shape, _ = self.model.shapes[layer]
        entering, written = stream.split([prod(shape), self._written(layer)], dim=1)
        value = written.reshape(self._output_shape(layer, len(stream)))
        leaving = self.model.around(layer, entering.unflatten(1, shape), self.model.projection, value)
        return self._lead_on(layer, leaving)

    def _lead_on(self, layer: int, leaving: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = leaving if layer + 1 == self.depth else self.model.between(layer, leaving)
        return out

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of the stream that leaves the last block."""
        logits: torch.Tensor = self.model.logits(stream)
        return logits

    def projection(self, layer: int) -> Any:
        """Return the linear layer whose input is z."""
        return self.blocks[layer].get_submodule(self.model.projection)

    def output_module(self, layer: int) -> nn.Module:
        """Return the projection: what it puts out is what the heads write."""
        module: nn.Module = self.projection(layer)
        return module

    def branch(self, layer: int) -> Sequence[nn.Parameter]:
        """Return the parameters that make what the heads write."""
        modules = [self.projection(layer), *self._inner(layer)]
        return [p for module in modules for p in module.parameters()]

    def scale(self, layer: int) -> torch.Tensor | None:
        """Return None: what comes after the projection is the block's own."""
        del layer
        return None

    @property
    def writes_apart(self) -> bool:
        """Return False: what a block adds besides what its heads write is its own code's."""
        return False

    @property
    def prefix_tokens(self) -> int:
        """Return 0: how the stream is laid out is not known."""
        return 0

    def tokens(self, layer: int) -> int:
        """Return how many rows enter a block's projection, of one image."""
        return int(self.model.shapes[layer][1])

    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of a block, for estimates of memory."""
        projection = self.projection(layer)
        width = int(projection.out_features)
        return Sizes(self.tokens(layer), width, int(projection.in_features), 4 * width)

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Lay out (..., tokens, width) beside a stream of zeros."""
        return F.pad(tokens.flatten(-2), (prod(self.model.shapes[layer][0]), 0))

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Return what is written (..., tokens, width)."""
        written = stream[..., -self._written(layer) :]
        tokens: torch.Tensor = written.unflatten(-1, (self.tokens(layer), -1))
        return tokens

    def from_output(self, layer: int, out: torch.Tensor, images: int) -> torch.Tensor:
        """Lay out what the projection puts out beside a stream of zeros."""
        return self.to_stream(layer, out.reshape(images, self.tokens(layer), -1))

    def to_output(self, layer: int, write: torch.Tensor) -> torch.Tensor:
        """Lay out what is written as the projection puts it out."""
        return self.from_stream(layer, write).reshape(self._output_shape(layer, len(write)))

    def bias(self, layer: int) -> torch.Tensor | float:
        """Return what the projection's bias, which belongs to no head, adds beside the stream."""
        bias = self.projection(layer).bias
        return 0.0 if bias is None else self.to_stream(layer, bias.detach().expand(self.tokens(layer), -1))

    def gradient_at_heads(self, layer: int, slope: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to z (B, tokens, inner), given that of the projection's output."""
        weight: torch.Tensor = self.projection(layer).weight
        return slope.reshape(-1, self.tokens(layer), slope.shape[-1]) @ weight

    def head_activations_of(self, layer: int, entered: torch.Tensor, images: int) -> torch.Tensor:
        """Turn what enters the projection into z (images, tokens, heads * head width)."""
        del layer
        return entered.reshape(images, -1, entered.shape[-1])

    def _inner(self, layer: int) -> list[Any]:
        return [self.blocks[layer].get_submodule(name) for name in self.model.inner]

    def inner_weights(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weights of queries, keys and values, each (heads * head width, width)."""
        q, k, v = torch.cat([linear.weight for linear in self._inner(layer)]).chunk(3)
        return q, k, v

    def values(self, layer: int) -> list[torch.Tensor]:
        """Return the parameters that make the values, views of which the first axis is heads * head width."""
        linear = self._inner(layer)[-1]
        width = self.projection(layer).in_features
        return [p[-width:] for p in (linear.weight, linear.bias) if p is not None]

    def own_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the heads' own weights (Q, K, V, O), by their names in the block."""
        held = {name: self.blocks[layer].get_submodule(name) for name in (self.model.projection, *self.model.inner)}
        return {f"{name}.{key}": p for name, linear in held.items() for key, p in linear.named_parameters()}

    def fault(self) -> str:
        """Return "": what cannot be parted was refused when the parts were named."""
        return ""

    def _written(self, layer: int) -> int:
        """Return how many numbers all heads of a block write, of one image."""
        return self.tokens(layer) * int(self.projection(layer).out_features)

    def _output_shape(self, layer: int, images: int) -> tuple[int, ...]:
        """Return the shape that a block's projection puts out."""
        rows = self.model.rows[layer]
        return (images * rows[0], *rows[1:], int(self.projection(layer).out_features))
