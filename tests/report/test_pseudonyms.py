"""Other names: equal for equal, gone from tables and sentences, never the same twice."""

from __future__ import annotations

import hashlib
import hmac

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import InputError
from audit.report.pseudonyms import IMAGE, NAMING, SUBJECT, Pseudonyms
from audit.report.shareable import bare
from tests.strategies import subject_tables

# Names as people, spreadsheets and cameras make them; commas and brackets, and one name within another.
PEOPLE = st.text(alphabet="ABCZabcz019 _-.,()/'üß漢", min_size=1, max_size=24).filter(lambda n: n.strip() == n)
COPY = {"image": IMAGE, "subject": SUBJECT}


@pytest.mark.unit
def test_a_name_is_the_hmac_of_the_old_one() -> None:
    names = Pseudonyms(b"secret")
    digest = hmac.digest(b"secret", b"subject\0Ada", hashlib.sha256).hex()
    assert names.of(SUBJECT, "Ada") == f"subject-{digest[:20]}"
    assert names.of(IMAGE, "Ada") != names.of(SUBJECT, "Ada").replace("subject", "image")
    assert "secret" not in repr(names)
    assert "Ada" not in repr(names)


@pytest.mark.unit
def test_keys_are_drawn_again() -> None:
    keys = {Pseudonyms().key for _ in range(8)}
    assert len(keys) == 8
    assert {len(key) for key in keys} == {32}


@pytest.mark.property
@given(subject_tables())
def test_tables_keep_who_is_who_and_two_copies_share_nothing(table: pd.DataFrame) -> None:
    plain = ["label", "gender", "tone"]
    first, second = (Pseudonyms().table(table, COPY, "t", plain=plain) for _ in range(2))
    for column in COPY:
        codes = [pd.factorize(t[column])[0].tolist() for t in (table, first, second)]
        assert codes[0] == codes[1] == codes[2]
        assert not (set(table[column]) & set(first[column])) | (set(first[column]) & set(second[column]))
    pd.testing.assert_frame_equal(first[plain], table[plain])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ask Ada Byron, or Ada Byron-King", "ask @, or @-King"),
        ("the male images of 12 subjects", "the male images of 12 subjects"),
        ("Ada Byrons", "Ada Byrons"),
        ("see faces/Ada Byron/1.png", "see @"),
    ],
)
def test_names_in_sentences_go_and_words_stay(text: str, shown: str) -> None:
    names = Pseudonyms(b"k")
    names.column(SUBJECT, pd.Series(["Ada Byron", "12", "male", "images"]))
    names.column(IMAGE, pd.Series(["b (1).png", "faces/Ada Byron/1.png"]))
    found = names.in_text(text)
    for other in names.given.values():
        found = found.replace(other, "@")
    assert found == shown


@pytest.mark.unit
def test_a_column_that_may_name_people_is_not_let_through() -> None:
    table = pd.DataFrame({"recipient": [0], "image": ["a.png"], "photographer": ["Ada"]})
    with pytest.raises(InputError, match=r"x.parquet: column 'photographer' holds text that may name people"):
        Pseudonyms().table(table, NAMING, "x.parquet")
    numbers = pd.DataFrame({"pair:smiling": [0.5], "position": [1], "side": ["group"]})
    pd.testing.assert_frame_equal(Pseudonyms().table(numbers, NAMING, "x.parquet"), numbers)


@pytest.mark.unit
def test_what_says_that_there_is_none_stays() -> None:
    column = Pseudonyms().column("value:by", pd.Series(["unknown", "", None, "Ada"]))
    assert column.iloc[:2].tolist() == ["unknown", ""]
    assert column.isna().tolist() == [False, False, True, False]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("faces.csv", "faces.csv"),
        ("sets/faces.csv", "sets/faces.csv"),
        ("/srv/ada/faces.csv", "faces.csv"),
        ("~ada/faces.csv", "faces.csv"),
        ("../ada/faces.csv", "faces.csv"),
        ("C:\\ada\\faces.csv", "faces.csv"),
        ("/", "folder"),
        ("vit-audit", "vit-audit"),
    ],
)
def test_of_a_path_no_folder_of_a_machine_is_shown(path: str, shown: str) -> None:
    assert bare(path) == shown
