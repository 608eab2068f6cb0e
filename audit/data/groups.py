"""Group annotations: kept as they were given, "unknown" where they were not."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.card.faults import closest, did_you_mean
from audit.card.schema import GroupSpec
from audit.data.samples import EXAMPLES, UNKNOWN, Samples
from audit.data.splits import strata_of
from audit.errors import DataError
from audit.filenames import printable
from audit.records import AttributeInfo, DataWarning, DataWarningCode

Codes = npt.NDArray[np.int64]


def group_column(raw: pd.Series, spec: GroupSpec) -> pd.Series:
    """Return an attribute's groups: the annotation, or ``unknown`` where it is missing or not kept.

    Parameters
    ----------
    raw : pandas.Series
        The column as text, missing where a cell was empty.
    spec : GroupSpec
        ``values`` names the groups to keep.

    Returns
    -------
    pandas.Series
        Texts, none missing.
    """
    filled = raw.fillna(UNKNOWN)
    return filled if spec.values is None else filled.where(filled.isin(spec.values), UNKNOWN)


@dataclasses.dataclass(frozen=True)
class GroupPermutation:
    """Permutes group codes: over subjects of one group each, and within a subject that is seen in several.

    Within a subject its groups change names with each other, so that images of one subject in one group, which resemble
    each other, stay in one group. What does not depend on chance is computed once, however many are drawn.
    """

    own: Codes  # group of each subject's side: its images of one group
    of_image: Codes  # (N,), side of each image
    alone: npt.NDArray[np.bool_]  # whether its subject has no other side
    # sides that have others, and whose they are
    several: Codes
    subject: Codes

    @classmethod
    def of(cls, groups: Codes, subjects: Codes) -> GroupPermutation:
        """Prepare the permutations of the groups and subjects (N,) of images."""
        sides, of_image = np.unique(np.stack([subjects, groups], axis=1), axis=0, return_inverse=True)
        subject, own = sides.T
        _, number, sizes = np.unique(subject, return_inverse=True, return_counts=True)
        alone = sizes[number] == 1
        several = np.flatnonzero(~alone).astype(np.int64)
        return cls(own, of_image.reshape(-1).astype(np.int64), alone, several, subject[several])

    def draw(self, rng: np.random.Generator) -> Codes:
        """Return permuted group codes (N,)."""
        assigned = self.own.copy()
        assigned[self.alone] = rng.permutation(self.own[self.alone])
        shuffled = self.several[np.lexsort((rng.random(len(self.several)), self.subject))]
        assigned[self.several] = self.own[shuffled]
        result: Codes = assigned[self.of_image]
        return result


def permute_groups(groups: Codes, subjects: Codes, rng: np.random.Generator) -> Codes:
    """Permute the group codes (N,) of images once; see :class:`GroupPermutation`."""
    return GroupPermutation.of(groups, subjects).draw(rng)


def permute_attributes(samples: Samples, specs: Mapping[str, GroupSpec]) -> Samples:
    """Assign groups at random in those attributes whose card says ``permuted``: a null run.

    Labels go round within split and label (the subject's commonest), so that all counts stay nearly as they were and
    nothing but chance ties group to image.
    """
    if all(spec.permuted is None for spec in specs.values()):
        return samples
    frame, infos, warnings = samples.frame, dict(samples.attributes), [*samples.warnings]
    subjects = pd.factorize(frame["subject"])[0].astype(np.int64)
    for number, (name, spec) in enumerate(specs.items()):
        if spec.permuted is None:
            continue
        rng = np.random.default_rng([spec.permuted, number])
        codes, groups = pd.factorize(frame[name], sort=True)
        stratum = frame["subject"].map(strata_of(frame, ["split"]))
        assigned = codes.astype(np.int64)
        for _, rows in sorted(frame.groupby(stratum).indices.items()):
            assigned[rows] = permute_groups(assigned[rows], subjects[rows], rng)
        frame = frame.assign(**{name: groups.to_numpy()[assigned]})
        infos[name] = infos[name].model_copy(update={"permuted": spec.permuted})
        warnings.append(DataWarning(code=DataWarningCode.NULL_RUN, of=name, numbers={"seed": float(spec.permuted)}))
    return dataclasses.replace(samples, frame=frame, attributes=infos, warnings=tuple(warnings))


def attribute_info(name: str, spec: GroupSpec, raw: pd.Series, known: pd.Series) -> AttributeInfo:
    """Describe an attribute and check that groups can be compared.

    Parameters
    ----------
    name : str
        The attribute's name in the card.
    spec : GroupSpec
        Its part of the card.
    raw : pandas.Series
        The column as it was read.
    known : pandas.Series
        The same rows after ``group_column``.

    Returns
    -------
    AttributeInfo
        Groups in the card's order, else the alphabet's, those that the card names without an image included; the
        reference is the largest group unless named.

    Raises
    ------
    DataError
        If nobody has an annotation, or there is only one group and the card names no other. If a group that it names
        has no image: where that leaves one group and a value that is not kept is spelt nearly so, and where it is the
        reference and not among the card's groups.
    """
    where = f"groups.{name} (column '{spec.column}')"
    counts = known[known != UNKNOWN].value_counts()
    present = sorted(counts.index)
    if not present:
        found = sorted(raw.dropna().unique())[:5]
        if spec.values and found:
            what = f"no image has one of {', '.join(spec.values)}"
            raise DataError(where, what, f"the column holds {', '.join(found)}")
        raise DataError(where, "no image has a group", "fill in the column, or remove this attribute")
    others = raw[raw.notna() & (known == UNKNOWN) & (raw != UNKNOWN)].value_counts()
    absent = [value for value in spec.values or [] if value not in present]
    if len(present) == 1 and not absent:
        what = f"one group only ('{present[0]}', {counts.iloc[0]} images)"
        raise DataError(where, what, "annotate a second group, or remove this attribute")
    misspelt = [value for value in absent if len(present) == 1 and closest(value, others.index)]
    if misspelt:
        hint = did_you_mean(misspelt[0], others.index)
        raise DataError(where, f"no image has the group '{misspelt[0]}'", hint)
    if spec.reference is not None and spec.reference not in (*present, *absent):
        raise DataError(where, f"no image has the reference '{spec.reference}'", did_you_mean(spec.reference, present))
    for group in spec.error if isinstance(spec.error, Mapping) else ():
        if group not in (*present, *absent):
            raise DataError(f"groups.{name}.error", f"no image has the group '{group}'", did_you_mean(group, present))
    check_display(f"groups.{name}.display", spec.display, (*present, *absent))
    return AttributeInfo(
        attribute=name,
        assigned_by=spec.assigned_by,
        reference=spec.reference or max(present, key=lambda group: counts[group]),
        groups=list(spec.values or present),
        display=dict(spec.display),
        unknown_images=int((known == UNKNOWN).sum()),
        note=spec.note,
        not_kept={str(value): int(images) for value, images in others.head(EXAMPLES).items()},
        not_kept_values=len(others),
        not_kept_images=int(others.sum()),
    )


def check_display(where: str, display: Mapping[str, str], known: Collection[str]) -> None:
    """Check that what a card gives a name to is there."""
    for name in display:
        if name not in known:
            raise DataError(where, f"there is no '{name}' to give a name to", did_you_mean(name, list(known)))


def unknown_warnings(frame: pd.DataFrame, columns: Iterable[str]) -> Iterator[DataWarning]:
    """Yield a warning for each column in which a value is the word that stands for a missing one."""
    for name in columns:
        called = frame[name] == UNKNOWN
        if called.any():
            without = called | frame[name].isna()
            yield DataWarning(
                code=DataWarningCode.CALLED_UNKNOWN, of=name, images=int(called.sum()), total=int(without.sum())
            )


def disagreement_warnings(frame: pd.DataFrame, attributes: Mapping[str, AttributeInfo]) -> Iterator[DataWarning]:
    """Yield a warning for each attribute whose group changes from image to image of one subject.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``subject`` and the attributes.
    attributes : mapping of str to AttributeInfo
        The card's groups.
    """
    subject, subjects = pd.factorize(frame["subject"])
    for name in attributes:
        known = (frame[name] != UNKNOWN).to_numpy(dtype=bool)
        group, groups = pd.factorize(frame[name])
        seen = np.unique(subject[known] * len(groups) + group[known])  # each subject once in each of its groups
        of, times = np.unique(seen // max(1, len(groups)), return_counts=True)
        several = subjects[of[times > 1]]
        if len(several):
            yield DataWarning(
                code=DataWarningCode.SUBJECT_IN_SEVERAL_GROUPS,
                of=name,
                images=len(several),
                total=len(of),
                subjects=[printable(each) for each in sorted(several)[:3]],
            )


def empty_group_warnings(frame: pd.DataFrame, attributes: Mapping[str, AttributeInfo]) -> Iterator[DataWarning]:
    """Yield a warning for each attribute with groups that are named and have no image."""
    for name, info in attributes.items():
        present = set(frame[name].unique())
        absent = [group for group in info.groups if group not in present]
        if absent:
            yield DataWarning(code=DataWarningCode.EMPTY_GROUPS, of=name, total=len(info.groups), names=absent)
