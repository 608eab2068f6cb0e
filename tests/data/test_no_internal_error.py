"""Whatever tables, cells, names and locales hold: samples, or one line that names the place."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.card.first import first_card
from audit.card.read_table import TABLE_SUFFIXES, read_table
from audit.data import describe_data
from audit.errors import AuditError, DataError
from audit.report.text import left_out_sentence, warning_sentence
from tests.data.faces import card_of, face_table, read, write_faces, write_images

pytestmark = [pytest.mark.property, pytest.mark.unit]
ODD = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "nan", "NULL", "=1+1", '"', "'", ";", "\x00", "\x1b[31m", "a\nb", "\u202eabc", "ﬁ", "1e400", "-0",
         "x" * 5000, "../a.png", "/etc/passwd", "C:\\a", "~root", "%s{}", "\ufeff", "unknown", "🧑🏽\u200d🚀"]
    ),
)  # fmt: skip
EACH_IN_ITS_FOLDER = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def counted_or_refused(folder: Path, **changes: object) -> bool:
    """Tell whether a card's data could be read; what is read must be counted, told and hashed in full."""
    card = card_of(folder, **changes)
    try:
        samples = read(folder, card)
        report = describe_data(samples, card)
    except AuditError as error:
        assert str(error)
        return False
    assert json.loads(report.model_dump_json())["images"] == len(samples.frame)
    assert all(map(warning_sentence, report.warnings))
    assert len(samples.fingerprint) == 64
    return True


@EACH_IN_ITS_FOLDER
@given(content=st.binary(max_size=300), suffix=st.sampled_from([suffix[1:] for suffix in TABLE_SUFFIXES]))
def test_any_bytes_as_a_table(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"faces.{suffix}").write_bytes(content)
    assert not counted_or_refused(tmp_path, path=f"faces.{suffix}")
    with pytest.raises(DataError):
        first_card(tmp_path / f"faces.{suffix}")


@EACH_IN_ITS_FOLDER
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    suffix=st.sampled_from(["xlsx", "jsonl", "ndjson", "parquet", "tsv"]),
)
def test_bytes_of_any_sound_table_changed(changes: list[tuple[float, int]], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    frame = face_table(4)
    if suffix == "xlsx":
        frame.to_excel(path, index=False)
    elif suffix == "parquet":
        frame.astype("category").to_parquet(path)
    elif suffix == "tsv":
        path.write_bytes(frame.to_csv(sep="\t").encode("utf-16"))
    else:
        frame.to_json(path, orient="records", lines=True)
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[int(place * len(content))] = byte
    path.write_bytes(content)
    try:
        table = read_table(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert len(table.frame)


@EACH_IN_ITS_FOLDER
@given(data=st.data())
def test_bytes_of_a_sound_table_changed(data: st.DataObject, tmp_path: Path) -> None:
    sound = tmp_path / "sound.csv"
    if not sound.exists():
        write_faces(tmp_path, face_table(12)).rename(sound)
    content = bytearray(sound.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "faces.csv").write_bytes(content)
    counted_or_refused(tmp_path)


@EACH_IN_ITS_FOLDER
@given(cells=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 4), ODD), min_size=1, max_size=8), data=st.data())
def test_odd_cells(cells: list[tuple[int, int, str]], data: st.DataObject, tmp_path: Path) -> None:
    frame = face_table(12)
    if not (tmp_path / "images").exists():
        write_faces(tmp_path, frame)
    for row, column, text in cells:
        frame.iat[row, column] = text
    if data.draw(st.booleans()):
        frame.to_csv(tmp_path / "faces.csv", index=False)
        counted_or_refused(tmp_path, drop=("labels",))
    else:
        frame.to_parquet(tmp_path / "faces.parquet", index=False)
        counted_or_refused(tmp_path, path="faces.parquet", drop=("labels",))


