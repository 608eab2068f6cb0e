"""Croissant metadata: what they say is read from files beside them, and what is not understood is named."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.card import Card, load_card
from audit.card.schema import DataSpec
from audit.data import Samples, describe_data, read_samples
from audit.data.readers.croissant import read_croissant
from audit.data.readers.croissant_fields import is_harmless
from audit.errors import DataError
from audit.report.text import left_out_sentence, source_sentence
from tests.data.faces import face_table, write_images

pytestmark = pytest.mark.unit

Meta = dict[str, Any]
FACES = face_table()
STEM = {"regex": r"([^/]*)\.png"}


def field(name: str, source: Meta, **more: Any) -> Meta:
    return {"@type": "cr:Field", "@id": f"faces/{name}", "name": name, "dataType": "sc:Text", "source": source, **more}


def column(name: str, of: str = "table", **more: Any) -> Meta:
    return {"fileObject": {"@id": of}, "extract": {"column": name}, **more}


def file_name(file_property: str = "filename", **more: Any) -> Meta:
    return {"fileSet": {"@id": "photographs"}, "extract": {"fileProperty": file_property}, **more}


def metadata(table: str = "faces.csv") -> Meta:
    """Return metadata as mlcroissant writes them: a table, a set of files, and a record set that joins them."""
    return {
        "@context": {"@vocab": "https://schema.org/", "cr": "http://mlcommons.org/croissant/", "sc": "https://schema.org/"},
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "Small faces",
        "license": ["https://creativecommons.org/licenses/by/4.0/", {"@type": "CreativeWork", "name": "own terms"}],
        "citeAs": "@misc{faces,\n  title = {Faces}}",
        "distribution": [
            {"@type": "cr:FileObject", "@id": "archive", "contentUrl": "https://example.org/a.zip", "sha256": "0" * 64},
            {"@type": "cr:FileObject", "@id": "table", "contentUrl": table, "encodingFormat": "text/csv"},
            {
                "@type": "cr:FileSet",
                "@id": "photographs",
                "containedIn": {"@id": "archive"},
                "encodingFormat": "image/png",
                "includes": "*.png",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "faces",
                "field": [
                    field("image", file_name("content"), dataType="sc:ImageObject"),
                    field("name", file_name(transform=STEM), references={"field": {"@id": "faces/key"}}),
                    field("key", column("file", transform=[{"regex": r"images/(.*)\.png"}])),
                    field("expression", column("expression")),
                    field("sex", column("gender")),
                    field("person", column("person")),
                    {"@id": "faces/place", "name": "place", "subField": [field("latitude", column("latitude"))]},
                ],
            }
        ],
    }  # fmt: skip


def write(folder: Path, meta: Meta | None = None, name: str = "croissant.json", suffix: str = ".csv") -> None:
    folder.mkdir(exist_ok=True)
    write_images(folder, list(FACES["image"]))
    table = FACES.rename(columns={"image": "file"})
    table.to_csv(folder / "faces.csv", index=False)
    if suffix == ".parquet":
        table.to_parquet(folder / "faces.parquet")
    (folder / name).write_text(json.dumps(metadata() if meta is None else meta), encoding="utf-8")


def card_of(folder: Path, path: str = "set", **data: Any) -> Card:
    known = {"reader": "croissant", "path": path, "label": "expression", "subject": "person", **data}
    card = {"data": known, "groups": {"gender": {"column": "sex"}}}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    return load_card(folder / "dataset.yaml")


def read(folder: Path, path: str = "set", **data: Any) -> Samples:
    card = card_of(folder, path, **data)
    return read_samples(card, card_path=folder / "dataset.yaml", data_root=None)


def rows(folder: Path, **spec: Any) -> pd.DataFrame:
    wanted = {"reader": "croissant", "path": ".", "label": "expression", **spec}
    return read_croissant(DataSpec.model_validate(wanted), folder).frame


def test_table_and_files_are_joined_by_what_refers_to_the_other(tmp_path: Path) -> None:
    write(tmp_path / "set")
    samples = read(tmp_path)
    joined = samples.frame.set_index("image")[["label", "gender", "subject"]]
    expected = FACES.set_index("image").rename(columns={"expression": "label", "person": "subject"})
    pd.testing.assert_frame_equal(joined, expected.loc[joined.index, ["label", "gender", "subject"]], check_dtype=False)
    assert len(joined) == len(FACES)
    assert samples.source.open("images/00-neutral.png").size == (12, 10)


@pytest.mark.parametrize("path", ["set", "set/croissant.json", "set/metadata.json", "other"])
def test_metadata_are_found_by_file_or_folder(path: str, tmp_path: Path) -> None:
    for folder, name in (("set", "croissant.json"), ("set", "metadata.json"), ("other", "metadata.json")):
        write(tmp_path / folder, name=name)
    assert len(read(tmp_path, path).frame) == len(FACES)


def test_licence_citation_and_name_stand_in_where_the_card_is_silent(tmp_path: Path) -> None:
    write(tmp_path / "set")
    report = describe_data(read(tmp_path), card_of(tmp_path))
    assert report.licence == "https://creativecommons.org/licenses/by/4.0/; own terms"
    assert report.citation == "@misc{faces, title = {Faces}}"
    assert source_sentence(report.source) == "croissant: set (Small faces)"
    card = card_of(tmp_path, licence="CC0", citation="Nobody 2020")
    report = describe_data(read(tmp_path, licence="CC0", citation="Nobody 2020"), card)
    assert (report.licence, report.citation) == ("CC0", "Nobody 2020")


def test_a_field_of_files_may_refer_to_a_column_that_is_no_field(tmp_path: Path) -> None:
    meta = metadata()
    names = meta["recordSet"][0]["field"][1]
    names["source"] = file_name("fullpath")
    names["references"] = {"fileObject": {"@id": "table"}, "extract": {"column": "file"}}
    write(tmp_path / "set", meta)
    assert len(read(tmp_path).frame) == len(FACES)


def test_a_field_of_the_table_may_refer_to_one_of_the_files(tmp_path: Path) -> None:
    meta = metadata("faces.parquet")
    names, keys = meta["recordSet"][0]["field"][1:3]
    del names["references"]
    keys["references"] = {"field": {"@id": "faces/name"}}
    write(tmp_path / "set", meta, suffix=".parquet")
    assert len(read(tmp_path).frame) == len(FACES)


def test_images_may_be_named_by_the_table_alone(tmp_path: Path) -> None:
    meta = metadata()
    fields = meta["recordSet"][0]["field"]
    fields[:3] = [field("image", column("file"))]
    write(tmp_path / "set", meta)
    assert sorted(read(tmp_path).frame["image"]) == sorted(FACES["image"])


def test_labels_may_be_folders(tmp_path: Path) -> None:
    meta = metadata()
    label = field("expression", file_name("fullpath", transform={"regex": r"-([a-z]+)\.png$"}))
    meta["recordSet"][0]["field"] = [field("image", file_name("content")), label]
    meta["distribution"][2]["excludes"] = ["images/0*"]
    write(tmp_path / "set", meta)
    found = rows(tmp_path / "set")
    assert len(found) == len(FACES) - 20  # those of ten people
    assert (found["expression"] == found["image"].str[len("images/00-") : -len(".png")]).all()


def test_rows_without_a_file_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "set")
    (tmp_path / "set" / "images" / "03-neutral.png").unlink()
    samples = read(tmp_path)
    assert [(row.images, left_out_sentence(row)) for row in samples.excluded] == [(1, "no value in column 'image'")]


def test_what_is_left_out_is_named_where_it_is_missed(tmp_path: Path) -> None:
    write(tmp_path / "set")
    card = card_of(tmp_path).model_copy(update={"match_on": ["place"]})
    with pytest.raises(DataError, match=r"left out: place has no single source\).*no column 'place' \(match_on\)"):
        read_samples(card, card_path=tmp_path / "dataset.yaml", data_root=None)


def test_a_stated_sha256_must_hold(tmp_path: Path) -> None:
    meta = metadata()
    write(tmp_path / "set")
    content = (tmp_path / "set" / "faces.csv").read_bytes()
    meta["distribution"][1]["sha256"] = hashlib.sha256(content).hexdigest().upper()
    write(tmp_path / "set", meta)
    assert len(read(tmp_path).frame) == len(FACES)
    (tmp_path / "set" / "faces.csv").write_bytes(content + b"\n")
    with pytest.raises(DataError, match=r"faces\.csv: its SHA-256 is not the one that croissant\.json states"):
        read(tmp_path)
    meta["distribution"][1]["sha256"] = "https://example.org/later"
    write(tmp_path / "set", meta)
    with pytest.raises(DataError, match="is not 64 hexadecimal digits"):
        read(tmp_path)


def test_files_from_the_network_are_looked_for_here(tmp_path: Path) -> None:
    meta = metadata("https://example.org/sets/fa%63es.csv?download=1")
    write(tmp_path / "set", meta)
    assert len(read(tmp_path).frame) == len(FACES)
    (tmp_path / "set" / "faces.csv").unlink()
    with pytest.raises(DataError, match=r"no such file, which croissant.json names; download https://example"):
        read(tmp_path)


def changed(*keys: Any, value: Any) -> Meta:
    meta = metadata()
    part: Any = meta
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return meta


IMAGE, KEY, LABEL = (("recordSet", 0, "field", place) for place in (0, 2, 3))


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        ([], "is not Croissant of version 1"),
        (changed("conformsTo", value=None), "is not Croissant of version 1"),
        (changed("conformsTo", value="http://mlcommons.org/croissant/0.8"), "is not Croissant of version 1"),
        (changed("recordSet", value=[]), "no record set has the fields 'image' (data.image) and 'expression'"),
        (changed("recordSet", value=3), "'recordSet' holds something without a name"),
        (changed("recordSet", 0, "field", value=[{}]), "'field' holds something without a name"),
        (changed(*LABEL, "name", value="expresion"), "did you mean 'expresion'?"),
        (changed(*LABEL, "source", value=column("mood")), "names column 'mood', which 'table' has not"),
        (changed(*LABEL, "source", value=column("mood", "list")), "joins several files or file sets (list, table)"),
        (changed("distribution", 1, "@id", value="tabel"), "'distribution' has no 'table'; did you mean 'tabel'?"),
        (changed("distribution", 1, "contentUrl", value="../faces.csv"), "climbs out of its folder"),
        (changed("distribution", 1, "contentUrl", value="/etc/passwd"), "is not relative to the table"),
        (changed("distribution", 1, "contentUrl", value="file:///etc/passwd"), "no such file"),
        (changed("distribution", 1, "contentUrl", value=7), "has no contentUrl"),
        (changed("distribution", 1, "contentUrl", value="faces.exe"), "no such file"),
        (changed("distribution", 2, "includes", value="../*.png"), "climbs out of its folder"),
        (changed("distribution", 2, "includes", value="*.gif"), "file set 'photographs' has no file here"),
        (changed("distribution", 2, "includes", value=[["*"]]), "has a pattern that cannot be read"),
        (changed("distribution", 2, "includes", value="*" * 30), "has a pattern that cannot be read"),
        (changed(*IMAGE, "source", value={"fileSet": {"@id": "p"}, "extract": {"column": "image"}}), "huggingface"),
        (changed(*IMAGE, "source", value=file_name("lines")), "is neither a column of a file nor a name of files"),
        (changed(*LABEL, "source", value=column("expression", transform={"jsonPath": "$"})), "more than a pattern"),
        (changed(*LABEL, "source", value=column("expression", transform={"regex": "(a+)+"})), "may take for ever"),
        (changed(*LABEL, "repeated", value=True), "has no single source"),
        (changed(*KEY, "source", "transform", value=[{"regex": "(x)"}]), "no record has a file for 'image'"),
        (changed("recordSet", 0, "field", 1, "references", value={}), "no field of the table refers to one of the"),
        (changed("recordSet", 0, "field", 1, "source", "transform", value={"regex": "(p)ng"}), "two files are named"),
        (changed("recordSet", value=metadata()["recordSet"] * 2), "several record sets have the fields"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_told(meta: Meta, what: str, tmp_path: Path) -> None:
    write(tmp_path / "set", meta)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metadata_of_any_size_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "set", changed("description", value="x" * 10_000_000))
    with pytest.raises(DataError, match="is over the limit of 10,000,000"):
        read(tmp_path)


def test_only_harmless_patterns_are_run() -> None:
    harmless = [r"([^\/]*)\.jpg", r"^(train|val)/", r".*/([^/]+)/[^/]+\.png"]
    assert all(map(is_harmless, harmless))
    harmful = [
        "(a+)+$", "(a|a)*b", "a?" * 30 + "(a)", "(.*).*.*.*x", "(?x)(a+) +", "(a+)\n+(b)", "x" * 300, "(", "ab",
        "(a)(b)", 7, None, "(a{1,99999}){1,99999}", "(a{99999999999})",
    ]  # fmt: skip
    assert not any(map(is_harmless, harmful))


VALUES = st.none() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({}) | st.just([{}]) | st.just([[1]])


def places(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]


@pytest.mark.property
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(places(metadata())), value=VALUES)
def test_metadata_with_any_part_replaced_are_read_or_refused(place: Any, value: Any, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    if not folder.exists():
        write(folder)
    meta = copy.deepcopy(changed(*place, value=value)) if place else value
    (folder / "croissant.json").write_text(json.dumps(meta), encoding="utf-8")
    try:
        found = rows(folder)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert {"image", "expression"} <= set(found.columns)
