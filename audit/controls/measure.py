"""How patching one model's heads into another moves the log-odds of the true class, image by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from audit.batching import in_batches
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model, adapter
from audit.models.device import in_double, send
from audit.models.readout import class_log_odds
from audit.models.transforms import as_input
from audit.patching.engine import Donor, add_to_stream, patch_attention, patch_layer
from audit.patching.sites import Site, Trace, head_outputs, heads_of, record, same_up_to

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
LogOdds = Callable[[torch.Tensor], Array]  # of the true class, from logits
Result = TypeVar("Result")
BATCH = 32


@dataclass(frozen=True)
class ControlDonor:
    """A donor model and the images that it looks at."""

    model: Model
    pixels: Pixels


@dataclass(frozen=True)
class Shift:
    """How patching moves the true class's log-odds (nats), image by image.

    Parameters
    ----------
    joint : numpy.ndarray (N,)
        All heads of the layers patched together.
    total : numpy.ndarray (N,)
        The donor's own log-odds minus the recipient's: what patching everything would give.
    single : numpy.ndarray (N,)
        One head patched.
    """

    joint: Array
    total: Array
    single: Array

    def __neg__(self) -> Shift:
        return Shift(-self.joint, -self.total, -self.single)

    def __sub__(self, other: Shift) -> Shift:
        return Shift(self.joint - other.joint, self.total - other.total, self.single - other.single)

    @staticmethod
    def concatenate(shifts: Sequence[Shift]) -> Shift:
        """Put those of several batches in a row."""
        return Shift(*(np.concatenate([getattr(s, f.name) for s in shifts]) for f in fields(Shift)))

    @staticmethod
    def mean(shifts: Sequence[Shift]) -> Shift:
        """Average image by image."""
        columns = zip(*((s.joint, s.total, s.single) for s in shifts), strict=True)
        joint, total, single = (np.mean(c, axis=0) for c in columns)
        return Shift(joint, total, single)


def measure_heads(
    recipient: Model, pixels: Pixels, donors: Mapping[str, ControlDonor], targets: Index, layers: range
) -> dict[str, Array]:
    """Patch every head of ``layers`` by itself, image i of a donor donating to image i.

    Returns
    -------
    dict of str to numpy.ndarray (N, layers, heads)
        Shift of the true class's log-odds in nats, for each donor; not a number where a layer has fewer heads.
    """
    widest = max(heads_of(recipient, i) for i in layers)

    def measured(own: Trace, donor: Donor, log_odds: LogOdds) -> Array:
        base = log_odds(_finish(recipient, own))
        shifts = np.full((len(base), len(layers), widest), np.nan)
        for place, i in enumerate(layers):
            shifts[:, place, : heads_of(recipient, i)] = (log_odds(patch_layer(recipient, own, donor, i)) - base).T
        return shifts

    parts = _of_donations(measured, recipient, pixels, donors, targets, layers.start)
    return {name: np.concatenate([part[name] for part in parts]) for name in donors}


def measure_shifts(
    recipient: Model,
    pixels: Pixels,
    donors: Mapping[str, ControlDonor],
    targets: Index,
    layers: range,
    site: Site,
) -> dict[str, Shift]:
    """Patch all heads of ``layers`` jointly, and that of ``site`` by itself, image i of a donor donating to image i."""

    def measured(own: Trace, donor: Donor, log_odds: LogOdds) -> Shift:
        base = log_odds(_finish(recipient, own))
        joint = log_odds(patch_attention(recipient, own, donor, layers)) - base
        total = log_odds(_finish(donor.model, donor.trace)) - base
        single = log_odds(patch_layer(recipient, own, donor, site.layer, [site.head])[0]) - base
        return Shift(joint, total, single)

    parts = _of_donations(measured, recipient, pixels, donors, targets, layers.start)
    return {name: Shift.concatenate([part[name] for part in parts]) for name in donors}


def measure_random_direction(
    recipient: Model, pixels: Pixels, donor: Model, targets: Index, site: Site, *, seed: int
) -> Array:
    """Change what ``site`` writes by as much as the donor's head would, token by token, but in a random direction.

    The direction is one that the site can write in: of a slice of channels, within them.

    Returns
    -------
    numpy.ndarray (N,)
        Shift of the true class's log-odds in nats.
    """
    generator, body = torch.Generator().manual_seed(seed), adapter(recipient)

    def measured(part: slice) -> Array:
        state = generator.get_state()
        try:
            return shifted(part)
        except BaseException:
            generator.set_state(state)  # whoever fails has drawn nothing
            raise

    def shifted(part: slice) -> Array:
        truth = torch.from_numpy(targets[part])
        own = record(recipient, as_input(recipient, pixels[part]))
        theirs = record(donor, as_input(donor, pixels[part]))
        base = _true_class(_finish(recipient, own), truth)
        ours, given = (
            head_outputs(m, site.layer, t.head_activations[site.layer])[site.head]
            for m, t in ((recipient, own), (donor, theirs))
        )
        change = in_double(body.from_stream(site.layer, given - ours)).float()  # drawn alike on every device
        random_direction, channels = torch.zeros(change.shape), body.output_channels(site.layer, site.head)
        random_direction[..., channels] = torch.randn(change[..., channels].shape, generator=generator)
        random_direction *= change.norm(dim=-1, keepdim=True) / random_direction.norm(dim=-1, keepdim=True)
        added = send(random_direction, own.leaving.device)
        logits = add_to_stream(recipient, own, site.layer, body.to_stream(site.layer, added).unsqueeze(0))[0]
        return _true_class(logits, truth) - base

    return np.concatenate(in_batches(measured, len(targets), BATCH))


def _of_donations(
    measure: Callable[[Trace, Donor, LogOdds], Result],
    recipient: Model,
    pixels: Pixels,
    donors: Mapping[str, ControlDonor],
    targets: Index,
    start: int,
) -> list[dict[str, Result]]:
    """Measure every donor on every batch, given the recipient's pass, the donor, and what reads log-odds."""
    sharing = _sharing(recipient, pixels, donors, start)

    def measured(part: slice) -> dict[str, Result]:
        log_odds = partial(_true_class, truth=torch.from_numpy(targets[part]))
        own = record(recipient, as_input(recipient, pixels[part]))
        return {
            name: measure(own, _donor(donor, part, own if name in sharing else None, start), log_odds)
            for name, donor in donors.items()
        }

    return in_batches(measured, len(targets), BATCH)


def _sharing(recipient: Model, pixels: Pixels, donors: Mapping[str, ControlDonor], start: int) -> set[str]:
    """Name the donors that look at the recipient's own images through the same frozen blocks."""
    return {n for n, g in donors.items() if g.pixels is pixels and same_up_to(recipient, g.model, start)}


def _donor(donor: ControlDonor, part: slice, prefix: Trace | None, start: int) -> Donor:
    images = as_input(donor.model, donor.pixels[part])
    return Donor(donor.model, record(donor.model, images, prefix=prefix, start=start))


@torch.inference_mode()
def _finish(model: Model, trace: Trace) -> torch.Tensor:
    return adapter(model).classify(trace.leaving)


def _true_class(logits: torch.Tensor, truth: torch.Tensor) -> Array:
    picked = class_log_odds(in_double(logits)).gather(-1, truth.expand(logits.shape[:-1]).unsqueeze(-1))
    return picked.squeeze(-1).numpy()
