"""Results as tables: records that turn into data frames and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

import pandas as pd

from audit.errors import InputError
from audit.given import check_choice
from audit.records import (
    ContrastRow,
    Estimate,
    HeadRow,
    LedgerImages,
    LedgerRow,
    MeanShiftRow,
    RateRow,
    Record,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = TypeVar("Row", bound=Record)
HEADS_DRAWN = 12
RATES = ("selection_rate", "true_positive_rate", "false_positive_rate", "accuracy")


class Table(Sequence[Row], Generic[Row]):
    """Records in order; ``to_frame()`` gives them as a data frame."""

    def __init__(self, rows: Sequence[Row], of: type[Row]) -> None:
        self._rows, self._of = tuple(rows), of

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self)} rows; to_frame() gives a data frame"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per record.

        Returns
        -------
        pandas.DataFrame
            An estimate ``x`` fills the columns ``x``, ``x_low`` and ``x_high``; rates are in [0, 1], gaps in [-1, 1];
            what is not estimable is missing. Columns are the same where there is no record.

        Examples
        --------
        ``result`` is that of the example of :func:`vit_audit.audit`.

        >>> result.rates.to_frame()[["group", "selection_rate"]].round(2).values.tolist()
        [['f', 0.0], ['m', 0.5]]
        """
        if not self._rows:
            return pd.DataFrame(columns=columns_of(self._of))
        return pd.DataFrame([flat(row) for row in self._rows])

    def _repr_html_(self) -> str:
        html: str = self.to_frame().to_html(max_rows=20, max_cols=12, float_format="{:.3f}".format, border=0)
        return html


def columns_of(kind: type[Record]) -> list[str]:
    """Return the columns of a data frame of such records, as :func:`flat` names them."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        found += [name, f"{name}_low", f"{name}_high"] if _is_estimate(field.annotation) else [name]
    return found


def _is_estimate(annotation: Any) -> bool:
    return Estimate in (annotation, *getattr(annotation, "__args__", ()))


def flat(row: Record) -> dict[str, Any]:
    """Return a record's fields, estimates spread over three columns."""
    columns: dict[str, Any] = {}
    for name, field in type(row).model_fields.items():
        value = getattr(row, name)
        if isinstance(value, Estimate):
            columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif value is None and _is_estimate(field.annotation):
            columns |= {name: None, f"{name}_low": None, f"{name}_high": None}
        else:
            columns[name] = value
    return columns


def figure_size(rows: int) -> tuple[float, float]:
    """Return width and height, in inches, of a picture of so many lines."""
    return 6.4, 1.2 + 0.32 * rows


def _axes(ax: Axes | None, rows: int) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # so that a notebook shows the figure

    _, axes = plt.subplots(figsize=figure_size(rows), layout="constrained")
    return axes


def _intervals(
    axes: Axes, names: Sequence[str], estimates: Sequence[Estimate], *, scale: float = 100, **style: Any
) -> None:
    """Draw one estimate per line, from the top, by default in percent."""
    for place, estimate in enumerate(estimates):
        if estimate.value is not None:
            axes.plot(scale * estimate.value, place, "o", **style)
            if estimate.low is not None and estimate.high is not None:
                axes.plot([scale * estimate.low, scale * estimate.high], [place, place], "-", **style)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)


class Rates(Table[RateRow]):
    """Rates of every group and outcome."""

    def __init__(self, rows: Sequence[RateRow]) -> None:
        super().__init__(rows, RateRow)

    def plot(self, ax: Axes | None = None, *, rate: str = "selection_rate") -> Axes:
        """Draw one kind of rate by group, with intervals.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Drawn into a new figure by default.
        rate : {"selection_rate", "true_positive_rate", "false_positive_rate", "accuracy"}

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        InputError
            If there is no such rate.

        Examples
        --------
        >>> result.rates.plot(rate="accuracy").get_xlabel()
        'accuracy, percent'
        """
        check_choice("rate", rate, RATES)
        axes = _axes(ax, len(self))
        names = [f"{row.attribute} {row.group}: {row.outcome}" for row in self]
        _intervals(axes, names, [getattr(row, rate) for row in self], color="#1f4e79")
        axes.set_xlabel(f"{rate.replace('_', ' ')}, percent")
        return axes


