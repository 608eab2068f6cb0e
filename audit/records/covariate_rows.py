"""Records of covariates, and of gaps before and after groups are made alike in them."""

from __future__ import annotations

from audit.records.base import Estimate, Record, Shortfall


class CovariateInfo(Record):
    """A column of numbers that donors are matched on and gaps are adjusted for."""

    column: str
    caliper: float  # how far apart a recipient and its donors may be
    images: int  # with a number
    missing: int  # images without one: in the gaps before, in no adjusted gap, and in no pair of donors
    lowest: float | None
    highest: float | None


class AdjustedRow(Record):
    """One group against its reference before and after both have the same covariates."""

    attribute: str
    group: str
    reference: str
    outcome: str
    label: str  # the gap among images of this label; "" for all labels at their common shares
    covariates: list[str]
    no_room: list[str] = []  # of these, those for which a label has too few subjects: there it is not adjusted for them
    n_group: int  # images with every covariate
    n_reference: int
    without_covariate: int  # images of both groups that lack one, and are left out here
    without_counterpart: (
        int  # images that are like no image of the other group with the same label, within the calipers
    )
    mean_group: dict[str, float]  # of each covariate
    mean_reference: dict[str, float]
    before: Estimate  # group minus reference, of the images with every covariate
    after: Estimate  # the same with both groups' covariates alike
    part: Estimate  # before minus after: what goes with the covariates; may have the other sign
    shortfall: Shortfall | None = None  # why there is no estimate
    fewest_subjects: int | None = None  # in the smaller group, where it has too few
    subjects_needed: int | None = None
