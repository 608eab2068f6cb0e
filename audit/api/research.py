"""The parts that a researcher wants alone, on tensors and arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from audit.api.models import Net
from audit.api.moving import Moving, move_means
from audit.api.tables import Gaps, MovedMeans, Rates
from audit.data.samples import UNKNOWN
from audit.errors import DataError, ModelError
from audit.evidence.disparity import Question, Thresholds, contrasts, rates_by_group
from audit.given import check_kind
from audit.models.adapters.registry import ADAPTERS, Model
from audit.models.architecture import why_not_patchable
from audit.models.device import computing_on, device_of
from audit.models.modules import as_patchable
from audit.patching import api
from audit.patching.api import Direction, Head, Scale
from audit.patching.contributions import Written
from audit.patching.parts import Part

__all__ = ["Disparity", "attribution", "disparity", "patch_heads", "patch_parts", "shift_means", "sweep", "written"]


def patch_heads(
    model: Net | nn.Module,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    heads: Sequence[Head] | None = None,
    *,
    scale: Scale = "log_odds",
    device: str | None = None,
) -> torch.Tensor:
    """Patch heads one at a time, donor i into recipient i, and return what each patch changes, exactly.

    What a head adds to the residual stream is replaced by what it adds for the donor; all that follows is computed
    again (activation patching; Vig et al. 2020; Zhang and Nanda 2024).

    Parameters
    ----------
    model : Net or torch.nn.Module
        Of a supported family.
    recipients, donors : torch.Tensor (N, 3, H, W)
        Images as the model reads them: normalised, of its size.
    heads : sequence of (layer, head), optional
        Counted from 0; by default all, layer by layer.
    scale : {"log_odds", "probability", "logit"}
        Of which number of each class the change is given; log-odds and logits in nats. A ``Net`` and a Hugging Face
        module are read as they say, by softmax or sigmoids, any other module by softmax.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        Where it is computed, on a copy of the model; by default where a timm module's weights are, and on the processor
        for any other.

    Returns
    -------
    torch.Tensor (N, heads, classes), float64, on the CPU
        Patched minus unpatched; exactly 0 for an image that donates to itself.

    Raises
    ------
    InputError
        If recipients and donors differ in shape, or there is no such head.
    ModelError
        If the model cannot be patched.

    References
    ----------
    Vig et al. 2020, "Investigating gender bias in language models using causal mediation analysis", NeurIPS.

    Examples
    --------
    >>> import timm, torch, vit_audit as va
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    >>> images = torch.randn(4, 3, 32, 32)
    >>> tuple(va.patch_heads(model, images, images.flip(0), heads=[(0, 1), (1, 2)]).shape)
    (4, 2, 3)
    >>> float(va.patch_heads(model, images, images).abs().max())
    0.0
    """
    with _opened(model, device) as opened:
        return api.patch_heads(opened, recipients, donors, heads, scale=scale)


def patch_parts(
    model: Net | nn.Module,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    parts: Sequence[Part | Head | str],
    *,
    direction: Direction = "denoising",
    scale: Scale = "log_odds",
    device: str | None = None,
) -> torch.Tensor:
    """Patch several parts at once, donor i into recipient i, and return what that changes, exactly.

    Heads, attention, MLPs and layers write what they write for the donor; of the residual stream the donor's is taken
    at a depth. All else is computed again, so that the effect is the joint one of all parts.

    Parameters
    ----------
    model : Net or torch.nn.Module
        Of a supported family.
    recipients, donors : torch.Tensor (N, 3, H, W)
        Images as the model reads them: normalised, of its size.
    parts : sequence of str or (layer, head)
        ``L7H2`` (a head; ``L7C2`` a slice of channels), ``L7 attention``, ``L7 MLP``, ``L7`` (both; all that a
        convolutional block adds), ``all attention``, ``all MLPs``, ``all layers``, ``embedding``; of the stream that
        enters layer 7, ``class token at 7`` (with registers), ``patch tokens at 7``, ``residual stream at 7``.
        Counted from 0; the stream at the last depth is what leaves the last layer.
    direction : {"denoising", "noising"}
        What the donor's parts give a recipient that has all else, or what the donor loses with the recipient's parts.
        Where all paths add up, the two are equal.
    scale : {"log_odds", "probability", "logit"}
        As of :func:`patch_heads`.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        As of :func:`patch_heads`.

    Returns
    -------
    torch.Tensor (N, classes), float64, on the CPU
        Patched minus recipient (denoising), or donor minus patched (noising); exactly 0 for an image that donates to
        itself.

    Raises
    ------
    InputError
        If recipients and donors differ in shape, or the model has no such part.
    ModelError
        If the model cannot be patched.

    References
    ----------
    Zhang & Nanda 2024, "Towards best practices of activation patching in language models", ICLR.

    Examples
    --------
    >>> import timm, torch, vit_audit as va
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    >>> images = torch.randn(4, 3, 32, 32)
    >>> tuple(va.patch_parts(model, images, images.flip(0), ["L0H1", "L1 MLP", "class token at 1"]).shape)
    (4, 3)
    >>> whole = va.patch_parts(model, images, images.flip(0), ["residual stream at 2"])
    >>> torch.equal(whole, va.patch_parts(model, images, images.flip(0), ["embedding"]))
    True
    """
    with _opened(model, device) as opened:
        return api.patch_parts(opened, recipients, donors, parts, direction=direction, scale=scale)


def attribution(
    model: Net | nn.Module,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    heads: Sequence[Head] | None = None,
    *,
    scale: Scale = "log_odds",
    device: str | None = None,
) -> torch.Tensor:
    """Estimate to first order what :func:`patch_heads` returns, with one backward pass per class.

    Attribution patching (Nanda 2023): the gradient with respect to the residual stream times the change of what the
    head adds. It errs where the model is far from linear between recipient and donor.

    Parameters
    ----------
    model, recipients, donors, heads, scale, device
        As of :func:`patch_heads`.

    Returns
    -------
    torch.Tensor (N, heads, classes), float64, on the CPU

    Raises
    ------
    InputError, ModelError
        As :func:`patch_heads`.

    References
    ----------
    Syed, Rager & Conmy 2024, "Attribution patching outperforms automated circuit discovery", BlackboxNLP.

    Examples
    --------
    >>> import timm, torch, vit_audit as va
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    >>> images = torch.randn(4, 3, 32, 32)
    >>> tuple(va.attribution(model, images, images.flip(0)).shape)
    (4, 6, 3)
    """
    with _opened(model, device) as opened:
        return api.attribution(opened, recipients, donors, heads, scale=scale)


def sweep(
    model: Net | nn.Module,
    images: torch.Tensor,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    *,
    layers: range | None = None,
    scale: Scale = "log_odds",
    progress: Callable[[int, int], None] | None = None,
    device: str | None = None,
) -> torch.Tensor:
    """Patch every head for many pairs of images, each image going through the model once per batch: the fast engine.

    Parameters
    ----------
    model : Net or torch.nn.Module
        Of a supported family.
    images : torch.Tensor (M, 3, H, W)
        As the model reads them.
    recipients, donors : torch.Tensor (N,), int64
        Row of each pair's recipient and donor in ``images``.
    layers : range, optional
        By default all.
    scale : {"log_odds", "probability", "logit"}
        As of :func:`patch_heads`.
    progress : callable, optional
        Called with the pairs done and in all.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        As of :func:`patch_heads`.

    Returns
    -------
    torch.Tensor (N, heads, classes), float64, on the CPU
        Patched minus unpatched, heads layer by layer.

    Raises
    ------
    InputError
        If recipients and donors differ in number, or name rows that ``images`` has not.
    ModelError
        If the model cannot be patched.

    References
    ----------
    As of :func:`patch_heads`; what is computed is the same, in fewer passes.

    Examples
    --------
    >>> import timm, torch, vit_audit as va
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    >>> images, order = torch.randn(4, 3, 32, 32), torch.arange(4)
    >>> effects = va.sweep(model, images, order, order.flip(0))
    >>> torch.allclose(effects, va.patch_heads(model, images, images.flip(0)), atol=1e-5)
    True
    """
    with _opened(model, device) as opened:
        return api.sweep_heads(opened, images, recipients, donors, layers=layers, scale=scale, progress=progress)


def written(
    model: Net | nn.Module,
    images: torch.Tensor,
    outcomes: Mapping[str, int],
    labels: Sequence[int] | npt.NDArray[np.int64] | None = None,
    *,
    cut: int | None = None,
    device: str | None = None,
) -> Written:
    """Give the log-odds of classes as an exact sum of what every part of the network wrote, image by image.

    With the statistics of each image's own norms held as they were, log-odds are a sum over the embedding, every head
    (slice of channels), attention biases, every MLP, and constants (direct logit attribution; Elhage et al. 2021). It
    says what is written at the end, not where it was first computed, nor what would change without it: that is what
    :func:`patch_heads` measures. Of several classes that exclude each other the softmax over the other classes is held
    as well, and its entropy is a part.

    Parameters
    ----------
    model : Net or torch.nn.Module
        Of a supported family.
    images : torch.Tensor (N, 3, H, W)
        As the model reads them.
    outcomes : mapping of str to int
        Names and class numbers, counted from 0.
    labels : sequence of int (N,), optional
        From 0. ``centred()`` counts what a part writes from its mean over the images of one label; by default all have
        one.
    cut : int, optional
        Of a network without a residual stream, the layer whose slices are the parts; by default the last. Each layer is
        one complete cut; layers are never added.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        As of :func:`patch_heads`.

    Returns
    -------
    Written
        ``components``; ``values`` (N, components, outcomes) and ``log_odds`` (N, outcomes) in nats, as NumPy arrays in
        the model's precision; ``closure``, the largest difference between sum and log-odds as a share of the largest
        log-odds (or of 1 nat); ``to_frame(outcome)``; ``centred()``.

    Raises
    ------
    InputError
        If images or labels do not fit, or there is no such class or layer.
    ModelError
        If the model cannot be parted, or its log-odds are no such sum (what follows the stream is curved).

    References
    ----------
    Elhage et al. 2021, "A mathematical framework for transformer circuits", Transformer Circuits Thread.

    Examples
    --------
    >>> import timm, torch, vit_audit as va
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    >>> found = va.written(model, torch.randn(4, 3, 32, 32), {"happy": 1})
    >>> found.values.shape, found.closure < 1e-4
    ((4, 13, 1), True)
    >>> found.to_frame("happy")["head"].shape
    (4, 6)
    """
    with _opened(model, device) as opened:
        return api.written_parts(opened, images, outcomes, labels, cut=cut)


def shift_means(
    model: Net | nn.Module,
    images: torch.Tensor,
    labels: Sequence[Any] | npt.NDArray[Any],
    groups: Sequence[Any] | npt.NDArray[Any],
    outcomes: Mapping[str, int],
    parts: Sequence[Part | Head | str] | None = None,
    *,
    reference: Any = None,
    subjects: Sequence[Any] | npt.NDArray[Any] | None = None,
    shuffles: int = 5,
    again: int = 1,
    resamples: int = 2000,
    seed: int = 0,
    device: str | None = None,
) -> MovedMeans:
    """Move what a part puts out to the midpoint of two groups' means of equal label, and return what the gap loses.

    In images of a group, half of the difference of the groups' means of that label is added to what the part puts out,
    token by token; all that follows is computed again. Means are of one half of the subjects, moved are images of the
    other, and the other way about. Intervals hold the noise of the means as well as that of the moved images.

    Parameters
    ----------
    model : Net or torch.nn.Module
        Of a supported family.
    images : torch.Tensor (N, 3, H, W)
        As the model reads them: normalised, of its size.
    labels : array-like (N,)
        Groups are compared, and averaged, at equal labels; each counts by its share of the images.
    groups : array-like (N,)
        Two groups.
    outcomes : mapping of str to int
        Names and class numbers, counted from 0.
    parts : sequence of str or (layer, head), optional
        As of :func:`patch_parts`, but one layer or depth each; by default the embedding, attention and MLP of each
        layer (of a convolutional network what each block adds), and the stream that enters the last layer.
    reference : optional
        The group that the other is compared with; by default the larger.
    subjects : array-like (N,), optional
        Who is in the picture; by default each image is a subject of its own.
    shuffles : int
        How often groups are shuffled at random among the donors, as the placebo.
    again : int
        How often means are drawn again and patched, to check the first order that intervals rest on.
    resamples : int
        Draws of the bootstrap.
    seed : int
    device : {"auto", "cpu", "cuda", "mps"}, optional
        As of :func:`patch_heads`.

    Returns
    -------
    MovedMeans
        A row for each outcome and part; ``to_frame()`` gives a data frame. Gap as it is minus gap with the part moved,
        in mean probability, rate and log-odds.

    Raises
    ------
    InputError
        If lengths differ, there are not two groups, no label has both groups in both halves, or the model has no such
        part.
    ModelError
        If the model cannot be patched.

    References
    ----------
    docs/method.md has the estimand, and what a simulation says of its intervals.

    Examples
    --------
    >>> import timm, torch, vit_audit as va
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=2)
    >>> images, labels, groups = torch.randn(24, 3, 32, 32), [0, 1] * 12, ["a", "a", "b", "b"] * 6
    >>> moved = va.shift_means(model, images, labels, groups, {"happy": 1}, ["embedding", "L1 attention"])
    >>> moved.to_frame()["part"].tolist()
    ['embedding', 'L1 attention']
    """
    with _opened(model, device) as opened:
        asked = Moving(labels, groups, subjects, reference, shuffles, again, resamples, seed)
        return MovedMeans(move_means(opened, images, asked, outcomes, parts))


@contextmanager
def _opened(model: Net | nn.Module, device: str | None) -> Iterator[Model]:
    """Yield a model that can be patched, on the device that is asked for."""
    if device is None:
        yield _patchable(model)
        return
    with computing_on(device) as there:
        found = _patchable(model)
        yield found if device_of(found).type == there.type else copy.deepcopy(found).to(there)


def _patchable(model: Net | nn.Module) -> Model:
    """Return a model in evaluation mode whose heads can be separated."""
    if isinstance(model, Net):
        return model.module
    check_kind("model", model, nn.Module, "give a torch.nn.Module, or what load_model or wrap gave")
    if not isinstance(model, tuple(ADAPTERS)):
        return as_patchable(model)
    reason = why_not_patchable(model)
    if reason:
        raise ModelError(type(model).__name__, reason, "'vit-audit models' lists what can be patched")
    return model if not model.training else copy.deepcopy(model).eval()


class Disparity:
    """Rates by group and gaps between groups, as :func:`disparity` returns them."""

    def __init__(self, rates: Rates, gaps: Gaps) -> None:
        self.rates, self.gaps = rates, gaps

    def __repr__(self) -> str:
        return f"Disparity({len(self.rates)} rates, {len(self.gaps)} gaps)"


def disparity(
    y_true: Sequence[Any] | npt.NDArray[Any],
    y_pred: Sequence[Any] | npt.NDArray[Any],
    groups: Sequence[Any] | npt.NDArray[Any] | pd.Series | pd.DataFrame,
    subjects: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    outcomes: Sequence[str] | None = None,
    reference: str | None = None,
    alpha: float = 0.05,
    min_group_size: int = 30,
) -> Disparity:
    """Compare what is predicted of groups, with intervals that are robust to several images per person.

    Parameters
    ----------
    y_true, y_pred : array-like (N,)
        Labels and predicted labels.
    groups : array-like (N,) or pandas.DataFrame (N, attributes)
        Group of each image. Missing values, and those that are called so, are the group "unknown": it has rates, and
        is compared with none.
    subjects : array-like (N,), optional
        Who is in the picture; by default each image is a subject of its own.
    outcomes : sequence of str, optional
        Predicted labels to compare; by default all but the first of two.
    reference : str, optional
        The group that others are compared with; by default the largest. With several attributes, each one's largest.
    alpha : float
        Level of the tests, adjusted by Holm over all of them.
    min_group_size : int
        Fewer subjects are "too little data".

    Returns
    -------
    Disparity
        ``rates`` (selection, true- and false-positive rate, accuracy) and ``gaps`` (label-standardised,
        true-positive, false-positive), each with ``to_frame()`` and ``plot()``.

    Raises
    ------
    DataError
        If lengths differ, a label or subject is missing, or there is no second group or label.

    References
    ----------
    Rates are those of ``fairlearn.metrics.MetricFrame``, gaps in true and false positives those of Hardt, Price &
    Srebro 2016, "Equality of opportunity in supervised learning", NeurIPS; docs/method.md has the standard errors.

    Examples
    --------
    >>> import vit_audit as va
    >>> truth, group = ["no", "yes"] * 100, ["a"] * 100 + ["b"] * 100
    >>> predicted = ["no", "yes"] * 50 + ["no"] * 100
    >>> gaps = va.disparity(truth, predicted, group).gaps.to_frame().set_index("metric")
    >>> float(gaps.loc["tpr_gap", "estimate"])
    -1.0
    """
    for name, values in (("groups", groups), ("subjects", subjects)):
        if values is not None and np.ndim(values) == 0:
            raise DataError(name, f"is a {type(values).__name__}", "give one for each image")
    check_kind("alpha", alpha, Real, "give a number above 0 and under 0.5")
    check_kind("min_group_size", min_group_size, Real, "give a number, 1 or more")
    if outcomes is not None:
        check_kind("outcomes", outcomes, Iterable, "give a list of labels")
    truth, predicted = _as_text(y_true, y_pred)
    table = _groups(groups)
    people = np.arange(len(truth)) if subjects is None else np.asarray(subjects)
    sizes = [len(truth), len(predicted), len(table), len(people)]
    if len(set(sizes)) > 1:
        what = f"y_true, y_pred, groups, subjects differ in length: {', '.join(map(str, sizes))}"
        raise DataError("disparity", what, "align them")
    if pd.isna(people).any():
        raise DataError("subjects", f"{pd.isna(people).sum()} are missing", "name each image's, or leave out its row")
    if not 0 < alpha < 0.5 or min_group_size < 1:
        what = f"alpha is {alpha}, min_group_size {min_group_size}"
        raise DataError("disparity", what, "give an alpha above 0 and under 0.5, and a size of 1 or more")
    labels = sorted(set(truth) | set(predicted))
    if len(labels) < 2:
        raise DataError("disparity", f"one label only ({', '.join(labels)})", "give two")
    asked = list(outcomes) if outcomes is not None else labels[1:] if len(labels) == 2 else labels
    if isinstance(outcomes, str) or not asked or not set(asked) <= set(labels):
        raise DataError("outcomes", f"are {outcomes!r}", f"give a list of labels: {', '.join(labels)}")
    frame = table.assign(label=truth, predicted=predicted, subject=people)
    frame = frame.assign(**{f"p:{o}": (predicted == o).astype(float) for o in asked})
    questions = [_question(table[name], str(name), reference) for name in table]
    limits = Thresholds(alpha=alpha, min_group_size=min_group_size, impact_ratio_below=0.8, gap_above=0.1)
    rates = [row for question in questions for row in rates_by_group(frame, question, asked)]
    return Disparity(Rates(rates), Gaps(contrasts(frame, questions, asked, limits)))


def _as_text(
    y_true: Sequence[Any] | npt.NDArray[Any], y_pred: Sequence[Any] | npt.NDArray[Any]
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]]:
    """Return labels as text, the same whether they come as whole numbers, floats of these, or (one of them) truths."""
    given = {
        name: np.asarray(values if hasattr(values, "__array__") else pd.Series(values))  # a list's None stays missing
        for name, values in (("y_true", y_true), ("y_pred", y_pred))
    }
    texts = []
    for name, values in given.items():
        if values.ndim != 1:
            what = f"has {values.ndim} dimensions"
            raise DataError(name, what, "give one label per image; of probabilities, the likeliest class")
        if pd.isna(values).any():
            raise DataError(name, f"{pd.isna(values).sum()} labels are missing", "leave out these images")
        mixed = values.dtype.kind == "b" and any(other.dtype.kind != "b" for other in given.values())
        whole = values.dtype.kind == "f" and bool((values == np.round(values)).all())
        texts.append((values.astype(np.int64) if mixed or whole else values).astype(str))
    return texts[0], texts[1]


def _groups(groups: Sequence[Any] | npt.NDArray[Any] | pd.Series | pd.DataFrame) -> pd.DataFrame:
    """Return groups as text, a column for each attribute; what is missing is "unknown"."""
    table = groups.copy() if isinstance(groups, pd.DataFrame) else pd.DataFrame({"sensitive_feature": groups})
    table.columns = table.columns.map(str)
    names = list(map(str, table.columns))
    taken = [name for name in names if name in ("label", "predicted", "subject") or name.startswith("p:")]
    if taken or len(set(names)) < len(names):
        name = [*taken, *(name for name in names if names.count(name) > 1)][0]
        raise DataError("groups", f"'{name}' cannot name an attribute, or occurs twice", "rename the column")
    return table.reset_index(drop=True).astype(object).where(lambda g: g.notna(), UNKNOWN).astype(str)


def _question(groups: pd.Series, name: str, reference: str | None) -> Question:
    known = groups[groups != UNKNOWN].value_counts()
    if len(known) < 2:
        raise DataError(f"groups, {name}", f"{len(known)} group only", "give two")
    largest = str(known.index[0])
    chosen = largest if reference is None else str(reference)
    if chosen not in known.index:
        raise DataError(f"groups, {name}", f"no group '{chosen}'", f"choose from {', '.join(map(str, known.index))}")
    return Question(name, chosen, sorted(map(str, known.index)))
