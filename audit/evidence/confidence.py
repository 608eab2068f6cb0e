"""How sure a finding is, by the rule that docs/method.md prints."""

from __future__ import annotations

from collections.abc import Sequence

from audit.records import Confidence, Estimate


def confidence(
    estimate: Estimate | None, p_adjusted: float | None, by_seed: Sequence[float], alpha: float
) -> Confidence:
    """Grade one finding.

    Parameters
    ----------
    estimate : Estimate or None
        In the metric of the finding's question.
    p_adjusted : float or None
    by_seed : sequence of float
        The tested number for each training seed; the audited one first.
    alpha : float

    Returns
    -------
    Confidence
        HIGH if the interval excludes 0, the adjusted p is at most alpha / 5 and at least two seeds all agree on the
        sign; MODERATE if the interval excludes 0 and the adjusted p is at most alpha; else LOW.
    """
    if estimate is None or estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high:
        return Confidence.LOW
    if p_adjusted is None or not p_adjusted <= alpha:
        return Confidence.LOW
    agree = len(by_seed) > 1 and (all(v > 0 for v in by_seed) or all(v < 0 for v in by_seed))
    return Confidence.HIGH if agree and p_adjusted <= alpha / 5 else Confidence.MODERATE
