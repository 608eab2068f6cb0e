"""Columns of numbers that donors are matched on: read, counted, kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audit.data.covariates import Covariates, covariate_column, numbers
from audit.data.summary import describe_data
from audit.errors import DataError
from audit.records import DataWarningCode
from audit.report.text import warning_sentence
from tests.data.faces import card_of, face_table, read, write_faces

pytestmark = pytest.mark.unit


def test_numbers_are_read_as_those_of_bins_are() -> None:
    column, warnings = covariate_column(pd.Series(["27", "27,5", " 1e1", "-3.0", None]), "age")
    assert column.tolist() == ["27", "27.5", "10", "-3", "unknown"]
    assert warnings == []
    assert numbers(pd.DataFrame({"age": column}), ["age"])[:4, 0].tolist() == [27, 27.5, 10, -3]


def test_what_is_no_number_is_counted_and_told() -> None:
    column, (warning,) = covariate_column(pd.Series(["27", "thirty", "thirty", "1e999", "inf", "nan"]), "age")
    assert column.tolist() == ["27", *["unknown"] * 5]
    assert (warning.code, warning.of, warning.images) == (DataWarningCode.NO_NUMBER, "age", 5)
    assert "'" not in warning_sentence(warning)
    assert "thirty" in warning_sentence(warning)


def test_a_column_without_a_number_and_commas_that_may_be_either_are_refused() -> None:
    with pytest.raises(DataError, match=r"match_on \(column 'age'\): .*; the column holds old, young"):
        covariate_column(pd.Series(["young", "old", None]), "age")
    with pytest.raises(DataError, match="no image has a number; name a column"):
        covariate_column(pd.Series([None, None], dtype=object), "age")
    with pytest.raises(DataError, match=r"'1,250' may be 1250 or 1\.250"):
        covariate_column(pd.Series(["1,250"]), "age")


def test_samples_keep_the_number_and_count_what_lacks_one(tmp_path: Path) -> None:
    ages = [str(20 + i) for i in range(46)] + ["", "?"]
    write_faces(tmp_path, face_table().assign(age=ages))
    card = card_of(tmp_path, match_on=["source", {"age": {"caliper": 5}}])
    samples = read(tmp_path, card)
    assert (samples.nuisance, samples.calipers) == (("source",), {"age": 5.0})
    assert sorted(samples.frame["age"])[-2:] == ["unknown"] * 2
    assert {"source", "age"} <= set(samples.frame)
    report = describe_data(samples, card)
    (info,) = report.covariates
    assert (info.images, info.missing, info.lowest, info.highest) == (46, 2, 20.0, 65.0)
    assert {row.column for row in report.label_shares} == {"source"}
    said = [w for w in report.warnings if w.of == "age"]
    assert [(w.code, w.images) for w in said] == [
        (DataWarningCode.NO_NUMBER, 1), (DataWarningCode.COVARIATE_MISSING, 2),
    ]  # fmt: skip
    assert "2 of 48 images have no number" in warning_sentence(said[1])


def test_a_column_of_numbers_by_name_alone_holds_categories(tmp_path: Path) -> None:
    write_faces(tmp_path, face_table().assign(age=[20 + i % 3 for i in range(48)]))
    samples = read(tmp_path, card_of(tmp_path, match_on=["age"]))
    assert (samples.nuisance, samples.calipers) == (("age",), {})


def test_a_covariate_that_is_no_column_is_named(tmp_path: Path) -> None:
    write_faces(tmp_path, face_table().assign(age=30))
    with pytest.raises(DataError, match=r"no column 'agge' \(match_on\).*did you mean 'age'"):
        read(tmp_path, card_of(tmp_path, match_on=[{"agge": {"caliper": 5}}]))


def test_of_a_category_every_value_but_the_most_common_is_a_term() -> None:
    stages = ["adult"] * 5 + ["child"] * 2 + ["mixed"]
    frame = pd.DataFrame({"stage": stages, "years": [str(20 + i) for i in range(8)], "who": list("abcdefgh")})
    found = Covariates.of(frame.assign(same="x"), {"years": 5.0}, ["stage", "same"])
    terms = [("years", None), ("stage", "child"), ("stage", "mixed")]
    assert [(term.column, term.value) for term in found.terms] == terms
    assert found.columns == ["years", "stage"]
    values = found.values(frame)
    assert values[:, 0].tolist() == [(20 + i) / 5 for i in range(8)]
    assert values[:, 1].tolist() == [0, 0, 0, 0, 0, 2, 2, 0]
    unknown = found.values(frame.assign(stage=["unknown", *stages[1:]]))
    assert np.isnan(unknown[0, 1:]).all() and not np.isnan(unknown[1:]).any()


def test_a_category_of_many_values_is_left_out() -> None:
    frame = pd.DataFrame({"who": [f"annotator {i % 13}" for i in range(39)]})
    assert Covariates.of(frame, {}, ["who"]).terms == ()
    assert Covariates.of(frame.head(12), {}, ["who"]).columns == ["who"]
