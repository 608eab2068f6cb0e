"""Groups that mean nothing: audits, and ledgers, of one model with groups permuted within label and split.

For audits every donor of a stratum is patched into every recipient once, a stratum being a few photographs of one
label. Each audit permutes the groups, draws new pairs of donors within the strata (``match_on`` of a card), and
reads what it needs from what was patched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.data.groups import permute_groups
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.stats import excludes_zero
from audit.models.adapters.registry import adapter
from audit.models.readout import readout_of
from audit.models.transforms import as_input
from audit.patching.contributions import Contributions
from audit.patching.engine import Donor, Patches, patch
from audit.patching.sites import record, sites_of
from audit.patching.sweep import measure_logits
from audit.pipeline.run_sweeps import SWAP_KINDS, Plan, described, with_class_names
from audit.records import ContrastRow
from benchmarks.real_planted.audit_heads import AUDITED, SEED, Heads, judge, make_plans
from benchmarks.real_planted.ledgers import judge_carriers, judge_weights, judge_writers
from benchmarks.real_planted.photographs import ATTRIBUTE, LABELS, OUTCOMES, World

STRATUM = "stratum of donors"
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bank:
    """All patches within the strata of some photographs."""

    rows: Codes  # (n,), of the photographs
    stratum: Codes  # (n,)
    place: Codes  # (n, n), of a recipient and a donor, by their places in ``rows``: the pair's; -1: none
    answers: dict[str, npt.NDArray[np.generic]]  # each (pairs * K,), heads in the order of ``sites``
    sites: list[tuple[int, int]]


def draw_strata(world: World, *, images: int, at_once: int, seed: int) -> tuple[Codes, Codes]:
    """Draw photographs of each split, as many of each label, and put them into strata; return rows and strata."""
    rng = np.random.default_rng(seed)
    rows: list[Codes] = []
    for split in AUDITED:
        for label in LABELS:
            frame = world.frame
            every = frame.index[(frame["split"] == split) & (frame["label"] == label)].to_numpy(dtype=np.int64)
            number = images // len(LABELS) // at_once * at_once
            rows.append(rng.permutation(every)[:number])
    drawn = np.concatenate(rows)
    return drawn, np.arange(len(drawn), dtype=np.int64) // at_once


@torch.inference_mode()
def fill_bank(model: VisionTransformer, world: World, *, images: int, at_once: int, seed: int) -> Bank:
    """Patch every head of every pair of photographs within the strata."""
    rows, stratum = draw_strata(world, images=images, at_once=at_once, seed=seed)
    recipient, donor = np.nonzero((stratum[:, None] == stratum) & ~np.eye(len(rows), dtype=np.bool_))
    place = np.full((len(rows), len(rows)), -1, dtype=np.int64)
    place[recipient, donor] = np.arange(len(recipient))
    trace = record(model, as_input(model, world.features[rows]))
    into, out_of = torch.from_numpy(recipient), torch.from_numpy(donor)
    logits = []
    for layer in range(adapter(model).depth):
        heads = range(adapter(model).units(layer))
        patches = Patches.of_heads(heads, into, out_of)
        found = patch(model, trace, Donor(model, trace), layer, patches)
        logits.append(found.unflatten(0, (len(heads), len(into))).transpose(0, 1))
    answers = measure_logits(torch.cat(logits, dim=1), OUTCOMES, readout_of(model))
    return Bank(rows, stratum, place, answers, [(s.layer, s.head) for s in sites_of(model)])


def read_bank(bank: Bank, plan: Plan) -> pd.DataFrame:
    """Return the rows of a sweep of a plan."""
    at = {int(row): number for number, row in enumerate(bank.rows)}
    tables = []
    for kind in SWAP_KINDS:
        pairs = bank.place[tuple([at[row] for row in plan.column(name)] for name in ("recipient", kind))]
        assert (pairs >= 0).all()
        wanted = (pairs[:, None] * len(bank.sites) + np.arange(len(bank.sites))).ravel()
        position = np.repeat(np.arange(len(pairs)), len(bank.sites))
        layer, head = np.tile(np.array(bank.sites), (len(pairs), 1)).T
        tables.append(
            pd.DataFrame(
                {
                    "position": position,
                    "recipient": plan.column("recipient")[position],
                    "donor": plan.column(kind)[position],
                    "donor_kind": kind,
                    "layer": layer,
                    "head": head,
                    **{name: values[wanted] for name, values in bank.answers.items()},
                }
            )
        )
    return with_class_names(described(pd.concat(tables, ignore_index=True), plan, SEED), LABELS)


def permuted(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Permute the groups within split and label, by subject, as a card's ``permuted`` does."""
    rng = np.random.default_rng(seed)
    codes, groups = pd.factorize(frame[ATTRIBUTE], sort=True)
    subjects = pd.factorize(frame["subject"])[0].astype(np.int64)
    assigned = codes.astype(np.int64)
    for _, rows in sorted(frame.groupby(["split", "label"]).indices.items()):
        assigned[rows] = permute_groups(assigned[rows], subjects[rows], rng)
    return frame.assign(**{ATTRIBUTE: groups.to_numpy()[assigned]})


