"""One table, however it is stored: the same texts, and a notice of what it was taken for."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.card.read_table import plain_text, read_table
from audit.errors import DataError
from audit.records import Separator, TextEncoding
from audit.report.text import table_sentence

pytestmark = pytest.mark.unit

HEADER = ["image", "skin, hair", "note; old", "age", "group"]
ROWS = [
    ["a.png", "light, brown", "x;y", "3,5", "NA"],
    ["b.png", "dark", 'two\nlines, "quoted"', "4", "null"],
    ["ü/c d.png", "né", "|", "5\t6", "007"],
]
EXPECTED = pd.DataFrame(ROWS, columns=HEADER, dtype=object)


def text_of(separator: str, *, quoted: bool = True) -> str:
    frame = EXPECTED if quoted else EXPECTED.replace({r"[\n\t|;]": " "}, regex=True)
    return frame.to_csv(index=False, sep=separator)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", list(Separator))
def test_the_separator_is_found_out(tmp_path: Path, separator: Separator, suffix: str) -> None:
    path = tmp_path / f"faces{suffix}"
    path.write_text(text_of(separator), encoding="utf-8", newline="")
    table = read_table(path)
    pd.testing.assert_frame_equal(table.frame, EXPECTED)
    assert table.form.separator == separator


@pytest.mark.parametrize(
    ("text", "separator", "columns"),
    [
        ("image;expression;skin, hair\na.png;neutral;x\n", ";", ["image", "expression", "skin, hair"]),
        ("image;skin, hair, eyes, and nose\na.png;x\n", ";", ["image", "skin, hair, eyes, and nose"]),
        ("image;age, years\na.png;3,5\n", ";", ["image", "age, years"]),
        ("skin, hair;image;label\nlight, x;a.png;y\n", ";", ["skin, hair", "image", "label"]),
        ("image,note;free\na.png,x\n", ",", ["image", "note;free"]),
        ("image,a,b\na.png\nb.png,1\n", ",", ["image", "a", "b"]),
        ('"a;b";c\n1;2\n', ";", ["a;b", "c"]),
        ("image\na,b.png\n", ",", None),
        ("sep=;\nimage;a\nx.png;1\n", ";", ["image", "a"]),
        ("sep=,\nimage,a\nx.png,1;2\n", ",", ["image", "a"]),
        ('"sep=|"\r\nimage|a\r\nx.png|1\r\n', "|", ["image", "a"]),
        ("SEP=\t\nimage\ta\nx.png\t1\n", "\t", ["image", "a"]),
    ],
)
def test_the_header_decides(tmp_path: Path, text: str, separator: str, columns: list[str] | None) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    if columns is None:
        with pytest.raises(DataError, match=r"t\.csv:2: 2 values where the header has 1 columns"):
            read_table(tmp_path / "t.csv")
        return
    table = read_table(tmp_path / "t.csv")
    assert (list(table.frame), table.form.separator) == (columns, separator)


ENCODINGS = {
    TextEncoding.UTF_8: "UTF-8",
    TextEncoding.UTF_8_MARKED: "UTF-8 with a mark",
    TextEncoding.UTF_16_MARKED: "UTF-16",
    TextEncoding.UTF_16_LE: "UTF-16 without a mark",
    TextEncoding.UTF_16_BE: "UTF-16 without a mark",
    TextEncoding.UTF_32_MARKED: "UTF-32",
    TextEncoding.WINDOWS_1252: "windows-1252 (it is no UTF-8: look at letters with accents)",
}


@pytest.mark.parametrize(("encoding", "said"), ENCODINGS.items(), ids=list(ENCODINGS))
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_encoding_is_found_out_and_told(tmp_path: Path, encoding: TextEncoding, said: str, ends: str) -> None:
    text = text_of(";", quoted=False).replace("\n", ends)
    (tmp_path / "faces.csv").write_bytes(text.encode(encoding))
    table = read_table(tmp_path / "faces.csv")
    assert table.frame["skin, hair"].tolist() == ["light, brown", "dark", "né"]
    assert table.form.encoding == encoding
    assert table_sentence(table.form) == f"faces.csv: text in {said}, columns separated by semicolons"


def test_bytes_that_windows_1252_has_not_are_latin_1(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,a\nx.png,\x81\xe9\n")
    table = read_table(tmp_path / "t.csv")
    assert table.frame["a"].tolist() == ["\x81é"]
    assert "latin-1 (it is no UTF-8" in table_sentence(table.form)


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"PK\3\4\x14\0\6\0", b"\0" * 100, b"a,b\n\1,\2\n"]
)
def test_what_is_no_text_is_told_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv: is no .*text; save the table as "):
        read_table(tmp_path / "t.csv")


def write_excel(path: Path, rows: list[list[object]], more: int = 0) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Faces"
    for row in rows:
        sheet.append(row)
    for _ in range(more):
        book.create_sheet().append(["other"])
    book.save(path)


def write_json_lines(path: Path, frame: pd.DataFrame) -> None:
    frame.to_json(path, orient="records", lines=True, force_ascii=False)


def write_dictionary(path: Path, frame: pd.DataFrame) -> None:
    frame.astype("category").to_parquet(path)


WRITERS: dict[str, Callable[[Path, pd.DataFrame], None]] = {
    "t.csv": lambda path, frame: frame.to_csv(path, index=False),
    "t.xlsx": lambda path, frame: write_excel(path, [list(frame), *frame.to_numpy().tolist()]),
    "t.parquet": lambda path, frame: frame.to_parquet(path),
    "t.PARQUET": write_dictionary,
    "t.jsonl": write_json_lines,
    "t.ndjson": write_json_lines,
}
WORDS = ["NA", "N/A", "nan", "NaN", "None", "null", "NULL", "no", "off", "1", "1.0", "01", "True", "true", "-", "#N/A"]


@pytest.mark.parametrize("name", WRITERS)
def test_words_that_look_like_something_else_keep_their_text(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"image": [f"{k}.png" for k in range(len(WORDS))], "group": WORDS, "other": "x"}, dtype=object)
    frame.loc[3, "other"] = None  # the one cell that is empty
    WRITERS[name](tmp_path / name, frame)
    read = read_table(tmp_path / name).frame
    assert read["group"].tolist() == WORDS
    assert read["other"].isna().tolist() == [k == 3 for k in range(len(WORDS))]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "t.csv"])
def test_typed_values_are_written_plainly(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame(
        {"image": ["a", "b"], "whole": [1, 2], "gap": [1.0, np.nan], "part": [0.5, 2.0], "is": [True, False]}
    )
    WRITERS[name](tmp_path / name, frame.astype(object).where(frame.notna(), None) if name == "t.xlsx" else frame)
    read = read_table(tmp_path / name).frame.astype(object)
    assert read.where(read.notna(), None).to_dict("list") == {
        "image": ["a", "b"], "whole": ["1", "2"], "gap": ["1", None], "part": ["0.5", "2"], "is": ["True", "False"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None), (float("nan"), None), (pd.NA, None), (pd.NaT, None), (True, "True"), (np.bool_(False), "False"),
        (7, "7"), (7.0, "7"), (np.float32(0.1), "0.1"), (1e300, "1e+300"), (float("inf"), "inf"), ("1.0", "1.0"),
        ("", ""), (" NA ", " NA "),
        (datetime.date(2024, 2, 1), "2024-02-01"), (datetime.datetime(2024, 2, 1), "2024-02-01"),
        (pd.Timestamp("2024-02-01 12:30"), "2024-02-01 12:30:00"), (datetime.time(9, 5), "09:05:00"),
    ],
)  # fmt: skip
def test_a_value_has_one_text(value: object, text: str | None) -> None:
    assert plain_text(value) == text


def test_blanks_around_a_value_are_dropped_unless_they_tell_two_apart(tmp_path: Path) -> None:
    text = 'image , gender,race\n a.png , male ,"White "\nb.png,  ,White\n c.png , female ,Black\n'
    (tmp_path / "t.csv").write_text(text)
    read = read_table(tmp_path / "t.csv").frame
    assert read["image"].tolist() == ["a.png", "b.png", "c.png"]
    assert read["gender"].tolist() == ["male", None, "female"]
    assert read["race"].tolist() == ["White ", "White", "Black"]


def test_the_first_sheet_of_a_workbook_counts(tmp_path: Path) -> None:
    rows = [
        ["image", "tone", None],
        ["a.png", 1, None],
        [None, None, None],
        ["b.png", True, " "],
        ["c.png", "#N/A", None],
    ]
    write_excel(tmp_path / "t.xlsx", rows, more=2)
    table = read_table(tmp_path / "t.xlsx")
    assert table.frame.to_dict("list") == {"image": ["a.png", "b.png", "c.png"], "tone": ["1", "True", "#N/A"]}
    assert table_sentence(table.form) == "t.xlsx: Excel, sheet 'Faces', the first of 3"


BAD_WORKBOOKS: dict[str, tuple[list[list[object]], str]] = {
    "stray": ([["image", "a"], ["x.png", 1, "more"]], "t.xlsx, row 2: 3 values where the header has 2 columns (stray"),
    "twice": ([["image", "a", "a"], ["x.png", 1, 2]], "t.xlsx: column 'a' occurs twice in the header"),
    "no rows": ([["image", "a"]], "t.xlsx: the table has no rows"),
    "empty": ([], "t.xlsx: the first row of the first sheet is empty; give a header"),
}


@pytest.mark.parametrize(("rows", "said"), BAD_WORKBOOKS.values(), ids=list(BAD_WORKBOOKS))
def test_each_bad_workbook_is_one_line(tmp_path: Path, rows: list[list[object]], said: str) -> None:
    write_excel(tmp_path / "t.xlsx", rows)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "t.xlsx")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_workbook_is_told_so(tmp_path: Path) -> None:
    for content in (b"", b"image,a\n", b"PK\3\4 not really"):
        (tmp_path / "t.xlsx").write_bytes(content)
        with pytest.raises(
            DataError, match=r"t\.xlsx: not a readable workbook \(.*\); save it again as \.xlsx, or as CSV"
        ):
            read_table(tmp_path / "t.xlsx")


def test_json_lines_keep_what_is_flat(tmp_path: Path) -> None:
    text = '{"image": "a.png", "g": "x\u2028y", "box": [1, 2], "n": 1.0}\r\n\r\n'
    text += '{"image": "b.png", "late": null, "n": "1.0"}\n'
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8", newline="")
    table = read_table(tmp_path / "t.jsonl")
    read = table.frame.astype(object).where(table.frame.notna(), None)
    assert read.to_dict("list") == {
        "image": ["a.png", "b.png"], "g": ["x\u2028y", None], "n": ["1", "1.0"], "late": [None, None],
    }  # fmt: skip
    assert table_sentence(table.form) == "t.jsonl: JSON lines, UTF-8"
    for bad in ("[1]", "{", "[" * 5000, "1"):
        (tmp_path / "t.jsonl").write_text(f'{{"image": "a"}}\n{bad}\n')
        with pytest.raises(DataError, match=r"t\.jsonl:2: is no JSON object; write one object per line"):
            read_table(tmp_path / "t.jsonl")


CELL = st.text(alphabet="ab é,;|\t\n\"'1.", max_size=8).map(str.strip)


@pytest.mark.property
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=6),
    separator=st.sampled_from(list(Separator)),
    encoding=st.sampled_from([e for e in TextEncoding if e != TextEncoding.LATIN_1]),
)
def test_whatever_a_cell_holds_it_comes_back(
    tmp_path: Path, rows: list[list[str]], separator: Separator, encoding: TextEncoding
) -> None:
    frame = pd.DataFrame(rows, columns=["image", "label", "é"], dtype=object).assign(image="a.png")
    text = frame.to_csv(index=False, sep=separator, quoting=1)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    read = read_table(tmp_path / "t.csv").frame
    pd.testing.assert_frame_equal(read.astype(object), frame.replace("", None).astype(object))
