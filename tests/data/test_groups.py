"""Groups assigned at random: counts stay, ties to the image go, and the record says so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.card.schema import GroupSpec
from audit.data.groups import attribute_info, permute_attributes, permute_groups
from audit.data.samples import Samples
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.errors import DataError
from audit.records import AttributeInfo, DataWarningCode
from audit.report.text import attribute_note

pytestmark = pytest.mark.unit


@given(st.integers(0, 1000), st.booleans())
def test_groups_are_permuted_over_people_of_one_group_and_within_people_of_several(seed: int, within: bool) -> None:
    rng = np.random.default_rng(seed)
    subjects = np.sort(rng.integers(0, 8, 30))
    groups = rng.integers(0, 3, 30) if within else rng.integers(0, 3, 8)[subjects]
    assigned = permute_groups(groups, subjects, rng)
    before, after = ([], [])
    for s in set(subjects):
        own, new = groups[subjects == s], assigned[subjects == s]
        assert len(set(zip(own, new, strict=True))) == len(set(own)) == len(set(new))  # a renaming
        if len(set(own)) == 1:
            before.append(own[0])
            after.append(new[0])
        else:
            assert set(own) == set(new)
    assert sorted(before) == sorted(after)


def test_an_error_of_a_group_that_no_image_has_is_refused() -> None:
    column = pd.Series(["female", "male", "female"])
    assert attribute_info("gender", GroupSpec(column="g", error={"male": 0.1}), column, column).reference == "female"
    with pytest.raises(DataError, match=r"groups.gender.error: no image has the group 'mal'; did you mean 'male'"):
        attribute_info("gender", GroupSpec(column="g", error={"mal": 0.1}), column, column)


def test_every_permutation_comes_up() -> None:
    subjects, groups = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 0, 1])
    rng = np.random.default_rng(0)
    seen = {tuple(permute_groups(groups, subjects, rng)) for _ in range(200)}
    assert seen == {(*a, *b) for a in ((0, 0, 1), (1, 1, 0)) for b in ((0, 1), (1, 0))}


def samples() -> Samples:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(300), 2)
    frame = pd.DataFrame(
        {
            "image": [f"i{k:03d}" for k in range(600)],
            "label": np.repeat(rng.choice(["neutral", "happy"], 300), 2),
            "subject": [f"p{k}" for k in person],
            "split": np.repeat(rng.choice(["train", "discovery", "confirmation"], 300), 2),
        }
    )
    frame["gender"] = np.where(np.repeat(rng.random(300), 2) < 0.4 + 0.3 * (frame["label"] == "happy"), "woman", "man")
    frame["age"] = np.repeat(rng.choice(["old", "young"], 300), 2)
    about = {"assigned_by": "x", "reference": "man", "groups": [], "unknown_images": 0}
    info = {n: AttributeInfo.model_validate({"attribute": n, **about}) for n in ("gender", "age")}
    return Samples(frame, SyntheticSource(sample_faces(8, 0, split="train")), ("neutral", "happy"), info)


def test_permuted_groups_keep_their_counts_and_their_people() -> None:
    before = samples()
    specs = {"gender": GroupSpec(column="gender", permuted=3), "age": GroupSpec(column="age")}
    after = permute_attributes(before, specs)
    cells = ["split", "label", "gender"]
    counts = [s.frame.value_counts(cells).sort_index() for s in (before, after)]
    pd.testing.assert_series_equal(*counts)
    assert (after.frame.groupby("subject")["gender"].nunique() == 1).all()
    assert (after.frame["gender"] == before.frame["gender"]).mean() < 0.7
    pd.testing.assert_frame_equal(after.frame.drop(columns="gender"), before.frame.drop(columns="gender"))
    assert {name: info.permuted for name, info in after.attributes.items()} == {"gender": 3, "age": None}
    assert "NULL RUN" in attribute_note(after.attributes["gender"])
    assert attribute_note(after.attributes["age"]) == ""
    assert [warning.code for warning in after.warnings] == [DataWarningCode.NULL_RUN]
    again = permute_attributes(before, specs)
    pd.testing.assert_frame_equal(after.frame, again.frame)
    other = permute_attributes(before, {"gender": GroupSpec(column="gender", permuted=4)})
    assert (other.frame["gender"] != after.frame["gender"]).any()


def test_groups_stay_where_the_card_asks_for_nothing() -> None:
    before = samples()
    after = permute_attributes(before, {"gender": GroupSpec(column="gender")})
    pd.testing.assert_frame_equal(after.frame, before.frame)
    assert not after.warnings
