"""Images as users have them, odd in every way that pipelines differ in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def write_awkward_images(folder: Path) -> list[Path]:
    """Write one image of each odd kind; return the files."""
    rng = np.random.default_rng(0)

    def noise(width: int, height: int, channels: int = 3) -> Image.Image:
        coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, channels), dtype=np.uint8)
        return Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BICUBIC)

    exif = Image.Exif()
    exif[ORIENTATION] = 6
    palette = noise(80, 60).quantize(16)
    palette.info["transparency"] = 3
    gray = noise(70, 90, 1)
    deep = np.asarray(gray, dtype=np.uint16) * 257
    frames = [noise(50, 40) for _ in range(3)]
    saved = {
        "wide.png": (noise(260, 60), {}),
        "tall.jpg": (noise(50, 240), {"quality": 90}),
        "gray.png": (gray, {}),
        "palette.png": (palette, {"transparency": 3}),
        "rgba.png": (noise(64, 64, 4), {}),
        "cmyk.jpg": (noise(90, 70).convert("CMYK"), {}),
        "sixteen.png": (Image.fromarray(deep), {}),
        "turned.jpg": (noise(120, 80), {"exif": exif}),
        "tiny.png": (noise(5, 3), {}),
        "animated.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "exact.png": (noise(32, 32), {}),
    }
    for name, (image, options) in saved.items():
        image.save(folder / name, **options)
    return [folder / name for name in saved]
