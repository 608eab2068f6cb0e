"""The two corruptions that the controls use, and pixels as model input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from audit.data.pixels import Pixels
from audit.data.synthetic.corrupted import BLUR_SHARE
from audit.models.adapters.registry import Model
from audit.models.device import device_of, send

Corruption = Callable[[torch.Tensor], torch.Tensor]
CHUNK = 256


def gray(images: torch.Tensor) -> torch.Tensor:
    """Remove colour: luma (ITU-R BT.601) in all three channels of images (B, 3, H, W)."""
    result: torch.Tensor = tvf.rgb_to_grayscale(images, num_output_channels=3)
    return result


def luma(images: torch.Tensor) -> torch.Tensor:
    """Return the luma (B, 1, H, W), in whole steps, of images (B, 3, H, W) of 0 to 255, as Pillow rounds it."""
    weights = torch.tensor([19595.0, 38470.0, 7471.0], device=images.device).view(1, 3, 1, 1)  # sums are below 2**24
    return ((images.float() * weights).sum(1, keepdim=True) + 32768).div_(65536).floor_().to(images.dtype)


def blur(images: torch.Tensor) -> torch.Tensor:
    """Remove fine detail: Gaussian blur with a standard deviation of 1/14 of the image's side.

    Down the columns, then along the rows, each as one matrix product: what a square kernel gives, at a small fraction
    of its cost.
    """
    sigma = images.shape[-1] * BLUR_SHARE
    down, along = (_blurring(length, sigma) for length in images.shape[-2:])
    blurred = down @ images.float() @ along.T
    return blurred if images.is_floating_point() else blurred.round_().to(torch.uint8)


def _blurring(length: int, sigma: float) -> torch.Tensor:
    """Return the matrix (length, length) that blurs a line of pixels, mirrored at its ends; cut at 3 sigma."""
    reach = int(3 * sigma)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)
    every = F.pad(torch.eye(length).unsqueeze(0), [reach, reach], mode="reflect")[0]
    return (every.unfold(1, len(bell), 1) @ (bell / bell.sum())).T


def corrupt_pixels(pixels: Pixels, corruption: Corruption) -> Pixels:
    """Return corrupted copies of pixels (N, H, W, channels)."""
    out = np.empty_like(pixels)
    for start in range(0, len(pixels), CHUNK):
        part = torch.from_numpy(pixels[start : start + CHUNK]).permute(0, 3, 1, 2)
        out[start : start + CHUNK] = corruption(part).permute(0, 2, 3, 1).numpy()
    return out


def as_input(model: Model, pixels: Pixels) -> torch.Tensor:
    """Turn pixels (B, H, W, channels) into float32 (B, channels, H, W), bytes normalised as the model was pretrained.

    Floating-point pixels are normalised already, as a user's own preprocessing gives them. A model of one channel is
    shown the luma of pixels that have three. What comes out is where the model is; to an accelerator it travels as
    bytes, from pinned memory, while that computes.
    """
    device, raw = device_of(model), torch.from_numpy(np.ascontiguousarray(pixels))
    images = send(raw, device, pinned=True).permute(0, 3, 1, 2)
    if images.is_floating_point():
        return images.clone()
    channels = len(model.pretrained_cfg["mean"])
    seen = luma(images.float()) if channels == 1 and images.shape[1] == 3 else images
    return normalised(seen, *(model.pretrained_cfg[k] for k in ("mean", "std")))


def normalised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return bytes (B, channels, H, W) as float32, normalised by the mean and standard deviation of shares of 255."""
    least, scale = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) * 255 for v in (mean, std))
    return images.float().sub_(least).div_(scale)
