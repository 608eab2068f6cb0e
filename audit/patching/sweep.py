"""Sweeps: the plans of the designs run through the engine, one row an image x head x donor kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.data.pixels import Pixels
from audit.models.predict import batches
from audit.models.transforms import as_input
from audit.patching.attribution import attribute, gradients
from audit.patching.engine import Donor, patch_layer, patch_together, transplant_layer
from audit.patching.sites import Site, Trace, heads_of, record

RECIPIENTS_AT_ONCE = 32
Progress = Callable[[int, int], None]  # patches done, patches in all
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DonorKind:
    """A donor for each recipient: whose model, and which image of the sample.

    With ``weights_only`` a head takes the model's weights, not what it writes there, and the recipient's own image
    passes through them; ``rows`` are then the recipients themselves.
    """

    name: str
    model: VisionTransformer
    rows: Rows
    weights_only: bool = False


def class_log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Return ``m_c = l_c - logsumexp over j != c of l_j`` for logits (..., classes); the log-odds of p_c, in nats."""
    n = logits.shape[-1]
    others = ~torch.eye(n, dtype=torch.bool)
    rest = logits.unsqueeze(-2).expand(*logits.shape, n).masked_fill(~others, -torch.inf)
    return logits - torch.logsumexp(rest, dim=-1)


def measure_logits(logits: torch.Tensor, outcomes: Mapping[str, int]) -> dict[str, npt.NDArray[np.generic]]:
    """Return p and m of each outcome and the predicted class number, for logits (..., classes)."""
    flat = logits.flatten(0, -2).double()
    p, m = flat.softmax(-1), class_log_odds(flat)
    columns: dict[str, npt.NDArray[np.generic]] = {"predicted": flat.argmax(-1).to(torch.int16).numpy()}
    for name, number in outcomes.items():
        columns[f"p:{name}"] = p[:, number].numpy()
        columns[f"m:{name}"] = m[:, number].numpy()
    return columns


def measure_unpatched(
    model: VisionTransformer, pixels: Pixels, rows: Rows, outcomes: Mapping[str, int]
) -> pd.DataFrame:
    """Return p, m and the predicted class of images as they are, one row an image."""
    parts = []
    with torch.inference_mode():
        parts = [model(as_input(model, pixels[rows[s]])) for s in batches(len(rows), 64)]
    return pd.DataFrame({"recipient": rows, **measure_logits(torch.cat(parts), outcomes)})


