"""What every stage of one run shares."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from audit.card.schema import Card, TrainingSpec
from audit.controls.verdict import MeasuredControl
from audit.data.pixels import Images
from audit.data.samples import Samples
from audit.data.summary import audited_outcomes
from audit.models.black_box import BlackBox
from audit.models.build import Backbone
from audit.models.device import ON_CPU, Compute
from audit.models.preprocessing import Preprocessing
from audit.models.readout import SOFTMAX, Readout
from audit.progress import Step
from audit.records import Contrast
from audit.store import check_lock
from audit.units import Unit
from audit.work.pool import Workers


@dataclass
class Scope:
    """What is asked, and of which images: all that statistics on stored effects need."""

    card: Card
    run: Path
    samples: Samples
    unit: Unit  # what of the model is patched
    readout: Readout = SOFTMAX  # of the audited models

    @property
    def training(self) -> TrainingSpec | None:
        """How to train, or None where the user's own model is audited."""
        return None if self.card.training == "none" else self.card.training

    @property
    def seeds(self) -> list[int]:
        """Training seeds; one nominal seed for the user's own model."""
        return [0] if self.training is None else self.training.seeds

    @property
    def outcomes(self) -> dict[str, int]:
        """Audited labels and their class numbers."""
        return {name: self.samples.labels.index(name) for name in audited_outcomes(self.card, self.samples.labels)}

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Class number of every image."""
        numbers = {name: i for i, name in enumerate(self.samples.labels)}
        return np.array([numbers[label] for label in self.samples.frame["label"]], dtype=np.int64)

    @property
    def contrasts(self) -> list[Contrast]:
        """Every group of every attribute against its reference."""
        return self.samples.contrasts


@dataclass(kw_only=True)
class Run(Scope):
    """One run, whatever its model: what is asked, folders, progress, and the seconds each stage took."""

    card_path: Path
    card_content: bytes  # as it was read; the file may change while the audit runs
    data_root: Path | None
    question: str  # hash of all that the run's numbers depend on
    weights: str  # hash of what the models start from; of a model whose inside is not given, of its file
    step: Step
    command: str
    started: str
    compute: Compute = ON_CPU  # precision: of training, and of Design A on the discovery split
    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        begun = time.monotonic()
        check_lock(self.run)
        yield
        check_lock(self.run)
        self.stages.append((name, round(time.monotonic() - begun, 1)))


@dataclass(kw_only=True)
class RunContext(Run):
    """A run of a model whose inside is given: pixels, and models to start from."""

    cache: Path
    work: Path  # of pieces of sweeps, until they are put together
    workers: Workers
    pixels: Images
    preprocessing: Preprocessing  # which made them
    backbone: Backbone
    served: MeasuredControl | None  # whether it answers as the deployed model did, where that is known
    control_backbone: Backbone  # what the control models start from
    instruments: Mapping[str, object] = field(default_factory=dict)  # which control models were used, and from where


@dataclass(kw_only=True)
class BlackBoxRun(Run):
    """A run of a model whose inside is not given."""

    box: BlackBox
    served: MeasuredControl | None  # as of a model whose inside is given