class Gaps(Table[ContrastRow]):
    """Every group against its reference, in each gap."""

    def __init__(self, rows: Sequence[ContrastRow]) -> None:
        super().__init__(rows, ContrastRow)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw every gap with its interval, in percentage points; returns the Axes.

        Examples
        --------
        >>> [line.get_text() for line in result.gaps.plot().get_yticklabels()][:1]
        ['m - f: yes, standardised_gap']
        """
        axes = _axes(ax, len(self))
        names = [f"{row.group} - {row.reference}: {row.outcome}, {row.metric}" for row in self]
        _intervals(axes, names, [row.estimate for row in self], color="#1f4e79")
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("gap, percentage points")
        return axes


class Heads(Table[HeadRow]):
    """Every head of every question that was localised."""

    def __init__(self, rows: Sequence[HeadRow]) -> None:
        super().__init__(rows, HeadRow)

    def plot(self, ax: Axes | None = None, *, most: int = HEADS_DRAWN) -> Axes:
        """Draw the heads of the largest effects on the confirmation split, beside their placebo; returns the Axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
        most : int
            How many heads.

        Examples
        --------
        >>> len(result.heads.plot(most=5).get_yticklabels())  # of predictions, none
        0
        """
        if not isinstance(most, Integral) or most < 1:
            raise InputError("most", f"is {most!r}", "give the number of heads to draw, 1 or more")
        largest = sorted(self, key=lambda row: -abs(row.confirmation.value or 0.0))[:most]
        axes = _axes(ax, len(largest))
        names = [f"{row.name}: {row.contrast}, {row.outcome}" for row in largest]
        _intervals(axes, names, [row.placebo for row in largest], color="0.7")
        _intervals(axes, names, [row.confirmation for row in largest], color="#b5561c")
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("mediated gap in mean probability, percentage points (gray: placebo)")
        return axes


class Ledger(Table[LedgerRow]):
    """Parts that sum to a gap of log-odds, at every level, over all images and near the decision."""

    def __init__(self, rows: Sequence[LedgerRow]) -> None:
        super().__init__(rows, LedgerRow)

    def plot(
        self, ax: Axes | None = None, *, most: int = HEADS_DRAWN, among: LedgerImages = "near the decision"
    ) -> Axes:
        """Draw what the parts of each layer write, from input to output, in nats; returns the Axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
        most : int
            How many parts, the largest.
        among : {"near the decision", "all"}
            Which images; on those far from it no decision hangs.

        Examples
        --------
        >>> result.ledger.plot().get_xlabel()
        'written into the gap, nats (near the decision)'
        """
        if not isinstance(most, Integral) or most < 1:
            raise InputError("most", f"is {most!r}", "give the number of parts to draw, 1 or more")
        if among not in get_args(LedgerImages):
            raise InputError("among", f"is {among!r}", f"choose from {', '.join(get_args(LedgerImages))}")
        rows = [row for row in self if (row.among, row.level) == (among, "family in layer")]
        largest = sorted(rows, key=lambda row: -abs(row.gap.value or 0.0))[:most]
        drawn = [row for row in rows if row in largest]
        axes = _axes(ax, len(drawn))
        names = [
            f"{'' if row.layer is None else f'L{row.layer} '}{row.family}: {row.contrast}, {row.outcome}"
            for row in drawn
        ]
        _intervals(axes, names, [row.gap for row in drawn], scale=1, color="#b5561c")
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel(f"written into the gap, nats ({among if among == 'near the decision' else 'all images'})")
        return axes


class MovedMeans(Table[MeanShiftRow]):
    """What each part takes of a gap where its output is moved to the midpoint of the groups' means."""

    def __init__(self, rows: Sequence[MeanShiftRow]) -> None:
        super().__init__(rows, MeanShiftRow)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what parts take in mean probability, in percentage points, beside the placebo; returns the Axes."""
        axes = _axes(ax, len(self))
        names = [f"{row.part}: {row.contrast}, {row.outcome}" for row in self]
        _intervals(axes, names, [row.placebo for row in self], color="0.7")
        _intervals(axes, names, [row.probability for row in self], color="#b5561c")
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("gap in mean probability that goes, percentage points (gray: placebo)")
        return axes
