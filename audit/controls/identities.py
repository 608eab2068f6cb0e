"""Identities: what must hold exactly if patching does what it says, on the audit's own model and images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

from audit.controls.verdict import MeasuredControl, judge, judge_numbers
from audit.models.adapters.registry import Model, adapter
from audit.patching.engine import Donor, continue_unpatched, patch_layer, patch_together
from audit.patching.hooks import donor_head_outputs, patch_everything, patch_with_hooks
from audit.patching.sites import Site, Trace, bias_output, head_outputs, heads_of, record, sites_of
from audit.records import Control, Estimate

PAIRS = 2  # of images, in identities that patch every head several times over
SUM_TOLERANCE = 1e-5
ENGINE_TOLERANCE = 1e-4
PRECISION_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}  # shares of the largest logit
Patch = Callable[[Model, Trace, Donor, int], torch.Tensor]
PatchSet = Callable[[Model, Trace, Donor, Sequence[Site]], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """What the identities are checked on: a model, some of the audit's images, and other images as donors."""

    model: Model
    images: torch.Tensor  # (B, 3, H, W)
    donors: torch.Tensor  # (B, 3, H, W)

    def first(self, count: int) -> Subject:
        """Return the first images with their donors."""
        return Subject(self.model, self.images[:count], self.donors[:count])


def run_identities(
    subject: Subject, *, patch: Patch = patch_layer, precision: torch.dtype = torch.float32
) -> list[MeasuredControl]:
    """Run every identity; those that patch every head several times over with the first ``PAIRS`` of the images.

    Parameters
    ----------
    subject : Subject
    patch : callable
        The engine under test.
    precision : torch.dtype
        In which heads will be searched for. All else is computed in float32; where it is another type, patches in it
        are compared with those in float32.
    """
    rough = partial(patch_layer, precision=precision)
    few = subject.first(PAIRS)
    return [
        self_patch(few, patch=patch),
        head_outputs_sum_to_attention(subject),
        everything_patched_is_the_donor(subject),
        rotation_changes_nothing(few, patch=patch),
        every_site_is_live(subject),
        engine_equals_hooks(subject, patch=patch),
        *([] if precision == torch.float32 else [less_precision_is_enough(subject, precision, patch=rough)]),
    ]


def round_trip(table: pd.DataFrame, contrast: str) -> Control:
    """Edit a picture into the other group and back: patched from the result, no head may change anything.

    Parameters
    ----------
    table : pandas.DataFrame
        ``pair``, ``version``, ``layer``, ``head`` and ``p:<outcome>``; version "back" received from the picture edited
        there and back, "self" from itself.
    contrast : str
        Whose pictures were edited.
    """
    columns = [c for c in table.columns if c.startswith("p:")]
    indexed = table.set_index(["version", "pair", "layer", "head"])[columns]
    back, itself = indexed.loc["back"], indexed.loc["self"]
    changes = torch.tensor((back - itself).to_numpy(dtype=np.float64))
    return judge(
        Estimate(value=float(changes.abs().max())),
        "==",
        0.0,
        id=f"round_trip:{contrast}",
        check="round_trip",
        kind="identity",
        contrast=contrast,
        n=int(back.index.get_level_values("pair").nunique()),
    )


def _largest(values: Sequence[torch.Tensor]) -> list[float]:
    """Return the largest absolute value of each tensor; not a number where one holds none."""
    return [float(v.abs().max()) for v in values]


def self_patch(subject: Subject, *, patch: Patch = patch_layer) -> MeasuredControl:
    """Patch every head with itself, from the model and from a copy of it as between two models: no bit may change."""
    model, twin = subject.model, copy.deepcopy(subject.model)
    trace = record(model, subject.images)
    changes = []
    for i in range(adapter(model).depth):
        unpatched = continue_unpatched(model, trace, i, heads_of(model, i))
        changes += [patch(model, trace, Donor(donor, trace), i) - unpatched for donor in (model, twin)]
    return judge_numbers(
        _largest(changes),
        "largest",
        "==",
        0.0,
        id="self_patch",
        check="self_patch",
        kind="identity",
        n=len(subject.images),
    )


@torch.inference_mode()
def head_outputs_sum_to_attention(subject: Subject) -> MeasuredControl:
    """Add up the writes of all heads and the bias: the sum must be what the attention layer puts out."""
    model = subject.model
    trace = record(model, subject.images)
    errors = []
    for i in range(adapter(model).depth):
        total = head_outputs(model, i, trace.head_activations[i]).sum(0) + bias_output(model, i)
        errors.append((total - trace.attention[i]).norm() / trace.attention[i].norm())
    return judge_numbers(
        _largest(errors),
        "largest",
        "<=",
        SUM_TOLERANCE,
        id="writes_sum",
        check="writes_sum",
        kind="identity",
        n=len(subject.images),
    )


