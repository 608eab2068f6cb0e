"""A small data set on disk, and its card, for the tests of the readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from audit.card import Card, load_card
from audit.data import Samples, read_samples


def face_table(subjects: int = 24) -> pd.DataFrame:
    """Return two images of each subject: one neutral, one happy; groups alternate between subjects."""
    rows = [
        {
            "image": f"images/{subject:02d}-{label}.png",
            "expression": label,
            "gender": "female" if subject % 2 else "male",
            "person": f"p{subject:02d}",
            "source": "abc"[subject % 3],
        }
        for subject in range(subjects)
        for label in ("neutral", "happiness")
    ]
    return pd.DataFrame(rows)


def write_images(folder: Path, names: list[str]) -> None:
    """Write one image of 12 x 10 px for each name, all different."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def write_faces(folder: Path, frame: pd.DataFrame | None = None) -> Path:
    """Write the table and every image it names; return the table's path."""
    frame = face_table() if frame is None else frame
    write_images(folder, sorted(set(frame["image"].dropna())))
    path = folder / "faces.csv"
    frame.to_csv(path, index=False)
    return path


def card_of(folder: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> Card:
    """Write and load a card for the faces; ``changes`` go into ``data``, other parts by their own name."""
    data: dict[str, Any] = {
        "path": "faces.csv",
        "label": "expression",
        "labels": ["neutral", "happiness"],
        "subject": "person",
    }
    card: dict[str, Any] = {"data": data, "groups": {"gender": {"column": "gender"}}, "match_on": ["source"]}
    for key, value in changes.items():
        (card if key in Card.model_fields else data)[key] = value
    for key in drop:
        (card if key in card else data).pop(key)
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(card), encoding="utf-8")
    return load_card(path)


def read(folder: Path, card: Card | None = None) -> Samples:
    """Read the samples of a card that lies in ``folder``."""
    card = card_of(folder) if card is None else card
    return read_samples(card, card_path=folder / "dataset.yaml", data_root=None)
