"""ConvNeXt: slices of channels of what a block adds to a stream that is shrunk between stages."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from audit.models.adapters.base import Sizes
from audit.models.adapters.channels import Channels, shuffled
from audit.models.adapters.stages import DownsampledStages


class ConvNext(DownsampledStages, Channels):
    """ConvNeXt: the stream goes around the branch as it is; between stages it is normalised and shrunk."""

    called: ClassVar[str] = "ConvNeXt, ConvNeXt V2"
    named: ClassVar[tuple[str, ...]] = ("convnext_*", "convnextv2_*")
    notes: ClassVar[str] = "LayerScale and global response norm belong to the slice"
    mark: ClassVar[str] = "stages.0.blocks.0.conv_dw.weight"
    begins: ClassVar[str] = "stages.0.downsample"
    ends: ClassVar[str] = "norm_pre"
    follow: ClassVar[tuple[str, ...]] = ("norm_pre", "head")
    scores: ClassVar[tuple[str, ...]] = ("head.fc",)
    writes: ClassVar[str] = "drop_path"
    shortcut: ClassVar[str] = "shortcut"
    held_in: ClassVar[str] = "stages"

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        stream: torch.Tensor = self.model.stages[0].downsample(self.model.stem(images))
        return stream

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a layer; the last one of a stage hands on what the next stage reads."""
        return self.after(layer, self.blocks[layer](stream))

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Hand the stream on, through what leads to the next stage where one ends."""
        return self.hand_on(layer, stream)

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of the stream that leaves the last layer."""
        return super().classify(self.model.norm_pre(stream))

    def filters(self, layer: int) -> Any:
        """Return the last linear layer of the branch."""
        return self.blocks[layer].mlp.fc2

    def reset_layer_scale_(self, layer: int) -> None:
        """Give LayerScale a gamma of 1: it begins near 0, so that a new block writes next to nothing."""
        gamma = self.blocks[layer].gamma
        if gamma is not None:
            nn.init.ones_(gamma)

    def tokens(self, layer: int) -> int:
        """Return how many places a layer writes to; what does not fill a stride is left out."""
        return (self.side // self.reduction(layer)) ** 2

    def reduction(self, layer: int) -> int:
        """Return by how much the image has shrunk after a layer."""
        return int(self.model.feature_info[self.where(layer)[0]]["reduction"])

    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of a layer, for estimates of memory."""
        hidden = int(self.blocks[layer].mlp.fc1.weight.shape[0])
        return Sizes(self.tokens(layer), self.width(layer), 0, hidden)

    @torch.no_grad()
    def reparameterize_(self, layer: int, generator: torch.Generator) -> None:
        """Reorder, in place, the channels inside the MLP."""
        mlp = self.blocks[layer].mlp
        order = shuffled(len(mlp.fc1.weight), (), generator)
        for holder in (mlp.fc1, getattr(mlp, "grn", None)):
            for tensor in [] if holder is None else holder.parameters():
                tensor.copy_(tensor[order])
        mlp.fc2.weight.copy_(mlp.fc2.weight[:, order])

    def blocks_fault(self) -> str:
        """Return why its blocks are not of a known kind, or "" if they are."""
        odd = next((i for i, block in enumerate(self.blocks) if type(block) is not ConvNeXtBlock), None)
        return f"block {odd} is a {type(self.blocks[odd]).__name__}" if odd is not None else ""
