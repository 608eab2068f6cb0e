"""The certificate of a repair: what sealed images show of a repaired model, line by line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from audit.errors import DataError
from audit.evidence.certificate_lines import Draft, Rules, Sealed, draft_lines, scaled, times_needed
from audit.evidence.gap_cells import Question
from audit.records import (
    Aim,
    Certificate,
    CertificateLine,
    CertificateState,
    Changed,
    LineKind,
    LineState,
    Margins,
)


def certify(
    before: pd.DataFrame,
    after: pd.DataFrame,
    questions: Sequence[Question],
    aim: Aim,
    margins: Margins,
    *,
    min_subjects: int,
    candidates: int = 1,
    sealed_openings: int = 1,
) -> Certificate:
    """Judge a repaired model on sealed images.

    Every line must hold, each at the level alpha / candidates (intersection-union, Berger 1982): a certificate is
    given to a model that misses one margin with at most that probability. docs/repair.md describes the lines.

    Parameters
    ----------
    before, after : pandas.DataFrame
        The same sealed images in the same order, as the untouched and the repaired model call them: ``label``,
        ``subject``, ``predicted`` (or ``called:<outcome>``), and a column for each question's attribute.
    questions : sequence of Question
        Every attribute and intersection, the aimed one among them.
    aim : Aim
    margins : Margins
    min_subjects : int
        Under which a group, or a group and label, is not tested.
    candidates : int
        Repaired models that are judged on these images; they share the level (Bonferroni).
    sealed_openings : int

    Returns
    -------
    Certificate

    Raises
    ------
    DataError
        The frames are not of the same images, or the aim is none of the questions.
    """
    _check(before, after, questions, aim)
    sealed = Sealed.of(before, after, aim.outcome)
    rules = Rules(aim, margins, margins.alpha / max(1, candidates), min_subjects)
    drafts = draft_lines(sealed, questions, rules)
    lines = [draft.line for draft in drafts]
    state = state_of_lines(lines)
    images, subjects = len(after), int(after["subject"].nunique())
    times = _times(drafts) if state == CertificateState.NOT_SHOWN else None
    return Certificate(
        state=state,
        aim=aim,
        margins=margins,
        alpha=rules.alpha,
        candidates=max(1, candidates),
        min_subjects=min_subjects,
        images=images,
        subjects=subjects,
        lines=lines,
        levelled_down=_levelled_down(lines, aim),
        changed=_changed(sealed, questions),
        needed_images=scaled(images, times),
        needed_subjects=scaled(subjects, times),
        sealed_openings=sealed_openings,
    )


def with_seeds(certificate: Certificate, by_seed: Sequence[Certificate]) -> Certificate:
    """Add the states of the certificates of every training seed, in order; the state itself stays."""
    return certificate.model_copy(update={"by_seed": [other.state for other in by_seed]})


def _check(before: pd.DataFrame, after: pd.DataFrame, questions: Sequence[Question], aim: Aim) -> None:
    same = ["label", "subject", *dict.fromkeys(q.attribute for q in questions)]
    if not before.index.equals(after.index) or not before[same].equals(after[same]):
        raise DataError(
            "sealed images",
            "predictions before and after the repair are of different images",
            "predict with both models on the same rows, in the same order",
        )
    asked = {q.attribute: {*q.groups, q.reference} for q in questions}
    missing = {aim.group, aim.reference} - asked.get(aim.attribute, set())
    if missing or aim.group == aim.reference:
        what = "group and reference are one" if not missing else f"no group {', '.join(sorted(missing))} is compared"
        raise DataError(f"repair of {aim.attribute}", what, "name two groups of an audited attribute")


def state_of_lines(lines: Sequence[CertificateLine]) -> CertificateState:
    """Return the answer of a certificate: all lines must hold."""
    states = {line.state for line in lines}
    if LineState.FAILED in states:
        return CertificateState.FAILED
    return CertificateState.NOT_SHOWN if LineState.NOT_SHOWN in states else CertificateState.CERTIFIED


def _times(drafts: Sequence[Draft]) -> float | None:
    """Return how many times the images would do for all lines; None where a line can have none."""
    powers = [draft.power for draft in drafts if draft.power is not None]
    return times_needed(powers) if len(powers) == len(drafts) else None


def _levelled_down(lines: Sequence[CertificateLine], aim: Aim) -> list[str]:
    """Name the groups of the aimed attribute that pay for a smaller gap with more errors."""
    gap = next(line for line in lines if line.kind == LineKind.GAP)
    if gap.before is None or gap.after is None or abs(gap.after) >= abs(gap.before):
        return []
    paid = [
        line.group
        for line in lines
        if line.kind == LineKind.GROUP_ERROR and line.attribute == aim.attribute and line.state == LineState.FAILED
    ]
    return list(dict.fromkeys(paid))


def _changed(sealed: Sealed, questions: Sequence[Question]) -> list[Changed]:
    """Count who is newly wrong and newly right: of all images ("" for the attribute), then by group."""
    before, after = sealed.right
    everyone = np.ones(len(before), dtype=bool)
    parts = [("", "", everyone)]
    for question in questions:
        column = sealed.frame[question.attribute].to_numpy(dtype=object)
        parts += [(question.attribute, group, column == group) for group in question.groups]
    found = []
    for attribute, group, among in parts:
        wrong, right = among & before & ~after, among & after & ~before
        of = [len(np.unique(sealed.subjects[rows])) for rows in (among, wrong, right)]
        found.append(
            Changed(
                attribute=attribute,
                group=group,
                images=int(among.sum()),
                subjects=of[0],
                images_newly_wrong=int(wrong.sum()),
                images_newly_right=int(right.sum()),
                subjects_newly_wrong=of[1],
                subjects_newly_right=of[2],
            )
        )
    return found
