"""The record between the steps from a raw table to samples, and what a step does with rows that it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from scipy.stats import chi2_contingency, fisher_exact
from statsmodels.stats.multitest import multipletests

from audit.card.schema import Card
from audit.data.groups import group_column
from audit.data.quality import Digests, no_digests
from audit.data.readers.raw import RawTable
from audit.data.samples import EXAMPLES, UNKNOWN
from audit.filenames import printable
from audit.records import AttributeInfo, DataWarning, DataWarningCode, ExcludedRow, LeftOut


@dataclass(frozen=True)
class Rows:
    """A table on its way to samples: each step returns the next."""

    # the rows that are left. From ``chosen_columns`` on: ``image``, ``label``, ``subject``, the attributes, the
    # nuisance columns, and ``given_split`` where the data say it.
    frame: pd.DataFrame
    raw: RawTable  # where they are from; of its table the column of images, as long as it is needed
    card: Card
    labels: tuple[str, ...] = ()  # class names in the order of the model's outputs, once they are checked
    attributes: Mapping[str, AttributeInfo] = field(default_factory=dict)  # once groups are known
    # what was left out so far
    excluded: tuple[ExcludedRow, ...] = ()
    quarantined: tuple[ExcludedRow, ...] = ()
    lost: tuple[ExcludedRow, ...] = ()  # those of them that nobody chose to leave out
    warnings: tuple[DataWarning, ...] = ()
    # (N, 32), SHA-256 of the image of each row, once they are opened: no row is left out from then on
    digests: Digests = field(default_factory=no_digests)
    looks: pd.DataFrame = field(default_factory=pd.DataFrame)  # statistics of the image of each row, likewise
    # rows of images that never reached the classifier; None where the card does not say which
    undetected: pd.DataFrame | None = None

    def without(
        self, which: pd.Series, kind: LeftOut, *, of: str = "", names: Sequence[str] = (), chosen: bool = False
    ) -> Rows:
        """Return the rows without some, which are counted.

        Parameters
        ----------
        which : pandas.Series of bool
            The rows to leave out.
        kind : LeftOut
        of : str
            Column or key of the card.
        names : sequence of str
            A label.
        chosen : bool
            Whether the card asks for it.
        """
        if not which.any():
            return self
        row = self.excluded_row(self.frame[which], kind).model_copy(update={"of": of, "names": list(names)})
        lost = self.lost if chosen else (*self.lost, row)
        return replace(self, frame=self.frame[~which], excluded=(*self.excluded, row), lost=lost)

    def excluded_row(
        self, left_out: pd.DataFrame, kind: LeftOut, detail: str = "", examples: int | None = EXAMPLES
    ) -> ExcludedRow:
        """Count images, by group as far as their rows tell; ``examples`` of them are named, None for all."""
        by_group = {
            name: {str(group): int(n) for group, n in group_column(left_out[name], spec).value_counts().items()}
            for name, spec in self.card.groups.items()
            if name in left_out
        }
        names = sorted(printable(image) for image in left_out["image"].dropna())
        return ExcludedRow(kind=kind, detail=detail, images=len(left_out), examples=names[:examples], by_group=by_group)

    def excluded_rows(
        self, left_out: pd.DataFrame, kinds: Iterable[LeftOut], details: Iterable[str], examples: int | None = EXAMPLES
    ) -> tuple[ExcludedRow, ...]:
        """Count images by why they are left out."""
        why = list(zip(kinds, details, strict=True))
        return tuple(
            self.excluded_row(left_out[[each == (kind, detail) for each in why]], kind, detail, examples)
            for kind, detail in sorted(set(why))
        )

    def warned(self, *warnings: DataWarning) -> Rows:
        """Return the rows with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))


def loss_warnings(rows: Rows) -> Iterator[DataWarning]:
    """Yield a warning for each attribute whose groups lost different shares of their images without being asked to.

    Of each attribute, lost and kept images are compared over its groups: by Fisher's exact test where these are two,
    by a chi-square test where they are more. Holm over the attributes, at the card's ``audit.alpha``.
    """
    tables = {name: table for name in rows.card.groups if (table := _lost_and_kept(rows, name)) is not None}
    if not tables:
        return
    raw = [float((fisher_exact if len(t) == 2 else chi2_contingency)(t.to_numpy()).pvalue) for t in tables.values()]
    adjusted = multipletests(raw, method="holm")[1]
    for (name, table), p in zip(tables.items(), adjusted, strict=True):
        if p <= rows.card.audit.alpha:
            yield DataWarning(
                code=DataWarningCode.UNEVEN_LOSS,
                of=name,
                images=int(table["lost"].sum()),
                total=int(table.to_numpy().sum()),
                names=[str(group) for group in table.index],
                numbers={
                    "p": float(p),
                    **{f"lost:{group}": float(n) for group, n in table["lost"].items()},
                    **{f"of:{group}": float(n) for group, n in table.sum(axis=1).items()},
                },
            )


def _lost_and_kept(rows: Rows, attribute: str) -> pd.DataFrame | None:
    """Return images by group, columns ``lost`` and ``kept``; None where there is nothing to compare."""
    lost: dict[str, int] = {}
    for row in rows.lost:
        for group, n in row.by_group.get(attribute, {}).items():
            lost[group] = lost.get(group, 0) + n
    kept = group_column(rows.frame[attribute], rows.card.groups[attribute]).value_counts()
    table = pd.DataFrame({"lost": pd.Series(lost, dtype=float), "kept": kept.astype(float)}).fillna(0)
    table = table.drop(index=UNKNOWN, errors="ignore").sort_index()
    return table if len(table) > 1 and (table.sum() > 0).all() else None
