"""How sure a finding is: one rule for gaps and for heads, as docs/method.md prints it."""

from __future__ import annotations

from audit.evidence.stats import is_at_most
from audit.records import Confidence

STRICTER = 5  # high asks for a fifth of alpha
SEEDS = 2  # the fewest training seeds that can agree


def confidence_of(
    *,
    excludes_zero: bool,
    p_adjusted: float | None,
    seeds_agreeing: int,
    seeds: int,
    sampled: bool,
    alpha: float,
) -> Confidence:
    """Grade a finding.

    Parameters
    ----------
    excludes_zero : bool
        Whether the finding's interval, in its own metric, is on one side of 0 (``stats.excludes_zero``).
    p_adjusted : float or None
        Adjusted p-value of the test that made it a finding: of a head, on the confirmation split.
    seeds_agreeing, seeds : int
        Training seeds whose estimate has the finding's sign, of how many.
    sampled : bool
        Whether some of its effects are estimated to first order.
    alpha : float
        Of the audit.

    Returns
    -------
    Confidence
        HIGH: the interval excludes 0, p is at most a fifth of alpha, two or more seeds all agree, and every effect was
        measured. MODERATE: the interval excludes 0, p is at most alpha, and no majority of seeds disagrees. LOW:
        otherwise. What is missing or not finite counts against.
    """
    contradicted = 2 * seeds_agreeing < seeds
    if not excludes_zero or not is_at_most(p_adjusted, alpha) or contradicted:
        return Confidence.LOW
    agreed = seeds >= SEEDS and seeds_agreeing == seeds
    if agreed and not sampled and is_at_most(p_adjusted, alpha / STRICTER):
        return Confidence.HIGH
    return Confidence.MODERATE
