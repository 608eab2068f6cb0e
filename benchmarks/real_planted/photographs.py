"""Photographs as they leave the frozen blocks of a pretrained ViT, and the blocks behind them as a model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.card.schema import ModelSpec
from audit.data.pixels import Pixels, Rows, centred_square
from audit.evidence.disparity import Question
from audit.evidence.trained import draw_images
from audit.models.build import Backbone
from audit.models.finetune import make_views
from audit.records import Contrast

VIT = "vit_small_patch14_dinov2"
LABELS = ("under 40", "over 40")
OUTCOME = "over 40"
OUTCOMES = {OUTCOME: 1}
ATTRIBUTE = "gender"
CONTRAST = Contrast(ATTRIBUTE, "male", "female")
QUESTION = Question(ATTRIBUTE, "female", ["female", "male"])
SPLITS = ("train", "discovery", "confirmation", "truth")


@dataclass(frozen=True)
class Features:
    """What leaves the frozen blocks, in the place of images: (N, tokens, width, 1) as they are asked for."""

    tensor: torch.Tensor  # (N, tokens, width), float16

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, tokens, width, 1."""
        return (*self.tensor.shape, 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is given."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: slice | Rows) -> Pixels:
        chosen = self.tensor[rows] if isinstance(rows, slice) else self.tensor[torch.tensor(rows)]
        return chosen.float().unsqueeze(-1).numpy()


class Given(nn.Module):
    """In the place of a patch embedding: hands on the stream (B, 1, tokens, width) that it is given."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.num_patches = of.img_size, of.patch_size, of.num_patches

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the stream (B, tokens, width)."""
        return stream.squeeze(1)


def tail_of(model: VisionTransformer, blocks: int) -> VisionTransformer:
    """Return the last blocks of a model, its norm and its classifier as a model that reads ``Features``."""
    tail = copy.deepcopy(model)
    tail.blocks = nn.Sequential(*list(tail.blocks)[-blocks:])  # counted from 0
    tail.patch_embed, tail.pos_embed, tail.cls_token = Given(model.patch_embed), None, None
    return tail.eval()


@dataclass(frozen=True)
class World:
    """The photographs and the model that all others are made from.

    Parameters
    ----------
    frame : pandas.DataFrame
        ``label``, ``subject``, the attribute and ``split`` of each photograph, by its row among the features.
    features : Features
    base : VisionTransformer
        The pretrained blocks that are trained, with a new classifier.
    """

    frame: pd.DataFrame
    features: Features
    base: VisionTransformer

    def rows(self, *splits: str) -> npt.NDArray[np.int64]:
        """Return the rows of some splits."""
        return np.flatnonzero(self.frame["split"].isin(splits)).astype(np.int64)


def read_table(shared: Path) -> pd.DataFrame:
    """Return the photographs of UTKFace: path, label, group; each is a subject of its own."""
    folder = shared / "data" / "utkface-ages"
    raw = pd.read_csv(folder / "ages.csv", dtype=str)
    return pd.DataFrame(
        {"path": [str(folder / name) for name in raw["image"]], "label": raw["band"], ATTRIBUTE: raw[ATTRIBUTE]}
    ).assign(subject=[str(row) for row in range(len(raw))])


def split(table: pd.DataFrame, sizes: dict[str, int], seed: int) -> pd.DataFrame:
    """Draw the photographs of each split, the same shares of group and label in all; the others are left out."""
    left, parts = table, []
    for number, (name, size) in enumerate(sizes.items()):
        drawn = draw_images(left, ATTRIBUTE, size, seed + number)
        parts.append(left.iloc[drawn].assign(split=name))
        left = left.drop(left.index[drawn])
    return pd.concat(parts, ignore_index=True)


def open_photographs(paths: list[str], side: int) -> Pixels:
    """Return the photographs (N, side, side, 3) as bytes."""
    fit = centred_square(side).fit
    pixels = np.empty((len(paths), side, side, 3), dtype=np.uint8)
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            pixels[row] = fit(image.convert("RGB"))
    return pixels


def pretrained(shared: Path, side: int, seed: int) -> VisionTransformer:
    """Return the pretrained model with a new classifier."""
    weights = shared / "weights" / f"{VIT}.fp16.safetensors"
    spec = ModelSpec(name=VIT, weights=str(weights), image_size=side)
    model = Backbone(spec, weights).build(len(LABELS), seed=seed)
    assert isinstance(model, VisionTransformer)
    return model


def make_world(model: VisionTransformer, pixels: Pixels, frame: pd.DataFrame, blocks: int) -> World:
    """Run the photographs through the frozen blocks once; what leaves them stays in memory and is written nowhere."""
    (found,) = make_views(model, [pixels], blocks).data
    assert isinstance(found, torch.Tensor)
    return World(frame.drop(columns="path", errors="ignore"), Features(found), tail_of(model, blocks))
