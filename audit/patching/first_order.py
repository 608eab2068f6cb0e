"""Design A to first order: every head, recipient and donor of a batch, at the price of one backward pass an outcome.

A recipient has one donor pair in the plan, for patches are dear. Its estimate costs next to nothing for the other pairs
of its block as well, and their average varies less. Three numbers are kept of each recipient, donor kind and head:

own
    with the donors that the plan gives it: what an exact patch of this recipient is compared with.
pair
    with the same donors, averaged over the recipients of its side: what this donor pair does. It depends on the labels
    of this pair alone, so that swapping them changes its sign, as it does with an exact patch.
both
    ``recipient + pair - batch``: what this recipient receives from all pairs, what its pair gives to all recipients,
    less what is counted twice. The sum over a side is that of ``pair``; what remains of it belongs to this recipient or
    to this pair, so that clusters of either can be resampled.

Expectations of all three are the same, whatever first order misses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import expit

from audit.batching import in_batches, max_batch_size
from audit.data.ahead import ahead
from audit.data.pixels import Images, Rows
from audit.models.adapters.registry import Model
from audit.models.device import device_of, in_double, memory_of
from audit.models.readout import readout_of
from audit.models.transforms import as_input
from audit.patching.attribution import attribute, linearise
from audit.patching.sites import record, sites_of, trace_bytes
from audit.patching.sweep import side_by_side
from audit.progress import Progress

Array = npt.NDArray[np.float64]
BLOCK = 32  # recipients that share their donors' estimates: part of what is computed, whatever fits into memory
GRAPH = 4.0  # traces' worth of memory that an image takes until its slopes are known
AVERAGES = ("own", "pair", "both")


def sweep_first_order(
    model: Model,
    images: Images,
    plan: pd.DataFrame,
    subjects: Rows,
    kinds: Sequence[str],
    *,
    layers: range,
    outcomes: Mapping[str, int],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Estimate every patch of a plan.

    Parameters
    ----------
    model : Model
        In evaluation mode.
    images : Images
        All images of the sample; rows count into them.
    plan : pandas.DataFrame
        Of ``plan_group_swap``.
    subjects : numpy.ndarray of int (N,)
        Code of every image's subject: nobody's estimate is taken from an image of his or her own.
    kinds : sequence of str
        Columns of the plan that hold donors.
    layers : range
        0-based.
    outcomes : mapping of str to int
        Audited outcomes and their class numbers.
    progress : callable, optional
        Called with the recipients done and in all.

    Returns
    -------
    pandas.DataFrame
        Columns ``position`` (row of the plan), ``recipient``, ``donor_kind``, ``layer``, ``head``, and for each outcome
        ``own:``, ``pair:`` and ``both:``, estimated changes of its probability.
    """
    scalars = {name: _log_odds_of(model, number) for name, number in outcomes.items()}
    parts: list[pd.DataFrame] = []
    done = 0
    every = list(side_by_side(BLOCK, len(plan), plan["unit"].to_numpy(dtype=np.int64)))
    taken = plan[["recipient", *kinds]].to_numpy(dtype=np.int64)
    for positions, (seen,) in zip(every, ahead([images], [[taken[part]] for part in every]), strict=True):
        batch = plan.iloc[positions]
        recipients, given = batch["recipient"].to_numpy(dtype=np.int64), batch[list(kinds)].to_numpy(dtype=np.int64)
        donors = np.unique(given)
        moved = _moved(model, seen, recipients, donors, scalars, layers)
        alike = subjects[recipients][:, None] == subjects[donors]
        places = np.searchsorted(donors, given).T
        values: dict[str, Array] = {}
        for name, of_outcome in moved.items():
            averages = [average(of_outcome, alike, at, batch) for at in places]
            values |= {f"{a}:{name}": np.stack([k[a] for k in averages]) for a in AVERAGES}
        parts.append(_table(batch, positions, kinds, model, layers, values))
        done += len(positions)
        if progress is not None:
            progress(done, len(plan))
    return pd.concat(parts, ignore_index=True)


