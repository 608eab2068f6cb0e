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
from timm.models.convnext import ConvNeXtBlock
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.utils.hooks import RemovableHandle

from audit.models.families.body import Anatomy, Product, Sizes
from audit.words import Unit

SLICES = 8  # of each block, where the card does not say
SLICES_FIELD = "model.channel_slices"  # of a card
LEAST_SIDE = 32  # pixels; the image shrinks by this much
FACTORS = (0.5, 1.0, 2.0)  # by which hidden channels are rescaled; exact in floating point


class Channels(Anatomy):
    """What convolutional networks have in common.

    Parameters
    ----------
    model : torch.nn.Module
        Its attribute ``channel_slices``, where it has one, says into how many slices each block's write is parted.
    """

    unit: ClassVar[Unit] = "slice"
    carried_past: ClassVar[str]  # the block's part through which the stream goes around the branch

    @property
    @abstractmethod
    def stages(self) -> Sequence[Sequence[Any]]:
        """The blocks, stage by stage."""

    @property
    def blocks(self) -> Sequence[Any]:
        """The blocks of all stages, in order."""
        return [block for stage in self.stages for block in stage]

    def where(self, layer: int) -> tuple[int, int]:
        """Return stage and place in it of a layer."""
        for number, stage in enumerate(self.stages):
            if layer < len(stage):
                return number, layer
            layer -= len(stage)
        raise IndexError(layer)

    @property
    def side(self) -> int:
        """Side of the images, in pixels."""
        return int(self.model.pretrained_cfg["input_size"][-1])

    def side_fault(self) -> str:
        """Return why images of this size do not fit, or "" if they do."""
        small = f"{self.side} is less than the {LEAST_SIDE} that it shrinks to one; take {LEAST_SIDE} or more"
        return small if self.side < LEAST_SIDE else ""

    def units(self, layer: int) -> int:
        """Return how many slices the write of a layer is parted into."""
        del layer
        return int(getattr(self.model, "channel_slices", SLICES))

    def carried(self, layer: int, entering: torch.Tensor) -> torch.Tensor:
        """Return what of the stream that enters a layer the slices' writes are added to."""
        around = getattr(self.blocks[layer], self.carried_past)
        stream: torch.Tensor = entering if around is None else around(entering)
        return stream

    def listen(
        self, layer: int, z: list[torch.Tensor], written: list[torch.Tensor], *, images: int
    ) -> list[RemovableHandle]:
        """Append z (images, tokens, channels) and what the block adds to the stream, of every pass from now on."""
        del images

        def keep(_module: nn.Module, _args: object, out: torch.Tensor) -> None:
            kept = out.clone()  # what goes around the branch is added to it in place
            written.append(kept)
            z.append(self.from_stream(layer, kept))

        return [self.written(layer).register_forward_hook(keep)]

    def write(self, layer: int, unit: int, z: torch.Tensor) -> torch.Tensor:
        """Return what one slice writes, laid out as the stream, from its own part of z (..., tokens, slice width)."""
        width = z.shape[-1]
        whole = z.new_zeros((*z.shape[:-1], width * self.units(layer)))
        whole[..., unit * width : (unit + 1) * width] = z
        return self.to_stream(layer, whole)

    def writes(self, layer: int, z: torch.Tensor, *, scale_from: Anatomy | None = None) -> torch.Tensor:
        """Return what each slice writes (slices, ..., as the stream), from z (..., tokens, channels)."""
        del scale_from  # a channel's scale is the slice's own
        parts = z.unflatten(-1, (self.units(layer), -1))
        return torch.stack([self.write(layer, k, parts[..., k, :]) for k in range(self.units(layer))])

    def at_z(self, layer: int, slope: torch.Tensor) -> torch.Tensor:
        """Carry a gradient with respect to the writes over to z: (B, tokens, channels)."""
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
        return [self.written(layer)]

    def branch(self, layer: int) -> Sequence[nn.Parameter]:
        """Return the parameters that make what the slices write."""
        return [p for name, p in self.blocks[layer].named_parameters() if not name.startswith(self.carried_past)]

    def own_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the tensors of the branch, statistics of its norms included, by their names in the block.

        The slices of a block share all but their last filters: the weights of one are those of the whole branch.
        """
        return {k: v for k, v in self.blocks[layer].state_dict().items() if not k.startswith(self.carried_past)}

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

    def reach(self, layer: int, unit: int) -> slice:
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
        """Return why slices cannot be told apart, or "" if they can."""
        for i in range(self.depth):
            if self.width(i) % self.units(i):
                parts = f"{self.width(i)} channels, which {self.units(i)} slices of one size do not make up"
                return f"block {i} writes {parts}; set {SLICES_FIELD}"
        return ""


class Residual(Channels):
    """ResNet: what goes around the branch shrinks with it, and the sum is rectified."""

    called: ClassVar[str] = "ResNet, ResNeXt, Wide ResNet, SENet, ECA, ResNet-RS"
    named: ClassVar[tuple[str, ...]] = (
        "resnet*", "resnext*", "wide_resnet*", "seresne*", "senet154", "ecaresne*",
    )  # fmt: skip
    notes: ClassVar[str] = "basic and bottleneck blocks; statistics of batch norms stay those of the weights"
    mark: ClassVar[str] = "layer1.0.conv1.weight"
    carried_past: ClassVar[str] = "downsample"

    @property
    def stages(self) -> Sequence[Sequence[Any]]:
        """The blocks, stage by stage."""
        return [self.model.layer1, self.model.layer2, self.model.layer3, self.model.layer4]

    @property
    def stem_width(self) -> int:
        """How many channels enter the first layer."""
        return int(self.model.feature_info[0]["num_chs"])

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        m = self.model
        stream: torch.Tensor = m.maxpool(m.act1(m.bn1(m.conv1(images))))
        return stream

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Rectify what the branch was added to."""
        block = self.blocks[layer]
        rectify = block.act3 if isinstance(block, Bottleneck) else block.act2
        out: torch.Tensor = rectify(stream.clone())  # in place
        return out

    def wake(self, layer: int) -> None:
        """Give the last norm of the branch weight 1: timm begins with 0, so that a new block writes nothing."""
        nn.init.ones_(self._parts(layer)[4].weight)

    def _parts(self, layer: int) -> tuple[Any, Any, Any, Any, Any]:
        """Return the last convolution but one with its norm and activation, then the last one with its norm."""
        b = self.blocks[layer]
        if isinstance(b, Bottleneck):
            return b.conv2, b.bn2, b.act2, b.conv3, b.bn3
        return b.conv1, b.bn1, b.act1, b.conv2, b.bn2

    def filters(self, layer: int) -> Any:
        """Return the last convolution of the branch."""
        return self._parts(layer)[3]

    def written(self, layer: int) -> nn.Module:
        """Return the module whose output is added to what goes around the branch."""
        block = self.blocks[layer]
        last = (block.drop_path, block.se, self._parts(layer)[4])
        module: nn.Module = next(part for part in last if part is not None)
        return module

    def reduction(self, layer: int) -> int:
        """Return by how much the image has shrunk after a layer."""
        return int(self.model.feature_info[1 + self.where(layer)[0]]["reduction"])

    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of a layer, for estimates of memory."""
        return Sizes(self.tokens(layer), self.width(layer), 0, self.width(layer))

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.maxpool
        return module

    def end(self) -> nn.Module:
        """Return the module whose input is the stream that leaves the last layer."""
        module: nn.Module = self.model.global_pool
        return module

    @property
    def last(self) -> tuple[str, ...]:
        """Names of the model's parts that follow the last block."""
        return ("global_pool", "fc")

    def classifiers(self) -> dict[str, Any]:
        """Return the linear layer that gives the logits, by its name in the model."""
        return {"fc": self.model.fc}

    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a layer's tensors begin."""
        stage, place = self.where(layer)
        return (f"layer{stage + 1}.{place}.",)

    @torch.no_grad()
    def turn(self, layer: int, generator: torch.Generator) -> None:
        """Reorder and rescale, in place, the channels between the last two convolutions.

        A rectifier hands positive factors on; where another function stands, channels are reordered only.
        """
        made, norm, act, read, _ = self._parts(layer)
        order = shuffled(len(made.weight), (made.groups, getattr(norm, "num_groups", 1)), generator)
        for holder in (made, norm):
            for tensor in holder.state_dict(keep_vars=True).values():
                if tensor.ndim:
                    tensor.copy_(tensor[order])
        read.weight.copy_(read.weight[:, order])
        if isinstance(act, nn.ReLU):
            drawn = torch.randint(len(FACTORS), (len(order),), generator=generator)
            factors = torch.tensor(FACTORS, device=order.device)[drawn]
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            read.weight.div_(factors.view(1, -1, 1, 1))

    def fault(self) -> str:
        """Return why slices cannot be told apart, or "" if they can."""
        for i, block in enumerate(self.blocks):
            if type(block) not in (BasicBlock, Bottleneck):
                return f"block {i} is a {type(block).__name__}"
            if not isinstance(self._parts(i)[1], nn.BatchNorm2d | nn.GroupNorm):
                return f"block {i} normalises with a {type(self._parts(i)[1]).__name__}"
        return super().fault()


