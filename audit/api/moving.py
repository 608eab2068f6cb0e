"""The mean-shift patch on tensors: from what a caller gives to rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from audit.errors import InputError
from audit.evidence.effects import SwapEffects
from audit.evidence.mean_shift import Question, judge_moved
from audit.evidence.stats import Codes
from audit.given import check_kind
from audit.models.adapters.registry import Model
from audit.models.device import device_of
from audit.patching.api import Head, check_images, check_outcomes, part_of
from audit.patching.mean_shift import measure_shifts, parts_shifted
from audit.patching.parts import Part
from audit.patching.shifts import draw_shifts
from audit.records import MeanShiftRow, Metric


@dataclass(frozen=True)
class Moving:
    """What :func:`vit_audit.shift_means` is given besides model, images and parts."""

    labels: Any
    groups: Any
    subjects: Any
    reference: Any
    shuffles: int
    again: int
    resamples: int
    seed: int


def move_means(
    model: Model,
    images: torch.Tensor,
    asked: Moving,
    outcomes: Mapping[str, int],
    parts: Sequence[Part | Head | str] | None,
) -> list[MeanShiftRow]:
    """Do what :func:`vit_audit.shift_means` does, which describes it, with a model in evaluation mode."""
    check_images(model, "images", images)
    check_outcomes(model, images, outcomes)
    for name, least in (("shuffles", 0), ("again", 0), ("resamples", 1)):
        given = getattr(asked, name)
        if not isinstance(given, int) or given < least:
            raise InputError(name, f"is {given!r}", f"give a whole number, {least} or more")
    check_kind("parts", parts, (tuple, list, type(None)), "give a list of parts")
    found = parts_shifted(model) if parts is None else [part_of(model, part) for part in parts]
    label, group, subject = (
        _column(name, given, len(images))
        for name, given in (("labels", asked.labels), ("groups", asked.groups), ("subjects", asked.subjects))
    )
    names, reference = _two(group, asked.reference)
    is_group = np.asarray(group != reference)
    codes, people = (pd.factorize(column, sort=True)[0].astype(np.int64) for column in (label, subject))
    layout = _layout(codes, is_group, people)
    shifts = draw_shifts(
        codes,
        is_group,
        people,
        np.abs(layout.gap_weights()),
        shuffles=asked.shuffles,
        again=asked.again,
        seed=asked.seed,
    )
    device = device_of(model)
    moved = measure_shifts(
        model, lambda rows: images[torch.from_numpy(rows)].to(device), shifts, found, list(outcomes.values())
    )
    question = Question(f"{names[0]}-{reference}", Metric.STANDARDISED_GAP)
    told = list(map(str, found))
    return judge_moved(
        moved, shifts, layout, told, question, list(outcomes), resamples=asked.resamples, seed=asked.seed
    )


def _layout(label: Codes, is_group: Any, subject: Codes) -> SwapEffects:
    """Lay out images, of which labels count that have two subjects or more of either group."""
    shares = {}
    for code in np.unique(label):
        people = [len(np.unique(subject[(label == code) & (is_group == side)])) for side in (False, True)]
        shares[int(code)] = float((label == code).sum()) if min(people) > 1 else 0.0
    if not any(shares.values()):
        raise InputError("labels, groups", "no label has two subjects of either group", "give more images")
    nothing = np.zeros((len(label), 0))
    return SwapEffects(
        cross=nothing, placebo=nothing, unpatched=np.zeros(len(label)), is_group=is_group, label=label,
        subject=subject, unit=subject, heads=[], shares=shares,
    )  # fmt: skip


def _column(name: str, given: Any, n: int) -> Any:
    """Return what is given of each image; of subjects, by default one each."""
    column = np.arange(n) if given is None and name == "subjects" else np.asarray(given)
    if column.shape != (n,) or pd.isna(column).any():
        raise InputError(name, f"are {column.shape}, or one is missing", f"give one for each of the {n} images")
    return column


def _two(group: Any, reference: Any) -> tuple[list[Any], Any]:
    """Return the names of the other group, and of the reference."""
    names, sizes = np.unique(group, return_counts=True)
    if len(names) != 2:
        raise InputError("groups", f"are {len(names)}", "give images of two groups")
    chosen = names[int(np.argmax(sizes))] if reference is None else reference
    if chosen not in names:
        raise InputError("reference", f"is {reference!r}", f"choose from {', '.join(map(str, names))}")
    return [name for name in names if name != chosen], chosen
