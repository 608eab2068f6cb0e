"""What a model was trained on: how many images of each group have each label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from audit.data.samples import UNKNOWN
from audit.records import Audit
from audit.report import formats
from audit.report.drawn.base import (
    GROUP,
    MUTED,
    Picture,
    bare,
    beside,
    clear_figure,
    drawn_name,
    drawn_once,
    first_of,
    for_both,
    name_rows,
    row_name,
)
from audit.report.text import Sentences

MOST_GROUPS, MOST_LABELS = 20, 8  # that fit on a page; the table has all of them
BESIDE = 4  # panels in a row


@dataclass(frozen=True)
class TrainedGroup:
    """How many training images of a group have each label, in the order of the labels."""

    name: str
    images: tuple[int, ...]
    of: int  # of whatever label


def picture(audit: Audit, text: Sentences, attribute: str) -> Picture | None:
    """Draw an attribute's groups in the training split; None where there is none."""
    cells = {(r.group, r.label): r.images for r in audit.data.counts if (r.attribute, r.split) == (attribute, "train")}
    if not any(cells.values()):
        return None
    every = list(dict.fromkeys(label for _, label in cells))
    named = dict.fromkeys(group for group, _ in cells)
    total = {group: sum(cells.get((group, label), 0) for label in every) for group in named}
    of_label = {label: sum(cells.get((group, label), 0) for group in total) for label in every}
    asked = {row.outcome for row in audit.rates}
    labels = first_of(every, MOST_LABELS, lambda label: (label not in asked, -of_label[label]))
    known = [group for group in total if group != UNKNOWN or total[group]]
    shown = first_of(known, MOST_GROUPS, lambda group: -total[group])
    groups = tuple(
        TrainedGroup(
            text.group(attribute, group), tuple(cells.get((group, label), 0) for label in labels), total[group]
        )
        for group in shown
    )
    names = tuple(text.label(label) for label in labels)
    title, unit = text.picture("training_title", attribute), text.picture("training_unit")
    left_out = (len(known) - len(shown), len(every) - len(labels))
    return training_picture(groups, names, unit, title, text.picture("training", title, groups, names, *left_out))


@drawn_once
def training_picture(
    groups: tuple[TrainedGroup, ...], labels: tuple[str, ...], unit: str, title: str, alt: str
) -> Picture:
    """Draw a panel a label, with a bar a group: how many of its training images have the label."""
    return for_both(partial(_draw, groups, labels, unit), title, alt)


def _draw(groups: Sequence[TrainedGroup], labels: Sequence[str], unit: str, is_narrow: bool) -> Figure:
    across = 1 if is_narrow else min(BESIDE, len(labels))
    down = math.ceil(len(labels) / across)
    figure = clear_figure(3.4 if is_narrow else 6.6, 0.2 + down * (0.5 + 0.26 * len(groups)))
    every = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in every[len(labels) :]:
        axes.remove()
    for number, (axes, label) in enumerate(zip(every, labels, strict=False)):
        axes.tick_params(labelbottom=True)
        _draw_label(axes, groups, number, label)
    every[0].set_xlim(0, 1.02 * max(images for group in groups for images in group.images))
    name_rows(every[0], [row_name(group.name, is_narrow) for group in groups])
    figure.supxlabel(unit, fontsize=7.5, color=MUTED)
    return figure


def _draw_label(axes: Axes, groups: Sequence[TrainedGroup], number: int, label: str) -> None:
    bare(axes)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.count(round(x))))
    axes.set_title(drawn_name(label), loc="left", fontsize=8.5, fontweight="bold")
    for position, group in enumerate(groups):
        images = group.images[number]
        axes.barh(position, images, height=0.56, color=GROUP, linewidth=0)
        share = f" ({formats.percent(images / group.of, 0)})" if group.of else ""
        beside(axes, position, formats.count(images) + share)
