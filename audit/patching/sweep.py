"""Sweeps: the plans of the designs run through the engine, one row per image x head x donor kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from audit.batching import batches, in_halves, max_batch_size
from audit.data.ahead import ahead, in_image_batches
from audit.data.pixels import Images, Rows
from audit.models.adapters.registry import Model
from audit.models.device import CPU, device_of, in_double, memory_of
from audit.models.readout import SOFTMAX, Readout, readout_of
from audit.models.transforms import as_input
from audit.patching import patch_parts as jointly
from audit.patching.engine import Donor, Patches, patch, patch_together, transplant_layer
from audit.patching.parts import Part
from audit.patching.sites import Site, Trace, record, same_up_to, sites_of, trace_bytes
from audit.progress import Progress

RECIPIENTS_AT_ONCE = 32  # twice as many on an accelerator


@dataclass(frozen=True)
class DonorKind:
    """A donor for each recipient: whose model, and which image of the sample.

    With ``weights_only`` a head takes the model's weights, not what it writes there, and the recipient's own image
    passes through them; ``rows`` are then the recipients themselves.
    """

    name: str
    model: Model
    rows: Rows
    weights_only: bool = False


def measure_logits(
    logits: torch.Tensor, outcomes: Mapping[str, int], readout: Readout = SOFTMAX
) -> dict[str, npt.NDArray[np.generic]]:
    """Return p and m of each outcome and the predicted class number, for logits (..., classes).

    Where an image may be called several classes, or none, ``called:<outcome>`` says whether it is called the outcome.
    """
    flat = in_double(logits.flatten(0, -2))
    p, m, called = readout.probabilities(flat), readout.log_odds(flat), readout.called(flat)
    columns: dict[str, npt.NDArray[np.generic]] = {"predicted": readout.predicted(flat).to(torch.int16).numpy()}
    for name, number in outcomes.items():
        columns[f"p:{name}"] = p[:, number].numpy()
        columns[f"m:{name}"] = m[:, number].numpy()
        if called is not None:
            columns[f"called:{name}"] = called[:, number].numpy()
    return columns


def measure_unpatched(model: Model, images: Images, rows: Rows, outcomes: Mapping[str, int]) -> pd.DataFrame:
    """Return p, m and the predicted class of images as they are, one row per image."""
    with torch.inference_mode():
        parts = in_image_batches(lambda pixels: model(as_input(model, pixels)), images, rows, size=64)
    return pd.DataFrame({"recipient": rows, **measure_logits(torch.cat(parts), outcomes, readout_of(model))})


def sweep(
    model: Model,
    images: Images,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    layers: range,
    outcomes: Mapping[str, int],
    chosen: npt.NDArray[np.bool_] | None = None,
    units: Rows | None = None,
    precision: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Patch single heads of ``layers`` for every recipient and every donor kind.

    Parameters
    ----------
    model : Model
        The recipients' model, in evaluation mode.
    images : Images
        All images of the sample; rows count into them.
    recipients : numpy.ndarray (R,)
        Rows of the recipients.
    donors : sequence of DonorKind
        For each kind a model and R donor rows.
    layers : range
        Which layers, 0-based.
    outcomes : mapping of str to int
        Audited outcomes and their class numbers.
    chosen : numpy.ndarray of bool (R, K), optional
        Which heads are patched for which recipient, heads in the order of ``sites_of(model, layers)``; by default all.
    units : numpy.ndarray of int (R,), optional
        Recipients of one unit are taken side by side, so that an image they share goes through the model once.
    precision : torch.dtype, optional
        Of the matrix products after a patch.
    progress : callable, optional
        Called with the patches done and in all.

    Returns
    -------
    pandas.DataFrame
        Columns ``position`` (0..R-1, into ``recipients``), ``recipient``, ``donor``, ``donor_kind``, ``layer``,
        ``head``, ``predicted``, and ``p:<outcome>`` (probability), ``m:<outcome>`` (log-odds, nats); where an image may
        be called several classes or none, ``called:<outcome>``.
    """
    sites = sites_of(model, layers)
    asked = np.ones((len(recipients), len(sites)), dtype=bool) if chosen is None else chosen
    total, done = int(asked.sum()) * len(donors), 0

    def measured(seen: Images, positions: Rows) -> list[pd.DataFrame]:
        nonlocal done
        batch = Batch(model, seen, recipients, donors, positions, layers.start)
        computed = []
        for layer in layers:
            heads = asked[positions][:, [site.layer == layer for site in sites]]
            for kinds in batch.kinds_of_one_model():
                patches = _Asked.of(heads, kinds)
                if len(patches.head):
                    computed.append((patches, batch.logits(layer, patches, precision), layer))
                    done += len(patches.head)
                    if progress is not None:
                        progress(min(done, total), total)  # what was computed again counts twice
        # Only now are results waited for: an accelerator has a whole batch to do until then.
        return [batch.table(patches, logits, layer, outcomes) for patches, logits, layer in computed]

    return _batch_by_batch(measured, model, images, recipients, donors, units, asked.sum(axis=1) > 0)


