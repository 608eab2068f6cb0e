"""What is true of a model, measured on so many faces that chance is out of the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from audit.data.synthetic import sample_faces
from audit.models.adapters.registry import adapter
from audit.models.blocks import after_attention
from benchmarks.planted.models import LAYERS, Head, attend, features

TRUTH_SEEDS = 3_000_017  # from here on
BATCH = 256

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
EVERY_LABEL = (False, True)
LABELS_OF = {"standardised_gap": EVERY_LABEL, "fpr_gap": (False,), "tpr_gap": (True,)}  # that a metric looks at


@dataclass(frozen=True)
class Crowd:
    """Many faces as they leave the frozen blocks, with group, label and hair length.

    The second half are the twins of the first, in the same order: the same faces in the other skin tone. So the two
    groups differ in nothing else, not even by chance.
    """

    stream: torch.Tensor  # (N, tokens, width), float16
    darker: Bools
    smiling: Bools
    long_hair: Bools


def make_crowd(model: VisionTransformer, n: int, *, seed: int, part: int = 2000) -> Crowd:
    """Draw ``n`` faces, half of them twins, balanced over label and hair, and run them through the frozen blocks."""
    faces = sample_faces(n // 2, TRUTH_SEEDS + seed, split="confirmation")
    halves = [
        torch.cat([features(model, faces.iloc[i : i + part], twins=t).half() for i in range(0, len(faces), part)])
        for t in (False, True)
    ]
    darker, smiling, long_hair = _columns(faces)
    return Crowd(torch.cat(halves), np.append(darker, ~darker), np.tile(smiling, 2), np.tile(long_hair, 2))


def _columns(faces: pd.DataFrame) -> tuple[Bools, ...]:
    asked = (("skin_tone", "darker"), ("expression", "smiling"), ("hair_length", "long"))
    return tuple((faces[column] == value).to_numpy() for column, value in asked)


@dataclass(frozen=True)
class Truth:
    """What is true of a model, darker minus lighter, labels at equal shares.

    Parameters
    ----------
    rate, mean : float
        The gap in the rate of "smiling", and in its mean probability.
    mediated : dict of head to float
        As Design A defines it, donors matched on label and hair length.
    rate_error : float
        Standard error of ``rate``, from the finite crowd.
    error : dict of head to float
        Standard error of ``mediated``, likewise.
    """

    rate: float
    mean: float
    rate_error: float
    mediated: dict[Head, float]
    error: dict[Head, float]


@torch.inference_mode()
def measure(
    model: VisionTransformer,
    crowd: Crowd,
    heads: Sequence[Head],
    *,
    labels: Sequence[bool] = EVERY_LABEL,
    seed: int = 0,
) -> Truth:
    """Measure gaps, and the mediated gaps of some heads, these among faces with one of ``labels`` (smiling or not).

    Every face receives from one of the other group and from one of its own, drawn at random.
    """
    p, streams, z = _run(model, crowd, heads)
    rng = np.random.default_rng(seed)
    donors = {sign: torch.from_numpy(draw_donors(crowd, rng, other=sign > 0)) for sign in (1, -1)}
    mediated, error = {}, {}
    for head in heads:
        change = sum(sign * _patched(model, streams[head[0]], z[head], of, head) for sign, of in donors.items())
        assert isinstance(change, np.ndarray)
        # half the difference between what the reference gains and what the group gains
        mediated[head] = -standardised_gap(change, crowd.darker, crowd.smiling, labels) / 2
        error[head] = standard_error(change, crowd.darker, crowd.smiling, labels) / 2
    called = (p > 0.5).astype(np.float64)
    rate, mean = (standardised_gap(v, crowd.darker, crowd.smiling) for v in (called, p))
    return Truth(rate, mean, standard_error(called, crowd.darker, crowd.smiling), mediated, error)


def _run(
    model: VisionTransformer, crowd: Crowd, heads: Sequence[Head]
) -> tuple[Floats, dict[int, torch.Tensor], dict[Head, torch.Tensor]]:
    """Return p of every face; the residual stream after the attention of the heads' layers; and the heads' z."""
    p: list[torch.Tensor] = []
    streams: dict[int, list[torch.Tensor]] = {layer: [] for layer, _ in heads}
    z: dict[Head, list[torch.Tensor]] = {head: [] for head in heads}
    for part in crowd.stream.split(BATCH):
        stream = part.float()
        for layer in LAYERS:
            block, rows = model.blocks[layer], _rows(stream, layer)
            mixed = attend(block, stream, rows)
            stream = stream[:, :rows] + block.ls1(block.attn.proj(mixed.transpose(1, 2).flatten(2)))
            if layer in streams:
                streams[layer].append(stream.half())
            for head in heads:
                if head[0] == layer:
                    z[head].append(mixed[:, head[1]])
            stream = after_attention(block, stream)
        p.append(adapter(model).classify(stream).double().softmax(-1)[:, 1])
    joined = {layer: torch.cat(parts) for layer, parts in streams.items()}
    return torch.cat(p).numpy(), joined, {head: torch.cat(parts) for head, parts in z.items()}


def _patched(
    model: VisionTransformer, stream: torch.Tensor, z: torch.Tensor, donors: torch.Tensor, head: Head
) -> Floats:
    """Return p of every face whose head ``head`` writes what it writes for the face's donor."""
    layer, number = head
    block = model.blocks[layer]
    width = block.attn.head_dim
    columns = block.attn.proj.weight[:, number * width : (number + 1) * width]
    p: list[torch.Tensor] = []
    for rows in torch.arange(len(z)).split(BATCH):
        change = block.ls1(F.linear(z[donors[rows]] - z[rows], columns))
        own = after_attention(block, stream[rows].float() + change)
        for later in range(layer + 1, LAYERS.stop):
            after, read = model.blocks[later], _rows(own, later)
            mixed = attend(after, own, read)
            own = after_attention(after, own[:, :read] + after.ls1(after.attn.proj(mixed.transpose(1, 2).flatten(2))))
        p.append(adapter(model).classify(own).double().softmax(-1)[:, 1])
    return torch.cat(p).numpy()


