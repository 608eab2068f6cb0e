"""The same-initialisation gate: two models may be patched head for head only if their heads correspond."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.controls.verdict import judge, mean_interval
from audit.data.pixels import Pixels
from audit.models.predict import predict_logits
from audit.records import Control, Estimate

MATCH_AT_LEAST = 0.95
BARRIER_AT_MOST = 2.0  # points of accuracy
STEPS = (0.25, 0.5, 0.75)
KNOWS = 2.0  # times chance: below, a model has nothing to lose on the way
MEND = "fine-tune both models from the same weights file, more gently (fewer epochs or a lower learning rate)"


@dataclass(frozen=True)
class Pair:
    """Two models said to come from one initialisation, with the hash of the base each was trained from."""

    recipient: VisionTransformer
    donor: VisionTransformer
    recipient_base: str
    donor_base: str
    setting: str


def run_initialisation(pair: Pair, pixels: Pixels, targets: npt.NDArray[np.int64], *, layers: range) -> list[Control]:
    """Check base hash, head-to-head match and, where both models can do the task, the interpolation barrier.

    A model near chance loses nothing on the way to another, so no barrier could show; then there is no such control.

    Parameters
    ----------
    pair : Pair
    pixels : numpy.ndarray (N, H, W, 3), uint8
        Images to measure the barrier on.
    targets : numpy.ndarray (N,)
        Their classes.
    layers : range
        The trained layers.
    """
    barrier = [no_barrier(pair, pixels, targets)] if knows_the_task(pair, pixels, targets) else []
    return [same_base(pair), heads_match(pair, layers), *barrier]


def knows_the_task(pair: Pair, pixels: Pixels, targets: npt.NDArray[np.int64]) -> bool:
    """Tell whether both models are right at least twice as often as the commonest class would be."""
    chance = np.bincount(targets).max() / len(targets)
    right = [(predict_logits(m, pixels).argmax(1) == targets).mean() for m in (pair.recipient, pair.donor)]
    return bool(min(right) >= min(KNOWS * chance, (1 + chance) / 2))


def same_base(pair: Pair) -> Control:
    """Compare the hashes of the weights that the two models started from."""
    return judge(
        id=f"same_base:{pair.setting}",
        title="Both models were trained from the same weights",
        kind="initialisation",
        setting=pair.setting,
        statistic="1 if the hashes of the starting weights, as stored with each model, are equal",
        estimate=Estimate(value=float(pair.recipient_base != "" and pair.recipient_base == pair.donor_base)),
        relation="==",
        threshold=1.0,
        meaning="Head 3 of one model and head 3 of the other began as the same head.",
        mend=MEND,
    )


def circuits(model: VisionTransformer, layer: int) -> list[torch.Tensor]:
    """Return what a layer's heads are, whatever coordinates they use inside: four factors (heads, width, head width).

    W_Q, W_K, W_V and W_O enter a head only through the products W_Q' W_K and W_O W_V (Elhage et al. 2021).
    """
    attention = model.blocks[layer].attn
    n = int(attention.num_heads)
    q, k, v = attention.qkv.weight.detach().chunk(3)
    out = attention.proj.weight.detach().unflatten(1, (n, -1)).movedim(1, 0)
    return [*(w.unflatten(0, (n, -1)).mT for w in (q, k, v)), out]


def circuit_similarity(a: VisionTransformer, b: VisionTransformer, layer: int) -> torch.Tensor:
    """Return cosines (heads of a, heads of b), the mean of those of the QK and of the OV products."""
    qa, ka, va, oa = circuits(a, layer)
    qb, kb, vb, ob = circuits(b, layer)
    return (_product_cosine(qa, ka, qb, kb) + _product_cosine(oa, va, ob, vb)) / 2


def _product_cosine(
    left_a: torch.Tensor, right_a: torch.Tensor, left_b: torch.Tensor, right_b: torch.Tensor
) -> torch.Tensor:
    """Cosines of all pairs of products ``left @ right'``, from their factors (heads, width, head width)."""

    def inner(la: torch.Tensor, ra: torch.Tensor, lb: torch.Tensor, rb: torch.Tensor) -> torch.Tensor:
        lefts = torch.einsum("adi,bdj->abij", la, lb)
        rights = torch.einsum("adi,bdj->abij", ra, rb)
        return (lefts * rights).sum((-1, -2))

    norms = [inner(x, y, x, y).diagonal().clamp_min(1e-24).sqrt() for x, y in ((left_a, right_a), (left_b, right_b))]
    return inner(left_a, right_a, left_b, right_b) / (norms[0][:, None] * norms[1][None, :])


def heads_match(pair: Pair, layers: range) -> Control:
    """Match every head with the most similar one of the layer, by QK and OV products: it must be its namesake."""
    hits: list[bool] = []
    for layer in layers:
        best = circuit_similarity(pair.recipient, pair.donor, layer).argmax(1)
        hits += (best == torch.arange(len(best))).tolist()
    return judge(
        id=f"heads_match:{pair.setting}",
        title="Heads of one model correspond to their namesakes in the other",
        kind="initialisation",
        setting=pair.setting,
        statistic="share of heads whose best match is their namesake",
        estimate=Estimate(value=float(np.mean(hits))),
        relation=">=",
        threshold=MATCH_AT_LEAST,
        n=len(hits),
        meaning="Patching head for head compares like with like.",
        mend=MEND,
    )


def interpolate(a: VisionTransformer, b: VisionTransformer, share: float) -> VisionTransformer:
    """Return the model whose every weight lies ``share`` of the way from ``a`` to ``b``."""
    mixed = copy.deepcopy(a)
    other = b.state_dict()
    mixed.load_state_dict(
        {k: torch.lerp(v, other[k], share) if v.is_floating_point() else v for k, v in a.state_dict().items()}
    )
    return mixed


def no_barrier(pair: Pair, pixels: Pixels, targets: npt.NDArray[np.int64]) -> Control:
    """On the straight line between the two, accuracy stays with that of the worse end.

    Fails where the drop is more than chance in these images can explain: the lower end of its interval counts.
    """

    def points(model: VisionTransformer) -> npt.NDArray[np.float64]:
        return np.where(predict_logits(model, pixels).argmax(1) == targets, 100.0, 0.0)

    worse = min((points(pair.recipient), points(pair.donor)), key=np.mean)
    lowest = min((points(interpolate(pair.recipient, pair.donor, s)) for s in STEPS), key=np.mean)
    drop = mean_interval(worse - lowest)
    return judge(
        id=f"barrier:{pair.setting}",
        title="No break above 2 points shows on the way from one model to the other",
        kind="initialisation",
        setting=pair.setting,
        statistic="lower end of the worse model's accuracy minus the lowest on the straight line to the other, points",
        estimate=drop,
        judged=drop.low,
        relation="<=",
        threshold=BARRIER_AT_MOST,
        n=len(pixels),
        meaning="The two models lie in one basin, so parts of one make sense inside the other.",
        mend=MEND,
    )