def sweep(
    model: VisionTransformer,
    pixels: Pixels,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    layers: range,
    outcomes: Mapping[str, int],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Patch every head of ``layers`` for every recipient and every donor kind.

    Parameters
    ----------
    model : VisionTransformer
        The recipients' model, in evaluation mode.
    pixels : numpy.ndarray (N, H, W, 3), uint8
        All images of the sample; rows count into it.
    recipients : numpy.ndarray (R,)
        Rows of the recipients.
    donors : sequence of DonorKind
        For each kind a model and R donor rows.
    layers : range
        Which layers, 0-based.
    outcomes : mapping of str to int
        Audited outcomes and their class numbers.
    progress : callable, optional
        Called with the patches done and in all.

    Returns
    -------
    pandas.DataFrame
        Columns ``position`` (0..R-1, into ``recipients``), ``recipient``, ``donor``, ``donor_kind``, ``layer``,
        ``head``, ``predicted``, and ``p:<outcome>`` (probability), ``m:<outcome>`` (log-odds, nats).
    """
    total = len(recipients) * len(donors) * sum(heads_of(model, i) for i in layers)
    done, parts = 0, []
    for part in batches(len(recipients), RECIPIENTS_AT_ONCE):
        own = record(model, as_input(model, pixels[recipients[part]]))
        for kind in donors:
            for layer, logits in _layer_by_layer(model, own, kind, pixels[kind.rows[part]], layers):
                parts.append(_table(logits, recipients, kind, layer, part, outcomes))
                done += logits.shape[0] * logits.shape[1]
                if progress is not None:
                    progress(done, total)
    return pd.concat(parts, ignore_index=True)


def _layer_by_layer(
    model: VisionTransformer, own: Trace, kind: DonorKind, donor_pixels: Pixels, layers: range
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each layer with the logits (heads, B, classes) of its heads patched one at a time."""
    if kind.weights_only:
        yield from ((layer, transplant_layer(model, own, kind.model, layer)) for layer in layers)
        return
    donor = Donor(kind.model, record(kind.model, as_input(kind.model, donor_pixels)))
    yield from ((layer, patch_layer(model, own, donor, layer)) for layer in layers)


def sweep_together(
    model: VisionTransformer,
    pixels: Pixels,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    sets: Mapping[str, Sequence[Site]],
    outcomes: Mapping[str, int],
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
    parts: list[pd.DataFrame] = []
    for part in batches(len(recipients), RECIPIENTS_AT_ONCE):
        own = record(model, as_input(model, pixels[recipients[part]]))
        for kind in donors:
            donor = Donor(kind.model, record(kind.model, as_input(kind.model, pixels[kind.rows[part]])))
            for name, sites in sets.items():
                logits = patch_together(model, own, donor, sites)
                table = _table(logits.unsqueeze(0), recipients, kind, -1, part, outcomes)
                parts.append(table.drop(columns=["layer", "head"]).assign(set=name))
                done += len(logits)
                if progress is not None:
                    progress(done, total)
    return pd.concat(parts, ignore_index=True)


def sweep_estimates(
    model: VisionTransformer,
    pixels: Pixels,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    layers: range,
    outcomes: Mapping[str, int],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Estimate every patch of :func:`sweep` to first order (attribution patching), without patching.

    Returns
    -------
    pandas.DataFrame
        Columns ``position``, ``recipient``, ``donor_kind``, ``layer``, ``head``, and ``p:<outcome>``: the estimated
        *change* of the probability.
    """
    parts: list[pd.DataFrame] = []
    for part in batches(len(recipients), RECIPIENTS_AT_ONCE):
        images = as_input(model, pixels[recipients[part]])
        own = record(model, images)
        slopes = {name: gradients(model, images, _probability_of(c), layers) for name, c in outcomes.items()}
        for kind in donors:
            donor = Donor(kind.model, record(kind.model, as_input(kind.model, pixels[kind.rows[part]])))
            found = {f"p:{name}": attribute(model, own, donor, s).double().numpy() for name, s in slopes.items()}
            shape = next(iter(found.values())).shape
            position, row, head = (i.ravel() for i in np.indices(shape))
            parts.append(
                pd.DataFrame(
                    {
                        "position": position + part.start,
                        "recipient": recipients[part][position],
                        "donor_kind": kind.name,
                        "layer": (row + layers.start).astype(np.int16),
                        "head": head.astype(np.int16),
                        **{name: values.ravel() for name, values in found.items()},
                    }
                )
            )
        if progress is not None:
            progress(part.stop, len(recipients))
    return pd.concat(parts, ignore_index=True)


def _probability_of(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda logits: logits.softmax(-1)[:, number]


def _table(
    logits: torch.Tensor, recipients: Rows, kind: DonorKind, layer: int, part: slice, outcomes: Mapping[str, int]
) -> pd.DataFrame:
    """Lay out the logits (heads, B, classes) of one layer and batch as rows."""
    n_heads, n_images = logits.shape[:2]
    return pd.DataFrame(
        {
            "position": np.tile(np.arange(part.start, part.stop), n_heads),
            "recipient": np.tile(recipients[part], n_heads),
            "donor": np.tile(kind.rows[part], n_heads),
            "donor_kind": kind.name,
            "layer": np.int16(layer),
            "head": np.repeat(np.arange(n_heads, dtype=np.int16), n_images),
            **measure_logits(logits, outcomes),
        }
    )
