"""The report's fixed sentences, symbols and glossary, and the words it may not use."""

from __future__ import annotations

import re
from functools import cache

import yaml

from audit.records import Metric, Outcome, State, Verdict
from audit.report.svg import Badge
from audit.resources import resource_dir
from audit.units import Unit, said_of

OUTCOMES: dict[Outcome, tuple[Badge, str]] = {
    Outcome.PASSED: (
        Badge("✓", "PASSED", "good"),
        (
            "The instrument worked, and no difference between groups above the policy of this audit was detected. "
            "That is not the same as no difference: the report says how small a gap could have been seen."
        ),
    ),
    Outcome.DISPARITY_FOUND: (
        Badge("▲", "DISPARITY FOUND", "bad"),
        (
            "The instrument worked, and the model treats at least one group differently by more than the policy of "
            "this audit allows."
        ),
    ),
    Outcome.INCONCLUSIVE: (
        Badge("?", "INCONCLUSIVE", "unsure"),
        "The instrument worked, but there is too little data to answer the question either way.",
    ),
    Outcome.INVALID: (
        Badge("✕", "INVALID", "broken"),
        (
            "A check of the instrument failed. Nothing it measured about groups can be relied on, so every finding "
            "is withheld until the cause is fixed and the audit is run again."
        ),
    ),
}

STATES: dict[State, Badge] = {
    State.DISPARITY: Badge("▲", "disparity", "bad"),
    State.NOT_DETECTED: Badge("○", "no disparity detected", "calm"),
    State.TOO_LITTLE_DATA: Badge("?", "too little data", "unsure"),
    State.NOT_ESTIMABLE: Badge("–", "not estimable", "unsure"),
}

VERDICTS: dict[Verdict, Badge] = {
    Verdict.CONFIRMED: Badge("◆", "confirmed", "bad"),
    Verdict.CONFIRMED_NO_GAP: Badge("◈", "confirmed, no gap", "calm"),
    Verdict.NOT_CONFIRMED: Badge("◇", "found, not confirmed", "warm"),
    Verdict.NOT_FOUND: Badge("○", "no effect found", "calm"),
    Verdict.TOO_LITTLE_DATA: Badge("?", "too little data", "unsure"),
}

CONTROL_KINDS = {
    "identity": "Patching does exactly what it says on this model",
    "initialisation": "Models that are compared come from one start",
    "effect": "The known effect of {where} is found, and in single heads",
    "null": "Where there is no {where} to carry, less than half of its effect shows",
}
PASSED_CHECK = Badge("✓", "pass", "good")
FAILED_CHECK = Badge("✕", "FAIL", "broken")


def control_line(kind: str, where: str, checks: int) -> str:
    """Return the page-one line of one kind of control that passed, with how many checks it stands for."""
    return f"{CONTROL_KINDS[kind].format(where=where)} ({checks} {'check' if checks == 1 else 'checks'})"


# Symbols of the head grids; a mark that is not listed is printed as "†" and explained in the legend.
MARKS: dict[str, tuple[str, str]] = {
    "confirmed": ("◆", "confirmed on people not used to find it"),
    "no gap": ("◈", "moves the prediction by group, seen again on other people; but no gap was detected"),
    "discovered": ("◇", "found in discovery, not confirmed"),
    "above zero": ("●", "at least three standard errors above zero"),
}
OTHER_MARK = "†"

METRICS: dict[str, tuple[str, str]] = {
    Metric.STANDARDISED_GAP: ("Label-standardised gap", "how often the outcome is predicted, at equal label mix"),
    Metric.TPR_GAP: ("True-positive gap", "how often the outcome is predicted where the label says it"),
    Metric.FPR_GAP: ("False-positive gap", "how often the outcome is predicted where the label does not say it"),
}

SEVERITIES: dict[str, Badge] = {
    "high": Badge("▲", "high", "bad"),
    "medium": Badge("◆", "medium", "warm"),
    "low": Badge("▽", "low", "calm"),
}
CONFIDENCES: dict[str, Badge] = {
    "high": Badge("●", "high", "calm"),
    "moderate": Badge("◐", "moderate", "calm"),
    "low": Badge("○", "low", "unsure"),
}

DECISIONS: dict[str, Badge] = {
    "accept": Badge("✓", "accepted", "calm"),
    "reject": Badge("✕", "rejected", "calm"),
    "needs more": Badge("?", "needs more", "unsure"),
    "risk accepted": Badge("▽", "risk accepted", "warm"),
}

