"""On tensors: what heads carry from donors to recipients, exactly and to first order, and what each part writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from audit.batching import in_batches
from audit.errors import InputError
from audit.given import check_choice, check_kind
from audit.models.adapters.registry import Model, adapter, input_channels
from audit.models.device import device_of, in_double
from audit.models.readout import readout_of
from audit.patching import patch_parts as jointly
from audit.patching.attribution import attribute, linearise
from audit.patching.contributions import Written
from audit.patching.engine import Donor, Patches, continue_unpatched, patch, patch_layer
from audit.patching.parts import Kind, Part, parse_part
from audit.patching.sites import Site, check_parts, head_part, heads_of, record, sites_of
from audit.patching.sweep import recipients_at_once
from audit.patching.written import written
from audit.progress import Progress

Scale = Literal["log_odds", "probability", "logit"]
Head = tuple[int, int] | Site  # layer and head, counted from 0
Direction = Literal["denoising", "noising"]


def patch_heads(
    model: Model,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    heads: Sequence[Head] | None = None,
    *,
    donor_model: Model | None = None,
    scale: Scale = "log_odds",
) -> torch.Tensor:
    """Do what :func:`vit_audit.patch_heads` does, which describes it, with a model in evaluation mode.

    The heads of ``donor_model``, of the same start as ``model``, donate where it is given.
    """
    sites = _sites(model, recipients, donors, heads)
    check_choice("scale", scale, get_args(Scale))
    giving, of_scale = donor_model or model, _of_scale(model, scale)

    def effects(part: slice) -> torch.Tensor:
        trace = record(model, recipients[part].to(device_of(model)))
        donor = Donor(giving, record(giving, donors[part].to(device_of(giving))))
        found: dict[Site, torch.Tensor] = {}
        for layer in sorted({site.layer for site in sites}):
            asked = sorted({site.head for site in sites if site.layer == layer})
            patched = of_scale(in_double(patch_layer(model, trace, donor, layer, asked)))
            change = patched - of_scale(in_double(continue_unpatched(model, trace, layer, len(asked))))
            found |= {Site(layer, head): of_head for head, of_head in zip(asked, change, strict=True)}
        return torch.stack([found[site] for site in sites], dim=1)

    return torch.cat(in_batches(effects, len(recipients), recipients_at_once(model, 1)))


def patch_parts(
    model: Model,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    parts: Sequence[Part | Head | str],
    *,
    direction: Direction = "denoising",
    scale: Scale = "log_odds",
) -> torch.Tensor:
    """Do what :func:`vit_audit.patch_parts` does, which describes it, with a model in evaluation mode."""
    _check_pairs(model, recipients, donors)
    check_choice("scale", scale, get_args(Scale))
    check_choice("direction", direction, get_args(Direction))
    check_kind("parts", parts, (tuple, list), "give a list of parts")
    asked = [part_of(model, part) for part in parts]
    check_parts(model, asked)
    of_scale, mlp = _of_scale(model, scale), any(part.kind in (Kind.MLP, Kind.LAYER) for part in asked)

    def effects(rows: slice) -> torch.Tensor:
        own, given = (record(model, t[rows].to(device_of(model)), mlp=mlp) for t in (recipients, donors))
        sign = 1.0
        if direction == "noising":
            own, given, sign = given, own, -1.0
        patched, base = (
            of_scale(in_double(jointly.patch_parts(model, own, Donor(model, given), these))) for these in (asked, ())
        )
        return sign * (patched - base)

    return torch.cat(in_batches(effects, len(recipients), recipients_at_once(model, 1)))


def attribution(
    model: Model,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    heads: Sequence[Head] | None = None,
    *,
    scale: Scale = "log_odds",
) -> torch.Tensor:
    """Do what :func:`vit_audit.attribution` does, which describes it, with a model in evaluation mode."""
    sites = _sites(model, recipients, donors, heads)
    check_choice("scale", scale, get_args(Scale))
    every = sites_of(model, layers := range(min(s.layer for s in sites), adapter(model).depth))
    places = [every.index(site) for site in sites]

    def estimates(part: slice) -> torch.Tensor:
        images = recipients[part].to(device_of(model))
        scalars = {str(c): _scalar(model, c, scale) for c in range(_classes(model, images))}
        passed = linearise(model, images, scalars, layers)
        given = record(model, donors[part].to(device_of(model))).head_activations
        own = {layer: passed.trace.head_activations[layer] for layer in layers}
        columns = []
        for name, scalar in scalars.items():
            pairs = attribute(model, own, dict(enumerate(given)), passed.slopes[name])  # every recipient and donor
            change = in_double(pairs.diagonal().mT[:, places])
            if scale == "probability":
                base = in_double(scalar(passed.logits))[:, None]
                change = torch.from_numpy(expit((base + change).numpy()) - expit(base.numpy()))
            columns.append(change)
        return torch.stack(columns, dim=-1)

    return torch.cat(in_batches(estimates, len(recipients), recipients_at_once(model, 1)))


def sweep_heads(
    model: Model,
    images: torch.Tensor,
    recipients: torch.Tensor,
    donors: torch.Tensor,
    *,
    layers: range | None = None,
    scale: Scale = "log_odds",
    progress: Progress | None = None,
) -> torch.Tensor:
    """Do what :func:`vit_audit.sweep` does, which describes it, with a model in evaluation mode.

    Pairs that share images cost least side by side.
    """
    check_images(model, "images", images)
    check_choice("scale", scale, get_args(Scale))
    recipients, donors = _rows("recipients", recipients), _rows("donors", donors)
    if recipients.shape != donors.shape or recipients.ndim != 1 or not len(recipients):
        what = f"are {tuple(donors.shape)}, the recipients {tuple(recipients.shape)}"
        raise InputError("donors", what, "give one row number for each recipient, and one recipient at least")
    rows = torch.cat([recipients, donors])
    if int(rows.min()) < 0 or int(rows.max()) >= len(images):
        raise InputError("recipients, donors", f"name rows beyond the {len(images)} images", "count from 0")
    depth = adapter(model).depth
    if layers is not None:
        check_kind("layers", layers, Sequence, "give a range, counted from 0")
    if layers is not None and not (len(layers) and set(layers) <= set(range(depth))):
        raise InputError("layers", f"are {layers}, the model has {depth}", "count from 0")
    every, of_scale, done = layers or range(depth), _of_scale(model, scale), 0

    def effects(part: slice) -> torch.Tensor:
        nonlocal done
        own, given = recipients[part], donors[part]
        needed = torch.cat([own, given]).unique()
        trace = record(model, images[needed].to(device_of(model)))
        places, sources = torch.searchsorted(needed, own), torch.searchsorted(needed, given)
        columns = []
        for layer in every:
            heads = list(range(heads_of(model, layer)))
            patches = Patches.of_heads(heads, places, sources)
            patched = of_scale(in_double(patch(model, trace, Donor(model, trace), layer, patches)))
            same = Patches.of_heads(heads, places, places)
            base = of_scale(in_double(patch(model, trace, Donor(model, trace), layer, same)))
            columns.append((patched - base).unflatten(0, (len(heads), len(own))))
        done += len(own)
        if progress is not None:
            progress(min(done, len(recipients)), len(recipients))
        return torch.cat(columns).transpose(0, 1)

    return torch.cat(in_batches(effects, len(recipients), recipients_at_once(model, 1)))


def written_parts(
    model: Model,
    images: torch.Tensor,
    outcomes: Mapping[str, int],
    labels: Sequence[int] | npt.NDArray[np.int64] | None = None,
    *,
    cut: int | None = None,
) -> Written:
    """Do what :func:`vit_audit.written` does, which describes it, with a model in evaluation mode."""
    check_images(model, "images", images)
    check_outcomes(model, images, outcomes)
    codes = None if labels is None else np.asarray(labels)
    if codes is not None and (codes.shape != (len(images),) or codes.dtype.kind not in "iu" or codes.min() < 0):
        raise InputError("labels", f"are {codes.dtype} {codes.shape}", "give a number from 0 for each image")
    return written(model, images, outcomes, codes, cut=cut)


def check_outcomes(model: Model, images: torch.Tensor, outcomes: Mapping[str, int]) -> None:
    """Raise unless these name classes of the model, and there is an image."""
    check_kind("outcomes", outcomes, Mapping, "give names and class numbers, such as {'happy': 1}")
    classes = _classes(model, images.to(device_of(model))) if len(images) else 0
    if not len(outcomes) or not all(isinstance(c, int) and 0 <= c < classes for c in outcomes.values()):
        fix = "name an image or more, and classes by their numbers, counted from 0"
        raise InputError("outcomes", f"are {dict(outcomes)}, of {len(images)} images and {classes} classes", fix)


def _of_scale(model: Model, scale: Scale) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what reads the numbers of all classes from a model's logits."""
    readout = readout_of(model)
    read: dict[Scale, Callable[[torch.Tensor], torch.Tensor]] = {
        "log_odds": readout.log_odds,
        "probability": readout.probabilities,
        "logit": lambda logits: logits,
    }
    return read[scale]


