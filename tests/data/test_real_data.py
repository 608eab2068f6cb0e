"""The cards for real files read every image of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.card import load_card
from audit.card.schema import DataSpec
from audit.data import describe_data, read_control_images, read_samples
from audit.resources import resource_dir

pytestmark = pytest.mark.real_data

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _data() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}")


@pytest.mark.parametrize(("name", "rows", "kept"), [("expressions", 4346, 4084)])
def test_every_row_is_accounted_for(name: str, rows: int, kept: int) -> None:
    path = resource_dir("datasets") / f"{name}.yaml"
    card = load_card(path)
    report = describe_data(read_samples(card, card_path=path, data_root=DATA), card)
    assert report.images == kept
    assert report.images + sum(row.images for row in (*report.excluded, *report.quarantined)) == rows
    assert not report.quarantined
    for info in report.attributes:
        assert sum(row.images for row in report.counts if row.attribute == info.attribute) == kept
    first = next(iter(card.groups))  # the attribute that the card is about
    audited = {row.group: 0 for row in report.counts if row.attribute == first}
    for row in report.counts:
        if row.split != "train" and row.attribute == first:
            audited[row.group] += row.subjects
    assert min(audited.values()) >= card.audit.min_group_size


def test_the_control_images_of_real_class_folders() -> None:
    images = read_control_images(DataSpec(reader="cifar100", path="cifar100-20"), base=DATA)
    assert images.frame["split"].value_counts().to_dict() == {"train": 3000, "test": 1200}
    assert images.frame["label"].nunique() == 20
    assert images.source.open(images.frame["image"].iloc[0]).size == (32, 32)
