"""``reader: cifar100``: CIFAR-100 as published (binary or Python files), or as class folders.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The Python version consists of
pickles. They are read by an unpickler that can build arrays and nothing else, after their checksums agree.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from audit.card.schema import DataSpec, Download
from audit.data.decode import ImageError, Opening
from audit.data.fetch import OFFLINE_ENV, fetch_one
from audit.data.readers.folder import class_folders, join_groups
from audit.data.readers.raw import RawTable
from audit.data.sources import ByteSource, FileSource
from audit.data.splits import GIVEN
from audit.errors import AuditError, DataError
from audit.records import LeftOut

BINARY_FOLDER, PYTHON_FOLDER = "cifar-100-binary", "cifar-100-python"
_SIDE, _PIXELS = 32, 3 * 32 * 32
_RECORD = 2 + _PIXELS  # coarse label, fine label, then red, green and blue planes
_DOWNLOAD_AGAIN = "download it again"
# All that the published files name; anything else in such a file is an attack or another file.
_ALLOWED = {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

Planes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ArraySource(ByteSource):
    """Images that lie in arrays, one for each split."""

    held: ClassVar[bool] = True
    planes: dict[str, Planes]  # (n, 3072), red, green and blue by split; keys of images are ``SPLIT/POSITION``

    def read(self, key: str) -> bytes:
        """Return the 3,072 bytes of an image; raise ``DataError`` where there is none."""
        split, _, position = key.partition("/")
        if split not in self.planes or not position.isdigit() or int(position) >= len(self.planes[split]):
            raise DataError(key, "no such image in CIFAR-100", "use keys such as 'train/00000'")
        return bytes(self.planes[split][int(position)].tobytes())

    def decode(self, key: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
        """Return the 32 x 32 RGB image that the planes hold; raise ``DataError`` where they do not fit."""
        del opening
        if len(content) != _PIXELS:
            raise ImageError(key, LeftOut.DAMAGED, _DOWNLOAD_AGAIN, f"{len(content)} of {_PIXELS} bytes")
        planes = np.frombuffer(content, dtype=np.uint8).reshape(3, _SIDE, _SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dicts, lists, texts, numbers and numpy arrays; refuses every other class and function."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return one of numpy's constructors, or raise ``UnpicklingError``."""
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        current = module_name.replace("numpy.core", "numpy._core")
        return getattr(importlib.import_module(current), global_name)


def read_cifar100(spec: DataSpec, path: Path) -> RawTable:
    """Read CIFAR-100 with the annotations of a ``groups.csv`` beside it.

    Parameters
    ----------
    spec : DataSpec
        Names the image and label columns of the answer.
    path : pathlib.Path
        See ``cifar100_images``.

    Raises
    ------
    DataError
        If the images or ``groups.csv`` (CIFAR-100 names no groups) cannot be read.
    """
    frame, source = cifar100_images(path)
    frame = frame.rename(columns={"image": spec.image, "label": spec.label})
    return RawTable(join_groups(frame, spec, path), source, str(path))


def cifar100_images(path: Path) -> tuple[pd.DataFrame, ByteSource]:
    """Read CIFAR-100 in whichever form lies at ``path``; download it where nothing does.

    Parameters
    ----------
    path : pathlib.Path
        A folder that holds (or is) ``cifar-100-binary`` or ``cifar-100-python``, or class folders under
        ``train`` and ``test``. Where it is absent or empty, the Python version is downloaded into it, unless
        VIT_AUDIT_OFFLINE is set.

    Returns
    -------
    frame : pandas.DataFrame
        Columns ``image``, ``label`` (fine class), ``given_split`` (train or test).
    source : ByteSource
        Opens the images.

    Raises
    ------
    DataError
        If nothing is there and the download fails or is off, or the files are damaged.
    """
    if _is_absent(path):
        _download(path)
    for folder in (path, path / BINARY_FOLDER):
        if (folder / "train.bin").is_file():
            return _from_binary(folder)
    for folder in (path, path / PYTHON_FOLDER):
        if (folder / "train").is_file():
            return _from_python(folder)
    return class_folders(path).images, FileSource(path)


def is_to_be_fetched(spec: DataSpec, path: Path) -> bool:
    """Tell whether a set is CIFAR-100, does not lie at ``path``, and may be downloaded."""
    return spec.reader == "cifar100" and _is_absent(path) and not os.environ.get(OFFLINE_ENV)