class ConvNext(Channels):
    """ConvNeXt: the stream goes around the branch as it is; between stages it is normalised and shrunk."""

    called: ClassVar[str] = "ConvNeXt, ConvNeXt V2"
    named: ClassVar[tuple[str, ...]] = ("convnext_*", "convnextv2_*")
    notes: ClassVar[str] = "LayerScale and global response norm belong to the slice"
    mark: ClassVar[str] = "stages.0.blocks.0.conv_dw.weight"
    carried_past: ClassVar[str] = "shortcut"

    @property
    def stages(self) -> Sequence[Sequence[Any]]:
        """The blocks, stage by stage."""
        return [stage.blocks for stage in self.model.stages]

    def _following(self, layer: int) -> int | None:
        """Return the stage that reads what this layer leaves, or None within a stage and at the end."""
        stage, place = self.where(layer)
        ends = place + 1 == len(self.stages[stage]) and stage + 1 < len(self.stages)
        return stage + 1 if ends else None

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        stream: torch.Tensor = self.model.stages[0].downsample(self.model.stem(images))
        return stream

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a layer; the last one of a stage hands on what the next stage reads."""
        return self.after(layer, self.blocks[layer](stream))

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Hand the stream on, through what leads to the next stage where one ends."""
        following = self._following(layer)
        out: torch.Tensor = stream if following is None else self.model.stages[following].downsample(stream)
        return out

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of the stream that leaves the last layer."""
        return super().classify(self.model.norm_pre(stream))

    def filters(self, layer: int) -> Any:
        """Return the last linear layer of the branch."""
        return self.blocks[layer].mlp.fc2

    def wake(self, layer: int) -> None:
        """Give LayerScale a gamma of 1: it begins near 0, so that a new block writes next to nothing."""
        gamma = self.blocks[layer].gamma
        if gamma is not None:
            nn.init.ones_(gamma)

    def tokens(self, layer: int) -> int:
        """Return how many places a layer writes to; what does not fill a stride is left out."""
        return (self.side // self.reduction(layer)) ** 2

    def written(self, layer: int) -> nn.Module:
        """Return the module whose output is added to the stream."""
        module: nn.Module = self.blocks[layer].drop_path
        return module

    def reduction(self, layer: int) -> int:
        """Return by how much the image has shrunk after a layer."""
        return int(self.model.feature_info[self.where(layer)[0]]["reduction"])

    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of a layer, for estimates of memory."""
        hidden = int(self.blocks[layer].mlp.fc1.weight.shape[0])
        return Sizes(self.tokens(layer), self.width(layer), 0, hidden)

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.stages[0].downsample
        return module

    def end(self) -> nn.Module:
        """Return the module whose input is the stream that leaves the last layer."""
        module: nn.Module = self.model.norm_pre
        return module

    @property
    def last(self) -> tuple[str, ...]:
        """Names of the model's parts that follow the last block."""
        return ("norm_pre", "head")

    def classifiers(self) -> dict[str, Any]:
        """Return the linear layer that gives the logits, by its name in the model."""
        return {"head.fc": self.model.head.fc}

    def modules(self, layer: int) -> Sequence[nn.Module]:
        """Return the modules that are a layer's own: the last of a stage has what leads on, too."""
        following = self._following(layer)
        return [self.blocks[layer], *([] if following is None else [self.model.stages[following].downsample])]

    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a layer's tensors begin."""
        (stage, place), following = self.where(layer), self._following(layer)
        leading_on = () if following is None else (f"stages.{following}.downsample.",)
        return (f"stages.{stage}.blocks.{place}.", *leading_on)

    @torch.no_grad()
    def turn(self, layer: int, generator: torch.Generator) -> None:
        """Reorder, in place, the channels inside the MLP."""
        mlp = self.blocks[layer].mlp
        order = shuffled(len(mlp.fc1.weight), (), generator)
        for holder in (mlp.fc1, getattr(mlp, "grn", None)):
            for tensor in [] if holder is None else holder.parameters():
                tensor.copy_(tensor[order])
        mlp.fc2.weight.copy_(mlp.fc2.weight[:, order])

    def fault(self) -> str:
        """Return why slices cannot be told apart, or "" if they can."""
        odd = next((i for i, block in enumerate(self.blocks) if type(block) is not ConvNeXtBlock), None)
        return f"block {odd} is a {type(self.blocks[odd]).__name__}" if odd is not None else super().fault()


def shuffled(channels: int, parts: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Return an order of channels drawn by lot, within the parts that convolutions and norms cut them into."""
    number = lcm(*parts)
    size = channels // number
    return torch.cat([k * size + torch.randperm(size, generator=generator) for k in range(number)])
