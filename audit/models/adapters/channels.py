"""Convolutional networks: the unit is a slice of adjacent channels of what a block adds to the residual stream.

z is that write itself, channel by channel, so what a slice writes is its own channels of it and zero elsewhere; there
is no bias that belongs to none. The stream is (B, channels, rows, columns).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import ceil, isqrt, lcm
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from audit.models.adapters.base import Adapter, Product
from audit.models.adapters.stages import Staged
from audit.units import Unit

SLICES = 8  # of each block, where the card does not say
SLICES_FIELD = "model.channel_slices"  # of a card
LEAST_SIDE = 32  # pixels; the image shrinks by this much


class Channels(Staged):
    """What convolutional networks have in common; a model's ``channel_slices`` says into how many it is cut."""

    unit: ClassVar[Unit] = "slice"
    shortcut: ClassVar[str]  # the block's part through which the stream goes around the branch

    @property
    def side(self) -> int:
        """Side of the images, in pixels."""
        return int(self.model.pretrained_cfg["input_size"][-1])

    def side_fault(self) -> tuple[str, str] | None:
        """Return what is wrong with images of this size, and the fix; None where they fit."""
        if self.side >= LEAST_SIDE:
            return None
        return f"{self.side} is less than the {LEAST_SIDE} that it shrinks to one", f"take {LEAST_SIDE} or more"

    def units(self, layer: int) -> int:
        """Return how many slices the write of a layer is parted into."""
        del layer
        return int(getattr(self.model, "channel_slices", SLICES))

    def residual_input(self, layer: int, entering: torch.Tensor) -> torch.Tensor:
        """Return what of the stream that enters a layer the slices' writes are added to."""
        around = getattr(self.blocks[layer], self.shortcut)
        stream: torch.Tensor = entering if around is None else around(entering)
        return stream

    def listen(
        self, layer: int, head_activations: list[torch.Tensor], outputs: list[torch.Tensor], *, images: int
    ) -> list[RemovableHandle]:
        """Append z (images, tokens, channels) and what the block adds to the stream, of every pass from now on."""
        del images

        def keep(_module: nn.Module, _args: object, out: torch.Tensor) -> None:
            kept = out.clone()  # what goes around the branch is added to it in place
            outputs.append(kept)
            head_activations.append(self.from_stream(layer, kept))

        return [self.output_module(layer).register_forward_hook(keep)]

    def head_output(self, layer: int, unit: int, head_activations: torch.Tensor) -> torch.Tensor:
        """Return what one slice writes, laid out as the stream, from its own part of z (..., tokens, slice width)."""
        width = head_activations.shape[-1]
        whole = head_activations.new_zeros((*head_activations.shape[:-1], width * self.units(layer)))
        whole[..., unit * width : (unit + 1) * width] = head_activations
        return self.to_stream(layer, whole)

    def head_outputs(
        self, layer: int, head_activations: torch.Tensor, *, scale_from: Adapter | None = None
    ) -> torch.Tensor:
        """Return what each slice writes (slices, ..., as the stream), from z (..., tokens, channels)."""
        del scale_from  # a channel's scale is the slice's own
        parts = head_activations.unflatten(-1, (self.units(layer), -1))
        return torch.stack([self.head_output(layer, k, parts[..., k, :]) for k in range(self.units(layer))])

    def gradient_at_heads(self, layer: int, slope: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to z (B, tokens, channels), given that with respect to the writes."""
        return self.from_stream(layer, slope)

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Turn (..., tokens, channels) into (..., channels, rows, columns)."""
        del layer
        side = isqrt(tokens.shape[-2])
        stream: torch.Tensor = tokens.mT.unflatten(-1, (side, side))
        return stream

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Turn (..., channels, rows, columns) into (..., tokens, channels)."""
        del layer
        tokens: torch.Tensor = stream.flatten(-2).mT
        return tokens

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of the stream that leaves the last layer."""
        logits: torch.Tensor = self.model.forward_head(stream)
        return logits

    def branches(self, layer: int) -> Sequence[nn.Module]:
        """Return the module whose output is added to the stream."""
        return [self.output_module(layer)]

    def branch(self, layer: int) -> Sequence[nn.Parameter]:
        """Return the parameters that make what the slices write."""
        return [p for name, p in self.blocks[layer].named_parameters() if not name.startswith(self.shortcut)]

    def own_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the tensors of the branch, statistics of its norms included, by their names in the block.

        The slices of a block share all but their last filters: the weights of one are those of the whole branch.
        """
        return {k: v for k, v in self.blocks[layer].state_dict().items() if not k.startswith(self.shortcut)}

    @abstractmethod
    def filters(self, layer: int) -> Any:
        """Return the last convolution (or linear layer) of the branch: one filter for each channel that it writes."""

    @abstractmethod
    def reduction(self, layer: int) -> int:
        """Return by how much the image has shrunk after a layer."""

    def products(self, layer: int) -> Sequence[Product]:
        """Return the last filters of each slice: (slices, what they read, slice width)."""
        rows = self.filters(layer).weight.detach().flatten(1).unflatten(0, (self.units(layer), -1))
        itself = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        return [(rows.mT, itself.expand(len(rows), -1, -1))]

    @property
    def stem_width(self) -> int:
        """How many channels enter the first layer."""
        return self.width(0)

    def output_channels(self, layer: int, unit: int) -> slice:
        """Return which channels of the stream a slice writes to: its own."""
        width = self.width(layer) // self.units(layer)
        return slice(unit * width, (unit + 1) * width)

    def width(self, layer: int) -> int:
        """Return how many channels a layer writes."""
        return int(self.filters(layer).weight.shape[0])

    def traced(self, layer: int) -> int:
        """Return how many numbers of one image a recorded pass keeps of a layer; z is seen through what is written."""
        entering = self.tokens(0) * self.stem_width
        if layer:
            entering = self.tokens(layer - 1) * self.width(layer - 1)
        return self.tokens(layer) * self.width(layer) + entering

    def tokens(self, layer: int) -> int:
        """Return how many places a layer writes to."""
        return ceil(self.side / self.reduction(layer)) ** 2

    def fault(self) -> str:
        """Return why slices cannot be separated, or "" if they can."""
        if reason := self.blocks_fault():
            return reason
        uneven = self.slices_fault()
        return f"{uneven}; set {SLICES_FIELD}" if uneven else ""

    def blocks_fault(self) -> str:
        """Return why its blocks are not of a known kind, or "" if they are."""
        return ""

    def slices_fault(self) -> str:
        """Return which layer has no slices of one size, or ""."""
        for i in range(self.depth):
            if self.width(i) % self.units(i):
                parts = f"{self.width(i)} channels, which {self.units(i)} slices of one size do not make up"
                return f"block {i} writes {parts}"
        return ""


def shuffled(channels: int, parts: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Return an order of channels drawn at random, within the parts that convolutions and norms cut them into."""
    number = lcm(*parts)
    size = channels // number
    return torch.cat([k * size + torch.randperm(size, generator=generator) for k in range(number)])
