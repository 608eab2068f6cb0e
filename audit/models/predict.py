"""Running a model over pixels, batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.data.pixels import Pixels
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
    parts = [model(as_input(model, pixels[s])).numpy() for s in batches(len(pixels), batch)]
    return np.concatenate(parts).astype(np.float32)


def embed(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Return the residual stream (B, tokens, width) that enters the first block."""
    x: torch.Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return x


def classify(model: VisionTransformer, stream: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, classes) of the residual stream (B, tokens, width) that leaves the last block."""
    logits: torch.Tensor = model.forward_head(model.norm(stream))
    return logits