def audits(
    bank: Bank, frame: pd.DataFrame, answers: pd.DataFrame, settings: Settings, seeds: Sequence[int]
) -> Iterator[Heads]:
    """Audit with groups permuted, once for each seed; ``frame`` and ``answers`` are of all audited photographs."""
    strata = pd.Series(bank.stratum, index=bank.rows)
    for seed in seeds:
        drawn = permuted(frame, seed)
        banked = drawn.loc[np.sort(bank.rows)]
        banked = banked.assign(**{STRATUM: strata.loc[banked.index].astype(str)})
        plans = make_plans(banked, recipients=None, seed=seed, nuisance=(STRATUM,))
        swap = pd.concat([read_bank(bank, plan) for plan in plans.values()], ignore_index=True)
        yield judge(drawn, answers, swap, replace(settings, seed=seed))


@dataclass(frozen=True)
class ByChance:
    """How often ledgers say something where groups mean nothing: of each draw, which rows' intervals exclude 0."""

    written: list[list[bool]]
    trained: list[list[bool]]
    carried: list[list[bool]]  # which parts are said to carry beyond noise


def ledgers_by_chance(
    frame: pd.DataFrame,
    gap: ContrastRow,
    given: Contributions,
    trained: pd.DataFrame,
    stored: StoredEffects,
    carried: pd.DataFrame,
    settings: Settings,
    seeds: Sequence[int],
) -> ByChance:
    """Judge the ledgers with groups permuted; what parts carry with the groups swapped in half of the donor pairs."""
    found = ByChance([], [], [])
    resamples = settings.bootstrap
    for seed in seeds:
        drawn = permuted(frame, seed)
        writers = judge_writers(given, drawn, gap, resamples=resamples, seed=seed)
        found.written.append([excludes_zero(row.gap) for row in writers.rows])
        _, rows = judge_weights(trained, drawn, gap.metric, resamples=resamples, seed=seed)
        players = [row for row in rows if row.player and not row.same_weights]
        found.trained.append([excludes_zero(row.log_odds) for row in players])
        parts = judge_carriers(stored, swapped(carried, seed), replace(settings, seed=seed))
        found.carried.append([row.beyond_noise for row in parts])
    return found


def swapped(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Swap the two groups of the donors in half of the donor pairs: cross-group donors there become the placebo."""
    rng = np.random.default_rng(seed)
    units = table["unit"].unique()
    turned = table["unit"].isin(units[rng.random(len(units)) < 0.5])
    other = table["donor_kind"].map({"cross": "placebo", "placebo": "cross"})
    return table.assign(donor_kind=table["donor_kind"].where(~turned, other))