def _scalar(model: Model, number: int, scale: Scale) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what reads the number of one class from a model's logits; of a probability its log-odds."""
    read = _of_scale(model, "logit" if scale == "logit" else "log_odds")
    return lambda logits: read(logits)[..., number]


@torch.inference_mode()
def _classes(model: Model, images: torch.Tensor) -> int:
    return int(model(images[:1]).shape[-1])


def _rows(name: str, given: torch.Tensor) -> torch.Tensor:
    """Return numbers of rows as a tensor."""
    try:
        rows = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        rows = torch.empty(0)
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise InputError(name, "are no whole numbers", "give the row of each in images, counted from 0")
    return rows.long()


def check_images(model: Model, name: str, images: torch.Tensor) -> None:
    """Raise unless these are images of the size that the model reads."""
    _check_tensor(name, images)
    side, channels = adapter(model).side, input_channels(model)
    kind = next(model.parameters()).dtype
    if images.dtype != kind:
        raise InputError(name, f"are {images.dtype}, the model's weights {kind}", "bring both to one type, as float32")
    if images.ndim != 4 or images.shape[1:] != (channels, side, side):
        raise InputError(name, f"are {tuple(images.shape)}", f"the model reads (N, {channels}, {side}, {side})")


def _check_tensor(name: str, images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        fix = "give a torch.Tensor (N, 3, H, W), normalised"
        raise InputError(name, "are no tensor of floating-point numbers", fix)


def _sites(model: Model, recipients: torch.Tensor, donors: torch.Tensor, heads: Sequence[Head] | None) -> list[Site]:
    """Return the heads that are asked for, once it is known that there is something to patch."""
    if heads is not None:
        check_kind("heads", heads, Iterable, "name pairs (layer, head), both counted from 0")
    _check_pairs(model, recipients, donors)
    every = sites_of(model)
    sites = every if heads is None else [_site(head) for head in heads]
    unknown = [site for site in sites if site not in every]
    if unknown or not sites:
        what = f"the model has no layer {unknown[0].layer}, head {unknown[0].head}" if unknown else "none is named"
        raise InputError("heads", what, f"name pairs (layer, head) of {len(every)}, both counted from 0")
    return sites


def _check_pairs(model: Model, recipients: torch.Tensor, donors: torch.Tensor) -> None:
    """Raise unless there is a donor for each recipient, both as the model reads them."""
    _check_tensor("recipients", recipients)
    _check_tensor("donors", donors)
    if recipients.shape != donors.shape or not len(recipients):
        what = f"are {tuple(donors.shape)}, the recipients {tuple(recipients.shape)}"
        raise InputError("donors", what, "give one donor for each recipient, and one recipient at least")
    check_images(model, "recipients", recipients)
    check_images(model, "donors", donors)


def part_of(model: Model, given: Part | Head | str) -> Part:
    """Return a part that is given as such, by its name, or as a head."""
    if isinstance(given, Part):
        return given
    return parse_part(given) if isinstance(given, str) else head_part(model, _site(given))


def _site(head: Head) -> Site:
    if isinstance(head, Site):
        return head
    if not isinstance(head, tuple | list) or len(head) != 2:
        raise InputError("heads", f"name {head!r}", "name pairs (layer, head), both counted from 0")
    return Site(*head)
