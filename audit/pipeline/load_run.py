"""A finished run opened again from its directory alone: no images, no models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from PIL import Image

from audit.card.load import load_card
from audit.data.samples import Samples
from audit.errors import DataError, InputError
from audit.evidence.disparity import primary_gaps
from audit.evidence.effects_store import StoredEffects
from audit.evidence.stored_rows import StoredRows
from audit.models.readout import Readout
from audit.pipeline.context import Scope
from audit.records import Audit, ModelInfo
from audit.report.render import Source, read_run
from audit.store import SAMPLES, UNDETECTED


@dataclass(frozen=True)
class OpenedRun:
    """A run's record with its reviewers' decisions, and what was asked of which images."""

    source: Source
    scope: Scope

    @property
    def audit(self) -> Audit:
        """The record."""
        return self.source.audit

    def table(self, name: str) -> pd.DataFrame | None:
        """Read one of the stored effects; None where there is none."""
        path = self.scope.run / "effects" / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None

    def stored(self, *names: str) -> StoredRows | None:
        """Return stored effects, to be read as they are asked for; None where there are none."""
        paths = [self.scope.run / "effects" / f"{name}.parquet" for name in names]
        files = [path for path in paths if path.is_file()]
        return StoredRows(files) if files else None

    def of_seeds(self, name: str) -> StoredRows | None:
        """Return the stored effects of all seeds, likewise."""
        return self.stored(*(f"{name}-seed-{seed}" for seed in self.scope.seeds))

    @cached_property
    def unpatched(self) -> pd.DataFrame | None:
        """What the models answered to images as they are; None where that is not stored."""
        return self.table("unpatched")

    @cached_property
    def effects(self) -> StoredEffects:
        """Gather what the sweeps left behind."""
        swap, reference, unpatched = self.of_seeds("swap"), self.stored("reference"), self.unpatched
        if unpatched is None:
            raise InputError(str(self.scope.run), "no effects/unpatched.parquet", "restore it, or audit again")
        return StoredEffects(
            pd.DataFrame(columns=["contrast", "split"]) if swap is None else swap,
            reference,
            unpatched,
            self.scope.samples.frame,
            balanced_on="" if reference is None else next(iter(self.scope.samples.attributes)),
            transplant=self.stored("transplant"),
            first_order=self.of_seeds("first-order"),
            gaps=primary_gaps(self.audit.contrasts),
        )


class _NoImages:
    """Stands where pixels would be read; nothing that is derived from stored effects looks at one."""

    def open(self, key: str) -> Image.Image:
        """Refuse."""
        raise DataError(key, "images are not read from a run", "this is a fault of the tool; report it")


def open_run(run: Path) -> OpenedRun:
    """Open a run directory.

    Raises
    ------
    InputError
        If its record, card or table of samples is missing or damaged.
    """
    source = read_run(run)
    card, data = load_card(run / "card.yaml"), source.audit.data
    path = run / SAMPLES
    if not path.is_file():
        raise InputError(str(path), "missing", "restore it; runs of older versions have none: audit again")
    samples = Samples(
        pd.read_parquet(path),
        _NoImages(),
        tuple(data.labels),
        {info.attribute: info for info in data.attributes},
        nuisance=tuple(card.categories),
        calipers=card.calipers,
        excluded=data.excluded,
        quarantined=data.quarantined,
        fingerprint=data.fingerprint,
        origin=data.source,
        licence=data.licence,
        citation=data.citation,
        tables=data.tables,
        undetected=pd.read_parquet(run / UNDETECTED) if (run / UNDETECTED).is_file() else None,
        opened=data.images_opened,
    )
    return OpenedRun(source, Scope(card, run, samples, source.audit.model.unit, readout_of_record(source.audit.model)))


def readout_of_record(model: ModelInfo) -> Readout:
    """Return how a record says that its model is read."""
    return Readout(model.output, model.decision, model.threshold, model.one_logit)
