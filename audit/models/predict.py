"""Running a model over pixels, batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from audit.batching import in_batches
from audit.data.ahead import in_image_batches
from audit.data.decode import Opening, decode_image
from audit.data.pixels import Images, ImagesOnDemand, Pixels
from audit.errors import DataError
from audit.models.adapters.registry import Model, adapter
from audit.models.blocks import is_plain, leading_rows, rows_read
from audit.models.device import device_of, send
from audit.models.preprocessing import Preprocessing
from audit.models.transforms import as_input

Floats = npt.NDArray[np.float32]
Picture = Image.Image | Path | str | npt.NDArray[np.uint8]


def predict(model: Model, images: Sequence[Picture], preprocessing: Preprocessing, *, batch: int = 64) -> Floats:
    """Return the logits of pictures through a model's preprocessing.

    Parameters
    ----------
    model : Model
        In evaluation mode afterwards.
    preprocessing : Preprocessing
    images : sequence of PIL.Image.Image, path, or numpy.ndarray (H, W, 3) or (H, W), uint8
    batch : int
        How many at once, at most.

    Returns
    -------
    numpy.ndarray (N, classes), float32

    Raises
    ------
    DataError
        If a file is missing or no picture, or an array is not of bytes; its place in ``images`` is named.
    """
    keys = [str(i) for i in range(len(images))]
    geometry = preprocessing.geometry
    return predict_logits(model, ImagesOnDemand(_Given(images, geometry.opening), keys, geometry), batch=batch)


@dataclass(frozen=True)
class _Given:
    """Pictures by their place in a sequence."""

    images: Sequence[Picture]
    opening: Opening

    def open(self, key: str) -> Image.Image:
        """Return a picture as RGB."""
        given, name = self.images[int(key)], f"images[{key}]"
        if isinstance(given, Image.Image):
            return given.convert("RGB")
        if isinstance(given, np.ndarray):
            if given.dtype != np.uint8 or given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[2] != 3):
                what = f"is an array {given.shape} of {given.dtype}"
                raise DataError(name, what, "give bytes (uint8) of shape (H, W, 3) or (H, W)")
            return Image.fromarray(given).convert("RGB")
        try:
            return decode_image(name, Path(given).read_bytes(), self.opening)
        except OSError as error:
            raise DataError(f"{name}: {given}", f"cannot be opened ({error.strerror})", "correct the path") from None


@torch.inference_mode()
def predict_logits(model: Model, images: Images, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of a model in evaluation mode."""
    model.eval()

    def logits(pixels: Pixels) -> Floats:
        return finish(model, adapter(model).embed(as_input(model, pixels)), 0).cpu().numpy().astype(np.float32)

    parts = in_image_batches(logits, images, size=batch)
    return np.concatenate(parts) if parts else np.empty((0, int(model.num_classes)), dtype=np.float32)


@torch.inference_mode()
def finish_logits(model: Model, stream: torch.Tensor, start: int, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of the residual stream (N, tokens, width) that enters block ``start``."""
    model.eval()
    device = device_of(model)
    parts = in_batches(lambda part: finish(model, send(stream[part], device), start).cpu().numpy(), len(stream), batch)
    return np.concatenate(parts)


def finish(model: Model, stream: torch.Tensor, start: int) -> torch.Tensor:
    """Return the logits (B, classes) of the residual stream (B, tokens, width) that enters block ``start``.

    Where the classifier reads nothing but prefix tokens, the last block is computed for these alone. In exact
    arithmetic logits and gradients are those of the whole model.
    """
    body = adapter(model)
    for layer in range(start, body.depth):
        block, rows = body.blocks[layer], rows_read(model) if layer == body.depth - 1 else None
        short = rows is not None and is_plain(model, layer)
        stream = leading_rows(block, stream, rows or 0) if short else body.run(layer, stream)
    return body.classify(stream)
