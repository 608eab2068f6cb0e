"""What all pictures share: colours for light and dark pages, axes, and figures as deterministic SVG.

Text is drawn as outlines with the font that comes with matplotlib, so that a figure looks the same on every
machine, on screen and in the PDF; its numbers are given in words in ``alt`` and in the table next to it.
"""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import blended_transform_factory
from PIL import Image

from audit.records import Metric
from audit.report import formats

INK, MUTED, RULE = "#1c2733", "#566372", "#d4dae1"
ZONE = "#e3e8ee"  # behind what is drawn: where a policy is met, where a control passes
GROUP, REFERENCE, EFFECT, REFERENCE_MODEL = "#2f6da8", "#8794a3", "#c05a12", "#5b4b9a"
_DARK = {
    INK: "#e8edf2",
    MUTED: "#a9b5c2",
    RULE: "#3a4552",
    ZONE: "#2a3644",
    GROUP: "#74aee2",
    REFERENCE: "#8f9cab",
    EFFECT: "#f0954e",
    REFERENCE_MODEL: "#b0a2ee",
}
SETTINGS: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "vit-audit",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": INK,
}
_PIXELS = 96  # CSS pixels an inch
NAME, WIDE_NAME, NARROW_NAME = 24, 28, 17  # characters
WIDE_HEADING, NARROW_HEADING = 80, 46
METRIC_SIGNS = {  # of gaps, wherever they are drawn beside each other
    Metric.STANDARDISED_GAP: ("o", GROUP),
    Metric.TPR_GAP: ("^", EFFECT),
    Metric.FPR_GAP: ("s", REFERENCE_MODEL),
}
T = TypeVar("T")
drawn_once = lru_cache(maxsize=256)  # a page on screen and in print shows the same pictures


@dataclass(frozen=True)
class Picture:
    """A figure as ``data:`` addresses for light and dark pages, with its description in words."""

    light: str
    dark: str
    alt: str
    caption: str = ""
    width: int = 0
    height: int = 0
    draw_narrow: Callable[[], Picture] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def narrow(self) -> Picture | None:
        """The same for a narrow screen, drawn when it is asked for: paper never does."""
        return None if self.draw_narrow is None else self.draw_narrow()


@cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def drawn_name(name: str, most: int = NAME) -> str:
    """Shorten a name and replace what the font lacks: an empty box is honest, a warning is not."""
    shown = formats.cut(formats.clean(name).strip(), most)
    return "".join(c if ord(c) in _drawable() else "□" for c in shown)


def bare(axes: Axes) -> Axes:
    """Make axes transparent, with a line below and a grid from it up."""
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def clear_figure(width: float, height: float) -> Figure:
    """Return a transparent figure; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def row_name(name: str, is_narrow: bool) -> str:
    """Return the name of a row as it is drawn: in one line, or on a narrow picture in two short ones."""
    if not is_narrow:
        return drawn_name(name, WIDE_NAME)
    return "\n".join(textwrap.wrap(drawn_name(name, 2 * NARROW_NAME), NARROW_NAME, max_lines=2, placeholder="…"))


def plain_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of one bare Axes; inches."""
    figure = clear_figure(width, height)
    return figure, bare(figure.add_subplot())


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... from the top down."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def as_picture(figure: Figure, title: str, alt: str) -> Picture:
    """Return a figure as a picture for light and for dark pages."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": formats.clean(title)})
    svg = _smaller(buffer.getvalue())
    width, height = figure.get_size_inches() * _PIXELS
    dark = svg
    for light_colour, dark_colour in _DARK.items():
        dark = dark.replace(light_colour, dark_colour)
    return Picture(_data_address(svg), _data_address(dark), alt, width=round(width), height=round(height))


def _smaller(svg: str) -> str:
    """Leave out of a figure what does not show: metadata, indents, long names of glyphs, thousandths of a point."""
    head, title, body = svg.partition("</title>")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"(?<![\d.(])(-?\d+\.\d\d)\d+", r"\1", body)  # but a scale's, which stands after a bracket
    body = re.sub(
        r'"#DejaVuSans-(\w+)" transform="translate\((-?\d+(?:\.\d)?)\d* 0\)"', r'"#DejaVuSans-\1" x="\2"', body
    )
    body = re.sub(r' id="(?!DejaVuSans-)\w+_\d+"', "", body)  # of groups, to which nothing refers
    return head + title + re.sub(r"\s*\n\s*", "\n", body.replace("DejaVuSans-", "g"))


def pixels_as_picture(pixels: npt.NDArray[np.uint8], title: str, alt: str) -> Picture:
    """Return pixels (rows, columns, 3) as a picture, the same on light and dark pages."""
    page, image = io.BytesIO(), Image.fromarray(pixels)
    image.save(page, format="PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(page.getvalue()).decode("ascii")
    return Picture(address, address, alt, caption=title, width=image.width, height=image.height)


def for_both(draw: Callable[[bool], Figure], title: str, alt: str) -> Picture:
    """Return what ``draw`` draws, wide and narrow, as one picture."""

    def drawn(is_narrow: bool) -> Picture:
        with mpl.rc_context(SETTINGS):
            return as_picture(draw(is_narrow), title, alt)

    return replace(drawn(False), draw_narrow=lambda: drawn(True))


def first_of(rows: Sequence[T], most: int, key: Callable[[T], Any]) -> list[T]:
    """Return the ``most`` rows that come first by ``key``, in the order in which they are given."""
    kept = sorted(range(len(rows)), key=lambda i: key(rows[i]))[:most]
    return [rows[i] for i in sorted(kept)]


def beside(axes: Axes, row: float, numbers: str) -> None:
    """Write the numbers of a row to the right of it."""
    axes.text(1.02, row, numbers, transform=axes.get_yaxis_transform(), fontsize=7.5, color=INK, va="center")


def name_blocks(axes: Axes, names: Sequence[str], headings: Sequence[int], is_narrow: bool) -> None:
    """Name rows as ``name_rows`` does, some of them as headings of those below, from the figure's left edge on."""
    name_rows(axes, ["" if row in headings else row_name(name, is_narrow) for row, name in enumerate(names)])
    across = blended_transform_factory(axes.figure.transFigure, axes.transData)
    for row in headings:
        heading = drawn_name(names[row], NARROW_HEADING if is_narrow else WIDE_HEADING)
        said = axes.text(0.006, row, heading, transform=across, fontsize=8, fontweight="bold", va="center")
        said.set_in_layout(False)  # it reaches over what is drawn


def in_points(axes: Axes) -> None:
    """Write the fractions below an Axes in percentage points."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g}".replace("-", formats.MINUS)))
    axes.set_xlabel("points")


def percents(axes: Axes) -> None:
    """Write the fractions below an Axes in percent."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g}%".replace("-", formats.MINUS)))


def key_above(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Say above all that is drawn what the signs mean."""
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handletextpad=0.5,
        columnspacing=1.4, borderaxespad=0.1, labelcolor=INK,
    )  # fmt: skip


def _data_address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")
