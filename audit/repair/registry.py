"""All methods that repair a gap: what each is told, whether it is offered, and how it is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from audit.errors import InputError
from audit.patching.players import check_reference
from audit.patching.sites import sites_of
from audit.records.repair_methods import AT_HEADS, Method, WhyNotOffered
from audit.repair.base import Plain, Repaired, RepairInput, Supervision, state_of
from audit.repair.by_group import threshold_optimizer
from audit.repair.choice import cell_of
from audit.repair.head_weights import separates_heads
from audit.repair.heads import at, heads_finetuned, heads_shifted, heads_to_reference
from audit.repair.last_layer import dfr, global_threshold, leace, oxonfair
from audit.repair.random_heads import MatchedSets
from audit.repair.retraining import continued, group_dro
from audit.repair.seen import State

LEAST = 10  # subjects of group or reference with the outcome, and without, on the repair split
Make = Callable[[RepairInput], tuple[State, dict[str, Plain]]]
Why = WhyNotOffered


@dataclass(frozen=True)
class Offer:
    """What is known of a method before it is run."""

    supervision: Supervision
    needs_last_layer: bool = False
    needs_training: bool = False
    needs_bytes: bool = False
    needs_reference: bool = False
    package: str = ""  # that an extra brings


def untouched(given: RepairInput) -> tuple[State, dict[str, Plain]]:
    """Return the audited weights: what every other method is compared with."""
    return state_of(given.model), {}


_GROUPS = Supervision(group_at_training=True)
OFFERS: Mapping[Method, Offer] = {
    Method.UNTOUCHED: Offer(Supervision(repair_split=False)),
    Method.CONTINUED: Offer(_GROUPS, needs_training=True, needs_bytes=True),
    Method.GLOBAL_THRESHOLD: Offer(_GROUPS, needs_last_layer=True),
    Method.DFR: Offer(_GROUPS, needs_last_layer=True),
    Method.OXONFAIR: Offer(_GROUPS, needs_last_layer=True),
    Method.THRESHOLD_OPTIMIZER: Offer(Supervision(group_at_training=True, group_at_prediction=True)),
    Method.LEACE: Offer(_GROUPS, needs_last_layer=True, package="concept_erasure"),
    Method.GROUP_DRO: Offer(_GROUPS, needs_training=True),
    Method.HEADS_TO_REFERENCE: Offer(_GROUPS, needs_reference=True),
    Method.HEADS_FINETUNED: Offer(_GROUPS),
    Method.HEADS_SHIFTED: Offer(_GROUPS),
    Method.RANDOM_HEADS: Offer(_GROUPS),
}
MAKERS: Mapping[Method, Make] = {
    Method.UNTOUCHED: untouched,
    Method.CONTINUED: continued,
    Method.GLOBAL_THRESHOLD: global_threshold,
    Method.DFR: dfr,
    Method.OXONFAIR: oxonfair,
    Method.LEACE: leace,
    Method.GROUP_DRO: group_dro,
    Method.HEADS_TO_REFERENCE: heads_to_reference,
    Method.HEADS_FINETUNED: heads_finetuned,
    Method.HEADS_SHIFTED: heads_shifted,
}


def why_not(method: Method, given: RepairInput) -> WhyNotOffered | None:
    """Return why a method is not offered; None where it is."""
    offer, training = OFFERS[method], given.data.training
    reasons = {
        Why.NO_LEGAL_BASIS: offer.supervision.group_at_prediction and not given.legal_basis.strip(),
        Why.CELL_TOO_SMALL: method is not Method.UNTOUCHED and smallest_cell(given) < LEAST,
        Why.NO_TRAINING_IMAGES: offer.needs_training and (training is None or given.recipe is None),
        Why.PIXELS_NOT_BYTES: offer.needs_bytes and training is not None and training.images.dtype != np.uint8,
        Why.EXTRA_MISSING: bool(offer.package) and not _there(offer.package),
        **_at_heads(method, given),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found is None and offer.needs_last_layer and given.last is None:
        return Why.NO_LINEAR_CLASSIFIER
    return found


def _at_heads(method: Method, given: RepairInput) -> dict[WhyNotOffered, bool]:
    if method not in (*AT_HEADS, Method.RANDOM_HEADS):
        return {}
    return {
        Why.NO_CONFIRMED_HEAD: not given.heads,
        Why.HEADS_NOT_SEPARABLE: not separates_heads(given.model),
        Why.NO_REFERENCE: OFFERS[method].needs_reference and given.reference is None,
        Why.NO_OTHER_HEAD: method is Method.RANDOM_HEADS and len(sites_of(given.model)) == len(given.heads),
    }


def _there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # of a module that is blocked
        return False


def smallest_cell(given: RepairInput) -> int:
    """Return the fewest subjects, on the repair split, of group or reference with the outcome or with another label."""
    split, aim = given.data.repair, given.aim
    sizes = []
    for group in (aim.group, aim.reference):
        with_outcome = cell_of(split, group, aim.outcome)
        without = (split.groups == group) & ~with_outcome
        sizes += [len(np.unique(split.subjects[cell])) for cell in (with_outcome, without)]
    return min(sizes)


def offered(given: RepairInput) -> dict[Method, WhyNotOffered | None]:
    """Return for every method why it is not offered; None where it is."""
    return {method: why_not(method, given) for method in Method}


def repair(method: Method, given: RepairInput) -> Repaired:
    """Run one method; the audited model is not changed.

    Parameters
    ----------
    method : Method
        Any but ``RANDOM_HEADS``, of which :func:`repair_at_random` makes many.
    given : RepairInput

    Raises
    ------
    InputError
        If it is not offered (``why_not`` says beforehand), or the reference is built otherwise than the model.
    DivergedError
        If the loss of a training is not finite.
    ValueError
        Of ``RANDOM_HEADS``.
    """
    if method is Method.RANDOM_HEADS:
        raise ValueError("random heads are many repairs; use repair_at_random")
    why = why_not(method, given)
    if why is not None:
        raise InputError("repair.methods", f"{method} is not offered ({why})", "leave it out")
    if OFFERS[method].needs_reference:
        check_reference(given.reference, given.model)
    begun = time.monotonic()
    if method is Method.THRESHOLD_OPTIMIZER:
        rule, told = threshold_optimizer(given)
        return Repaired(method, told, time.monotonic() - begun, rule=rule)
    state, told = MAKERS[method](given)
    heads = given.heads if method in AT_HEADS else ()
    return Repaired(method, told, time.monotonic() - begun, state, heads=heads)


def repair_at_random(edit: Method, given: RepairInput, sets: MatchedSets) -> Iterator[Repaired]:
    """Make the same edit at each set of random heads in turn, chosen by the same rule on the same images.

    Parameters
    ----------
    edit : Method
        One at heads.
    given : RepairInput
        As for the named heads.
    sets : MatchedSets
    """
    everywhere = tuple({*given.heads, *(site for heads in sets.sets for site in heads)})
    first = min(site.layer for site in everywhere)
    # Images are held where the first of all sets begins, or every draw before that would compute them again and again.
    wide = given if first >= given.seen.start else replace(given, heads=everywhere)
    for heads in sets.sets:
        made = repair(edit, at(wide, heads))
        yield replace(made, method=Method.RANDOM_HEADS, settings={**made.settings, "edit": edit.value})
