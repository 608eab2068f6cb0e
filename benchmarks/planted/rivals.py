"""Other ways to rank heads, on the same models and the same faces as the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from audit.data.pixels import Pixels
from audit.models.transforms import as_input
from audit.patching.engine import add_to_stream
from audit.patching.sites import Trace, head_outputs, heads_of, record
from benchmarks.planted.models import HEADS, LAYERS, Head

Array = npt.NDArray[np.float64]
Sides = npt.NDArray[np.bool_]
TOOL = "group swap with placebo (this tool)"
ALPHA = 0.05
FOLDS = 5
BATCH = 64
EVERY = [(layer, head) for layer in LAYERS for head in range(HEADS)]


@dataclass(frozen=True)
class Ranking:
    """What a method says of every trained head.

    Parameters
    ----------
    scores : mapping of head to float
        Larger means more suspicious.
    named : sequence of head or None
        The heads that its usual test calls significant, Bonferroni over the heads; None where it has no test, and so
        always has a first head.
    """

    scores: Mapping[Head, float]
    named: Sequence[Head] | None = None


def rank_rivals(
    model: VisionTransformer,
    pixels: Pixels,
    is_group: Sides,
    smiling: Sides,
    *,
    seed: int,
    layers: Sequence[int] = LAYERS,
) -> dict[str, Ranking]:
    """Rank the trained heads by each rival that needs nothing but the model and the faces.

    Parameters
    ----------
    model : VisionTransformer
    pixels : numpy.ndarray (N, H, W, 3), uint8
        Audited faces.
    is_group, smiling : numpy.ndarray of bool (N,)
        Group and label of each; the class that goes with the label is the second.
    seed : int
        Of the random ranking.
    layers : sequence of int
        Whose heads are ranked.

    Returns
    -------
    dict of str to Ranking
        ``random``; ``write difference`` (length of the difference of the mean writes of the two groups, over the
        tokens that the classifier can still see); ``attention weight`` (distance between the two groups' mean
        attention from the class token); ``linear probe`` (cross-validated accuracy of telling the group from the
        head's output, class token and mean over tokens; test: binomial against one half); ``ablation`` (change of the
        gap when the head's write is replaced by its mean, no placebo; test: normal, faces independent).
    """
    trace = record_all(model, pixels)
    weights = gap_weights(is_group, smiling)
    before = _probability(model, trace)
    differences, attended, probed, ablated, p_probe, p_ablation = ({} for _ in range(6))
    for layer in layers:
        heads, outputs = heads_of(model, layer), head_outputs(model, layer, trace.head_activations[layer])
        attention = _class_token_attention(model, layer, trace.entering[layer])
        signed = torch.from_numpy(weights).float()
        for head in range(heads):
            key = (layer, head)
            seen = outputs[head][:, : 1 if layer == layers[-1] else None]  # what can still reach the classifier
            differences[key] = float((signed[:, None, None] * seen).sum(0).norm())
            attended[key] = float((signed[:, None] * attention[:, head]).sum(0).abs().sum())
            probed[key] = _probe(trace.head_activations[layer].unflatten(-1, (heads, -1))[:, :, head], is_group)
            right = round(probed[key] * len(is_group))
            p_probe[key] = float(stats.binomtest(right, len(is_group), 0.5, alternative="greater").pvalue)
            after = _in_batches(model, trace, layer, outputs[head].mean(0, keepdim=True) - outputs[head])
            change = after.double().softmax(-1)[:, 1].numpy() - before
            ablated[key], p_ablation[key] = abs(float(weights @ change)), contrast_p(change, is_group, smiling)
    random = np.random.default_rng(seed).random(len(probed))
    return {
        "random": Ranking(dict(zip(probed, random.tolist(), strict=True))),
        "write difference": Ranking(differences),
        "attention weight": Ranking(attended),
        "linear probe": Ranking(probed, _significant(p_probe)),
        "ablation": Ranking(ablated, _significant(p_ablation)),
    }


def rank_by_attribution(table: pd.DataFrame, outcome: str = "smiling") -> Ranking:
    """Rank by attribution patching, as the audit stored it; test: normal, faces independent.

    Parameters
    ----------
    table : pandas.DataFrame
        ``position``, ``side``, ``label``, ``donor_kind``, ``layer``, ``head``, ``own:<outcome>``: the estimated change.
    outcome : str
        Also the name of its label.
    """
    wide = table.pivot(index="position", columns=["donor_kind", "layer", "head"], values=f"own:{outcome}").sort_index()
    about = table.drop_duplicates("position").sort_values("position")
    is_group, smiling = (about["side"] == "group").to_numpy(), (about["label"] == outcome).to_numpy()
    weights, scores, p = gap_weights(is_group, smiling), {}, {}
    for key in ((int(layer), int(head)) for layer, head in wide["cross"].columns):
        difference = (wide[("cross", *key)] - wide[("placebo", *key)]).to_numpy(dtype=np.float64)
        scores[key], p[key] = abs(float(weights @ difference)) / 2, contrast_p(difference, is_group, smiling)
    return Ranking(scores, _significant(p))


def scores_of_audit(heads: Sequence[Mapping[str, object]]) -> dict[Head, float]:
    """Return the size of each head's confirmation estimate in ``audit.json``."""
    scores: dict[Head, float] = {}
    for row in heads:
        estimate = row["confirmation"]
        assert isinstance(estimate, Mapping) and isinstance(row["layer"], int) and isinstance(row["head"], int)
        scores[(row["layer"], row["head"])] = abs(float(estimate["value"]))
    return scores


def gap_weights(is_group: Sides, smiling: Sides) -> Array:
    """Return weights whose product with values is the label-standardised difference between the groups."""
    weights = np.zeros(len(is_group))
    for label in (False, True):
        for side, sign in ((True, 1.0), (False, -1.0)):
            cell = (smiling == label) & (is_group == side)
            weights[cell] = sign * (smiling == label).mean() / max(1, cell.sum())
    return weights


def contrast_p(values: Array, is_group: Sides, smiling: Sides) -> float:
    """Return the two-sided p of the standardised difference, faces independent of each other."""
    weights, residual = gap_weights(is_group, smiling), values.copy()
    for label in (False, True):
        for side in (False, True):
            cell = (smiling == label) & (is_group == side)
            if cell.any():
                residual[cell] -= values[cell].mean()
    error = float(np.sqrt(((weights * residual) ** 2).sum()))
    return float(2 * stats.norm.sf(abs(float(weights @ values)) / error)) if error > 0 else 1.0


def _significant(p: Mapping[Head, float]) -> list[Head]:
    return [head for head, value in p.items() if value <= ALPHA / len(p)]


def _probe(z: torch.Tensor, is_group: Sides) -> float:
    """Return the accuracy with which the group is told from z (N, tokens, width) of faces left out of the fit."""
    features = torch.cat([z[:, 0], z.mean(1)], dim=1).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return float(cross_val_score(probe, features, is_group, cv=FOLDS).mean())


def record_all(model: VisionTransformer, pixels: Pixels) -> Trace:
    parts = [record(model, as_input(model, pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
    layers = range(len(model.blocks))
    return Trace(
        [torch.cat([p.entering[i] for p in parts]) for i in layers],
        [torch.cat([p.attention[i] for p in parts]) for i in layers],
        [torch.cat([p.head_activations[i] for p in parts]) for i in layers],
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
    heads = heads_of(model, layer)
    qkv = block.attn.qkv(block.norm1(entering)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.softmax(qkv[0][:, :, :1] @ qkv[1].mT * block.attn.scale, dim=-1)[:, :, 0]
