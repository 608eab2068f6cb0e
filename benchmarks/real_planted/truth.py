"""What is true of a model: its gap and what parts carry of it, on photographs that nothing else has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.models.adapters.registry import adapter
from audit.models.transforms import as_input
from audit.patching.engine import Donor, Patches, patch
from audit.patching.parts import Kind, Part
from audit.patching.patch_parts import patch_parts
from audit.patching.sites import Trace, record
from benchmarks.planted.truth import Crowd, draw_donors
from benchmarks.real_planted.photographs import ATTRIBUTE, CONTRAST, LABELS, OUTCOME, OUTCOMES, World

BATCH = 128
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """A number and its standard error, from the finite crowd."""

    value: float
    error: float


@dataclass(frozen=True)
class Truth:
    """What is true of a model, group minus reference, in mean probability but for ``rate``."""

    rate: Known  # of the images that are called the outcome
    mediated: Mapping[str, Known]  # by part, as Design A defines it


@torch.inference_mode()
def measure(
    model: VisionTransformer, world: World, parts: Sequence[Part], shares: Mapping[str, float], *, seed: int
) -> Truth:
    """Measure the gap and the mediated gaps of some parts on the photographs of the split "truth".

    Every photograph receives from one of the other group and from one of its own, both of its label, drawn at random.
    ``shares`` are the weights of the labels.
    """
    rows = world.rows("truth")
    frame = world.frame.loc[rows]
    is_group, is_outcome = (frame[ATTRIBUTE] == CONTRAST.group).to_numpy(), (frame["label"] == OUTCOME).to_numpy()
    trace = _record(model, world, rows)
    crowd = Crowd(trace.leaving, is_group, is_outcome, np.zeros(len(rows), dtype=np.bool_))
    rng = np.random.default_rng(seed)
    donors = {sign: torch.from_numpy(draw_donors(crowd, rng, other=sign > 0)) for sign in (1, -1)}
    mediated = {}
    for part in parts:
        change = np.zeros(len(rows))
        for sign, of in donors.items():
            change += sign * _patched(model, trace, part, of)
        found = standardised_gap(change, is_group, is_outcome, shares)
        # half the difference between what the reference gains and what the group gains
        mediated[str(part)] = Known(-found.value / 2, found.error / 2)
    called = (_p(adapter(model).classify(trace.leaving)) > 0.5).astype(np.float64)
    return Truth(standardised_gap(called, is_group, is_outcome, shares), mediated)


def _record(model: VisionTransformer, world: World, rows: npt.NDArray[np.int64]) -> Trace:
    parts = [
        record(model, as_input(model, world.features[rows[i : i + BATCH]]), mlp=True)
        for i in range(0, len(rows), BATCH)
    ]

    def joined(name: str) -> list[torch.Tensor]:
        return [torch.cat(tensors) for tensors in zip(*(getattr(part, name) for part in parts), strict=True)]

    leaving = torch.cat([part.leaving for part in parts])
    return Trace(joined("entering"), joined("attention"), joined("head_activations"), leaving, joined("mlp"))


def _patched(model: VisionTransformer, trace: Trace, part: Part, donors: torch.Tensor) -> Floats:
    """Return p of every photograph whose ``part`` writes what it writes for the photograph's donor."""
    every = torch.arange(len(donors))
    if part.kind is Kind.HEAD:
        heads = torch.full_like(every, part.head or 0)
        return _p(patch(model, trace, Donor(model, trace), part.layer or 0, Patches(heads, every, donors)))
    logits = [
        patch_parts(model, trace.take(rows), Donor(model, trace.take(donors[rows])), [part])
        for rows in every.split(BATCH)
    ]
    return _p(torch.cat(logits))


def _p(logits: torch.Tensor) -> Floats:
    found: Floats = logits.double().softmax(-1)[:, OUTCOMES[OUTCOME]].numpy()
    return found


def standardised_gap(
    values: Floats, is_group: npt.NDArray[np.bool_], is_outcome: npt.NDArray[np.bool_], shares: Mapping[str, float]
) -> Known:
    """Return the label-standardised difference of means, and its standard error, photographs independent."""
    value = variance = 0.0
    for label, of_label in zip(LABELS, (~is_outcome, is_outcome), strict=True):
        for side, sign in ((is_group, 1.0), (~is_group, -1.0)):
            cell, share = values[of_label & side], shares.get(label, 0.0)
            if share > 0:
                value += sign * share * float(cell.mean())
                variance += share**2 * float(cell.var(ddof=1)) / len(cell)
    return Known(value, float(np.sqrt(variance)))