def everything_patched_is_the_donor(subject: Subject) -> MeasuredControl:
    """With embeddings and all attention and MLP outputs patched, nothing of the recipient is left."""
    model = subject.model
    patched, donor, logits = patch_everything(model, model, subject.images, subject.donors)
    with torch.inference_mode():
        changes = [(patched - donor) / donor.abs().max(), logits - model(subject.donors)]
    return judge_numbers(
        _largest(changes),
        "largest",
        "<=",
        SUM_TOLERANCE,
        id="everything_patched",
        check="everything_patched",
        kind="identity",
        n=len(subject.images),
    )


def rotated(model: Model, *, seed: int = 0) -> Model:
    """Return a copy that is transformed inside: V and W_O of each head by a random A and its inverse.

    The copy computes the same function. Raw z differs, u does not. In a convolutional network the channels between the
    last two convolutions of each block are reordered and rescaled; there z is u.
    """
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    body = adapter(twin)
    for layer in range(body.depth):
        body.reparameterize_(layer, generator)
    return twin


def rotation_changes_nothing(
    subject: Subject,
    *,
    patch: Patch = patch_layer,
    rotate: Callable[[Model], Model] = rotated,
) -> MeasuredControl:
    """Rewrite each head in other coordinates: the rewritten model, and patches from it, must give the same logits.

    Beside it, what patching the raw z of the rewritten model would have done, where z is not what is written anyway:
    shown, not required.
    """
    model = subject.model
    twin = rotate(model)
    trace, donor = record(model, subject.images), record(model, subject.donors)
    turned = record(twin, subject.donors)
    layers = range(adapter(model).depth)
    right = [patch(model, trace, Donor(model, donor), i) for i in layers]
    changes = [patch(model, trace, Donor(twin, turned), i) - right[i] for i in layers]
    raw = max(_largest([patch(model, trace, Donor(model, turned), i) - right[i] for i in layers]))
    limit = ENGINE_TOLERANCE * _scale(subject)
    with torch.inference_mode():
        changes.append(twin(subject.donors) - model(subject.donors))
    return judge_numbers(
        _largest(changes),
        "largest",
        "<=",
        limit,
        id="rotation",
        check="rotation",
        kind="identity",
        figures={"raw": raw} if raw > limit else {},
        n=len(subject.images),
    )


@torch.inference_mode()
def _scale(subject: Subject) -> float:
    """Size of the logits, at least 1: tolerances are relative to it."""
    return max(1.0, float(subject.model(subject.images).abs().max()))


def every_site_is_live(subject: Subject, *, sites: Sequence[Site] | None = None) -> MeasuredControl:
    """Silence each head: some logit must change on every image, or the patch does not reach the model.

    Of a slice of channels on one of the images: rectified channels are idle on some.
    """
    model, images, least = subject.model, subject.images, []
    every = adapter(model).unit == "head"
    with torch.inference_mode():
        unpatched = model(images)
    asked = sites or sites_of(model)
    nothing = {site: torch.zeros_like(u) for site, u in donor_head_outputs(model, images, asked).items()}
    for site in asked:
        changes = (patch_with_hooks(model, images, {site: nothing[site]}) - unpatched).abs().amax(1)  # of each image
        least.append(changes.min() if every else changes.max())
    return judge_numbers(
        _largest(least),
        "smallest",
        ">",
        0.0,
        id="live_sites",
        check="live_sites",
        kind="identity",
        n=len(least),
    )


def engine_equals_hooks(
    subject: Subject, *, patch: Patch = patch_layer, patch_set: PatchSet = patch_together
) -> MeasuredControl:
    """Compare the fast engine with plain hooks, on this audit's own images: every head, and heads of many layers."""
    model = subject.model
    trace, donor = record(model, subject.images), record(model, subject.donors)
    outputs = donor_head_outputs(model, subject.donors, sites_of(model))
    changes = []
    for i in range(adapter(model).depth):
        fast = patch(model, trace, Donor(model, donor), i)
        for h in range(heads_of(model, i)):
            site = Site(i, h)
            changes.append(fast[h] - patch_with_hooks(model, subject.images, {site: outputs[site]}))
    for sites in (list(outputs), list(outputs)[::2]):
        slow = patch_with_hooks(model, subject.images, {site: outputs[site] for site in sites})
        changes.append(patch_set(model, trace, Donor(model, donor), sites) - slow)
    return judge_numbers(
        _largest(changes),
        "largest",
        "<=",
        ENGINE_TOLERANCE,
        id="engine",
        check="engine",
        kind="identity",
        n=len(subject.images),
    )


def less_precision_is_enough(subject: Subject, precision: torch.dtype, *, patch: Patch) -> MeasuredControl:
    """Compare patches computed in a type of fewer bits with those in float32: the search must see the same effects."""
    model = subject.model
    trace, donor = record(model, subject.images), Donor(model, record(model, subject.donors))
    changes = [patch(model, trace, donor, i) - patch_layer(model, trace, donor, i) for i in range(adapter(model).depth)]
    return judge_numbers(
        _largest(changes),
        "largest",
        "<=",
        PRECISION_TOLERANCE[precision] * _scale(subject),
        id="precision",
        check="precision",
        kind="identity",
        n=len(subject.images),
    )
