"""A few images as the model sees them, written where a person asks for them and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from audit.data.pixels import Pixels, load_pixels
from audit.data.samples import HELD_BACK, Samples
from audit.errors import InputError
from audit.models.preprocessing import Preprocessing
from audit.store import run_around


def write_examples(samples: Samples, preprocessing: Preprocessing, folder: Path, images: int) -> list[Path]:
    """Write images as PNG, spread over the table; see ``vit_audit.Plan.show``.

    Raises
    ------
    InputError
        If the folder is inside a run directory or cannot be written to.
    """
    if (inside := run_around(folder)) is not None:
        raise InputError(str(folder), f"is inside the run directory {inside}", "name a folder outside it")
    open_rows = samples.frame[~samples.frame["split"].isin(HELD_BACK)]
    places = open_rows.index[np.unique(np.linspace(0, len(open_rows) - 1, images, dtype=int))]
    seen = load_pixels(samples.source, samples.frame.loc[places, "image"].tolist(), preprocessing.geometry)
    files = [folder / f"row-{place}.png" for place in places]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, pixels in zip(files, seen, strict=True):
            _as_picture(pixels).save(file)
    except OSError as error:
        raise InputError(str(folder), f"cannot be written to ({error.strerror})", "name another folder") from None
    return files


def _as_picture(pixels: Pixels) -> Image.Image:
    """Return pixels as a picture; floating-point ones, which are normalised, from the least to the largest."""
    if pixels.dtype != np.uint8:
        span = float(np.ptp(pixels)) or 1.0
        pixels = np.round((pixels - pixels.min()) / span * 255).astype(np.uint8)
    return Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
