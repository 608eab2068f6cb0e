"""Images that were given in Python: a map-style dataset, or files named by a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from audit.data.decode import ImageError, Opening
from audit.data.sources import ByteSource
from audit.errors import DataError
from audit.records import LeftOut

SHOWN = 3


@runtime_checkable
class MapDataset(Protocol):
    """What ``torch.utils.data.Dataset`` calls map-style."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return one item."""
        ...


@dataclass(frozen=True)
class DatasetSource(ByteSource):
    """An image source over a map-style dataset."""

    held: ClassVar[bool] = True
    dataset: MapDataset  # items are images, tuples that begin with one, or mappings that hold one under ``image``
    places: Mapping[str, int]  # index of each key
    # fields of an item that is a mapping
    image: str = "image"
    key: str = "key"

    def open(self, key: str) -> Image.Image:
        """Return the image as RGB; raise ``DataError`` where the dataset gives none, or another one."""
        if key not in self.places:
            raise DataError(key, "is not in the dataset", "give a table of the dataset's own keys")
        item = _item(self.dataset, self.places[key], key)
        if isinstance(item, Mapping) and self.key in item and str(_key_of(item[self.key])) != key:
            what = f"the dataset gives '{_key_of(item[self.key])}' in its place"
            raise DataError(key, what, "give a dataset that is not shuffled while it is read")
        return as_image(key, image_of(item, self.image))

    def read(self, key: str) -> bytes:
        """Return size and pixels, which are hashed."""
        image = self.open(key)
        return f"{image.width}x{image.height}\n".encode() + image.tobytes()

    def decode(self, key: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
        """Return the image of what ``read`` returned."""
        del key, opening
        size, _, pixels = content.partition(b"\n")
        width, height = map(int, size.split(b"x"))
        return Image.frombytes("RGB", (width, height), pixels)


def _item(dataset: MapDataset, place: int, key: str) -> Any:
    """Return an item of somebody else's dataset, which may raise what it likes."""
    try:
        return dataset[place]
    except Exception as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        fix = "repair that item, or leave it out of dataset and table"
        raise ImageError(key, LeftOut.NOT_OPENED, fix, detail) from error


def image_of(item: Any, field: str) -> Any:
    """Return the image of an item: itself, the first of a tuple, or a mapping's field."""
    if isinstance(item, Mapping):
        if field not in item:
            named = ", ".join(map(str, list(item)[:SHOWN]))
            raise DataError("dataset", f"items have no '{field}' (they have {named})", "name the field with image=")
        return item[field]
    return item[0] if isinstance(item, tuple | list) else item


def as_image(key: str, value: Any) -> Image.Image:
    """Turn a PIL image, an array (H, W[, C]) or a tensor (C, H, W) into an RGB image.

    Integers are bytes in [0, 255]; floating-point numbers are shares in [0, 1].
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    is_tensor = hasattr(value, "detach")
    if is_tensor:
        value = value.detach().cpu()
        array = np.asarray(value.float() if value.is_floating_point() else value)  # NumPy has no bfloat16
    else:
        array = np.asarray(value)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    right_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not right_shape or not array.size or array.dtype.kind not in "uifb":
        fix = "give PIL images, arrays (H, W, 3) or tensors (3, H, W), not yet normalised"
        detail = f"{type(value).__name__} of shape {array.shape}, {array.dtype}"
        raise ImageError(key, LeftOut.NOT_AN_IMAGE, fix, detail)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            detail = f"in [{array.min():.3g}, {array.max():.3g}], not in [0, 1]"
            raise ImageError(key, LeftOut.PIXELS_OUT_OF_RANGE, "give images before they are normalised", detail)
        array = np.round(array * 255)
    elif array.min() < 0 or array.max() > 255:
        detail = f"in [{array.min()}, {array.max()}], not in [0, 255]"
        raise ImageError(key, LeftOut.PIXELS_OUT_OF_RANGE, "give 8-bit images", detail)
    return Image.fromarray(array.astype(np.uint8)).convert("RGB")


def _key_of(value: Any) -> Any:
    """Return a key as it is written: of a tensor or array of one number, that number."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def dataset_keys(dataset: MapDataset, key: str, given: Sequence[Any] | None) -> list[str]:
    """Return the key of every item, in the dataset's order.

    Raises
    ------
    DataError
        If items carry no key, or two carry the same.
    """
    if not isinstance(dataset, MapDataset):
        what = f"a {type(dataset).__name__} has no length or cannot be indexed"
        raise DataError("dataset", what, "give a map-style dataset, or a list of its items")
    if given is not None:
        keys = [str(_key_of(k)) for k in given]
        if len(keys) != len(dataset):
            what = f"{len(keys)} keys for {len(dataset)} items"
            raise DataError("keys", what, "give one key per item, in the dataset's order")
    else:
        first = _item(dataset, 0, "dataset[0]") if len(dataset) else None
        if not isinstance(first, Mapping) or key not in first:
            what = f"items carry no '{key}', so rows of the table cannot be matched with them"
            raise DataError("dataset", what, f"yield mappings with '{key}', or give keys= in the dataset's order")
        keys = [str(_key_of(_item(dataset, i, f"dataset[{i}]")[key])) for i in range(len(dataset))]
    twice = sorted({k for k in keys if keys.count(k) > 1}) if len(set(keys)) < len(keys) else []
    if twice:
        raise DataError("dataset", f"{len(twice)} keys come twice ({', '.join(twice[:SHOWN])})", "give each image once")
    return keys
