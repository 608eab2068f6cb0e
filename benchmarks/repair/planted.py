"""Does a repair at the head that carries a planted gap beat the same edit at twenty random sets of heads?

Models are those of ``benchmarks/real_planted``: a ViT-S of DINOv2 on photographs of UTKFace, in which one head was
trained on a sample whose label goes with the group. So the head that should be repaired is known, and so is the repair:
``undone`` puts back what that head was before. Every method is run under the card's default margin of accuracy, and
under one that leaves about the room that undoing takes; there the edits are made at random heads, too, matched by layer
and write norm, and the first of them at the heads that an audit names. Gaps are those of photographs that neither
training, audit nor repair has read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.data.pixels import Pixels
from audit.evidence.disparity import label_shares
from audit.evidence.effects_store import Settings
from audit.models.finetune import Recipe
from audit.models.predict import Floats
from audit.models.readout import readout_of
from audit.patching.parts import Kind, Part, parse_part
from audit.patching.sites import Site
from audit.records.repair_methods import AT_HEADS, Method
from audit.repair.base import Aim, RepairData, Repaired, RepairInput, Split, state_of
from audit.repair.choice import called, right
from audit.repair.head_weights import head_pieces, mixed
from audit.repair.random_heads import matched_sets, p_value
from audit.repair.registry import repair, repair_at_random
from audit.repair.seen import Seen, State
from audit.store import write_text
from audit.units import name_of
from benchmarks.real_planted import models, photographs
from benchmarks.real_planted.audit_heads import AUDITED, answer, judge, make_plans, sweep_plans
from benchmarks.real_planted.models import Steps
from benchmarks.real_planted.photographs import ATTRIBUTE, CONTRAST, QUESTION, World
from benchmarks.real_planted.truth import standardised_gap

OUTCOME = 1  # class number
NARROW, WIDE = 0.02, 0.15  # accuracy that a group and label may lose: a card's default; about what undoing costs
BESIDE = (Method.UNTOUCHED, Method.GLOBAL_THRESHOLD, Method.DFR, Method.OXONFAIR, Method.LEACE)  # at no head
MOST_NAMED = 6  # heads; where an audit names more, it did not find a place
STEPS = Steps(80, 60, 8)  # as in benchmarks/real_planted
PUBLISHED_SEED = 12
Figures = dict[str, Any]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sizes:
    """How much is made and measured.

    Parameters
    ----------
    planted : int
        Models, each with another head planted.
    dose : float
        Log odds ratio of label and group in the sample on which the head is trained.
    side : int
        Of the photographs, in pixels.
    train, audited, fit, judged : int
        Photographs: to train on, of each audited split, that repairs are fitted on, and that they are judged on.
    """

    planted: int = 3
    dose: float = 6.0
    side: int = 56
    blocks: int = 3
    heads: int = 6
    steps: Steps = STEPS
    train: int = 1200
    audited: int = 300
    fit: int = 600
    judged: int = 1200
    recipients: int = 100
    permutations: int = 2000
    draws: int = 20

    @property
    def splits(self) -> dict[str, int]:
        """Return how many photographs each split has."""
        return {"train": self.train, **dict.fromkeys(AUDITED, self.audited), "fit": self.fit, "judged": self.judged}


SIZES = Sizes()


@dataclass(frozen=True)
class Ground:
    """What all models share: photographs, the pretrained model, and two that are trained evenly."""

    sizes: Sizes
    seed: int
    world: World
    pixels: Pixels
    whole: VisionTransformer
    base: VisionTransformer
    reference: VisionTransformer

    def model(self, tail: VisionTransformer) -> VisionTransformer:
        """Return the pretrained model with trained blocks, norm and classifier in the place of its own."""
        made = copy.deepcopy(self.whole)
        kept = list(made.blocks)[: -len(tail.blocks)]
        made.blocks = torch.nn.Sequential(*kept, *copy.deepcopy(list(tail.blocks)))
        made.norm, made.head = copy.deepcopy(tail.norm), copy.deepcopy(tail.head)
        return made.eval().requires_grad_(False)

    def split(self, name: str) -> Split:
        """Return the photographs of a split."""
        rows = self.world.rows(name)
        frame = self.world.frame.loc[rows]
        return Split(
            self.pixels[rows],
            models.targets_of(self.world)[rows],
            (frame[ATTRIBUTE] == CONTRAST.group).to_numpy().astype(np.int64),
            np.arange(len(rows), dtype=np.int64),
        )


def ground(shared: Path, sizes: Sizes = SIZES, seed: int = PUBLISHED_SEED) -> Ground:
    """Open the photographs, and train what all models are made from."""
    frame = photographs.split(photographs.read_table(shared), sizes.splits, seed)
    pixels = photographs.open_photographs(frame["path"].tolist(), sizes.side)
    return ground_of(photographs.pretrained(shared, sizes.side, seed), pixels, frame, sizes, seed)


def ground_of(whole: VisionTransformer, pixels: Pixels, frame: pd.DataFrame, sizes: Sizes, seed: int) -> Ground:
    """Train what all models are made from on photographs that are open."""
    world = photographs.make_world(whole, pixels, frame, sizes.blocks)
    base, reference = (models.make_base(world, sizes.steps, seed * 1000 + number) for number in (1, 2))
    return Ground(sizes, seed, world, pixels, whole, base, reference)


def planted(given: Ground, work: Path, tell: Tell = lambda _step, _done, _total: None) -> Figures:
    """Plant a gap in one head after another, repair each, and count how often the right head beats all random ones.

    Models that are done lie in ``work``, and are taken up.

    Returns
    -------
    dict
        ``models``, one row each (:func:`repaired`); ``beats_all``, for each edit in how many of them the planted head
        left less of the gap than every random set, under the wide margin; ``draws`` and ``smallest_p``.
    """
    sizes, seed = given.sizes, given.seed
    rng = np.random.default_rng(seed)
    every = [Part(Kind.HEAD, layer, head) for layer in range(sizes.blocks) for head in range(sizes.heads)]
    chosen = [every[k] for k in rng.permutation(len(every))[: sizes.planted]]
    rows = []
    for number, part in enumerate(chosen):
        path = work / f"{part}.json"
        if not path.is_file():
            tell(f"planted in {part}", 0, 0)
            plan = models.Plan("one head", number, sizes.dose, (str(part),), seed * 100_000 + number)
            write_text(path, json.dumps(repaired(given, plan)))
        rows.append(json.loads(path.read_text(encoding="utf-8")))
    edits = {str(edit): [row["at_planted_heads"][edit] for row in rows] for edit in AT_HEADS}
    return {
        "seed": seed,
        "draws": sizes.draws,
        "smallest_p": round(1 / (1 + sizes.draws), 4),
        "dose": sizes.dose,
        "margins": [NARROW, WIDE],
        "images": sizes.splits,
        "beats_all": {
            edit: {"models": len(found), "beaten_by_none": sum(abs(one["gap"]) < one["smallest"] for one in found)}
            for edit, found in edits.items()
        },
        "models": rows,
    }


def repaired(given: Ground, plan: models.Plan) -> Figures:
    """Make one model, audit its heads, and repair it in every way."""
    sizes = given.sizes
    tail = models.make_model(given.base, given.world, plan, sizes.steps)
    frame = given.world.frame.loc[given.world.rows(*AUDITED)]
    swap = sweep_plans(tail, given.world, make_plans(frame, recipients=sizes.recipients, seed=plan.seed))
    found = judge(frame, answer(tail, given.world), swap, Settings(0.05, sizes.permutations, 1000, plan.seed, 30))
    frozen = len(given.whole.blocks) - sizes.blocks
    training = given.split("train")
    start = RepairInput(
        given.model(tail),
        RepairData(given.split("fit"), training),
        Aim(ATTRIBUTE, group=1, reference=0, outcome=OUTCOME),
        accuracy_margin=NARROW,
        seed=plan.seed,
        recipe=Recipe(
            epochs=2, batch_size=models.BATCH, learning_rate=models.BASE_RATE, weight_decay=models.WEIGHT_DECAY,
            warmup_share=0.1, seed=plan.seed, train_blocks=sizes.blocks,
        ),
        reference=given.model(given.reference),
    )  # fmt: skip
    judged = given.split("judged")
    seen = Seen(start.model, judged.images, frozen)
    measure = _Measured(given, judged, seen)
    planted_at, named_at = (_sites(names, frozen) for names in (plan.parts, found.named))
    narrow = replace(start, heads=planted_at)
    wide = replace(narrow, accuracy_margin=WIDE)
    row: Figures = {
        "planted": [_name(site) for site in planted_at],
        "named": [_name(site) for site in named_at],
        "undone": measure.of(seen.answer(_undone(given, start.model, planted_at))),
        "methods": {str(method): measure.told(repair(method, narrow)) for method in (*BESIDE, *AT_HEADS)},
        "methods_wide": {str(method): measure.told(repair(method, wide)) for method in BESIDE},
        "at_planted_heads": _at(wide, AT_HEADS, measure, sizes.draws),
    }
    if 0 < len(named_at) <= MOST_NAMED and set(named_at) != set(planted_at):
        row["at_named_heads"] = _at(replace(wide, heads=named_at), AT_HEADS[:1], measure, sizes.draws)
    return row


def _undone(given: Ground, model: VisionTransformer, heads: Sequence[Site]) -> State:
    """Return a model's weights with those of some heads as they were before they were planted."""
    pieces = [piece for site in heads for piece in head_pieces(model, site)]
    return mixed(state_of(model), state_of(given.model(given.base)), pieces, 1.0)


