"""A datasets.Dataset is read by its own columns: labels by their names, images only when they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import vit_audit as va

pytestmark = [pytest.mark.unit, pytest.mark.long]
GROUPS = {"gender": {"column": "sex", "reference": "male"}}


@pytest.fixture(scope="module")
def hub() -> Any:
    import datasets  # takes seconds

    pictures = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 50, 100, 150)]
    rows = {"picture": pictures, "smiles": [1, 0, 1, 0], "sex": ["female", "male"] * 2, "file": list("abcd")}
    kinds = {
        "picture": datasets.Image(),
        "smiles": datasets.ClassLabel(names=["no", "yes"]),
        "sex": datasets.Value("string"),
        "file": datasets.Value("string"),
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_columns_are_the_table_and_images_follow_their_rows(hub: Any) -> None:
    turned = hub.select([3, 2, 1, 0])
    for keyed, names in (({}, list("0123")), ({"key": "file"}, list("dcba"))):
        data = va.Data.from_dataset(turned, label="smiles", groups=GROUPS, image="picture", **keyed)
        assert data.table["smiles"].tolist() == ["no", "yes", "no", "yes"]
        assert data.table["sex"].tolist() == ["male", "female"] * 2
        assert [data.source.open(name).getpixel((0, 0)) for name in names] == [(k, k, k) for k in (150, 100, 50, 0)]
    assert "picture" not in data.table


def test_a_format_of_tensors_and_a_missing_label_are_read(hub: Any) -> None:
    data = va.Data.from_dataset(hub.with_format("torch"), label="smiles", groups=GROUPS, image="picture")
    assert data.source.open("1").getpixel((7, 7)) == (50, 50, 50)
    unknown = hub.map(lambda row: {"smiles": -1 if row["file"] == "a" else row["smiles"]}, load_from_cache_file=False)
    table = va.Data.from_dataset(unknown, label="smiles", groups=GROUPS, image="picture").table
    assert table["smiles"].isna().tolist() == [True, False, False, False]


def test_bad_input_is_one_line(hub: Any) -> None:
    import datasets

    def refused(dataset: Any, **given: Any) -> str:
        named = {"label": "smiles", "groups": GROUPS, "image": "picture", **given}
        with pytest.raises(va.InputError) as caught:
            va.Data.from_dataset(dataset, **named)
        return str(caught.value)

    splits = datasets.DatasetDict({"train": hub, "test": hub})
    assert refused(splits) == "dataset: is a DatasetDict of splits (train, test); give one of them, as dataset['train']"
    columns = "name one of picture, smiles, sex, file with"
    assert refused(hub, image="image") == f"dataset: no column 'image'; {columns} image="
    assert refused(hub, key="path") == f"dataset: no column 'path'; {columns} key="
    row = hub.rename_column("file", "row")
    assert refused(row) == "dataset: its column 'row' has the name that rows would get; name a column with key="
    assert "map-style" in refused(hub.to_iterable_dataset(), table=hub.to_pandas(), key="file")
    missing = "is missing; give a pandas.DataFrame as table=, and its column of keys as key="
    assert refused([]) == f"table: {missing}"
    assert refused(hub, table=hub.to_pandas()) == f"key: {missing}"
