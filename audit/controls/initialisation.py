"""The same-initialisation gate: two models may be patched head for head only if their heads correspond."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from audit.controls.verdict import LOWER_END, MeasuredControl, judge_numbers, mean_interval, said_of_controls
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model, adapter
from audit.models.finetune import make_views
from audit.models.predict import finish_logits, predict_logits
from audit.patching.sites import heads_of, same_up_to

MATCH_AT_LEAST = 0.95
BARRIER_AT_MOST = 2.0  # points of accuracy
Points = npt.NDArray[np.float64]
STEPS = (0.25, 0.5, 0.75)
KNOWS = 2.0  # times chance: below, a model has nothing to lose on the way
MEND = "fine-tune both models from the same weights file, more gently (fewer epochs or a lower learning rate)"


@dataclass(frozen=True)
class Pair:
    """Two models said to come from one initialisation, with the hash of the base each was trained from."""

    recipient: Model
    donor: Model
    recipient_base: str
    donor_base: str


@dataclass(frozen=True)
class Task:
    """Images and their classes, on which models are compared.

    Parameters
    ----------
    pixels : numpy.ndarray (N, H, W, 3), uint8
    targets : numpy.ndarray (N,)
    stream : torch.Tensor (N, tokens, width), optional
        The images as they enter block ``start`` of every model that is compared.
    start : int
    """

    pixels: Pixels
    targets: npt.NDArray[np.int64]
    stream: torch.Tensor | None = None
    start: int = 0

    def after_frozen_blocks(self, models: Sequence[Model], start: int) -> Task:
        """Return the task with the pass up to block ``start`` done once for all models, if they share it."""
        first, *others = models
        if start == 0 or not all(same_up_to(first, m, start) for m in others):
            return self
        (stream,) = make_views(first, [self.pixels], adapter(first).depth - start, dtype=torch.float32).data
        assert isinstance(stream, torch.Tensor)
        return replace(self, stream=stream, start=start)

    def points(self, model: Model) -> Points:
        """Return 100 for each image that ``model`` is right on, else 0: points of accuracy."""
        if self.stream is None:
            logits = predict_logits(model, self.pixels)
        else:
            logits = finish_logits(model, self.stream, self.start)
        return np.where(logits.argmax(1) == self.targets, 100.0, 0.0)

    def is_known(self, points: Points) -> bool:
        """Tell whether a model with these points is right at least twice as often as the commonest class would be."""
        chance = float(np.bincount(self.targets).max() / len(self.targets))
        return bool(points.mean() / 100 >= min(KNOWS * chance, (1 + chance) / 2))


def run_initialisation(pairs: Sequence[Pair], task: Task, setting: str, *, layers: range) -> list[MeasuredControl]:
    """Check base hash, head-to-head match and, where both models can do the task, the interpolation barrier.

    A model near chance loses nothing on the way to another, so no barrier could show; without a pair that knows the
    task there is no such control. Of several pairs the worst counts.

    Parameters
    ----------
    pairs : sequence of Pair
    task : Task
        What the barrier is measured on.
    setting : str
        Which models these are, in words.
    layers : range
        The trained layers.
    """
    distinct = {id(m): m for p in pairs for m in (p.recipient, p.donor)}
    task = task.after_frozen_blocks(list(distinct.values()), layers.start)
    points = {key: task.points(model) for key, model in distinct.items()}
    able = [p for p in pairs if all(task.is_known(points[id(m)]) for m in (p.recipient, p.donor))]
    drops = [barrier(p, task, points[id(p.recipient)], points[id(p.donor)]) for p in able]
    found = [same_base(pairs, setting), heads_match(pairs, setting, layers), *no_barrier(drops, task, setting)]
    return said_of_controls(adapter(pairs[0].recipient).unit, found)


def same_base(pairs: Sequence[Pair], setting: str) -> MeasuredControl:
    """Compare the hashes of the weights that the models started from."""
    equal = all(p.recipient_base != "" and p.recipient_base == p.donor_base for p in pairs)
    return judge_numbers(
        id=f"same_base:{setting}",
        title="The models were trained from the same weights",
        kind="initialisation",
        setting=setting,
        statistic="1 if the hashes of the starting weights, as stored with each model, are equal",
        numbers=[float(equal)],
        reduced="smallest",
        relation="==",
        threshold=1.0,
        meaning="Head 3 of one model and head 3 of the other began as the same head.",
        fix=MEND,
    )


def circuit_similarity(a: Model, b: Model, layer: int) -> torch.Tensor:
    """Return cosines (heads of a, heads of b), the mean of those of the QK and of the OV products.

    Of slices of channels: those of the last filters.
    """
    pairs = zip(adapter(a).products(layer), adapter(b).products(layer), strict=True)
    return torch.stack([_product_cosine(*ours, *theirs) for ours, theirs in pairs]).mean(0)


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


def heads_match(pairs: Sequence[Pair], setting: str, layers: range) -> MeasuredControl:
    """Match every head with the most similar one of the layer, by QK and OV products: it must be its namesake."""
    shares = []
    for pair in pairs:
        best = [circuit_similarity(pair.recipient, pair.donor, i).argmax(1) for i in layers]
        shares.append(float(torch.cat([b == torch.arange(len(b)) for b in best]).double().mean()))
    return judge_numbers(
        id=f"heads_match:{setting}",
        title="Heads of one model correspond to their namesakes in the other",
        kind="initialisation",
        setting=setting,
        statistic="share of heads whose best match is their namesake" + (", worst pair of models" * (len(pairs) > 1)),
        numbers=shares,
        reduced="smallest",
        relation=">=",
        threshold=MATCH_AT_LEAST,
        n=sum(heads_of(pairs[0].recipient, i) for i in layers),
        meaning="Patching head for head compares like with like.",
        fix=MEND,
    )


def interpolate(a: Model, b: Model, share: float) -> Model:
    """Return the model whose every weight lies ``share`` of the way from ``a`` to ``b``."""
    mixed = copy.deepcopy(a)
    other = b.state_dict()
    mixed.load_state_dict(
        {k: torch.lerp(v, other[k], share) if v.is_floating_point() else v for k, v in a.state_dict().items()}
    )
    return mixed


def barrier(pair: Pair, task: Task, recipient: Points, donor: Points) -> Points:
    """Measure how far each image's points fall on the straight line between two models, below those of the worse end.

    Parameters
    ----------
    pair : Pair
    task : Task
    recipient, donor : numpy.ndarray (N,)
        Points of the two ends.
    """
    worse = min((recipient, donor), key=np.mean)
    lowest = min((task.points(interpolate(pair.recipient, pair.donor, s)) for s in STEPS), key=np.mean)
    return worse - lowest


def _lower_end(drop: Points) -> float:
    low = mean_interval(drop).low
    return -np.inf if low is None else low


def no_barrier(drops: Sequence[Points], task: Task, setting: str) -> list[MeasuredControl]:
    """Judge the deepest of the drops; it fails where it is more than chance in these images can explain."""
    if not drops:
        return []
    deepest = max(drops, key=_lower_end)
    return [
        judge_numbers(
            id=f"barrier:{setting}",
            title="No break above 2 points shows on the way from one model to the other",
            kind="initialisation",
            setting=setting,
            statistic=f"{LOWER_END} of the worse model's accuracy minus the lowest on the straight line to the other, "
            "points" + (", worst pair of models" * (len(drops) > 1)),
            numbers=deepest.tolist(),
            reduced="mean",
            relation="<=",
            threshold=BARRIER_AT_MOST,
            n=len(task.targets),
            meaning="The two models lie in one basin, so parts of one make sense inside the other.",
            fix=MEND,
        )
    ]
