"""What production answered, from tables of every form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audit.data.served import read_served
from audit.errors import DataError

pytestmark = pytest.mark.unit

CLASSES = ["no", "yes"]
KEYS = ["a.png", "b.png", "c.png", "d.png"]
TRUE = np.array([[0.25, 0.75], [0.5, 0.5], [0.125, 0.875], [1.0, 0.0]])
ANSWERS = pd.DataFrame(TRUE, columns=CLASSES).assign(image=KEYS)


def write(folder: Path, form: str, table: pd.DataFrame = ANSWERS) -> Path:
    path = folder / f"served.{form.split()[0]}"
    if form == "xlsx":
        table.to_excel(path, index=False)
    elif form == "parquet":
        table.to_parquet(path, index=False)
    elif form == "jsonl":
        table.to_json(path, orient="records", lines=True)
    elif form == "csv of a spreadsheet":
        table.to_csv(path, index=False, sep=";", decimal=",", encoding="utf-16")
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("form", ["csv", "csv of a spreadsheet", "xlsx", "parquet", "jsonl"])
def test_tables_of_every_form_are_read(tmp_path: Path, form: str) -> None:
    served = read_served(write(tmp_path, form), "image", CLASSES, KEYS)
    assert not served.logits
    assert served.probabilities.loc[KEYS].to_numpy().tolist() == TRUE.tolist()


def test_probabilities_that_are_rounded_or_wrong_once_are_no_logits(tmp_path: Path) -> None:
    """One wrong answer is a difference to report; it does not change what all others are."""
    for last in (1.0000001, 1.5):
        table = ANSWERS.assign(no=[0.25, 0.5, 0.125, last])
        served = read_served(write(tmp_path, "csv", table), "image", CLASSES, KEYS)
        assert not served.logits
        assert served.probabilities.loc["a.png"].tolist() == [0.25, 0.75]


def test_logits_are_known_by_their_sums(tmp_path: Path) -> None:
    table = ANSWERS.assign(no=np.log(TRUE[:, 0]), yes=np.log(TRUE[:, 1].clip(1e-30)))
    served = read_served(write(tmp_path, "csv", table), "image", CLASSES, KEYS)
    assert served.logits
    assert np.allclose(served.probabilities.loc[KEYS], TRUE)


def test_a_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", ANSWERS.assign(no=["0.25", "inf", "", "1.0"]))
    with pytest.raises(DataError, match=r"2 rows hold no finite numbers \(b\.png, c\.png\)"):
        read_served(path, "image", CLASSES, KEYS)