def _batch_by_batch(
    measured: Callable[[Images, Rows], list[pd.DataFrame]],
    model: Model,
    images: Images,
    recipients: Rows,
    donors: Sequence[DonorKind],
    units: Rows | None,
    asked: npt.NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """Measure batches of positions, of images that are decoded ahead, and put the rows together."""
    every = list(side_by_side(recipients_at_once(model, len(donors)), len(recipients), units, asked))
    needed = [[np.concatenate([recipients[part], *(kind.rows[part] for kind in donors)])] for part in every]
    parts: list[pd.DataFrame] = []
    for positions, (seen,) in zip(every, ahead([images], needed), strict=True):
        for tables in in_halves(partial(measured, seen), positions, halves):
            parts += tables
    return pd.concat(parts, ignore_index=True)


def halves(positions: Rows) -> tuple[Rows, Rows] | None:
    """Cut positions in two; None where there is one only."""
    middle = (len(positions) + 1) // 2
    return (positions[:middle], positions[middle:]) if len(positions) > 1 else None


def recipients_at_once(model: Model, donors: int) -> int:
    """Return how many recipients are taken at once, with so many donors each: as many as pay, or as fit into memory."""
    device = device_of(model)
    most = RECIPIENTS_AT_ONCE if device.type == CPU else 2 * RECIPIENTS_AT_ONCE
    return max_batch_size(most, (1 + donors) * trace_bytes(model), share=0.5, free=memory_of(device))


def side_by_side(
    at_once: int, n: int, units: Rows | None, asked: npt.NDArray[np.bool_] | None = None
) -> Iterator[Rows]:
    """Yield positions 0..n-1 batch by batch, those of one unit in a row; of ``asked`` only, where it is given."""
    order = np.arange(n) if units is None else np.argsort(units, kind="stable")
    if asked is not None:
        order = order[asked[order]]
    yield from (order[part] for part in batches(len(order), at_once))


@dataclass(frozen=True)
class _Asked:
    """M patches of one layer and batch: by donor kind (its number), head, and place of the recipient in the batch."""

    kind: Rows
    head: Rows
    place: Rows

    @staticmethod
    def of(heads: npt.NDArray[np.bool_], kinds: Sequence[int]) -> _Asked:
        """List the patches of (recipients, heads) that are wanted, for each of ``kinds``."""
        head, place = np.nonzero(heads.T)
        return _Asked(np.repeat(kinds, len(head)), np.tile(head, len(kinds)), np.tile(place, len(kinds)))


@dataclass(frozen=True)
class Batch:
    """Some recipients with their donors: each image goes through each model once."""

    model: Model
    pixels: Images
    recipients: Rows
    donors: Sequence[DonorKind]
    positions: Rows
    start: int  # the first patched layer
    mlp: bool = False  # whether what MLPs add is kept, too

    @cached_property
    def images(self) -> Rows:
        """Rows of the images that the recipients' own model sees."""
        given = [kind.rows[self.positions] for kind in self.donors if self._is_own(kind)]
        return np.unique(np.concatenate([self.recipients[self.positions], *given]))

    @cached_property
    def trace(self) -> Trace:
        """The recipients' own model on ``images``."""
        return record(self.model, as_input(self.model, self.pixels[self.images]), mlp=self.mlp)

    def _is_own(self, kind: DonorKind) -> bool:
        return kind.model is self.model and not kind.weights_only

    def kinds_of_one_model(self) -> list[list[int]]:
        """Return the numbers of the donor kinds, those of the recipients' own model together."""
        own = [i for i, kind in enumerate(self.donors) if self._is_own(kind)]
        return [*([own] if own else []), *([i] for i, kind in enumerate(self.donors) if not self._is_own(kind))]

    def logits(self, layer: int, asked: _Asked, precision: torch.dtype) -> torch.Tensor:
        """Return the logits (M, classes) of patches whose donors are of one model."""
        kind = self.donors[int(asked.kind[0])]
        recipient = self.places(self.images, self.recipients[self.positions[asked.place]])
        if kind.weights_only:
            heads, place = np.unique(asked.head, return_inverse=True)
            every = transplant_layer(self.model, self.trace, kind.model, layer, heads.tolist())
            return every[torch.from_numpy(place).to(every.device), recipient.to(every.device)]
        given = np.stack([k.rows[self.positions] for k in self.donors])[asked.kind, asked.place]
        seen, donor = self.donor(int(asked.kind[0]))
        patches = Patches(torch.from_numpy(asked.head), recipient, self.places(seen, given))
        return patch(self.model, self.trace, donor, layer, patches, precision=precision)

    def donor(self, number: int) -> tuple[Rows, Donor]:
        """Return the rows that a kind's donor model has seen, and the recorded pass."""
        kind = self.donors[number]
        if self._is_own(kind):
            return self.images, Donor(self.model, self.trace)
        if number not in self._others:
            seen = np.unique(kind.rows[self.positions])
            shared = np.array_equal(seen, self.images) and same_up_to(self.model, kind.model, self.start)
            pixels = as_input(kind.model, self.pixels[seen])
            prefix = self.trace if shared else None
            self._others[number] = seen, Donor(kind.model, record(kind.model, pixels, prefix=prefix, start=self.start))
        return self._others[number]

    @cached_property
    def _others(self) -> dict[int, tuple[Rows, Donor]]:
        """Passes of other models, by the number of the donor kind."""
        return {}

    @staticmethod
    def places(among: Rows, rows: Rows) -> torch.Tensor:
        """Return the place of each of ``rows`` in the sorted ``among``."""
        return torch.from_numpy(np.searchsorted(among, rows))

    def table(self, asked: _Asked, logits: torch.Tensor, layer: int, outcomes: Mapping[str, int]) -> pd.DataFrame:
        """Lay out the logits (M, classes) of patches as rows."""
        position = self.positions[asked.place]
        names = np.array([kind.name for kind in self.donors], dtype=object)
        return pd.DataFrame(
            {
                "position": position,
                "recipient": self.recipients[position],
                "donor": np.stack([kind.rows for kind in self.donors])[asked.kind, position],
                "donor_kind": names[asked.kind],
                "layer": np.int16(layer),
                "head": asked.head.astype(np.int16),
                **measure_logits(logits, outcomes, readout_of(self.model)),
            }
        )


def sweep_together(
    model: Model,
    images: Images,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    sets: Mapping[str, Sequence[Site]],
    outcomes: Mapping[str, int],
    units: Rows | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Patch sets of heads, each set at once, for every recipient and every donor kind.

    Parameters are those of :func:`sweep`; ``sets`` are named.

    Returns
    -------
    pandas.DataFrame
        As of :func:`sweep`, with ``set`` in place of layer and head.
    """
    total, done = len(recipients) * len(donors) * len(sets), 0

    def measured(seen: Images, positions: Rows) -> list[pd.DataFrame]:
        nonlocal done
        tables = []
        batch = Batch(model, seen, recipients, donors, positions, 0)
        every = np.arange(len(positions))
        own = batch.trace.take(batch.places(batch.images, recipients[positions]))
        for number, kind in enumerate(donors):
            rows, donor = batch.donor(number)
            given = Donor(kind.model, donor.trace.take(batch.places(rows, kind.rows[positions])))
            asked = _Asked(np.full(len(every), number), every, every)
            for name, sites in sets.items():
                table = batch.table(asked, patch_together(model, own, given, sites), -1, outcomes)
                tables.append(table.drop(columns=["layer", "head"]).assign(set=name))
                done += len(positions)
                if progress is not None:
                    progress(min(done, total), total)  # what was computed again counts twice
        return tables

    return _batch_by_batch(measured, model, images, recipients, donors, units)


def sweep_parts(
    model: Model,
    images: Images,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    parts: Sequence[Part],
    outcomes: Mapping[str, int],
    units: Rows | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Patch parts one by one, in both directions, for every recipient and every donor kind.

    Parameters are those of :func:`sweep`; every donor's model is the recipients' own.

    Returns
    -------
    pandas.DataFrame
        As of :func:`sweep`, with ``set`` (the part's name) in place of layer and head, and ``direction``: of a row of
        "denoising" the answer is the recipient's with the donor's part, of "noising" the donor's with the recipient's.
    """
    total, done = len(recipients) * len(donors) * len(parts), 0

    def measured(seen: Images, positions: Rows) -> list[pd.DataFrame]:
        nonlocal done
        tables = []
        batch = Batch(model, seen, recipients, donors, positions, 0, mlp=True)
        every = np.arange(len(positions))
        own = batch.trace.take(batch.places(batch.images, recipients[positions]))
        for number, kind in enumerate(donors):
            given = batch.trace.take(batch.places(batch.images, kind.rows[positions]))
            asked = _Asked(np.full(len(every), number), every, every)
            for part in parts:
                for direction, into, out_of in (("denoising", own, given), ("noising", given, own)):
                    logits = jointly.patch_parts(model, into, Donor(model, out_of), [part])
                    table = batch.table(asked, logits, -1, outcomes).drop(columns=["layer", "head"])
                    tables.append(table.assign(set=str(part), direction=direction))
                done += len(positions)
                if progress is not None:
                    progress(min(done, total), total)  # what was computed again counts twice
        return tables

    return _batch_by_batch(measured, model, images, recipients, donors, units)
