"""Swin: attention within windows, in stages between which the image shrinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from torch import nn
from torch.nn import functional as F

from audit.models.adapters.positions import Biased
from audit.models.adapters.stages import DownsampledStages


class Windowed(DownsampledStages, Biased):
    """Swin: attention within windows, which every other block shifts; the image shrinks from stage to stage.

    The stream is (B, rows, columns, width). z is kept window by window, so its tokens are in another order.
    """

    called: ClassVar[str] = "Swin"
    named: ClassVar[tuple[str, ...]] = ("swin_*",)
    notes: ClassVar[str] = "heads within windows; layers of all stages are counted through"
    attentions: ClassVar[tuple[Any, ...]] = (WindowAttention,)
    held_in: ClassVar[str] = "layers"

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        stream: torch.Tensor = self.model.patch_embed(images)
        return stream

    def block_arguments(self, layer: int) -> Mapping[str, Any]:
        """Return nothing: positions are the attention's own."""
        del layer
        return {}

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a layer; the last one of a stage hands on what the next stage reads."""
        return self.hand_on(layer, self.blocks[layer](stream))

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run what comes after a layer's attention was added."""
        block = self.blocks[layer]
        tokens = stream.flatten(1, 2)
        tokens = tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
        return self.hand_on(layer, tokens.view_as(stream))

    def tokens(self, layer: int) -> int:
        """Return how many tokens a layer sees."""
        rows, columns = self.blocks[layer].input_resolution
        return int(rows * columns)

    def scale(self, layer: int) -> torch.Tensor | None:
        """Return None: there is no LayerScale."""
        del layer
        return None

    def _padded(self, block: Any) -> tuple[int, int, int, int]:
        """Return rows and columns of the stream, and of the windows that cover it."""
        rows, columns = block.input_resolution
        high, wide = block.window_size
        return rows, columns, -(-rows // high) * high, -(-columns // wide) * wide

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Put windows (..., tokens, width) back to where they were cut out."""
        block = self.blocks[layer]
        rows, columns, high, wide = self._padded(block)
        windows = tokens.reshape(-1, *block.window_size, tokens.shape[-1])
        shifted = window_reverse(windows, block.window_size, high, wide)[:, :rows, :columns]
        stream = torch.roll(shifted, shifts=tuple(block.shift_size), dims=(1, 2))
        return stream.reshape(*tokens.shape[:-2], rows, columns, tokens.shape[-1])

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Cut (B, rows, columns, width) into windows."""
        block = self.blocks[layer]
        rows, columns, high, wide = self._padded(block)
        shifted = torch.roll(stream, shifts=tuple(-s for s in block.shift_size), dims=(1, 2))
        padded = F.pad(shifted, (0, 0, 0, wide - columns, 0, high - rows))
        windows: torch.Tensor = window_partition(padded, block.window_size)
        return windows.reshape(len(stream), -1, stream.shape[-1])

    def head_activations_of(self, layer: int, entered: torch.Tensor, images: int) -> torch.Tensor:
        """Turn windows (images * windows, tokens, width) into z (images, tokens, width)."""
        del layer
        return entered.reshape(images, -1, entered.shape[-1])

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.patch_embed
        return module

    def classifiers(self) -> dict[str, Any]:
        """Return the linear layers that give the logits, by their names in the model."""
        return {"head.fc": self.model.head.fc}
