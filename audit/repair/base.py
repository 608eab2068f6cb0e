"""What every repair is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from audit.card.repair_spec import HarmfulError
from audit.data.pixels import Images
from audit.models.adapters.registry import Model, adapter
from audit.models.device import ON_CPU, Compute
from audit.models.finetune import Recipe
from audit.models.predict import Floats
from audit.models.readout import Readout, readout_of
from audit.patching.sites import Site
from audit.records import Metric
from audit.records.repair_methods import Method
from audit.repair.seen import LastLayer, Seen, State, last_layer_of

Codes = npt.NDArray[np.int64]
Plain: TypeAlias = int | float | str | list[int] | list[float] | list[str]
UNKNOWN_GROUP = -1


@dataclass(frozen=True)
class Supervision:
    """What a method must be told, beyond images and labels."""

    group_at_training: bool = False
    group_at_prediction: bool = False
    repair_split: bool = True  # images that the audited model was not trained on; a strength is chosen on them


@dataclass(frozen=True)
class Split:
    """Images of a split, and what is known of them."""

    images: Images
    targets: Codes  # (N,), class numbers
    groups: Codes  # (N,), of the aimed attribute, from 0; -1 where unknown
    subjects: Codes  # (N,)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Codes) -> Split:
        """Return what is known of some rows; the images stay those of the whole split."""
        return Split(self.images, self.targets[rows], self.groups[rows], self.subjects[rows])


@dataclass(frozen=True)
class RepairData:
    """The splits that a repair may read."""

    repair: Split  # what methods are fitted on: they are ranked on other people's images, which none of them reads
    training: Split | None = None  # None where the model is audited as it is


@dataclass(frozen=True)
class Aim:
    """Which gap is to become smaller."""

    attribute: str
    group: int  # its code
    reference: int
    outcome: int  # class number
    harmful_error: HarmfulError = "both"
    # of the gap of images that are called the outcome: over all labels, of the outcome alone, or of all others
    metric: Metric = Metric.STANDARDISED_GAP


@dataclass(frozen=True)
class RepairInput:
    """What every method is given; the audited model is read, never changed.

    Parameters
    ----------
    model : Model
        The audited one, where it shall compute.
    data : RepairData
    aim : Aim
    accuracy_margin : float
        Accuracy, 0 to 1, that no group x label cell may lose on the repair split.
    seed : int
        Of every draw.
    recipe : Recipe, optional
        How the audited model was trained, for methods that train on; None where it was taken as it is.
    flip : bool
        Whether that training flipped images.
    start : Model, optional
        As that training began; where not given, Group DRO begins with the audited model.
    reference : Model, optional
        The balanced reference.
    heads : tuple of Site
        Confirmed heads, or those of a ledger.
    legal_basis : str
        As the card states it.
    compute : Compute
        Precision of trainings; the model is on its device.
    """

    model: Model
    data: RepairData
    aim: Aim
    accuracy_margin: float
    seed: int = 0
    recipe: Recipe | None = None
    flip: bool = False
    start: Model | None = None
    reference: Model | None = None
    heads: tuple[Site, ...] = ()
    legal_basis: str = ""
    compute: Compute = ON_CPU

    @cached_property
    def seen(self) -> Seen:
        """The images of the repair split, with what the audited model makes of them."""
        return self.see(self.data.repair.images)

    def see(self, images: Images) -> Seen:
        """Return other images likewise, such as those of the sealed split."""
        return Seen(self.model, images, min([site.layer for site in self.heads], default=adapter(self.model).depth))

    @cached_property
    def last(self) -> LastLayer | None:
        """The audited model's last layer, where it is linear with a bias."""
        return last_layer_of(self.model)

    @property
    def readout(self) -> Readout:
        """How logits become decisions."""
        return readout_of(self.model)


GroupRule = Callable[[Floats, Codes], Floats]  # from logits (N, classes) and groups (N,) to logits that are read


@dataclass(frozen=True)
class Repaired:
    """A repair: weights, or a rule that needs the group of each image."""

    method: Method
    settings: Mapping[str, Plain]  # what was chosen, and from what
    seconds: float
    state: State | None = None  # whole weights on the processor; None of a rule
    rule: GroupRule | None = field(default=None, compare=False)
    heads: tuple[Site, ...] = ()  # that were edited

    def answer(self, seen: Seen, groups: Codes | None = None) -> Floats:
        """Return the logits (N, classes), float32, of images, to be read as those of the audited model.

        Parameters
        ----------
        seen : Seen
            Of the audited model.
        groups : numpy.ndarray (N,), optional
            Codes, -1 where unknown: such images are answered as by the audited model. Of a rule only.

        Raises
        ------
        ValueError
            If a rule is given no groups.
        """
        if self.state is not None:
            return seen.answer(self.state)
        if self.rule is None or groups is None:
            raise ValueError(f"{self.method} needs the group of each image")
        return self.rule(seen.logits, groups)


def state_of(model: Model) -> dict[str, torch.Tensor]:
    """Return a copy of a model's weights on the processor, in the layout of its state dict."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