def _is_absent(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _download(path: Path) -> None:
    """Fetch and unpack the archive that torchvision names, whole or not at all."""
    if os.environ.get(OFFLINE_ENV):
        fix = f"put {BINARY_FOLDER} there, or unset {OFFLINE_ENV} to download it"
        raise DataError(str(path), f"CIFAR-100 is not here and {OFFLINE_ENV} is set", fix)
    from torchvision.datasets import CIFAR100

    archive = Download(url=CIFAR100.url, hash=f"md5:{CIFAR100.tgz_md5}", unpack=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
        fetch_one(archive, path)
    except (OSError, AuditError) as error:  # no network, no space, a wrong checksum
        reason = error.what if isinstance(error, AuditError) else " ".join(str(error).split())[:160]
        fix = f"fetch {CIFAR100.url} yourself and unpack it there, or name class folders"
        raise DataError(str(path), f"CIFAR-100 could not be downloaded ({reason})", fix) from None


def _from_binary(folder: Path) -> tuple[pd.DataFrame, ByteSource]:
    names = _fine_names(folder / "fine_label_names.txt")
    labels, planes = {}, {}
    for split in ("train", "test"):
        file = folder / f"{split}.bin"
        if not file.is_file() or file.stat().st_size == 0 or file.stat().st_size % _RECORD:
            raise DataError(str(file), f"is missing or no multiple of {_RECORD} bytes", _DOWNLOAD_AGAIN)
        records = np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, _RECORD)
        labels[split] = records[:, 1].astype(int).tolist()
        planes[split] = records[:, 2:]
    return _frame(labels, names, str(folder)), ArraySource(planes)


def _fine_names(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        raise DataError(str(file), "class names cannot be read", _DOWNLOAD_AGAIN) from None


def _from_python(folder: Path) -> tuple[pd.DataFrame, ByteSource]:
    from torchvision.datasets import CIFAR100

    checksums = dict([*CIFAR100.train_list, *CIFAR100.test_list])
    checksums[CIFAR100.meta["filename"]] = CIFAR100.meta["md5"]
    content = {name: _checked(folder / name, checksums[name]) for name in ("train", "test", "meta")}
    return from_pickles(content, str(folder))


def from_pickles(content: dict[str, bytes], where: str) -> tuple[pd.DataFrame, ByteSource]:
    """Read the Python version's files ``train``, ``test`` and ``meta``, as ``cifar100_images`` returns them."""
    parts = {name: unpickle_arrays(data, f"{where}/{name}") for name, data in content.items()}
    try:
        names = [str(name) for name in parts["meta"]["fine_label_names"]]
        labels = {split: [int(y) for y in parts[split]["fine_labels"]] for split in ("train", "test")}
        planes = {s: np.asarray(parts[s]["data"], dtype=np.uint8).reshape(-1, _PIXELS) for s in labels}
    except (KeyError, TypeError, ValueError):
        raise DataError(where, "the files do not hold CIFAR-100", _DOWNLOAD_AGAIN) from None
    return _frame(labels, names, where), ArraySource(planes)


def unpickle_arrays(content: bytes, where: str) -> dict[str, Any]:
    """Read a pickled dict of plain values and numpy arrays; run nothing else.

    Parameters
    ----------
    content : bytes
        The pickle.
    where : str
        The file, for the message.

    Raises
    ------
    DataError
        If it names any class or function but numpy's array constructors, or is damaged.
    """
    try:
        found = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        reason = " ".join(str(error).split())[:120]
        raise DataError(where, f"refused, not a plain CIFAR-100 file ({reason})", _DOWNLOAD_AGAIN) from None
    if not isinstance(found, dict):
        raise DataError(where, "not a CIFAR-100 file", _DOWNLOAD_AGAIN)
    return found


def _checked(file: Path, md5: str) -> bytes:
    try:
        content = file.read_bytes()
    except OSError:
        raise DataError(str(file), "missing or unreadable", _DOWNLOAD_AGAIN) from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(str(file), "its checksum is not that of the published file", _DOWNLOAD_AGAIN)
    return content


def _frame(labels: dict[str, list[int]], names: list[str], where: str) -> pd.DataFrame:
    rows = []
    for split, numbers in labels.items():
        if numbers and max(numbers) >= len(names):
            raise DataError(where, f"class {max(numbers)} has no name", _DOWNLOAD_AGAIN)
        rows += [(f"{split}/{position:05d}", names[y], split) for position, y in enumerate(numbers)]
    frame = pd.DataFrame(rows, columns=["image", "label", GIVEN], dtype=object)
    return frame.sort_values("image", ignore_index=True)
