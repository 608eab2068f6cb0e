"""ResNet and what timm builds in its form: slices of channels of what a residual block adds before it is rectified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from audit.models.adapters.base import Sizes
from audit.models.adapters.channels import Channels, shuffled

FACTORS = (0.5, 1.0, 2.0)  # by which hidden channels are rescaled; exact in floating point


class Residual(Channels):
    """ResNet: what goes around the branch shrinks with it, and the sum is rectified."""

    called: ClassVar[str] = "ResNet, ResNeXt, Wide ResNet, SENet, ECA, ResNet-RS"
    named: ClassVar[tuple[str, ...]] = (
        "resnet*", "resnext*", "wide_resnet*", "seresne*", "senet154", "ecaresne*",
    )  # fmt: skip
    notes: ClassVar[str] = "basic and bottleneck blocks; statistics of batch norms stay those of the weights"
    mark: ClassVar[str] = "layer1.0.conv1.weight"
    begins: ClassVar[str] = "maxpool"
    ends: ClassVar[str] = "global_pool"
    follow: ClassVar[tuple[str, ...]] = ("global_pool", "fc")
    scores: ClassVar[tuple[str, ...]] = ("fc",)
    shortcut: ClassVar[str] = "downsample"

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

    def reset_layer_scale_(self, layer: int) -> None:
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

    def output_module(self, layer: int) -> nn.Module:
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

    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a layer's tensors begin."""
        stage, place = self.where(layer)
        return (f"layer{stage + 1}.{place}.",)

    @torch.no_grad()
    def reparameterize_(self, layer: int, generator: torch.Generator) -> None:
        """Reorder and rescale, in place, the channels between the last two convolutions.

        A rectifier hands positive factors on; with another function, channels are reordered only.
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
            factors = torch.tensor(FACTORS)[drawn].to(norm.weight.device)
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            read.weight.div_(factors.view(1, -1, 1, 1))

    def blocks_fault(self) -> str:
        """Return why its blocks are not of a known kind, or "" if they are."""
        for i, block in enumerate(self.blocks):
            if type(block) not in (BasicBlock, Bottleneck):
                return f"block {i} is a {type(block).__name__}"
            if not isinstance(self._parts(i)[1], nn.BatchNorm2d | nn.GroupNorm):
                return f"block {i} normalises with a {type(self._parts(i)[1]).__name__}"
        return ""
