"""A plan: card, model and data, opened and checked; nothing is trained or patched yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

import audit.card.schema
from audit.api.cards import Card, load_card
from audit.api.data import Data
from audit.api.models import Net, Predictions
from audit.api.options import check_cache_dir, check_options
from audit.api.progress import Callback, as_step
from audit.card.load import resolve, with_classes
from audit.data.pixels import ImagesOnDemand, fits, size_of
from audit.data.summary import describe_data
from audit.errors import InputError
from audit.evidence.detection import with_detection
from audit.evidence.power import detectable_gaps, detectable_head_effects
from audit.given import as_path, check_kind
from audit.models.build import Backbone
from audit.models.device import CPU, computing_on
from audit.models.preprocessing import Preprocessing
from audit.pipeline.build_record import as_record
from audit.pipeline.check_served import compare_box_served, compare_served
from audit.pipeline.context import Scope
from audit.pipeline.prepare import Inputs, open_black_box, open_inputs
from audit.pipeline.repair_aim import planned_reach
from audit.pipeline.show_images import write_examples
from audit.process_state import run_state
from audit.records import Access, Control, DataReport, LoadedWeights, PreprocessingInfo
from audit.records.repair_json import Reach
from audit.report.text import called_sentence
from audit.resources import DATA_VARIABLE
from audit.store import check_writable

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What :func:`vit_audit.audit` will do.

    Made by :func:`vit_audit.plan`.

    Parameters
    ----------
    inputs : Inputs
        Card, model and data, opened.

    Examples
    --------
    >>> import vit_audit as va
    >>> plan = va.plan("synthetic-balanced")
    >>> plan.card.groups["skin_tone"].reference
    'lighter'
    >>> plan.preprocessing.input_size
    [3, 64, 64]
    """

    inputs: Inputs

    @property
    def card(self) -> audit.card.schema.Card:
        """The card, complete."""
        return self.inputs.card

    @property
    def data(self) -> DataReport:
        """Every image counted: by group, label and split, left out and why, with warnings."""
        report = with_detection(describe_data(self.inputs.samples, self.card), self.inputs.samples, self.card)
        if self.inputs.box is not None:
            return report
        limits = detectable_head_effects(self.inputs.samples, self.card.audit, self.inputs.unit)
        return report.model_copy(update={"head_limits": limits})

    @property
    def preprocessing(self) -> PreprocessingInfo | None:
        """What is done to an image file before the model sees it; None of predictions."""
        return None if self.inputs.preprocessing is None else self.inputs.preprocessing.info

    @property
    def held(self) -> tuple[int, bool] | None:
        """Bytes that the decoded images take, and whether they are held in memory, as ``data.cache`` has it.

        None of a model whose inside is not given: its images are decoded batch by batch.
        """
        if self.inputs.preprocessing is None or self.inputs.box is not None:
            return None
        samples = self.inputs.samples
        images = ImagesOnDemand(samples.source, samples.keys, self.inputs.preprocessing.geometry)
        return size_of(images), fits(images, self.card.data.cache)

    @property
    def _preprocessing(self) -> Preprocessing:
        if self.inputs.preprocessing is None:  # of a plan: no finished run is measured again
            raise InputError("model.name: predictions", "no image is seen", "show images of a model that sees them")
        return self.inputs.preprocessing

    def served(self, *, device: str = CPU) -> Control | None:
        """Compare the model's answers with those that ``model.served`` holds; None where the card names none.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda", "mps"}
            Where the model is run.

        Returns
        -------
        Control or None
            ``estimate.value`` is the largest difference of a probability, ``passed`` whether it is within
            ``model.served_tolerance``.

        Examples
        --------
        ``plan`` is that of the example of :func:`vit_audit.audit`, whose card names no such table.

        >>> plan.served() is None
        True
        """
        if self.card.model.served is None:
            return None
        if self.inputs.box is not None:
            return compare_box_served(
                self.card,
                self.inputs.samples,
                self.inputs.box,
                card_path=self.inputs.card_path,
                data_root=self.inputs.data_root,
            )
        backbone = self.inputs.backbone or self._backbone()
        with computing_on(device) as opened:
            return compare_served(
                self.card,
                self.inputs.samples,
                backbone.build_as_is(len(self.inputs.samples.labels)),
                self._preprocessing,
                card_path=self.inputs.card_path,
                data_root=self.inputs.data_root,
                device=opened,
            )

    def _backbone(self) -> Backbone:
        inputs = self.inputs
        weights = resolve(self.card.model.weights, card_path=inputs.card_path, data_root=inputs.data_root)
        return Backbone(self.card.model, weights)

    def show(self, folder: str | Path, images: int = 3) -> list[Path]:
        """Write a few of the audit's images as the model sees them, before they are normalised.

        This is the one thing that writes pictures of the people who are audited: to a folder that you name, which must
        be outside any run directory; no run, report or export ever holds one.

        Parameters
        ----------
        folder : str or pathlib.Path
            Made where it is not there.
        images : int
            How many, spread over the table.

        Returns
        -------
        list of pathlib.Path
            PNG files, named by their place in the table.

        Raises
        ------
        InputError
            If the folder is inside a run directory or cannot be written to.

        Examples
        --------
        >>> import vit_audit as va
        >>> [path.suffix for path in va.plan("synthetic-balanced").show("shown", images=2)]
        ['.png', '.png']
        """
        return write_examples(self.inputs.samples, self._preprocessing, Path(folder), images)

    @property
    def weights(self) -> dict[str, LoadedWeights]:
        """What of each file of weights that the card names becomes a model's, by the card's field."""
        opened = () if self.inputs.opened is None else self.inputs.opened.opened
        return {each.field: as_record(each.loaded) for each in opened if each.loaded is not None}

    @property
    def not_opened(self) -> dict[str, str]:
        """What only a run can open, by the card's field: weights or images that it fetches, trains or draws."""
        return dict(self.inputs.not_opened)

    @property
    def outputs(self) -> str:
        """How the model's outputs are read, in words."""
        box, read = self.inputs.box, asdict(self.inputs.readout)
        access = Access.INSIDE if box is None else box.access
        known = {"classes": list(self.inputs.samples.labels), "access": access, "has_inside": box is None}
        return called_sentence(SimpleNamespace(**read, **known))

    def power(self) -> pd.DataFrame:
        """Return what could be detected, a row for each group against its reference, outcome and metric.

        Returns
        -------
        pandas.DataFrame
            ``attribute``, ``group``, ``reference``, ``outcome``, ``metric``, ``subjects_group``,
            ``subjects_reference``, ``detectable_gap`` (in [0, 1], at 80% power and the family's level, at the least
            favourable rate; missing where none could be detected), and ``estimable``.

        Examples
        --------
        ``plan`` is that of the example of :func:`vit_audit.audit`.

        >>> plan.power()["subjects_group"].tolist()[:1]
        [200]
        """
        return detectable_gaps(self.inputs.samples, self.card)

    @property
    def reach(self) -> Reach | None:
        """Whether a repair could be certified with the sealed images, and how many would do.

        None where the card seals no images, and asks for no repair.

        It is assumed that a repair changes the answer to 5% of images, leaves no gap, costs nothing, and is wrong on a
        fifth of the images.
        """
        inputs = self.inputs
        if inputs.box is not None:
            return None
        return planned_reach(Scope(inputs.card, Path(), inputs.samples, inputs.unit, inputs.readout))

    def _repr_html_(self) -> str:
        html: str = self.power().to_html(float_format="{:.3f}".format, border=0)
        return html