def _rows(stream: torch.Tensor, layer: int) -> int:
    """Return how many tokens of a layer the classifier can still see."""
    return 1 if layer == LAYERS[-1] else stream.shape[1]


def standardised_gap(values: Floats, side: Bools, label: Bools, labels: Sequence[bool] = EVERY_LABEL) -> float:
    """Return the difference of means between the sides, averaged over labels."""
    cells = [values[(label == y) & side].mean() - values[(label == y) & ~side].mean() for y in labels]
    return float(np.mean(cells))


def standard_error(values: Floats, side: Bools, label: Bools, labels: Sequence[bool] = EVERY_LABEL) -> float:
    """Return the standard error of the standardised difference, from face to face, each with its twin."""
    between = np.where(side, values, -values).reshape(2, -1).sum(0)
    cells = [between[label[: len(between)] == y] for y in labels]
    return float(np.sqrt(sum(cell.var(ddof=1) / len(cell) for cell in cells)) / len(cells))


def draw_donors(crowd: Crowd, rng: np.random.Generator, *, other: bool) -> npt.NDArray[np.int64]:
    """Give each face a donor of equal label and hair, of the other group or of its own but not itself."""
    stratum = 2 * crowd.smiling + crowd.long_hair
    donors = np.empty(len(stratum), dtype=np.int64)
    for s in np.unique(stratum):
        sides = [np.flatnonzero((stratum == s) & (crowd.darker == side)) for side in (False, True)]
        for rows, others in (sides, sides[::-1]):
            if other:
                donors[rows] = rng.permutation(np.resize(others, len(rows)))  # as evenly as it goes; among twins, once
            else:
                order = rng.permutation(rows)
                donors[order] = np.roll(order, 1)
    return donors
