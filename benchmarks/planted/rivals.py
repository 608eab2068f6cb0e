"""Other ways to rank heads, on the same models and the same faces as the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from audit.data.pixels import Pixels
from audit.models.transforms import as_input
from audit.patching.engine import add_to_stream
from audit.patching.sites import Trace, head_writes, record
from benchmarks.planted.models import HEADS, LAYERS, Head

Array = npt.NDArray[np.float64]
FOLDS = 5
BATCH = 64


def rank_rivals(
    model: VisionTransformer,
    pixels: Pixels,
    is_group: npt.NDArray[np.bool_],
    smiling: npt.NDArray[np.bool_],
    *,
    seed: int,
) -> dict[str, dict[Head, float]]:
    """Score every trained head by each rival; larger means more suspicious.

    Parameters
    ----------
    model : VisionTransformer
    pixels : numpy.ndarray (N, H, W, 3), uint8
        Audited faces.
    is_group, smiling : numpy.ndarray of bool (N,)
        Group and label of each.
    seed : int
        Of the random ranking.

    Returns
    -------
    dict of str to dict of head to float
        ``random``; ``write difference`` (length of the difference of the mean writes of the two groups);
        ``attention weight`` (distance between the two groups' mean attention from the class token); ``linear probe``
        (cross-validated accuracy of telling the group from the head's output); ``ablation`` (change of the gap when
        the head's write is replaced by its mean, no placebo).
    """
    heads = [(layer, head) for layer in LAYERS for head in range(HEADS)]
    trace = _record_all(model, pixels)
    weights = _gap_weights(is_group, smiling)
    random = np.random.default_rng(seed).random(len(heads))
    found: dict[str, dict[Head, float]] = {
        "random": dict(zip(heads, random.tolist(), strict=True)),
        "write difference": {},
        "attention weight": {},
        "linear probe": {},
        "ablation": {},
    }
    before = _gap(_probability(model, trace), weights)
    for layer in LAYERS:
        writes = head_writes(model, layer, trace.z[layer])
        attention = _class_token_attention(model, layer, trace.entering[layer])
        mean_change = writes.mean(1, keepdim=True) - writes
        for head in range(HEADS):
            key, signed = (layer, head), torch.from_numpy(weights).float()
            found["write difference"][key] = float((signed[:, None, None] * writes[head]).sum(0).norm())
            found["attention weight"][key] = float((signed[:, None] * attention[:, head]).sum(0).abs().sum())
            z = trace.z[layer].unflatten(-1, (HEADS, -1))[:, 0, head].numpy()
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
            found["linear probe"][key] = float(cross_val_score(probe, z, is_group, cv=FOLDS).mean())
            logits = _in_batches(model, trace, layer, mean_change[head])
            found["ablation"][key] = abs(_gap(logits.double().softmax(-1)[:, 1].numpy(), weights) - before)
    return found


def scores_of_audit(heads: Sequence[Mapping[str, object]], field: str) -> dict[Head, float]:
    """Return the size of a head estimate in ``audit.json``: "confirmation" or "attribution"."""
    scores: dict[Head, float] = {}
    for row in heads:
        value = row[field]
        number = value["value"] if isinstance(value, Mapping) else value
        assert isinstance(number, float) and isinstance(row["layer"], int) and isinstance(row["head"], int)
        scores[(row["layer"], row["head"])] = abs(number)
    return scores


def _record_all(model: VisionTransformer, pixels: Pixels) -> Trace:
    parts = [record(model, as_input(model, pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
    layers = range(len(model.blocks))
    return Trace(
        [torch.cat([p.entering[i] for p in parts]) for i in layers],
        [torch.cat([p.attention[i] for p in parts]) for i in layers],
        [torch.cat([p.z[i] for p in parts]) for i in layers],
        torch.cat([p.leaving for p in parts]),
    )


def _in_batches(model: VisionTransformer, trace: Trace, layer: int, change: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(change)).split(BATCH)
    return torch.cat([add_to_stream(model, trace.take(r), layer, change[r].unsqueeze(0))[0] for r in rows])


@torch.inference_mode()
def _probability(model: VisionTransformer, trace: Trace) -> Array:
    found: Array = model.forward_head(model.norm(trace.leaving)).double().softmax(-1)[:, 1].numpy()
    return found


@torch.inference_mode()
def _class_token_attention(model: VisionTransformer, layer: int, entering: torch.Tensor) -> torch.Tensor:
    """Return the class token's attention to all tokens: (N, heads, tokens)."""
    block = model.blocks[layer]
    qkv = block.attn.qkv(block.norm1(entering)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    return F.softmax(qkv[0][:, :, :1] @ qkv[1].mT * block.attn.scale, dim=-1)[:, :, 0]


def _gap_weights(is_group: npt.NDArray[np.bool_], smiling: npt.NDArray[np.bool_]) -> Array:
    """Return weights whose product with values is the label-standardised difference between the groups."""
    weights = np.zeros(len(is_group))
    for label in (False, True):
        for side, sign in ((True, 1.0), (False, -1.0)):
            cell = (smiling == label) & (is_group == side)
            weights[cell] = sign * (smiling == label).mean() / max(1, cell.sum())
    return weights


def _gap(values: Array, weights: Array) -> float:
    return float(weights @ values)
