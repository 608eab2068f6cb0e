"""How patching one model's heads into another moves the log-odds of the true class, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from audit.batching import in_batches, max_batch_size
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model, adapter
from audit.models.device import device_of, in_double, memory_of, send
from audit.models.readout import class_log_odds
from audit.models.transforms import as_input
from audit.patching.attribution import attribute_pairs, linearise
from audit.patching.engine import Donor, add_to_stream, patch_attention, patch_layer
from audit.patching.sites import Site, Trace, head_outputs, heads_of, record, same_up_to, trace_bytes

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Result = TypeVar("Result")
BATCH = 32
HELD = 5  # passes at once: of the recipients, and of a donor


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


@dataclass(frozen=True)
class Exchange:
    """Who gives to whom, and which head is patched by itself beside all of them.

    Parameters
    ----------
    recipient : ControlDonor
        The model that is patched, and what it looks at.
    donors : mapping of str to ControlDonor
    site : Site
    """

    recipient: ControlDonor
    donors: Mapping[str, ControlDonor]
    site: Site


def measure_heads(
    recipient: Model,
    pixels: Pixels,
    donors: Mapping[str, ControlDonor],
    targets: Index,
    layers: range,
    *,
    heads: Mask | None = None,
    images: range | None = None,
) -> dict[str, Array]:
    """Patch heads of ``layers`` one by one, image i of a donor donating to image i.

    Parameters
    ----------
    heads : numpy.ndarray of bool (layers, heads), optional
        Which are patched; by default all.
    images : range, optional
        Which images are patched; by default all.

    Returns
    -------
    dict of str to numpy.ndarray (N, layers, heads)
        Shift of the true class's log-odds in nats, for each donor; not a number where nothing is patched, or where a
        layer has fewer heads.
    """
    there = existing(recipient, layers)
    asked = there if heads is None else heads & there
    sharing = _sharing(recipient, pixels, donors, layers.start)

    def measured(part: slice) -> dict[str, Array]:
        truth, own = targets[part], record(recipient, as_input(recipient, pixels[part]))
        base, found = _true_class(_finish(recipient, own), truth), {}
        for name, given in donors.items():
            donor = _donor(given, part, own if name in sharing else None, layers.start)
            found[name] = np.full((len(truth), *there.shape), np.nan)
            for layer, some, values in zip(layers, asked, np.moveaxis(found[name], 1, 0), strict=True):
                if some.any():
                    logits = patch_layer(recipient, own, donor, layer, np.flatnonzero(some).tolist())
                    values[:, some] = (_true_class(logits, truth) - base).T
        return found

    return _joined(_in_batches(measured, recipient, targets, images), donors)


def estimate_heads(
    recipient: Model,
    pixels: Pixels,
    donors: Mapping[str, ControlDonor],
    targets: Index,
    layers: range,
    *,
    images: range | None = None,
) -> dict[str, Array]:
    """Estimate to first order what ``measure_heads`` measures, for the price of one backward pass."""
    there = existing(recipient, layers)
    sharing = _sharing(recipient, pixels, donors, layers.start)

    def estimated(part: slice) -> dict[str, Array]:
        truth = targets[part]
        scalar = {"true class": partial(_gathered, truth=truth)}
        passed = linearise(recipient, as_input(recipient, pixels[part]), scalar, layers)
        found = {}
        for name, given in donors.items():
            donor = _donor(given, part, passed.trace if name in sharing else None, layers.start)
            found[name] = np.full((len(truth), *there.shape), np.nan)
            found[name][:, there] = in_double(
                attribute_pairs(recipient, passed.trace, donor, passed.slopes["true class"])
            ).numpy()
        return found

    return _joined(_in_batches(estimated, recipient, targets, images), donors)


def _joined(parts: Sequence[Mapping[str, Array]], donors: Iterable[str]) -> dict[str, Array]:
    """Put what several batches found in a row, by donor."""
    return {name: np.concatenate([part[name] for part in parts]) for name in donors}


def _in_batches(work: Callable[[slice], Result], model: Model, targets: Index, images: range | None) -> list[Result]:
    """Do some work on ``images``, by default on all that have a target, batch by batch."""
    some = range(len(targets)) if images is None else images
    return in_batches(
        lambda part: work(slice(some.start + part.start, some.start + part.stop)), len(some), _at_once(model)
    )


def existing(model: Model, layers: range) -> Mask:
    """Tell of (layers, heads) which there are; a layer may have fewer heads than another."""
    counts = np.array([heads_of(model, i) for i in layers])
    there: Mask = np.arange(counts.max()) < counts[:, None]
    return there


def measure_shifts(
    recipient: Model,
    pixels: Pixels,
    donors: Mapping[str, ControlDonor],
    targets: Index,
    layers: range,
    site: Site,
) -> dict[str, Shift]:
    """Patch all heads of ``layers`` jointly, and that of ``site`` by itself, image i of a donor donating to image i."""
    exchange = Exchange(ControlDonor(recipient, pixels), donors, site)
    return measure_exchanges({"only": exchange}, targets, layers)["only"]


def measure_exchanges(
    exchanges: Mapping[str, Exchange], targets: Index, layers: range, *, images: range | None = None
) -> dict[str, dict[str, Shift]]:
    """Measure the shifts of several exchanges; each model goes once over all that it looks at in any of them.

    Parameters
    ----------
    exchanges : mapping of str to Exchange
    targets : numpy.ndarray of int (N,)
    layers : range
        Whose heads are patched jointly.
    images : range, optional
        Which images are patched; by default all.

    Returns
    -------
    dict of str to dict of str to Shift
        By exchange and donor.
    """
    receiving = _distinct(e.recipient for e in exchanges.values())
    giving = _distinct(d for e in exchanges.values() for d in e.donors.values())
    lender = {key: _lender(seen, receiving, layers.start) for key, seen in {**receiving, **giving}.items()}

    def measured(part: slice) -> dict[str, dict[str, Shift]]:
        truth, kept = targets[part], dict[Key, Trace]()

        def trace_of(key: Key, seen: ControlDonor) -> Trace:
            if key in kept:
                return kept[key]
            return _donor(seen, part, kept.get(lender[key]), layers.start).trace

        for key, seen in receiving.items():
            kept[key] = trace_of(key, seen)
        base = {key: _true_class(_finish(seen.model, kept[key]), truth) for key, seen in receiving.items()}
        found: dict[str, dict[str, Shift]] = {name: {} for name in exchanges}
        for key, seen in giving.items():
            donor = Donor(seen.model, trace_of(key, seen))
            reached = _true_class(_finish(seen.model, donor.trace), truth)
            for name, exchange in exchanges.items():
                asked = [called for called, given in exchange.donors.items() if _key(given) == key]
                if asked:
                    model, to = exchange.recipient.model, _key(exchange.recipient)
                    own, before = kept[to], base[to]
                    joint = _true_class(patch_attention(model, own, donor, layers), truth) - before
                    alone = patch_layer(model, own, donor, exchange.site.layer, [exchange.site.head])[0]
                    shift = Shift(joint, reached - before, _true_class(alone, truth) - before)
                    found[name] |= dict.fromkeys(asked, shift)
        return found

    parts = _in_batches(measured, next(iter(receiving.values())).model, targets, images)
    return {
        name: {d: Shift.concatenate([part[name][d] for part in parts]) for d in exchange.donors}
        for name, exchange in exchanges.items()
    }


def _at_once(model: Model) -> int:
    """Return how many images are taken at once: as many as pay, or as fit into memory with all that is held of them."""
    return max_batch_size(BATCH, held_of_image(model), share=0.5, free=memory_of(device_of(model)))


def held_of_image(model: Model) -> int:
    """Return the bytes that are held of each image that is measured, about."""
    return HELD * trace_bytes(model)


Key = tuple[int, int]  # a model and what it looks at


def _key(seen: ControlDonor) -> Key:
    return id(seen.model), id(seen.pixels)


def _distinct(every: Iterable[ControlDonor]) -> dict[Key, ControlDonor]:
    return {_key(seen): seen for seen in every}


def _lender(seen: ControlDonor, receiving: Mapping[Key, ControlDonor], start: int) -> Key:
    """Return the first that looks at the same images through the same frozen blocks, and is kept; or itself."""
    lenders = (k for k, r in receiving.items() if r.pixels is seen.pixels and same_up_to(r.model, seen.model, start))
    return next(lenders, _key(seen))


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
        truth = targets[part]
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

    return np.concatenate(_in_batches(measured, recipient, targets, None))


def _sharing(recipient: Model, pixels: Pixels, donors: Mapping[str, ControlDonor], start: int) -> set[str]:
    """Name the donors that look at the recipient's own images through the same frozen blocks."""
    return {n for n, g in donors.items() if g.pixels is pixels and same_up_to(recipient, g.model, start)}


def _donor(donor: ControlDonor, part: slice, prefix: Trace | None, start: int) -> Donor:
    images = as_input(donor.model, donor.pixels[part])
    return Donor(donor.model, record(donor.model, images, prefix=prefix, start=start))


@torch.inference_mode()
def _finish(model: Model, trace: Trace) -> torch.Tensor:
    return adapter(model).classify(trace.leaving)


def _true_class(logits: torch.Tensor, truth: Index) -> Array:
    found: Array = _gathered(in_double(logits), truth).numpy()
    return found


def _gathered(logits: torch.Tensor, truth: Index) -> torch.Tensor:
    """Return the log-odds (..., N) of the true class, from logits (..., N, classes)."""
    number = torch.from_numpy(truth).to(logits.device).expand(logits.shape[:-1])
    return class_log_odds(logits).gather(-1, number.unsqueeze(-1)).squeeze(-1)
