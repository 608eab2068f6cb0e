"""What a person reads in place of the names that groups and labels have in the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from audit.records import Audit, DataReport, RunComparison
from audit.report.formats import label

JOINED = " x "  # between the attributes of an intersection, and between its groups


@dataclass(frozen=True)
class Names:
    """What cards call groups and labels; what they do not name is called as in the data.

    Parameters
    ----------
    groups : mapping of str to mapping of str to str
        By attribute, then by group: people of the group, in the plural.
    labels : mapping of str to str
    """

    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def label(self, outcome: str) -> str:
        """Return what a label is called."""
        return label(self.labels.get(outcome, outcome))

    def attribute(self, attribute: str) -> str:
        """Return what an attribute is called; of an intersection, its attributes: "gender and race"."""
        return label(" and ".join(attribute.replace("_", " ").split(JOINED)))

    def group(self, attribute: str, group: str) -> str:
        """Return what people of a group are called where a name stands alone, as in a picture.

        Of a group of an intersection, "women, darker faces".
        """
        attributes, parts = attribute.split(JOINED), group.split(JOINED)
        if len(attributes) == 1 or len(attributes) != len(parts):
            return label(self.groups.get(attribute, {}).get(group, group))
        return ", ".join(self.group(a, part) for a, part in zip(attributes, parts, strict=True))

    def people(self, attribute: str, group: str) -> str:
        """Return what people of a group are called in a sentence: as the card says, or "images of 'darker'"."""
        said = self.groups.get(attribute, {}).get(group, "")
        return label(said) if said else f"images of '{self.group(attribute, group)}'"


AS_IN_THE_DATA = Names()


def names_of(audit: Audit) -> Names:
    """Return what an audit's card calls groups and labels."""
    return names_in(audit.data)


def names_in(report: DataReport) -> Names:
    """Return the same from what is said of the data alone, before anything is audited."""
    return Names({a.attribute: a.display for a in report.attributes}, report.display)


def names_of_both(comparison: RunComparison) -> Names:
    """Return what the cards of two runs call groups and labels."""
    return Names(comparison.display.groups, comparison.display.labels)
