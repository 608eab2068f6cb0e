"""Running a model over pixels, batch by batch, without gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from audit.batching import in_batches
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model, adapter
from audit.models.blocks import is_plain, leading_rows, rows_read
from audit.models.transforms import as_input

Floats = npt.NDArray[np.float32]


@torch.inference_mode()
def predict_logits(model: Model, pixels: Pixels, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of a model in evaluation mode."""
    model.eval()

    def logits(part: slice) -> Floats:
        return finish(model, adapter(model).embed(as_input(model, pixels[part])), 0).cpu().numpy().astype(np.float32)

    return np.concatenate(in_batches(logits, len(pixels), batch))


@torch.inference_mode()
def finish_logits(model: Model, stream: torch.Tensor, start: int, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of the residual stream (N, tokens, width) that enters block ``start``."""
    model.eval()
    parts = in_batches(lambda part: finish(model, stream[part], start).cpu().numpy(), len(stream), batch)
    return np.concatenate(parts)


def finish(model: Model, stream: torch.Tensor, start: int) -> torch.Tensor:
    """Return the logits (B, classes) of the residual stream (B, tokens, width) that enters block ``start``.

    Where the classifier reads nothing but prefix tokens, the last block is computed for these alone. In exact
    arithmetic logits and gradients are those of the whole model.
    """
    body = adapter(model)
    for layer in range(start, body.depth):
        block, rows = body.blocks[layer], rows_read(model) if layer == body.depth - 1 else None
        short = rows is not None and is_plain(block)
        stream = leading_rows(block, stream, rows or 0) if short else body.run(layer, stream)
    return body.classify(stream)