def _sites(names: Sequence[str], frozen: int) -> tuple[Site, ...]:
    parts = map(parse_part, names)
    return tuple(sorted(Site(frozen + (part.layer or 0), part.head or 0) for part in parts))


def _name(site: Site) -> str:
    return name_of("head", site.layer, site.head)


def _at(start: RepairInput, edits: Sequence[Method], measure: _Measured, draws: int) -> Figures:
    """Make edits at some heads, and at random sets like them."""
    sets = matched_sets(start, draws)
    measure = measure.held_from(min(site.layer for heads in (start.heads, *sets.sets) for site in heads))
    told: Figures = {}
    for edit in edits:
        named = measure.told(repair(edit, start))
        random = [abs(measure.told(made)["gap"]) for made in repair_at_random(edit, start, sets)]
        told[str(edit)] = {
            **named,
            "draws": len(random),
            "layers_apart": sets.layers_apart,
            "smallest": min(random),
            "median": round(float(np.median(random)), 4),
            "p": round(p_value(abs(named["gap"]), random) or 1.0, 4),
        }
    return told


@dataclass(frozen=True)
class _Measured:
    """What a repair leaves on photographs that nothing else has read."""

    given: Ground
    split: Split
    seen: Seen

    def held_from(self, layer: int) -> _Measured:
        """Return the same, with the photographs held as they enter a block, if they are not from an earlier one on."""
        if layer >= self.seen.start:
            return self
        return replace(self, seen=Seen(self.seen.model, self.seen.images, layer))

    def told(self, made: Repaired) -> Figures:
        """Return what a repair leaves (:meth:`of`), and its seconds."""
        return self.of(made.answer(self.seen)) | {"seconds": round(made.seconds, 1)}

    def of(self, logits: Floats) -> Figures:
        """Return gap with its standard error, accuracy, and the cell that loses most, in shares of photographs."""
        frame = self.given.world.frame.loc[self.given.world.rows("judged")]
        readout = readout_of(self.seen.model)
        flags = called(readout, logits, OUTCOME).astype(np.float64)
        shares = label_shares(frame, QUESTION)
        gap = standardised_gap(flags, self.split.groups == 1, self.split.targets == OUTCOME, shares)
        after = right(readout, logits, self.split.targets).astype(np.float64)
        before = right(readout, self.seen.logits, self.split.targets).astype(np.float64)
        losses = [
            float((after - before)[(self.split.groups == group) & (self.split.targets == label)].mean())
            for group in (0, 1)
            for label in (0, 1)
        ]
        return {
            "gap": round(gap.value, 4),
            "gap_error": round(gap.error, 4),
            "accuracy": round(float(after.mean()), 4),
            "largest_loss": round(min(losses), 4),
        }


