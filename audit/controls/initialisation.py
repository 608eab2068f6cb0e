"""The same-initialisation gate: two models may be patched head for head only if their heads correspond."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from audit.controls.verdict import About, MeasuredControl, Role, judge_numbers, mean_interval
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model, adapter
from audit.models.finetune import make_views
from audit.models.predict import finish_logits, predict_logits
from audit.patching.sites import heads_of, same_up_to
from audit.records import Bound

MATCH_AT_LEAST = 0.95
BARRIER_AT_MOST = 2.0  # points of accuracy
Points = npt.NDArray[np.float64]
STEPS = (0.25, 0.5, 0.75)
KNOWS = 2.0  # times chance: below, a model has nothing to lose on the way
LOST_AT_MOST = 0.5  # of what the worse model knows beyond chance


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
    through : Model, optional
        Whose blocks the stream went through.
    known : dict
        The points of models that were asked for before, by model.
    """

    pixels: Pixels
    targets: npt.NDArray[np.int64]
    stream: torch.Tensor | None = None
    start: int = 0
    through: Model | None = None
    known: dict[Model, Points] = field(default_factory=dict, compare=False, repr=False)

    def after_frozen_blocks(self, models: Sequence[Model], start: int) -> Task:
        """Return the task with the pass up to block ``start`` done once for all models, if they share it."""
        first = self.through or models[0]
        if start == 0 or not all(same_up_to(first, m, start) for m in models if m is not first):
            return replace(self, stream=None, start=0, through=None)
        if self.through is not None and self.start == start:
            return self
        (stream,) = make_views(first, [self.pixels], adapter(first).depth - start, dtype=torch.float32).data
        if not isinstance(stream, torch.Tensor):
            return replace(self, stream=None, start=0, through=None)
        return replace(self, stream=stream, start=start, through=first)

    def points_of(self, model: Model) -> Points:
        """Return the points of a model that is asked for more than once; it answers once."""
        if model not in self.known:
            self.known[model] = self.points(model)
        return self.known[model]

    def points(self, model: Model) -> Points:
        """Return 100 for each image that ``model`` is right on, else 0: points of accuracy."""
        if self.stream is None:
            logits = predict_logits(model, self.pixels)
        else:
            logits = finish_logits(model, self.stream, self.start)
        return np.where(logits.argmax(1) == self.targets, 100.0, 0.0)

    @property
    def chance(self) -> float:
        """Share of images that the commonest class alone would be right on."""
        return float(np.bincount(self.targets).max() / len(self.targets))

    def is_known(self, model: Model) -> bool:
        """Tell whether a model is right at least twice as often as the commonest class would be."""
        points = self.points_of(model)
        return bool(points.mean() / 100 >= min(KNOWS * self.chance, (1 + self.chance) / 2))


def run_initialisation(
    pairs: Sequence[Pair], task: Task, form: str, *, layers: range, channel: Role | None = None
) -> list[MeasuredControl]:
    """Check base hash, head-to-head match and, where both models can do the task, the interpolation barrier.

    A model near chance loses nothing on the way to another, so no barrier could show; without a pair that knows the
    task there is no such control. Of several pairs the worst counts.

    Parameters
    ----------
    pairs : sequence of Pair
    task : Task
        What the barrier is measured on.
    form : str
        Which models these are.
    layers : range
        The trained layers.
    channel : {"colour", "blur"}, optional
        Of control models.
    """
    task = task.after_frozen_blocks(list(dict.fromkeys(m for p in pairs for m in (p.recipient, p.donor))), layers.start)
    able = [p for p in pairs if task.is_known(p.recipient) and task.is_known(p.donor)]
    drops = [_drop(p, task, task.points_of(p.recipient), task.points_of(p.donor)) for p in able]
    which = Models(form, channel, len(pairs))
    return [same_base(pairs, which), heads_match(pairs, which, layers), *no_barrier(drops, task, which)]


@dataclass(frozen=True)
class Models:
    """Which models are compared."""

    form: str
    channel: Role | None = None
    pairs: int = 1

    def about(self, check: str, n: int | None = None, **figures: float) -> About:
        """Return what a control's record says of it."""
        name = f"{self.channel} {self.form}" if self.channel else self.form
        return {
            "id": f"{check}:{name}", "check": check, "kind": "initialisation", "channel": self.channel,
            "form": self.form, "n": n, "figures": {"pairs": self.pairs, **figures},
        }  # fmt: skip


def same_base(pairs: Sequence[Pair], which: Models) -> MeasuredControl:
    """Compare the hashes of the weights that the models started from."""
    equal = all(p.recipient_base != "" and p.recipient_base == p.donor_base for p in pairs)
    return judge_numbers([float(equal)], "smallest", "==", 1.0, **which.about("same_base"))


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


def heads_match(pairs: Sequence[Pair], which: Models, layers: range) -> MeasuredControl:
    """Match every head with the most similar one of the layer, by QK and OV products: it must be its namesake."""
    shares = []
    for pair in pairs:
        best = [circuit_similarity(pair.recipient, pair.donor, i).argmax(1) for i in layers]
        shares.append(float(torch.cat([b.cpu() == torch.arange(len(b)) for b in best]).numpy().mean()))
    heads = sum(heads_of(pairs[0].recipient, i) for i in layers)
    return judge_numbers(shares, "smallest", ">=", MATCH_AT_LEAST, **which.about("heads_match", heads))


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


def _drop(pair: Pair, task: Task, recipient: Points, donor: Points) -> Drop:
    known = min(float(recipient.mean()), float(donor.mean())) - 100 * task.chance
    return Drop(barrier(pair, task, recipient, donor), known)


@dataclass(frozen=True)
class Drop:
    """Points of accuracy lost on the way between two models, by image, and what the worse of them has above chance."""

    lost: Points
    known: float

    @property
    def low(self) -> float:
        """The lower end of the mean loss."""
        low = mean_interval(self.lost).low
        return -np.inf if low is None else low

    @property
    def share(self) -> float:
        """The upper end of the mean loss, as a share of what is known."""
        high = mean_interval(self.lost).high
        return np.inf if high is None else high / self.known


def no_barrier(drops: Sequence[Drop], task: Task, which: Models) -> list[MeasuredControl]:
    """Judge the deepest of the drops from both ends of its interval.

    ``barrier`` fails where a break above two points is shown, more than chance in these images can explain.
    ``barrier_bound`` passes only where a real break is excluded: the upper end of the interval is below half of what
    the worse model knows beyond chance, so that few images, which show nothing, do not pass.
    """
    if not drops:
        return []
    deepest, widest = max(drops, key=lambda d: d.low), max(drops, key=lambda d: d.share)
    n = len(task.targets)
    limit = LOST_AT_MOST * widest.known
    return [
        judge_numbers(
            deepest.lost.tolist(), "mean", "<=", BARRIER_AT_MOST, judged=Bound.LOW, **which.about("barrier", n)
        ),
        judge_numbers(
            widest.lost.tolist(), "mean", "<=", limit, judged=Bound.HIGH,
            **which.about("barrier_bound", n, known=widest.known),
        ),
    ]  # fmt: skip
