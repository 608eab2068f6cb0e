"""What is true of a model, measured on so many faces that chance is out of the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.data.synthetic import sample_faces
from benchmarks.planted.models import LAYERS, Head, features, run_tail

TRUTH_SEED = 3_000_017
BATCH = 512


@dataclass(frozen=True)
class Crowd:
    """Many faces as they leave the frozen blocks, with group, label and hair length."""

    stream: torch.Tensor  # (N, tokens, width), float16
    darker: npt.NDArray[np.bool_]
    smiling: npt.NDArray[np.bool_]
    long_hair: npt.NDArray[np.bool_]


def make_crowd(model: VisionTransformer, n: int, *, part: int = 2000) -> Crowd:
    """Draw ``n`` faces, balanced over group, label and hair, and run them through the frozen blocks."""
    faces = sample_faces(n, TRUTH_SEED, split="confirmation")
    pieces = [features(model, faces.iloc[i : i + part], twins=False).half() for i in range(0, n, part)]
    return Crowd(torch.cat(pieces), *_columns(faces))


def _columns(faces: pd.DataFrame) -> tuple[npt.NDArray[np.bool_], ...]:
    asked = (("skin_tone", "darker"), ("expression", "smiling"), ("hair_length", "long"))
    return tuple((faces[column] == value).to_numpy() for column, value in asked)


@torch.inference_mode()
def true_gap(model: VisionTransformer, crowd: Crowd) -> tuple[float, float]:
    """Return the label-standardised gap, darker minus lighter, in the rate of "smiling" and in its mean probability."""
    parts = [run_tail(model, s.float())[0].double().softmax(-1)[:, 1] for s in crowd.stream.split(BATCH)]
    p = torch.cat(parts).numpy()
    rate, mean = (_standardised(v, crowd.darker, crowd.smiling) for v in ((p > 0.5).astype(np.float64), p))
    return rate, mean


def _standardised(values: npt.NDArray[np.float64], side: npt.NDArray[np.bool_], label: npt.NDArray[np.bool_]) -> float:
    cells = [values[(label == y) & side].mean() - values[(label == y) & ~side].mean() for y in (False, True)]
    return float(np.mean(cells))


@torch.inference_mode()
def true_mediated(model: VisionTransformer, crowd: Crowd, heads: Sequence[Head], *, seed: int = 0) -> dict[Head, float]:
    """Return the mediated gap of heads as Design A defines it, donors matched on label and hair length.

    Every face receives from one of the other group and from one of its own, drawn at random.
    """
    rng = np.random.default_rng(seed)
    cross, placebo = (_donors(crowd, rng, other=other) for other in (True, False))
    sums = {head: np.zeros(len(crowd.darker)) for head in heads}
    for start in range(0, len(crowd.darker), BATCH):
        rows = np.arange(start, min(start + BATCH, len(crowd.darker)))
        own = crowd.stream[rows].float()
        for donors, sign in ((cross, 1.0), (placebo, -1.0)):
            _, given = run_tail(model, crowd.stream[donors[rows]].float())
            for layer, head in heads:
                taken = torch.zeros(len(rows), len(LAYERS), given[0].shape[1], dtype=torch.bool)
                taken[:, layer - LAYERS.start, head] = True
                p = run_tail(model, own, given, taken)[0].double().softmax(-1)[:, 1].numpy()
                sums[(layer, head)][rows] += sign * p
    # half the difference between what the reference gains and what the group gains
    return {head: -_standardised(d, crowd.darker, crowd.smiling) / 2 for head, d in sums.items()}


def _donors(crowd: Crowd, rng: np.random.Generator, *, other: bool) -> npt.NDArray[np.int64]:
    """Draw for each face a donor of equal label and hair, of the other group or of its own but not itself."""
    stratum = 2 * crowd.smiling + crowd.long_hair
    donors = np.empty(len(stratum), dtype=np.int64)
    for s in np.unique(stratum):
        sides = [np.flatnonzero((stratum == s) & (crowd.darker == side)) for side in (False, True)]
        for rows, others in (sides, sides[::-1]):
            if other:
                donors[rows] = rng.choice(others, len(rows))
            else:
                order = rng.permutation(rows)
                donors[order] = np.roll(order, 1)
    return donors