def planted_told(found: Figures) -> list[str]:
    """Return what came out as lines of Markdown: what is left in each model, then right heads against random ones."""
    rows, images, draws = found["models"], found["images"], found["draws"]
    narrow, wide = (f"{100 * margin:.0f}" for margin in found["margins"])
    begun = (
        f"**planted**: a gap trained into one head of a ViT-S, {len(rows)} models; repairs are fitted on "
        f"{images['fit']:,} photographs, and judged on {images['judged']:,} others. Points of gap that are left, with "
        "twice their standard error; in brackets what the group and label that lose most lose."
    )
    lines = [
        begun,
        "",
        f"| method | a cell may lose | {' | '.join('planted in ' + ', '.join(row['planted']) for row in rows)} |",
        "|---" * (2 + len(rows)) + "|",
        _line("audited model", "", [row["methods"]["untouched"] for row in rows]),
        _line("planted head as it was before", "", [row["undone"] for row in rows]),
    ]
    for key, margin in (("methods", narrow), ("methods_wide", wide), ("at_planted_heads", wide)):
        lines += [
            _line(f"`{method}`", margin, [row[key][method] for row in rows])
            for method in rows[0][key]
            if method != Method.UNTOUCHED
        ]
    begun = f"The same edits at {draws} random sets of heads, where a cell may lose {wide} points"
    lines += [
        "",
        f"{begun} (p {found['smallest_p']:.3f} at best):",
        "",
        "| planted in | edit at | edit | gap that is left | random: best | median | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for heads, edits in ((row["planted"], row["at_planted_heads"]), (row["named"], row.get("at_named_heads", {}))):
            lines += [
                f"| {', '.join(row['planted'])} | {', '.join(heads)} | `{edit}` | {_gap(one)} | "
                f"{100 * one['smallest']:.1f} | {100 * one['median']:.1f} | {one['p']:.3f} |"
                for edit, one in edits.items()
            ]
    counted = "; ".join(
        f"`{edit}` {one['beaten_by_none']} of {one['models']}" for edit, one in found["beats_all"].items()
    )
    return [*lines, "", f"The edit at the planted head leaves less than at every random set: {counted}.", ""]


def _line(method: str, margin: str, of_models: Sequence[Figures]) -> str:
    told = (f"{_gap(one)} [{100 * one['largest_loss']:+.1f}]" for one in of_models)
    return f"| {method} | {margin} | {' | '.join(told)} |"


def _gap(one: Figures) -> str:
    return f"{100 * one['gap']:+.1f} ± {200 * one['gap_error']:.1f}"
