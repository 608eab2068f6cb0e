"""A table in memory and a source of images become the samples that files would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from audit.card import Card
from audit.data import Samples, samples_from_frame
from audit.data.sources import FileSource
from audit.errors import DataError
from audit.report.text import left_out_sentence
from tests.data.faces import card_of, face_table, read, write_faces

pytestmark = pytest.mark.unit


class Pictures:
    """Arrays by key, as somebody's own data set holds them."""

    def __init__(self, keys: list[str]) -> None:
        rng = np.random.default_rng(0)
        self.arrays = {key: rng.integers(0, 256, (12, 10), dtype=np.uint8) for key in keys}

    def __contains__(self, key: object) -> bool:
        return key in self.arrays

    def open(self, key: str) -> Image.Image:
        return Image.fromarray(self.arrays[key])


class Unsure(Pictures):
    """A source that cannot tell what it holds until it is asked."""

    __contains__ = None  # type: ignore[assignment]


def settings(**changes: Any) -> Card:
    """Return a card that was made in Python."""
    data = {"image": "key", "label": "expression", "subject": "person", **changes.pop("data", {})}
    return Card.model_validate({"data": data, "groups": {"gender": {"column": "sex"}}, **changes})


def table() -> pd.DataFrame:
    return face_table().rename(columns={"image": "key", "gender": "sex"})


def samples(frame: pd.DataFrame, source: Pictures | None = None, **changes: Any) -> Samples:
    source = Pictures(list(table()["key"])) if source is None else source
    return samples_from_frame(frame, source, card=settings(**changes))


def test_it_is_what_files_give(tmp_path: Path) -> None:
    write_faces(tmp_path)
    of_files = read(tmp_path)
    frame = face_table().sample(frac=1, random_state=1)
    of_frame = samples_from_frame(frame, FileSource(tmp_path), card=card_of(tmp_path))
    pd.testing.assert_frame_equal(of_frame.frame, of_files.frame)
    assert of_frame.fingerprint == of_files.fingerprint
    assert of_frame.attributes == of_files.attributes
    assert of_frame.labels == of_files.labels


@pytest.mark.parametrize("source", [Pictures, Unsure])
def test_a_source_of_arrays_is_opened_and_hashed(source: type[Pictures]) -> None:
    before = source(list(table()["key"]))
    found = samples(table(), before)
    assert len(found.frame) == 48
    assert found.labels == ("happiness", "neutral")
    assert found.source is before
    assert not found.warnings
    before.arrays["images/00-neutral.png"][0, 0] ^= 1
    assert samples(table(), before).fingerprint != found.fingerprint


def test_numbers_and_missing_values_are_taken_as_a_file_would_hold_them() -> None:
    frame = table()
    frame["sex"] = pd.Series([1.0, 1.0, None, None] + [0.0, 1.0] * 22)
    frame["person"] = pd.Categorical(range(48))
    frame["key"] = range(48)
    found = samples(frame, Pictures([str(k) for k in range(48)]))
    assert found.attributes["gender"].groups == ["0", "1"]
    assert found.attributes["gender"].unknown_images == 2
    assert set(found.frame["subject"]) == {str(k) for k in range(48)}


FAULTS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any], str]] = {
    "keys twice": (
        lambda t: pd.concat([t, t.head(7)]),
        {},
        ("the table: 7 keys occur twice (images/00-neutral.png, images/00-happiness.png, images/01-neutral.png, "
        "images/01-happiness.png, images/02-neutral.png, ...); keep one row per image"),
    ),
    "unknown keys": (
        lambda t: pd.concat([t, t.head(2).assign(key=["x.png", "y.png"])]),
        {},
        "the table: the source lacks 2 keys (x.png, y.png); leave these rows out",
    ),
    "no key": (
        lambda t: t.assign(key=[None, *t["key"][1:]]),
        {},
        "the table: 1 rows have no key in 'key'; name each row's image",
    ),
    "no such column": (
        lambda t: t.rename(columns={"expression": "expresion"}),
        {},
        ("the table: no column 'expression' (data.label) among key, expresion, sex, person, source; "
        "did you mean 'expresion'?"),
    ),
    "labels without an output": (
        lambda t: t,
        {"training": "none", "model": {"classes": ["happiness", "sad"]}},
        ("the table: the model has no output for 1 labels (neutral); "
        "name its class in model.classes, or the labels to keep in data.labels"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "changes", "expected"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_one_line(
    change: Callable[[pd.DataFrame], pd.DataFrame], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        samples(change(table()), **changes)
    assert str(caught.value) == expected


def test_labels_to_keep_leave_the_others_out() -> None:
    changes = {
        "data": {"labels": ["happiness", "neutral"]},
        "training": "none",
        "model": {"classes": ["happiness", "neutral"]},
    }
    frame = pd.concat([table(), table().head(1).assign(key="odd", expression="sad")])
    found = samples(frame, Pictures(list(frame["key"])), **changes)
    assert [(left_out_sentence(row), row.by_group) for row in found.excluded] == [
        ("label 'sad' is not in data.labels", {"gender": {"male": 1}})
    ]


def test_what_a_source_cannot_open_is_set_aside() -> None:
    source = Unsure(list(table()["key"]))
    del source.arrays["images/03-neutral.png"]
    (row,) = samples(table(), source).quarantined
    assert (left_out_sentence(row), row.examples) == ("cannot be opened (KeyError)", ["images/03-neutral.png"])
    assert row.by_group == {"gender": {"female": 1}}