NO_CERTIFICATE = "This report does not certify legal compliance."
PERCEPTIONS = "Group labels are annotators' perceptions."
EMOTION_NOTE = "A predicted emotion is not a felt emotion."
BOUNDED_CLAIM = (
    "A head finding shows that the head's activation affects this output under this intervention; it does not "
    "show that the head encodes the attribute, is the only route, or that removing it makes the system fair."
)
CONTROL_GRIDS = (
    "Each cell is one attention head: rows are layers, columns are heads. All grids here share one colour scale "
    "for each unit, so that a strong colour beside a pale null means that the instrument sees what it should, and "
    "sees little where there is nothing."
)
NOT_SHOWN_HEADS = (
    "“No effect found” is not evidence of no effect: the last column says how small an effect would be found, and of "
    "which heads it is shown, each by itself, that they carry less than the margin of this audit."
)
NO_GAP_TO_CARRY = (
    "On both halves of the people, patching {heads} moves the prediction by group all the same. With no gap detected, "
    "such effects are small or cancel each other; they are no finding."
)
TOGETHER = (
    "What single heads carry does not add up. Where heads patched together do less than the sum, they carry the same "
    "thing twice; where they do more, one makes up for the other while only one is patched."
)
RAW_DIFFERENCE = "of the selection rates as they are; what the labels differ by is part of it"
EQUALISED_ODDS = "the larger of the differences in true- and in false-positive rate, without sign"
RANGE = (
    "With several groups the widest difference is above zero even where all groups are alike, the more so the smaller "
    "they are. “By chance” is its mean when group labels are assigned at random; “corrected” is what is left."
)
EFFORT = (
    "A patch is one head of one image, from one donor. What was not patched was estimated to first order; exact "
    "patches of images drawn at random correct that estimate, whatever it misses. Found early: clear after the first "
    "few images. Given up early: further patches had less than one chance in ten to find the head."
)
PRECISION = (
    "Heads were searched for in {dtype}. Among {compared} patches that were computed in float32 as well, the largest "
    "difference of a probability is {apart}. Whatever is reported of the confirmation images is computed in float32."
)
LEFT_OUT_HEADS = (
    "{left} more, in none of which an effect was found and all smaller than these, are left out of the PDF; they stand "
    "in report.html and in tables/heads.csv."
)
ATTENTION = (
    "An average over all images of a group, so no image can be seen in it. Where a head looks is not what it passes "
    "on: heads can look alike in both groups and write differently."
)
DIFF = (
    "“Gone” means that the question was asked again and no finding came of it; that is not the same as no effect. "
    "“New” may have been there before, too small to be found. What tells is the change: it is measured person by "
    "person where both runs saw the same images, and p says how often chance alone would change as much, each finding "
    "by itself."
)
AGREEMENT = (
    "The designs ask different questions, so they need not agree. Attribution patching approximates Design A and "
    "shares its images; where not everything was patched, the two are compared on the images that were, and designs "
    "that tried the found heads only are not compared. Design C and the transplant share no donor with Design A, and "
    "ask where training put the gap."
)

_FORBIDDEN = re.compile(
    r"\b(unbiased|de-?biased|bias[- ]free|fair|fairly|prove[sdn]?|proven|compliant|certif(?:y|ies|ied|icate))\b",
    re.IGNORECASE,
)
_ALLOWED = (NO_CERTIFICATE, "that removing it makes the system fair.")


def forbidden_words(text: str) -> list[str]:
    """Return the words of a rendered text that the report may not use.

    Parameters
    ----------
    text : str
        Rendered text, white space of any kind.

    Returns
    -------
    list of str
        Each forbidden word found, in order, but for the two fixed sentences that deny a claim.
    """
    flat = " ".join(text.split())
    for sentence in _ALLOWED:
        flat = flat.replace(sentence, "")
    return [match.group(0) for match in _FORBIDDEN.finditer(flat)]


@cache
def glossary(unit: Unit) -> tuple[tuple[str, str], ...]:
    """Return terms and their meanings, from ``templates/glossary.yaml``, for a kind of part that is patched."""
    content = yaml.safe_load((resource_dir("templates") / "glossary.yaml").read_text(encoding="utf-8"))
    terms = {**content["terms"], **content[unit]}
    return tuple((term, said_of(unit, " ".join(terms[term].split()))) for term in sorted(terms, key=str.casefold))