def plan(
    card: Card | str | Path | Mapping[str, Any] | None = None,
    net: Net | Predictions | None = None,
    data: Data | None = None,
    *,
    data_root: str | Path | None = None,
    runs: str | Path | None = None,
    device: str = CPU,
    precision: str = "float32",
    memory: str | None = None,
    workers: int | None = None,
    cache_dir: str | Path | None = None,
    callback: Callback | None = None,
) -> Plan:
    """Open and check everything that an audit will use.

    Of what only a run can open it is known which that is, see :attr:`Plan.not_opened`.

    Parameters
    ----------
    card : Card, path, name of a built-in card, or mapping of sections, optional
        What is asked. With ``net`` and ``data`` the sections ``model``, ``data`` and ``groups`` come from these.
    net : Net or Predictions, optional
        The model to audit as it is, or what it answered; by default the card's.
    data : Data, optional
        By default the card's.
    data_root : str or pathlib.Path, optional
        Folder that paths of the card are relative to, where that is not the card's own.
    runs : str or pathlib.Path, optional
        Where runs will go; where that is given, whether it can be written to is tried.
    device, precision, memory, workers, cache_dir : optional
        What :func:`vit_audit.audit` will be given: what cannot be had is refused before any image is opened.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        Whatever is wrong with card, model or data; nothing is written.
    UnfinishedError
        If the folder of runs, or that of the cache, cannot be written to.

    Examples
    --------
    >>> import vit_audit as va
    >>> plan = va.plan("synthetic-balanced")
    >>> list(plan.power().columns)[:3]
    ['attribute', 'group', 'reference']
    """
    check_options(device, precision, memory, workers)
    if runs is not None:
        check_writable(as_path("runs", runs))
    full = _full_card(card, net, data)
    root = None if data_root is None else as_path("data_root", data_root)
    if root is not None and not root.is_dir():
        raise InputError(str(root), "no such data folder", f"correct --data or {DATA_VARIABLE}")
    check_cache_dir(cache_dir, None if runs is None else Path(runs), full, card_path=full.path, data_root=root)
    step = as_step(callback)
    with run_state(fail_in_time=False):  # the small rendered base may be trained here
        samples, box = None, None
        if full.model.is_black_box:
            given = net.table if isinstance(net, Predictions) else None
            box = given or open_black_box(full, card_path=full.path, data_root=root)
            full = with_classes(full, box.classes)
        if data is not None:
            tick = step("data: opening every image")
            samples = data.open(full, progress=lambda done: tick(done, len(data.table)))
        inputs = open_inputs(
            full,
            full.content,
            card_path=full.path,
            data_root=root,
            step=step,
            samples=samples,
            backbone=net.backbone if isinstance(net, Net) else None,
            box=box,
        )
    return Plan(inputs)


def _full_card(
    card: Card | str | Path | Mapping[str, Any] | None, net: Net | Predictions | None, data: Data | None
) -> Card:
    """Return one card, with the sections that model and data bring along."""
    if isinstance(card, str | Path):
        card = load_card(card)
    fix = "plan(card, net, data): a card, a path or a mapping; what load_model, wrap or predictions gave; a Data"
    asked = (("card", card, (Card, Mapping)), ("net", net, (Net, Predictions)), ("data", data, (Data,)))
    for name, given, kinds in asked:
        if given is not None:
            check_kind(f"plan, {name}", given, kinds, fix)
    if isinstance(card, Card) and net is None and data is None:
        return card
    sections = card.model_dump(exclude_unset=True) if isinstance(card, Card) else dict(card or {})
    if data is not None:
        own = dict(sections.get("data", {}))
        sections |= {"data": {**own, **data.sections["data"]}, "groups": data.sections["groups"]}
    if net is not None:
        sections |= {"model": net.spec.model_dump(exclude_unset=True), "training": "none"}
    full = Card(**sections)
    if isinstance(card, Card):
        full._path = card._path
    return full
