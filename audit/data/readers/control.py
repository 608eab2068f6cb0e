"""Images for the colour and blur controls: labels and a train/test split, no groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from audit.card.faults import did_you_mean
from audit.card.schema import DataSpec
from audit.data.readers.cifar100 import cifar100_images
from audit.data.readers.folder import class_folders
from audit.data.sources import ByteSource, FileSource
from audit.data.splits import GIVEN, assign_subjects
from audit.errors import DataError

TEST_SHARE = 0.2  # of each class, where the folders do not say


@dataclass(frozen=True)
class ControlImages:
    """Labelled images without groups."""

    frame: pd.DataFrame  # columns ``image``, ``label``, ``split`` ("train" or "test"); sorted by image
    source: ByteSource  # opens the images


def read_control_images(spec: DataSpec, *, base: Path) -> ControlImages:
    """Read the images of a ``folder`` or ``cifar100`` card for the controls.

    Parameters
    ----------
    spec : DataSpec
        ``reader``, ``path``, ``labels`` (keep these) and ``seed``.
    base : pathlib.Path
        The folder that ``spec.path`` is relative to; an absolute path stands for itself.

    Raises
    ------
    DataError
        For another reader, fewer than two classes, or a class that one of the two splits lacks.
    """
    folder = base / Path(spec.path or ".")
    if spec.reader == "cifar100":
        frame, source = cifar100_images(folder)
    elif spec.reader == "folder":
        frame, source = class_folders(folder).images, FileSource(folder)
    else:
        what = f"reader '{spec.reader}' has no control images"
        raise DataError("controls.card", what, "use a card whose reader is cifar100 or folder")
    if spec.labels is not None:
        absent = [label for label in spec.labels if label not in set(frame["label"])]
        if absent:
            hint = did_you_mean(absent[0], sorted(set(frame["label"])))
            raise DataError(str(folder), f"no images of '{absent[0]}'", hint)
        frame = frame[frame["label"].isin(spec.labels)].reset_index(drop=True)
    frame = frame.assign(split=_control_split(frame, spec.seed))
    _check_classes(frame, str(folder))
    return ControlImages(frame[["image", "label", "split"]], source)


def _control_split(frame: pd.DataFrame, seed: int) -> pd.Series:
    if GIVEN in frame:
        return frame[GIVEN].where(frame[GIVEN] == "train", "test")
    strata = frame.set_index("image")["label"]
    assigned = assign_subjects(strata, np.array([1 - TEST_SHARE, TEST_SHARE, 0.0]), seed)
    return frame["image"].map(assigned).where(lambda split: split == "train", "test")


def _check_classes(frame: pd.DataFrame, where: str) -> None:
    classes = sorted(set(frame["label"]))
    if len(classes) < 2:
        raise DataError(where, f"one class only ('{classes[0]}')", "the controls need two classes or more")
    for split in ("train", "test"):
        absent = sorted(set(classes) - set(frame.loc[frame["split"] == split, "label"]))
        if absent:
            what = f"class '{absent[0]}' has no {split} image"
            raise DataError(where, what, f"add images, or leave out {', '.join(absent)} with data.labels")
