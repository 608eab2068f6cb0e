"""Running a model over pixels, batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.data.pixels import Pixels
from audit.models.blocks import is_plain, leading_rows, rows_read
from audit.models.transforms import as_input

Floats = npt.NDArray[np.float32]


def batches(n: int, size: int) -> Iterator[slice]:
    """Cut ``range(n)`` into slices of at most ``size``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@torch.inference_mode()
def predict_logits(model: VisionTransformer, pixels: Pixels, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of a model in evaluation mode."""
    model.eval()
    parts = [
        finish(model, embed(model, as_input(model, pixels[s])), 0).cpu().numpy() for s in batches(len(pixels), batch)
    ]
    return np.concatenate(parts).astype(np.float32)


@torch.inference_mode()
def finish_logits(model: VisionTransformer, stream: torch.Tensor, start: int, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of the residual stream (N, tokens, width) that enters block ``start``."""
    model.eval()
    return np.concatenate([finish(model, stream[s], start).cpu().numpy() for s in batches(len(stream), batch)])


def embed(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Return the residual stream (B, tokens, width) that enters the first block."""
    x: torch.Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return x


def classify(model: VisionTransformer, stream: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, classes) of the residual stream (B, tokens, width) that leaves the last block."""
    logits: torch.Tensor = model.forward_head(model.norm(stream))
    return logits


def finish(model: VisionTransformer, stream: torch.Tensor, start: int) -> torch.Tensor:
    """Return the logits (B, classes) of the residual stream (B, tokens, width) that enters block ``start``.

    Where the classifier reads nothing but prefix tokens, the last block is computed for these alone. In exact
    arithmetic logits and gradients are those of the whole model.
    """
    *others, last = model.blocks
    for block in others[start:]:
        stream = block(stream)
    if start < len(model.blocks):
        rows = rows_read(model)
        stream = last(stream) if rows is None or not is_plain(last) else leading_rows(last, stream, rows)
    return classify(model, stream)
