"""What a repair shares: the audit, the aimed gap, the images, what every method is given; the plan on the disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

import audit.evidence
import audit.models
import audit.pipeline
import audit.repair
from audit.card.repair_spec import RepairSpec
from audit.data.pixels import select
from audit.data.samples import AUDIT_SPLITS, Samples
from audit.data.splits import divide
from audit.errors import InputError
from audit.models.device import CPU
from audit.patching.sites import Site
from audit.pipeline.context import RunContext
from audit.pipeline.prepare import Inputs
from audit.pipeline.reopen import audited_name, stored_model
from audit.pipeline.repair_aim import make_plan
from audit.pipeline.repair_images import Part, sealed_table
from audit.pipeline.train_models import recipe_of, weights_name
from audit.progress import Step
from audit.records import Audit, ContrastRow
from audit.records.repair_run import FittedOn, RepairPlan, SealedFrom
from audit.repair.base import Aim, Codes, RepairData, RepairInput
from audit.repair.seen import Seen
from audit.store import file_hash, now, source_hash, write_text
from audit.units import parse_name

REFERENCE = "models/balanced-0.safetensors"  # of a run: what the heads are moved towards
REGISTERED = "preregistered.json"
FIT_SHARE = 2 / 3  # of the people that a repair may read: half of them to fit on, half for strengths; the rest to rank


@dataclass(frozen=True)
class RepairOptions:
    """How a repair is run, and what the card does not say of it."""

    out: Path
    command: str
    spec: RepairSpec | None = None  # in place of the card's
    data_root: Path | None = None
    sealed: Path | None = None  # a table of other people's images, for the certificate
    reaudit: bool = True
    device: str = CPU
    report: bool = True


@dataclass(frozen=True)
class Setup:
    """One repair: what is given."""

    audit: Audit
    gap: ContrastRow  # that is aimed at
    spec: RepairSpec
    context: RunContext
    inputs: Inputs
    options: RepairOptions
    step: Step

    def of(self, *splits: str) -> Part:
        """Return the images of some splits; none is opened."""
        rows = np.flatnonzero(self.context.samples.frame["split"].isin(splits)).astype(np.int64)
        return Part(self.context, rows)

    @cached_property
    def parts(self) -> tuple[Part, Part]:
        """The images that methods are fitted on, and those that they are ranked on, of other people.

        They are of those held back for it, else of those of the audit.
        """
        whole = self.of("repair") if self._held_back else self.of(*AUDIT_SPLITS)
        frame, aimed = self.context.samples.frame.iloc[whole.rows], self.gap.attribute
        attributes = [aimed, *(name for name in self.context.samples.attributes if name != aimed)]
        fits = divide(frame, attributes, FIT_SHARE, self.spec.seed)
        return Part(self.context, whole.rows[fits]), Part(self.context, whole.rows[~fits])

    @property
    def fit(self) -> Part:
        """The images that methods are fitted on, and their strengths chosen."""
        return self.parts[0]

    @property
    def choose(self) -> Part:
        """The images that methods are ranked on, and one of them chosen."""
        return self.parts[1]

    @cached_property
    def to_choose(self) -> tuple[Seen, Codes]:
        """The images that methods are ranked on, with what the first seed's model makes of them, and their groups."""
        split = self.choose.split(self.gap.attribute)
        return self.given.see(split.images), split.groups

    @property
    def _held_back(self) -> bool:
        return len(self.of("repair")) > 0

    @cached_property
    def plan(self) -> RepairPlan:
        """What is fixed before anything is done, as it stands on the disk.

        Raises
        ------
        InputError
            If the folder holds another plan.
        """
        plan = make_plan(
            self.audit,
            file_hash(self.context.run / "audit.json"),
            self.gap,
            self.spec,
            {
                "train": len(self.of("train")),
                "fit": len(self.fit),
                "choose": len(self.choose),
                "sealed": len(self.of("sealed")),
            },
            fitted_on=FittedOn.REPAIR if self._held_back else FittedOn.AUDITED,
            sealed_from=self._sealed_from(),
            sealed_table="" if self.options.sealed is None else file_hash(self.options.sealed),
            reaudit=self.options.reaudit,
            code=source_hash((audit.repair, audit.models, audit.evidence, audit.pipeline)),
        )
        path = self.options.out / REGISTERED
        if path.is_file():
            before = RepairPlan.model_validate_json(path.read_text(encoding="utf-8"))
            later = {"registered": "", "reaudit": plan.reaudit}  # an audit may follow
            if before.model_copy(update=later) != plan:
                what = "holds a repair that was planned otherwise"
                raise InputError(str(self.options.out), what, "name another --out")
            return before.model_copy(update={"reaudit": plan.reaudit})
        plan = plan.model_copy(update={"registered": now().isoformat()})
        write_text(path, plan.model_dump_json(indent=1) + "\n")
        return plan

    @cached_property
    def others(self) -> Samples | None:
        """The table of other people's images, read and checked; None where there is none."""
        return None if self.options.sealed is None else sealed_table(self.context, self.options.sealed)

    def _sealed_from(self) -> SealedFrom:
        if self.options.sealed is not None:
            return SealedFrom.TABLE
        return SealedFrom.SPLIT if len(self.of("sealed")) else SealedFrom.NONE

    @cached_property
    def given(self) -> RepairInput:
        """What every method is given of the first seed's model."""
        return self.given_of(self.context.seeds[0])

    def given_of(self, seed: int) -> RepairInput:
        """Return what every method is given of a seed's model."""
        context, training, attribute = self.context, self.context.training, self.gap.attribute
        groups = list(context.samples.attributes[attribute].groups)
        train = self.of("train")
        trained_on = None
        if training is not None and len(train):
            trained_on = replace(train.split(attribute, opened=False), images=select(context.pixels, train.rows))
        return RepairInput(
            stored_model(context, context.run, audited_name(context, seed)),
            RepairData(self.fit.split(attribute), trained_on),
            Aim(
                attribute,
                groups.index(self.gap.group),
                groups.index(self.gap.reference),
                context.samples.labels.index(self.gap.outcome),
                self.spec.harmful_error or "both",
                self.gap.metric,
            ),
            self.spec.accuracy_margin,
            seed=self.spec.seed,
            recipe=None if training is None else recipe_of(training, seed, context.card.model),
            flip=training is not None and training.flip,
            reference=stored_model(context, context.run, "balanced-0") if self._has_reference else None,
            heads=tuple(Site(*parse_name(name)) for name in self.plan.heads),
            legal_basis=self.spec.legal_basis,
            compute=context.compute,
        )

    @property
    def _has_reference(self) -> bool:
        """Tell whether there is a reference model, and one that is balanced on the attribute of the gap."""
        balanced = next(iter(self.context.samples.attributes)) == self.gap.attribute
        return balanced and (self.context.run / REFERENCE).is_file()

    def hash_of(self, seed: int) -> str:
        """Return the SHA-256 of a seed's audited weights."""
        return self.audit.provenance.hashes[weights_name(seed)]
