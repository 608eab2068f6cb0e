"""Names of labels and groups: merged on request only, numbers in bins, groups without an image, unknown ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.card import load_card
from audit.data import Samples, describe_data
from audit.data.names import alike, bin_names, binned
from audit.errors import CardError, DataError
from audit.records import DataWarning, DataWarningCode, Shortfall
from audit.report.text import attribute_note, left_out_sentence, warning_sentence
from tests.data.faces import card_of, face_table, read, write_faces, write_images

pytestmark = pytest.mark.unit


def faces(folder: Path, *, gender: list[str | None] | None = None, **changes: object) -> Samples:
    """Read faces whose genders repeat a list; ``changes`` go into the attribute."""
    frame = face_table()
    if gender is not None:
        frame["gender"] = [gender[k // 2 % len(gender)] for k in range(len(frame))]
    write_faces(folder, frame)
    return read(folder, card_of(folder, groups={"gender": {"column": "gender", **changes}}))


def coded(samples: Samples, code: DataWarningCode) -> list[DataWarning]:
    return [warning for warning in samples.warnings if warning.code is code]


def counts(samples: Samples, column: str = "gender") -> dict[str, int]:
    return {str(name): int(n) for name, n in samples.frame[column].value_counts().items()}


# Composed and decomposed, full width, sharp s, an invisible sign, a blank that does not break.
PAIRS = [
    ("Male ", "male"), ("MALE", "male"), ("née", "ne\u0301e"), ("male", "\uff4d\uff41\uff4c\uff45"),
    ("straße", "STRASSE"), ("male\u200b", "male"), ("East Asian", "east\u00a0asian"), ("\ufeffmale", "male"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_names_that_are_alike_are_found(one: str, other: str) -> None:
    assert alike([one, other, "female"]) == [sorted([one, other])]
    assert alike([one]) == []


def test_near_duplicates_are_pointed_out_and_stay_apart(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["Male ", "male", "Male", "female"])
    assert counts(samples) == {"Male ": 12, "male": 12, "Male": 12, "female": 12}
    (warning,) = coded(samples, DataWarningCode.SIMILAR_NAMES)
    assert warning_sentence(warning) == (
        "gender: 'Male', 'Male ', 'male' differ in case or blanks only and count as 3; give them one spelling, or set "
        "groups.gender.merge: true"
    )


def test_near_duplicates_merge_on_request(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["Male ", "male", "female", "male"], merge=True)
    assert counts(samples) == {"male": 36, "female": 12}
    assert not coded(samples, DataWarningCode.SIMILAR_NAMES)
    (warning,) = coded(samples, DataWarningCode.NAMES_MERGED)
    said = "gender: 'Male' merged into 'male', as groups.gender.merge asks (12 images)"
    assert warning_sentence(warning) == said


def test_the_cards_own_spelling_wins(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["male", "male", "female"], merge=True, values=["Male", "Female"])
    assert counts(samples) == {"Male": 32, "Female": 16}
    assert samples.attributes["gender"].unknown_images == 0


def test_names_merge_as_a_mapping_says(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["m", "f", "man", "woman"], merge={"man": "m", "woman": "f"})
    assert counts(samples) == {"m": 24, "f": 24}
    with pytest.raises(DataError, match=r"groups\.gender\.merge: no image has 'mann'; did you mean 'man'"):
        faces(tmp_path, gender=["m", "f", "man", "woman"], merge={"mann": "m"})


def test_a_spelling_that_the_card_does_not_keep_is_pointed_out(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["male", "Male", "female", "other", "Other"], values=["male", "female"])
    (warning,) = coded(samples, DataWarningCode.SIMILAR_NAMES)  # "other" is left out in both its spellings
    assert warning.names == ["Male", "male"]


def test_labels_are_pointed_out_and_merged_alike(tmp_path: Path) -> None:
    frame = face_table()
    frame.loc[:7, "expression"] = ["Neutral", "happiness"] * 4
    write_faces(tmp_path, frame)
    apart = read(tmp_path, card_of(tmp_path))
    (warning,) = coded(apart, DataWarningCode.SIMILAR_NAMES)
    assert (warning.of, warning.names) == ("label", ["Neutral", "neutral"])
    assert warning_sentence(warning).endswith("or set data.merge_labels: true")
    assert [left_out_sentence(row) for row in apart.excluded] == ["label 'Neutral' is not in data.labels"]
    merged = read(tmp_path, card_of(tmp_path, merge_labels=True))
    assert counts(merged, "label") == {"neutral": 24, "happiness": 24}
    assert not merged.excluded
    mapped = read(tmp_path, card_of(tmp_path, merge_labels={"Neutral": "neutral"}))
    assert mapped.fingerprint == merged.fingerprint


def test_repeats_that_merging_makes_equal_are_one_row(tmp_path: Path) -> None:
    frame = face_table()
    write_faces(tmp_path, pd.concat([frame, frame.head(2).assign(gender="Male")]))
    card = card_of(tmp_path, groups={"gender": {"column": "gender", "merge": True}})
    assert len(read(tmp_path, card).frame) == 48


BINS = {
    "whole": ([18.0, 30.0, 45.0, 60.0], True, ["under 18", "18 to 29", "30 to 44", "45 to 59", "60 and over"]),
    "decimals": ([18.0, 30.0], False, ["under 18", "18 to under 30", "30 and over"]),
    "one edge": ([40.0], True, ["under 40", "40 and over"]),
    "a single number": ([0.0, 1.0, 3.0], True, ["under 0", "0", "1 to 2", "3 and over"]),
    "fractions": ([0.5, 1.25], False, ["under 0.5", "0.5 to under 1.25", "1.25 and over"]),
    "large": ([1e6, 2.5e6], True, ["under 1000000", "1000000 to 2499999", "2500000 and over"]),
}


@pytest.mark.parametrize(("edges", "whole", "names"), BINS.values(), ids=list(BINS))
def test_bins_are_named_for_what_they_hold(edges: list[float], whole: bool, names: list[str]) -> None:
    assert bin_names(edges, whole=whole) == names


@given(st.lists(st.integers(-50, 150), min_size=1, max_size=5, unique=True), st.integers(-60, 160), st.booleans())
def test_each_number_is_in_the_bin_whose_name_says_so(edges: list[int], number: int, decimal: bool) -> None:
    edges = sorted(edges)
    text = f"{number},5" if decimal else str(number)
    value = number + (0.5 if number >= 0 or not decimal else -0.5) * decimal
    groups, names = binned(pd.Series([text]), [float(edge) for edge in edges], "x")
    assert groups == {text: names[int(np.searchsorted(edges, value, side="right"))]}


AGES: list[str | None] = ["17", "18", "29", "30", "44.0", "45", "60", "101"]


def test_numbers_become_groups(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=AGES, bins=[18, 30, 45, 60])
    assert samples.attributes["gender"].groups == ["under 18", "18 to 29", "30 to 44", "45 to 59", "60 and over"]
    assert counts(samples) == {"under 18": 6, "18 to 29": 12, "30 to 44": 12, "45 to 59": 6, "60 and over": 12}
    assert samples.attributes["gender"].reference == "18 to 29"
    assert not coded(samples, DataWarningCode.MANY_NUMBERS)


def test_decimal_commas_are_numbers(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["3,5", "4", "4,25", " 5,0"], bins=[4], reference="under 4")
    assert counts(samples) == {"4 and over": 36, "under 4": 12}
    samples = faces(tmp_path, gender=["3,5", "4", "4,25", "5,0"], bins=[4, 5])
    assert samples.attributes["gender"].groups == ["under 4", "4 to under 5", "5 and over"]


def test_a_comma_that_may_be_either_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"groups\.gender\.bins: '1,250' may be 1250 or 1\.250; write decimals with a"):
        faces(tmp_path, gender=["1,250", "2,500", "900"], bins=[1000])
    assert counts(faces(tmp_path, gender=["0,125", "0,250"], bins=[0.2])) == {"under 0.2": 24, "0.2 and over": 24}


def test_what_is_no_number_is_unknown_and_named(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["17", "3o", "40", None], bins=[18])
    info = samples.attributes["gender"]
    assert counts(samples) == {"under 18": 12, "unknown": 24, "18 and over": 12}
    assert info.unknown_images == 24
    assert attribute_note(info) == "12 images with other values count as unknown: 3o (12)."
    with pytest.raises(DataError) as caught:
        faces(tmp_path, gender=["17", "3o", "40"], bins=[18], missing="error")
    assert str(caught.value) == (
        "groups.gender (column 'gender'): 16 images have no group: row 4, 'images/01-happiness.png', has '3o'; "
        "fill it in, or change 'missing'"
    )


def test_many_numbers_point_to_bins(tmp_path: Path) -> None:
    ages: list[str | None] = [str(age) for age in range(20, 32)]
    assert not coded(faces(tmp_path, gender=ages), DataWarningCode.MANY_NUMBERS)
    (warning,) = coded(faces(tmp_path, gender=[*ages, "18,5", "unknown"]), DataWarningCode.MANY_NUMBERS)
    assert warning_sentence(warning) == (
        "gender: 13 groups are numbers, from 18.5 to 31, each a group of its own; put them together with "
        "groups.gender.bins"
    )


BAD_BINS = {
    "falling": ("bins: [30, 18]", "groups.g.bins: the edges do not rise; write each once, from low to high"),
    "twice": ("bins: [18, 18]", "groups.g.bins: the edges do not rise; write each once, from low to high"),
    "none": ("bins: []", "groups.g.bins: too few entries (0); give at least 1"),
    "infinite": ("bins: [.inf]", "groups.g.bins[0]: expected a finite number"),
    "text": ("bins: [young]", "groups.g.bins[0]: expected a number, got 'young'"),
    "values, too": ("bins: [18], values: [a, b]", "groups.g.values: bins make the groups; leave values out"),
    "missing": ("missing: exclud", "groups.g.missing: 'exclud' is not one of own_group, exclude, error; did you mean"),
    "merge": ("merge: [a]", "groups.g.merge: expected true or false or a mapping (key: value), got a list"),
}


@pytest.mark.parametrize(("field", "said"), BAD_BINS.values(), ids=list(BAD_BINS))
def test_each_bad_field_is_one_line(tmp_path: Path, field: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(f"data: {{path: t.csv}}\ngroups: {{g: {{column: g, {field}}}}}\n")
    with pytest.raises(CardError) as caught:
        load_card(tmp_path / "c.yaml")
    assert said in caught.value.faults[0]


def test_rendered_faces_have_no_bins(tmp_path: Path) -> None:
    text = (
        "data: {reader: synthetic}\ngroups: {skin_tone: {column: skin_tone, bins: [1], merge: true, missing: error}}\n"
    )
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(CardError, match="rendered faces have the groups that they are rendered with") as caught:
        load_card(tmp_path / "c.yaml")
    assert len(caught.value.faults) == 3


def test_a_group_without_an_image_is_a_row_and_a_warning(tmp_path: Path) -> None:
    samples = faces(tmp_path, values=["male", "female", "non-binary"])
    assert samples.attributes["gender"].groups == ["male", "female", "non-binary"]
    (warning,) = coded(samples, DataWarningCode.EMPTY_GROUPS)
    assert (warning.names, warning.total) == (["non-binary"], 3)
    assert "gender: no image of non-binary, which the card names: nothing is known of it" in warning_sentence(warning)
    report = describe_data(samples, card_of(tmp_path))
    assert {row.images for row in report.counts if row.group == "non-binary"} == {0}
    assert [limit.subjects_group for limit in report.limits if limit.group == "non-binary"] == [0]


def test_a_bin_without_an_image_is_one_too(tmp_path: Path) -> None:
    samples = faces(tmp_path, gender=["20", "50"], bins=[18, 45])
    (warning,) = coded(samples, DataWarningCode.EMPTY_GROUPS)
    assert warning.names == ["under 18"]


ONE_LEFT: dict[str, tuple[list[str | None], dict[str, Any], str, list[str]]] = {
    "values": (["male"], {"values": ["male", "female"]}, "male", ["female"]),
    "reference": (["female", "nb"], {"values": ["male", "female", "nb"], "reference": "male"}, "male", ["male"]),
    "both": (["female"], {"values": ["male", "female"], "reference": "male"}, "male", ["male"]),
    "bins": (["20", "30"], {"bins": [18, 45]}, "18 to 44", ["under 18", "45 and over"]),
}


@pytest.mark.parametrize("case", ONE_LEFT)
def test_groups_that_are_declared_stay_where_one_is_left(case: str, tmp_path: Path) -> None:
    gender, fields, reference, absent = ONE_LEFT[case]
    samples = faces(tmp_path, gender=gender, **fields)
    (warning,) = coded(samples, DataWarningCode.EMPTY_GROUPS)
    assert warning.names == absent
    assert samples.attributes["gender"].reference == reference
    report = describe_data(samples, card_of(tmp_path))
    assert {row.group for row in report.counts if not row.images} >= set(absent)
    short = {limit.shortfall for limit in report.limits if {limit.group, limit.reference} & set(absent)}
    assert short == {Shortfall.SUBJECTS}


def test_a_misspelt_group_and_a_reference_of_no_group_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image has the group 'femal'; did you mean 'female'\?"):
        faces(tmp_path, values=["male", "femal"])
    with pytest.raises(DataError, match=r"no image has the reference 'nb'"):
        faces(tmp_path, reference="nb")


def test_images_without_a_group_are_left_out_on_request(tmp_path: Path) -> None:
    own = faces(tmp_path, gender=["male", "female", None])
    assert (counts(own)["unknown"], own.excluded) == (16, ())
    without = faces(tmp_path, gender=["male", "female", None], missing="exclude")
    assert counts(without) == {"male": 16, "female": 16}
    (row,) = without.excluded
    assert (row.images, row.by_group) == (16, {"gender": {"unknown": 16}})
    assert left_out_sentence(row) == "group of gender unknown (groups.gender.missing: exclude)"
    assert without.attributes["gender"].unknown_images == 0
    assert not coded(without, DataWarningCode.UNEVEN_LOSS)
    with pytest.raises(DataError, match=r"16 images have no group: row 6, 'images/02-happiness\.png', has nothing"):
        faces(tmp_path, gender=["male", "female", None], missing="error")
    whole = faces(tmp_path, missing="error")
    assert len(whole.frame) == 48


def test_a_value_called_unknown_counts_as_missing_and_is_pointed_out(tmp_path: Path) -> None:
    both = faces(tmp_path, gender=["male", "female", None, "unknown"])
    assert counts(both) == {"male": 12, "female": 12, "unknown": 24}
    (warning,) = coded(both, DataWarningCode.CALLED_UNKNOWN)
    assert (warning.of, warning.images, warning.total) == ("gender", 12, 24)
    assert warning_sentence(warning) == (
        "gender: 12 images with the value 'unknown', which is this tool's word for a missing one: they count as images "
        "without a value, as 12 with none do; give it another name where it means something else"
    )
    assert not coded(faces(tmp_path, gender=["male", "female", None]), DataWarningCode.CALLED_UNKNOWN)
    assert not coded(faces(tmp_path, gender=["male", "female", "Unknown"]), DataWarningCode.CALLED_UNKNOWN)
    kept = faces(tmp_path, gender=["male", "female", "unknown"], values=["male", "female"])  # as was asked for
    assert not coded(kept, DataWarningCode.CALLED_UNKNOWN)


def test_a_category_called_unknown_is_pointed_out_too(tmp_path: Path) -> None:
    frame = face_table()
    frame["source"] = [[None, "unknown", "a", "b"][k % 4] for k in range(len(frame))]
    write_faces(tmp_path, frame)
    samples = read(tmp_path, card_of(tmp_path))
    assert counts(samples, "source") == {"unknown": 24, "a": 12, "b": 12}
    (warning,) = coded(samples, DataWarningCode.CALLED_UNKNOWN)
    assert (warning.of, warning.images, warning.total) == ("source", 12, 24)


def test_a_file_that_is_not_read_counts_in_its_bin(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = [f"{label}/{k}.png" for label in ("happiness", "neutral") for k in range(20)]
    write_images(root, names)
    (root / "neutral/0.png").rename(root / "neutral/0.heic")
    names[20] = "neutral/0.heic"
    table = pd.DataFrame({"image": names, "age": ["Old" if k == 20 else str(20 + k) for k in range(40)]})
    table.loc[20, "age"] = "17"  # the only one under 18
    table.to_csv(root / "groups.csv", index=False)
    groups = {"age": {"column": "age", "bins": [18, 40]}}
    card = card_of(tmp_path, drop=("subject", "label"), reader="folder", path="set", match_on=[], groups=groups)
    samples = read(tmp_path, card)
    assert samples.excluded[0].by_group == {"age": {"under 18": 1}}
    assert samples.attributes["age"].groups == ["under 18", "18 to 39", "40 and over"]
