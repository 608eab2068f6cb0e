"""Datasets of Hugging Face's: Parquet with images inside, folders with metadata, and what is neither."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.data import Samples
from audit.errors import DataError
from audit.report.text import left_out_sentence
from tests.data.faces import card_of, read

pytestmark = pytest.mark.unit
NAMES = ["neutral", "happiness"]
FEATURES = {"info": {"features": {"expression": {"names": NAMES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}


def png(number: int) -> bytes:
    page = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(page, "PNG")
    return page.getvalue()


def shard(path: Path, start: int, count: int, *, features: bool = True) -> None:
    """Write a shard as ``datasets`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(start, start + count)
    table = pa.table(
        {
            "image": [{"bytes": png(n), "path": f"{n}.png"} for n in numbers],
            "expression": [n % 2 for n in numbers],
            "gender": [("female", "male", "")[n // 2 % 3] for n in numbers],
            "person": [f"p{n}" for n in numbers],
            "source": ["x"] * count,
            "boxes": [[1, 2]] * count,
        }
    )
    metadata = {b"huggingface": json.dumps(FEATURES).encode()} if features else None
    pq.write_table(table.replace_schema_metadata(metadata), path)


def samples(root: Path, **changes: Any) -> Samples:
    return read(root, card_of(root, reader="huggingface", path=".", **changes))


def test_shards_are_read_with_their_classes_and_splits(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train-00000-of-00002.parquet", 0, 12)
    shard(tmp_path / "data" / "train-00001-of-00002.parquet", 12, 12)
    shard(tmp_path / "data" / "test-00000-of-00001.parquet", 24, 24)
    found = samples(tmp_path)
    frame = found.frame.set_index("image")
    assert len(frame) == 48
    assert set(frame.index[:3]) == {"test/0000000", "test/0000001", "test/0000002"}
    assert frame.loc["train/0000013", "label"] == "happiness"
    assert frame.loc["train/0000013", "split"] == "train"
    assert set(frame.loc["test/0000000":"test/0000023", "split"]) == {"discovery", "confirmation"}
    assert found.attributes["gender"].unknown_images == 16
    np.testing.assert_array_equal(
        np.asarray(found.source.open("train/0000013")), np.asarray(Image.open(io.BytesIO(png(13))))
    )


def test_without_features_classes_are_their_numbers(tmp_path: Path) -> None:
    shard(tmp_path / "faces.parquet", 0, 48, features=False)
    assert set(samples(tmp_path, labels=["0", "1"]).frame["label"]) == {"0", "1"}
    alone = read(tmp_path, card_of(tmp_path, reader="huggingface", path="faces.parquet", labels=["0", "1"]))
    assert set(alone.frame["split"]) == {"train", "discovery", "confirmation"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_images_with_metadata(kind: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [
            {"file_name": f"{n}.png", "expression": NAMES[n % 2], "gender": ("female", "male")[n // 2 % 2],
             "person": f"{split}{n}", "source": "x"}
            for n in range(24)
        ]  # fmt: skip
        (tmp_path / split).mkdir()
        for n in range(24):
            (tmp_path / split / f"{n}.png").write_bytes(png(n + 100 * (split == "test")))
        if kind == "csv":
            pd.DataFrame(rows).to_csv(tmp_path / split / "metadata.csv", index=False)
        else:
            (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = samples(tmp_path)
    assert len(found.frame) == 48
    assert found.frame.set_index("image").loc["train/3.png", "split"] == "train"
    assert found.source.open("test/5.png").size == (12, 12)


def fault(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        samples(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_dataset_is_named(tmp_path: Path) -> None:
    assert "holds no *.parquet and no metadata.csv or metadata.jsonl" in fault(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "../a.png"}\n', encoding="utf-8")
    assert "climbs out of its folder" in fault(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("[1]\n", encoding="utf-8")
    assert "metadata.jsonl:1: is no JSON object" in fault(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    assert "no column 'file_name'" in fault(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert "a.parquet: cannot be read as Parquet" in fault(tmp_path)
    shard(tmp_path / "a.parquet", 0, 4)
    assert "no column 'picture' (data.image)" in fault(tmp_path, image="picture")
    assert "column 'person' holds no images" in fault(tmp_path, image="person")


def test_images_inside_that_are_none_are_quarantined(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", 0, 48)
    table = pq.read_table(tmp_path / "a.parquet")
    images = table.column("image").to_pylist()
    images[7]["bytes"] = b"no image"
    images[8] = None
    damaged = table.set_column(0, table.schema.field("image"), pa.array(images, table.schema.field("image").type))
    pq.write_table(damaged, tmp_path / "a.parquet")
    found = samples(tmp_path)
    (set_aside,) = found.quarantined
    assert set_aside.examples == ["all/0000007"]
    assert any("no value in column 'image'" in left_out_sentence(row) for row in found.excluded)
