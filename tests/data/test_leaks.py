"""Near-copies are found where they were made, sources where they differ, and nothing where all is alike."""

from __future__ import annotations

import hashlib
import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from audit.data import describe_data, leaks
from audit.data.leaks import NearPairs, leak_warnings, look_at, near_pairs, thumbnail
from audit.records import AttributeInfo
from audit.report.text import warning_sentence
from tests.data.faces import card_of, face_table, read, write_faces

INFO = {"tone": AttributeInfo(attribute="tone", assigned_by="x", reference="a", groups=["a", "b"], unknown_images=0)}


def picture(seed: int, *, level: float = 128.0, colour: bool = True) -> Image.Image:
    """Draw smooth random shapes."""
    rng = np.random.default_rng(seed)
    coarse = np.clip(rng.normal(level, 40, (8, 8, 3 if colour else 1)), 0, 255).astype(np.uint8)
    coarse = np.broadcast_to(coarse, (8, 8, 3))
    return Image.fromarray(np.ascontiguousarray(coarse)).resize((80, 60), Image.Resampling.BICUBIC)


def samples(pictures: list[Image.Image], **columns: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    n = len(pictures)
    keys = [f"{k}.png" for k in range(n)]
    frame = pd.DataFrame(
        {"image": keys, "label": ["x", "y"] * (n // 2), "subject": keys, "split": ["train", "discovery"] * (n // 2),
         "tone": ["a"] * (n // 2) + ["b"] * (n // 2)}
    ).assign(**columns)  # fmt: skip
    return frame, pd.DataFrame([look_at(p) for p in pictures], index=keys).astype({"bits": np.uint64})


def warned(pictures: list[Image.Image], nuisance: tuple[str, ...] = (), **columns: Any) -> list[str]:
    """Return the warnings in words."""
    frame, looks = samples(pictures, **columns)
    content = pd.factorize(pd.Series([hashlib.sha256(p.tobytes()).hexdigest() for p in pictures]))[0]
    thumbs = dict(zip(frame["image"], map(thumbnail, pictures), strict=True))
    return [warning_sentence(w) for w in leak_warnings(frame, looks, content, INFO, nuisance, thumbs.__getitem__)]


@pytest.mark.unit
def test_pictures_that_are_alike_in_all_but_what_they_show_give_no_warning() -> None:
    assert warned([picture(k) for k in range(80)], ("who",), who=["p", "p", "q", "q"] * 20) == []


@pytest.mark.unit
@pytest.mark.parametrize("change", ["jpeg", "scaled", "brighter"])
def test_a_near_copy_in_another_split_is_found(change: str) -> None:
    pictures = [picture(k) for k in range(80)]
    copy = pictures[4]
    if change == "jpeg":
        page = io.BytesIO()
        copy.save(page, "JPEG", quality=60)
        copy = Image.open(page).convert("RGB")
    elif change == "scaled":
        copy = copy.resize((160, 120))
    elif change == "brighter":
        copy = copy.point(lambda v: min(255, v + 12))
    pictures[41] = copy
    (warning,) = warned(pictures)
    assert warning.startswith("2 images look like one of another subject in another split (e.g. 4.png and 41.png)")
    pictures[41], pictures[6] = picture(41), copy
    assert warned(pictures) == []  # both are in the same split


@pytest.mark.unit
def test_plain_pictures_are_no_copies_of_each_other() -> None:
    assert warned([Image.new("RGB", (20, 20), (k, k, 90)) for k in range(80)])[0].startswith("tone: images of 'b'")
    assert near_pairs(np.zeros(5, dtype=np.uint64)) == NearPairs(set(), 0, 0)


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.data())
def test_near_pairs_are_those_that_counting_bits_gives(values: list[int], data: st.DataObject) -> None:
    for value in values[:5]:
        for bit in data.draw(st.lists(st.integers(0, 63), max_size=4, unique=True)):
            value ^= 1 << bit
        values.append(value)
    structured = [i for i, v in enumerate(values) if 6 <= v.bit_count() <= 58]
    slow = {
        (a, b) for a in structured for b in structured if a < b and (values[a] ^ values[b]).bit_count() <= 3
    }  # fmt: skip
    found = near_pairs(np.array(values, dtype=np.uint64))
    assert found.pairs == slow
    assert found.compared == found.of
    sides = np.array([i % 3 for i in range(len(values))])
    apart = near_pairs(np.array(values, dtype=np.uint64), [sides])
    assert apart.pairs == {(a, b) for a, b in slow if sides[a] != sides[b]}


@pytest.mark.unit
def test_the_search_for_near_copies_is_bounded() -> None:
    """A thousand images of one outline share all four parts: 4 x 499,500 pairs; two others share three of theirs."""
    one, other = 0x0F0F0F0F0F0F0F0F, 0x3333333333333333
    bits = np.array([one] * 1000 + [other, other ^ 1], dtype=np.uint64)
    of = 4 * 499_500 + 3
    everything = near_pairs(bits, found_at_most=10**6)
    assert (len(everything.pairs), everything.compared, everything.of) == (499_501, of, of)
    few = near_pairs(bits, compared_at_most=499_499)
    assert few == NearPairs({(1000, 1001)}, 3, of)
    assert near_pairs(bits, found_at_most=0) == NearPairs({(1000, 1001)}, 1, of)


@pytest.mark.unit
def test_many_images_of_one_outline_are_not_all_compared() -> None:
    """Of 30,000 the pairs alone would take gigabytes; those of the first image are more than are looked at again."""
    n = 30_000
    found = near_pairs(np.full(n, 0x0F0F0F0F0F0F0F0F, dtype=np.uint64), [np.arange(n)])
    assert found.pairs == {(0, other) for other in range(1, n)}
    assert (found.compared, found.of) == (n - 1, 4 * n * (n - 1) // 2)


@pytest.mark.unit
def test_a_search_that_was_not_finished_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, looks = samples([picture(k) for k in range(80)])
    same = looks.assign(bits=np.uint64(0x0F0F0F0F0F0F0F0F))
    rng = np.random.default_rng(0)
    monkeypatch.setattr(leaks, "near_pairs", partial(near_pairs, found_at_most=0))
    (warning,) = leak_warnings(frame, same, np.arange(80), {}, (), lambda _key: rng.random((16, 16)))
    assert warning_sentence(warning).startswith("near-copies were looked for among 25% of the pairs that may be some")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("mean brightness (+", lambda k: picture(k, level=190)),
        ("sharpness (−", lambda k: picture(k).filter(ImageFilter.GaussianBlur(12))),
        ("size in pixels (always more)", lambda k: picture(k).resize((240, 180))),
        ("share of gray images (+100 points)", lambda k: picture(k, colour=False)),
    ],
)
def test_a_group_from_another_source_is_told(what: str, change: Any) -> None:
    pictures = [picture(k) if k < 40 else change(k) for k in range(80)]
    (warning,) = warned(pictures)
    assert what in warning
    assert "name its source under match_on" in warning


@pytest.mark.unit
def test_few_images_of_a_group_are_not_compared() -> None:
    pictures = [picture(k) if k < 40 else picture(k, level=190) for k in range(80)]
    assert warned(pictures, tone=["a"] * 40 + ["b"] * 29 + ["unknown"] * 11) == []


@pytest.mark.unit
def test_annotators_who_label_differently_are_told() -> None:
    pictures = [picture(k) for k in range(80)]
    (warning,) = warned(pictures, ("who",), who=["p" if k % 2 else "q" for k in range(80)])
    assert warning.startswith("who: labels depend on it (Cramer's V 1.00): 'x' is 0% of the images of 'p' and 100%")


@pytest.mark.unit
def test_copies_to_the_byte_are_told_of_once() -> None:
    pictures = [picture(k) for k in range(80)]
    pictures[41] = pictures[4]
    assert warned(pictures) == []


CONSEQUENCES = {
    "rows repeat another row": "each image counts once",
    "byte-identical": "what was trained on or found on one is no test on the other",
    "in more than one group": "such a subject counts on both sides of a comparison",
    "differ from those of": "can look as if it carried the group",
    "labels depend on it": "donors are matched on it, rates by group are not",
    "to train on": "a gap there may be no more than that",
    "cells under": "is graded as too little data",
    "look like one of another subject": "intervals are too narrow",
}


@pytest.mark.unit
def test_every_warning_says_what_follows(tmp_path: Path) -> None:
    """One set with every fault: each is told once, and with its consequence."""
    table = face_table(60).assign(split=["train", "discovery", "confirmation"] * 40, tone="dark")
    table["person"] = [f"p{k}" for k in range(120)]
    table.loc[table["split"] != "train", "tone"] = ["dark", "light"] * 40
    table.loc[0:3, "person"], table.loc[0:3, "split"] = "p0", "discovery"
    table.loc[table["source"] == "a", "expression"] = "happiness"
    table.loc[table["source"] == "b", "expression"] = "neutral"
    write_faces(tmp_path, pd.concat([table, table.iloc[[7]]]))
    pictures = [picture(k, level=190 if tone == "light" else 80) for k, tone in enumerate(table["tone"])]
    for name, image in zip(table["image"], pictures, strict=True):
        image.save(tmp_path / name)
    shutil.copy(tmp_path / table["image"][60], tmp_path / table["image"][61])  # to the byte, in another split
    pictures[63].save(tmp_path / table["image"][64].replace(".png", ".jpg"), quality=95)
    (tmp_path / table["image"][64].replace(".png", ".jpg")).rename(tmp_path / table["image"][64])
    card = card_of(tmp_path, split="split", groups={"tone": {"column": "tone"}})
    warnings = list(map(warning_sentence, describe_data(read(tmp_path, card), card).warnings))
    found = {sign: [w for w in warnings if sign in w] for sign in CONSEQUENCES}
    assert {sign: len(told) for sign, told in found.items()} == dict.fromkeys(CONSEQUENCES, 1)
    assert len(warnings) == len(CONSEQUENCES)
    for sign, consequence in CONSEQUENCES.items():
        assert consequence in found[sign][0]


@pytest.mark.unit
def test_warnings_reach_the_samples(tmp_path: Path) -> None:
    """The images of women are bright, those of men dark; and one source has labelled all its images happy."""
    table = face_table(60)
    table.loc[(table["source"] == "a") & (table["expression"] == "neutral"), "expression"] = "happiness"
    table.loc[(table["source"] == "b"), "expression"] = "neutral"
    write_faces(tmp_path, table)
    for number, (name, gender) in enumerate(zip(table["image"], table["gender"], strict=True)):
        picture(number, level=190 if gender == "female" else 80).save(tmp_path / name)
    warnings = " ".join(map(warning_sentence, read(tmp_path, card_of(tmp_path)).warnings))
    assert "gender: images of 'male' differ from those of 'female' in mean brightness (−" in warnings or (
        "gender: images of 'female' differ from those of 'male' in mean brightness (+" in warnings
    )
    assert "source: labels depend on it (Cramer's V 0." in warnings
    assert "look like one of another subject" not in warnings