def _moved(
    model: Model,
    images: Images,
    recipients: Rows,
    donors: Rows,
    scalars: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    layers: range,
) -> dict[str, Array]:
    """Return by outcome the estimated change of its probability (B, D, K), each head of each recipient and donor.

    As many images go through the model at once as fit into memory; what is estimated does not depend on that.
    """
    room = memory_of(device_of(model))

    def donor_activations(part: slice) -> dict[int, torch.Tensor]:
        head_activations = record(model, as_input(model, images[donors[part]])).head_activations
        return {layer: head_activations[layer] for layer in layers}

    activations = in_batches(
        donor_activations, len(donors), max_batch_size(len(donors), trace_bytes(model), share=0.5, free=room)
    )
    given = {layer: torch.cat([head_activations[layer] for head_activations in activations]) for layer in layers}

    def moved(part: slice) -> dict[str, Array]:
        passed = linearise(model, as_input(model, images[recipients[part]]), scalars, layers)
        own = {layer: passed.trace.head_activations[layer] for layer in layers}
        found = {}
        for name, scalar in scalars.items():
            base = in_double(scalar(passed.logits)).numpy()[:, None, None]
            change = in_double(attribute(model, own, given, passed.slopes[name])).numpy()
            found[name] = expit(base + change) - expit(base)
        return found

    at_once = max_batch_size(len(recipients), GRAPH * trace_bytes(model), share=0.5, free=room)
    parts = in_batches(moved, len(recipients), at_once)
    return {name: np.concatenate([part[name] for part in parts]) for name in scalars}


def average(moved: Array, alike: npt.NDArray[np.bool_], place: Rows, batch: pd.DataFrame) -> dict[str, Array]:
    """Average the estimates of one batch and donor kind.

    Parameters
    ----------
    moved : numpy.ndarray (B, D, K)
        From every donor image of the batch.
    alike : numpy.ndarray of bool (B, D)
        Where recipient and donor are one subject.
    place : numpy.ndarray of int (B,)
        Which of the D is each recipient's own donor.
    batch : pandas.DataFrame
        ``stratum``, ``side`` and ``unit`` of the B recipients.

    Returns
    -------
    dict of str to numpy.ndarray (B, K)
        "own", "pair" and "both".
    """
    own: Array = moved[np.arange(len(place)), place]
    pair, both = np.empty_like(own), np.empty_like(own)
    cells = batch.groupby(["stratum", "side"]).ngroup().to_numpy()
    units = batch["unit"].to_numpy()
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell)
        _, first, of_unit, count = np.unique(units[rows], return_index=True, return_inverse=True, return_counts=True)
        donors = place[rows[first]]
        block, self_given = moved[np.ix_(rows, donors)], alike[np.ix_(rows, donors)]
        allowed = ~self_given[..., None]
        by_pair = (block * allowed).sum(axis=0) / allowed.sum(axis=0)
        block = np.where(allowed, block, by_pair)
        by_recipient = (block * count[:, None]).sum(axis=1) / count.sum()
        pair[rows] = by_pair[of_unit]
        both[rows] = by_recipient + by_pair[of_unit] - by_recipient.mean(axis=0)
    return {"own": own, "pair": pair, "both": both}


def _table(
    batch: pd.DataFrame,
    positions: Rows,
    kinds: Sequence[str],
    model: Model,
    layers: range,
    values: Mapping[str, Array],
) -> pd.DataFrame:
    """Lay out values (kinds, B, K) as rows."""
    sites = sites_of(model, layers)
    kind, place, site = (i.ravel() for i in np.indices((len(kinds), len(positions), len(sites))))
    return pd.DataFrame(
        {
            "position": positions[place],
            "recipient": batch["recipient"].to_numpy()[place],
            "donor_kind": np.array(kinds, dtype=object)[kind],
            "layer": np.array([s.layer for s in sites], dtype=np.int16)[site],
            "head": np.array([s.head for s in sites], dtype=np.int16)[site],
            **{name: array.ravel() for name, array in values.items()},
        }
    )


def _log_odds_of(model: Model, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    readout = readout_of(model)
    return lambda logits: readout.log_odds(logits)[..., number]
