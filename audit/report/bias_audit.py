"""The summary of a bias audit that New York City's Local Law 144 wants published, as far as an audit can fill it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from audit.data.samples import UNKNOWN
from audit.records import Audit, RateRow

# Names of attributes that are taken as the rule's categories; the page says which attribute stands for which.
SEX = ("sex", "gender")
RACE = ("race", "ethnicity", "race or ethnicity")
SMALL_SHARE = 0.02  # of the images; the rule lets an auditor leave such a category's ratio out (6 RCNY 5-301(d))
CROSSED = " x "  # between the attributes of an intersection


class Category(StrEnum):
    """What the rule wants rates by."""

    SEX = "sex"
    RACE = "race or ethnicity"
    BOTH = "both together"
    OTHER = "no category of the rule"


@dataclass(frozen=True)
class BiasTable:
    """Selection rates of one outcome by the groups of one attribute or intersection."""

    category: Category
    attribute: str
    outcome: str
    rows: Sequence[RateRow]

    @property
    def images(self) -> int:
        """Images of known group."""
        return sum(row.images for row in self.rows)

    def is_small(self, row: RateRow) -> bool:
        """Tell whether a group is less than two hundredths of the images."""
        return row.images < SMALL_SHARE * self.images


def selected(row: RateRow) -> int:
    """Return how many images of a group are called the outcome."""
    return row.true_positives + row.false_positives


def category_of(attribute: str) -> Category:
    """Return which category of the rule an attribute or intersection is named as."""
    parts = {_plain(part) for part in attribute.split(CROSSED)}
    is_sex, is_race = (any(part in names for part in parts) for names in (SEX, RACE))
    if len(parts) == 2 and is_sex and is_race:
        return Category.BOTH
    if len(parts) == 1 and (is_sex or is_race):
        return Category.SEX if is_sex else Category.RACE
    return Category.OTHER


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("/", " or ").replace("-", " ").split())


def bias_tables(audit: Audit) -> list[BiasTable]:
    """Return all tables, those of the rule's categories first; images of unknown group are in none."""
    groups: dict[tuple[str, str], list[RateRow]] = {}
    for row in audit.rates:
        if row.group == UNKNOWN:  # of an intersection, too: whoever is unknown in one attribute is unknown in both
            continue
        groups.setdefault((row.attribute, row.outcome), []).append(row)
    tables = [BiasTable(category_of(attribute), attribute, outcome, r) for (attribute, outcome), r in groups.items()]
    order = list(Category)
    return sorted(tables, key=lambda table: order.index(table.category))


def missing_categories(tables: Sequence[BiasTable]) -> list[Category]:
    """Return the rule's categories of which there is no table."""
    have = {table.category for table in tables}
    return [category for category in Category if category is not Category.OTHER and category not in have]