def test_odd_cells_can_be_read(tmp_path: Path) -> None:
    """Half of a character, which JSON may hold, and a group that is a formula."""
    frame = face_table()
    write_images(tmp_path, list(frame["image"]))
    rows = frame.rename(columns={"image": "file_name"}).to_dict("records")
    for row in rows[:6]:
        row["gender"] = "=1+1\ud800"
    rows[6]["file_name"] = "gone\udfff.png"
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    card = {"reader": "huggingface", "path": "."}
    assert counted_or_refused(tmp_path, **card)
    samples = read(tmp_path, card_of(tmp_path, **card))
    assert samples.attributes["gender"].groups == ["=1+1\\ud800", "female", "male"]
    (gone,) = samples.quarantined
    assert (left_out_sentence(gone), gone.examples) == ("missing file", ["gone/udfff.png"])  # a backslash parts folders


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be there")
def test_odd_names_of_files(tmp_path: Path) -> None:
    stems = ["a b", "ä日", "a\nb", "a\tb", "-rf", "'\"`$(x)", "🧑🏽\u200d🚀", "%s{}", "\x1b[31m", "n" * 240]
    names = [f"{label}/{stem}.png" for label in ("neutral", "happi\nness") for stem in stems]
    write_images(tmp_path / "set", names)
    gender = ["male", "female"] * (len(names) // 2)
    pd.DataFrame({"image": names, "gender": gender}).to_csv(tmp_path / "set" / "groups.csv", index=False)
    broken = tmp_path / "set" / "neutral" / os.fsdecode(b"\xe4.png")
    broken.write_bytes(b"x")
    changes = {"reader": "folder", "path": "set", "match_on": [], "labels": None, "subject": None}
    assert counted_or_refused(tmp_path, **changes)
    samples = read(tmp_path, card_of(tmp_path, **changes))
    assert len(samples.frame) == len(names)
    assert [left_out_sentence(row) for row in samples.excluded] == ["name is not UTF-8"]


IN_A_LOCALE = """
import sys
from pathlib import Path
from audit.card import load_card
from audit.data import describe_data, read_samples
for path in map(Path, sys.argv[1:]):
    card = load_card(path)
    samples = read_samples(card, card_path=path, data_root=None)
    names = [form.file for form in samples.tables]
    set_aside = [row.examples for row in samples.quarantined]
    print(ascii([len(samples.frame), set_aside, names, sys.getfilesystemencoding()]))
    print(describe_data(samples, card).model_dump_json().encode())
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_are_found_in_every_locale(locale: str, tmp_path: Path) -> None:
    """One name with an umlaut is read, one is missing: in an ASCII locale too."""
    folder = tmp_path / "Bücher"
    frame = face_table()
    frame.loc[0, "image"], frame.loc[1, "image"] = "images/ä日.png", "images/ü.png"
    write_faces(folder, frame)
    (folder / "images" / "ü.png").unlink()
    stored = {"csv": frame.to_csv, "xlsx": frame.to_excel, "parquet": frame.to_parquet, "jsonl": frame.to_json}
    cards = []
    for suffix, write in stored.items():
        keywords = {"orient": "records", "lines": True} if suffix == "jsonl" else {"index": False}
        write(folder / f"Größe.{suffix}", **keywords)
        card_of(folder, path=f"Größe.{suffix}")
        cards.append((folder / "dataset.yaml").rename(folder / f"{suffix}.yaml"))
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", IN_A_LOCALE, *map(os.fsencode, cards)],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    lines = result.stdout.decode("ascii").splitlines()
    assert len(lines) == 2 * len(stored)
    encoding = "utf-8" if "UTF" in locale else "ascii"
    for suffix, first, report in zip(stored, lines[::2], lines[1::2], strict=True):
        assert first == ascii([47, [["images/ü.png"]], [f"Größe.{suffix}"], encoding])
        assert json.loads(ast.literal_eval(report))["quarantined"][0]["examples"] == ["images/ü.png"]
