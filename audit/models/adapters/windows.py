"""Swin: attention within windows, in stages between which the image shrinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from timm.models.swin_transformer_v2 import WindowAttention as CosineAttention
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
    begins: ClassVar[str] = "patch_embed"
    scores: ClassVar[tuple[str, ...]] = ("head.fc",)
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

    @property
    def prefix_tokens(self) -> int:
        """Return 0: all tokens are of patches."""
        return 0

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
        return self.windows_of(layer, stream)

    def windows_of(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Cut anything (B, rows, columns, numbers) that lies as a layer's tokens into windows: (B, tokens, numbers)."""
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


class NormedWindows(Windowed):
    """Swin V2: what the heads of a layer have written together is normalised before it is added to the stream.

    The sum of what heads write is therefore kept beside the stream that it will be added to: after a layer's writes
    the channels are the stream's, then those of the sum, and heads write to the latter.
    """

    called: ClassVar[str] = "Swin V2"
    named: ClassVar[tuple[str, ...]] = ("swinv2_tiny*", "swinv2_small*", "swinv2_base*", "swinv2_large*")
    notes: ClassVar[str] = "what heads write is added up before the norm that they share"
    writes: ClassVar[str] = "attn.proj_drop"  # window by window
    attentions: ClassVar[tuple[Any, ...]] = (CosineAttention,)
    resampled: ClassVar[tuple[str, ...]] = ("patch_embed",)

    def residual_input(self, layer: int, entering: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters a layer, with room for what its heads write."""
        return F.pad(entering, (0, self._width(layer)))

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Normalise and add what the heads wrote, and run what comes after."""
        block = self.blocks[layer]
        entering, written = stream.chunk(2, dim=-1)
        added = entering + block.drop_path1(block.norm1(written))
        tokens = added.flatten(1, 2)
        tokens = tokens + block.drop_path2(block.norm2(block.mlp(tokens)))
        return self.hand_on(layer, tokens.view_as(added))

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Put windows (..., tokens, width) back to where they were cut out, beside a stream of zeros."""
        return F.pad(super().to_stream(layer, tokens), (self._width(layer), 0))

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Cut what is written into (B, rows, columns, 2 * width) into windows."""
        return super().from_stream(layer, stream[..., self._width(layer) :])

    def from_output(self, layer: int, out: torch.Tensor, images: int) -> torch.Tensor:
        """Lay out windows (images * windows, tokens, width) as the stream is."""
        return self.to_stream(layer, self.head_activations_of(layer, out, images))

    def to_output(self, layer: int, write: torch.Tensor) -> torch.Tensor:
        """Lay out what is written as windows (images * windows, tokens, width)."""
        high, wide = self.blocks[layer].window_size
        return self.from_stream(layer, write).reshape(-1, high * wide, self._width(layer))

    def bias(self, layer: int) -> torch.Tensor | float:
        """Return what the projection's bias, which belongs to no head, adds: (2 * width,)."""
        bias = super().bias(layer)
        return F.pad(bias, (self._width(layer), 0)) if isinstance(bias, torch.Tensor) else bias

    def gradient_at_heads(self, layer: int, slope: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to z (B, tokens, inner), window by window, given that of the output."""
        _, _, high, wide = self._padded(self.blocks[layer])
        weight: torch.Tensor = self.projection(layer).weight
        return slope.reshape(-1, high * wide, slope.shape[-1]) @ weight

    def traced(self, layer: int) -> int:
        """Return how many numbers of one image a recorded pass keeps of a layer."""
        return super().traced(layer) + self.tokens(layer) * self._width(layer)

    def reset_layer_scale_(self, layer: int) -> None:
        """Give the norm of what heads write weight 1: timm begins with 0, so that a new block writes nothing."""
        nn.init.ones_(self.blocks[layer].norm1.weight)

    def _width(self, layer: int) -> int:
        return int(self.projection(layer).out_features)
