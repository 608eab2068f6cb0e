"""The pictures of the core pages: their numbers are the record's, and what is not in the record is not drawn."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from lxml import html as lxml_html
from matplotlib.figure import Figure
from PIL import Image

from audit.data.synthetic.shapes import sample_shapes
from audit.records import Audit
from audit.report import formats
from audit.report.core import is_open
from audit.report.drawn.base import Picture, for_both, plain_axes
from audit.report.drawn.controls import controls_picture
from audit.report.drawn.errors import errors_picture
from audit.report.drawn.network import network_picture
from audit.report.drawn.power import power_picture
from audit.report.drawn.seeds import seeds_picture
from audit.report.drawn.training import training_picture
from audit.report.html import render_html
from audit.report.page import Page

from .examples import changed, examples

pytestmark = pytest.mark.unit


def page_of(audit: Audit) -> Page:
    return Page(audit, "0" * 64)


def drawn(picture: Picture | None) -> Picture:
    assert picture is not None
    return picture


def svg(address: str) -> str:
    return base64.b64decode(address.partition(",")[2]).decode()


def without(audit: Audit, rows: str, **update: object) -> Audit:
    """Return a record whose rows of one kind have other values."""
    return changed(audit, **{rows: [row.model_dump() | update for row in getattr(audit, rows)]})


def test_errors_are_told_with_their_numerators_and_the_zone_of_the_policy() -> None:
    audit = examples()["disparity"]
    rows = [r for r in audit.rates if (r.attribute, r.outcome) == ("gender", "happiness") and r.group != "unknown"]
    alt = drawn(page_of(audit).errors_picture("gender", "happiness")).alt
    missed, alarms = alt.split("False alarms")
    for row in rows:
        assert f"{formats.rate(row.false_negative_rate)}, {row.false_negatives} of {row.positives}" in missed
        assert f"{formats.rate(row.false_positive_rate)}, {row.false_positives} of {row.negatives}" in alarms
    reference = next(r for r in rows if r.is_reference)
    assert f"{reference.group} (reference)" in missed
    centre, gap = reference.false_positive_rate.value or 0.0, audit.method.thresholds["policy.gap_above"]
    allowed = f"{formats.percent(max(0.0, centre - gap))} to {formats.percent(centre + gap)}"
    assert f"The policy allows {allowed}" in alarms


def test_errors_that_cannot_be_estimated_are_not_drawn() -> None:
    audit = without(
        examples()["disparity"], "rates", false_negative_rate={"value": None}, false_positive_rate={"value": None}
    )
    assert page_of(audit).errors_picture("gender", "happiness") is None
    assert page_of(examples()["disparity"]).errors_picture("no such attribute", "happiness") is None


def test_an_invalid_audit_says_nothing_of_the_policy() -> None:
    assert "policy" not in drawn(page_of(examples()["invalid"]).errors_picture("gender", "happiness")).alt


def test_training_images_are_counted_by_group_and_label() -> None:
    audit = examples()["disparity"]
    alt = drawn(page_of(audit).training_picture("gender")).alt
    rows = [r for r in audit.data.counts if (r.attribute, r.split) == ("gender", "train")]
    for group in {r.group for r in rows}:
        own = [r for r in rows if r.group == group]
        of = sum(r.images for r in own)
        told = ", ".join(f"{r.images} {r.label} ({formats.percent(r.images / of, 0)})" for r in own)
        assert f"{group}: {told}." in alt


def test_a_model_that_was_not_trained_here_has_no_picture_of_its_training() -> None:
    audit = examples()["disparity"]
    counts = [r.model_dump() for r in audit.data.counts if r.split != "train"]
    assert page_of(changed(audit, data=audit.data.model_dump() | {"counts": counts})).training_picture("gender") is None


def test_detectable_gaps_are_told_cell_by_cell_and_the_undecided_ones_marked() -> None:
    audit = examples()["disparity"]
    alt = drawn(page_of(audit).power_picture()).alt
    assert f"the policy allows {formats.size(audit.method.thresholds['policy.gap_above'], 0)}" in alt
    for row in audit.contrasts:
        seen = "no gap, however large" if row.smallest_detectable is None else formats.size(row.smallest_detectable)
        assert seen in alt
    assert alt.count("(undecided)") == sum(row.state in ("too little data", "not estimable") for row in audit.contrasts)


@pytest.mark.parametrize(
    ("state", "detectable", "expected"),
    [
        ("disparity", 0.3, False),
        ("no disparity detected", 0.05, False),
        ("no disparity detected", 0.3, True),
        ("no disparity detected", None, True),
        ("too little data", 0.05, True),
        ("not estimable", None, True),
    ],
)
def test_a_cell_is_undecided_where_neither_a_gap_nor_its_absence_is_shown(
    state: str, detectable: float | None, expected: bool
) -> None:
    row = examples()["disparity"].contrasts[0]
    found = row.model_copy(update={"state": state, "smallest_detectable": detectable})
    assert is_open(found, 0.1) == expected


def test_gaps_of_other_seeds_stand_beside_the_audited_models() -> None:
    audit = without(examples()["disparity"], "contrasts", by_seed=[0.0572, 0.0311, -0.0123])
    row = next(r for r in audit.contrasts if r.metric == "standardised_gap")
    alt = drawn(page_of(audit).seeds_picture(row.attribute, row.outcome)).alt
    assert f"{formats.difference(row.estimate)}, other seeds +3.1, −1.2" in alt


def test_without_a_second_seed_or_a_valid_audit_nothing_is_said_of_seeds_and_power() -> None:
    one = page_of(without(examples()["disparity"], "contrasts", by_seed=[0.0572]))
    assert one.seeds_picture("gender", "happiness") is None
    invalid = page_of(examples()["invalid"])
    assert invalid.seeds_picture("gender", "happiness") is None
    assert invalid.power_picture() is None
    assert page_of(changed(examples()["disparity"], contrasts=[])).power_picture() is None


def test_controls_are_shares_of_the_effect_that_they_are_compared_with() -> None:
    audit = examples()["invalid"]
    alt = drawn(page_of(audit).controls_picture()).alt
    by_id = {c.id: c for c in audit.controls.controls}
    whole, head = by_id["colour_gap"].estimate.value, by_id["colour_head"].estimate.value
    assert whole and head
    assert f"one head alone {formats.percent(head / whole)}" in alt
    null = by_id["colour_null_other_seed"]  # half of the effect minus it
    share = 0.5 - (null.estimate.value or 0.0) / null.figures["effect"]
    assert not null.passed
    assert f"another seed {formats.percent(share)}" in alt
    assert alt.count("failed") == sum(not c.passed for c in audit.controls.controls)
    identities = [c for c in audit.controls.controls if c.kind == "identity"]
    assert f"patching is exact: {len(identities)} of {len(identities)} passed" in alt


def test_a_control_without_an_effect_to_compare_with_says_so() -> None:
    audit = examples()["disparity"]
    rows = [c.model_dump() | ({"estimate": {"value": -0.1}, "passed": False} if c.check == "gap" else {})
            for c in audit.controls.controls]  # fmt: skip
    alt = drawn(
        page_of(changed(audit, controls=audit.controls.model_dump() | {"controls": rows})).controls_picture()
    ).alt
    assert alt.count("the whole effect n/a, failed") == 2


@pytest.mark.parametrize(("kept", "told"), [("identity", "6 of 6 passed"), ("effect", "the whole effect"), ("", None)])
def test_controls_of_one_kind_alone_can_be_drawn(kept: str, told: str | None) -> None:
    held = examples()["disparity"].controls
    rows = [c.model_dump() for c in held.controls if c.kind == kept]
    picture = page_of(
        changed(examples()["disparity"], controls=held.model_dump() | {"controls": rows})
    ).controls_picture()
    assert (picture is None) if told is None else told in drawn(picture).alt


def rendered_controls(**update: object) -> Page:
    """Return the pages of an audit whose control images were rendered: 128 of them, 64 to judge on."""
    held = examples()["disparity"].controls.model_dump()
    setup = held["setup"] | {"evaluate": 64, "rendered": 128, "seed": 3} | update
    return page_of(changed(examples()["disparity"], controls=held | {"setup": setup}))


def pixels_of(picture: Picture) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.light.partition(",")[2]))))


def test_control_images_are_those_that_were_evaluated_beside_what_is_taken_away() -> None:
    clean, gray, sharp, blurred = rendered_controls().control_examples()
    frame, pixels = sample_shapes(128, 3)
    assert np.array_equal(pixels_of(clean)[::2, ::2], pixels[64])
    assert np.array_equal(pixels_of(sharp)[::2, ::2], pixels[65])
    assert (pixels_of(gray)[..., 0] == pixels_of(gray)[..., 2]).all()
    assert pixels_of(blurred).std() < pixels_of(sharp).std()
    told = [f"A rendered {r['shape']} with a {r['texture']} pattern, {r['hue']}" for _, r in frame[64:66].iterrows()]
    assert [clean.alt, gray.alt] == [f"{told[0]}.", f"{told[0]}, in gray."]
    assert [sharp.alt, blurred.alt] == [f"{told[1]}.", f"{told[1]}, blurred."]


def test_without_a_seed_no_control_image_is_drawn() -> None:
    assert rendered_controls(seed=None, rendered=None).control_examples() == []
    assert page_of(examples()["disparity"]).control_examples() == []


def test_where_a_head_looks_is_lit_over_the_rendered_image_and_told() -> None:
    weights = [[0.0, 0.0, 0.0, 0.1], [0.0] * 4, [0.0] * 4, [0.4, 0.0, 0.0, 0.0]]
    look = {"channel": "colour", "image": 0, "name": "L2H1", "weights": weights}
    held = examples()["disparity"].controls.model_dump() | {"looks": [look]}
    setup = held["setup"] | {"evaluate": 64, "rendered": 128, "seed": 3}
    page = page_of(changed(examples()["disparity"], controls=held | {"setup": setup}))
    clean, gray, lit, *others = page.control_examples()
    assert len(others) == 2  # of blur there is no look
    before, after = (pixels_of(p).astype(float) for p in (clean, lit))
    quarter = len(before) // 4
    assert np.array_equal(after[3 * quarter :, :quarter], before[3 * quarter :, :quarter])
    dark = before[:quarter, :quarter] * 0.15
    np.testing.assert_allclose(after[:quarter, :quarter], dark, atol=0.5001)
    assert np.array_equal(pixels_of(gray), pixels_of(rendered_controls().control_examples()[1]))
    assert "on the bottom left, 40% of its attention" in lit.alt
    told = lxml_html.document_fromstring(render_html(page.audit, "0" * 64)).get_element_by_id("trust").text_content()
    assert "beside where a head that carries it looks" in told
    assert "where head L2H1 looks" in told


PICTURES: dict[str, Callable[[Page], Picture | None]] = {
    "controls": lambda page: page.controls_picture(),
    "errors": lambda page: page.errors_picture(*page.rate_blocks()[0]),
    "network": lambda page: page.network_picture(*page.gap_blocks()[0], "The network"),
    "power": lambda page: page.power_picture(),
    "seeds": lambda page: page.seeds_picture(*page.rate_blocks()[0]),
    "training": lambda page: page.training_picture(page.audit.data.attributes[0].attribute),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_have_the_same_bytes_each_time_and_other_colours_on_dark_pages(name: str) -> None:
    audit = examples()["disparity"]
    first = drawn(PICTURES[name](page_of(audit)))
    for drawer in (controls_picture, errors_picture, network_picture, power_picture, seeds_picture, training_picture):
        drawer.cache_clear()
    again = drawn(PICTURES[name](page_of(audit)))
    assert (first.light, first.dark, first.alt) == (again.light, again.dark, again.alt)
    assert first.narrow is not None and first.narrow.width < 360
    assert "#1c2733" in svg(first.light)
    assert not {"#1c2733", "#ffffff"} & set(
        re.findall("#[0-9a-f]{6}", svg(first.dark))
    )  # ink and paper of a light page


def test_a_picture_is_drawn_for_narrow_screens_only_where_it_is_asked_for() -> None:
    drawn: list[bool] = []

    def draw(is_narrow: bool) -> Figure:
        drawn.append(is_narrow)
        return plain_axes(1 if is_narrow else 2, 1)[0]

    picture = for_both(draw, "title", "alt")
    assert drawn == [False]
    assert [picture.narrow and picture.narrow.width for _ in range(2)] == [96, 96]
    assert drawn == [False, True]


@pytest.mark.parametrize("name", PICTURES)
def test_names_from_the_data_harm_no_picture(name: str) -> None:
    assert "\u202e" not in drawn(PICTURES[name](page_of(examples()["hostile"]))).alt
