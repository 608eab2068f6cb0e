"""From image files to arrays: images decoded and brought to the model's size, all at once or as they are asked for.

Images that fit into memory are decoded once and held. Others are decoded whenever a batch of them is needed; what is
decoded is written to a folder that a person names, or nowhere. Their bits do not depend on which it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version

from audit.batching import batches, room
from audit.data.decode import Opening, decode_image
from audit.data.pixel_cache import PixelCache
from audit.data.samples import ImageSource
from audit.data.sources import ByteSource, open_image
from audit.progress import Progress

Pixels = npt.NDArray[np.uint8]  # of a preprocessing that gives no bytes: float32
Rows = npt.NDArray[np.int64]
Cache = Literal["auto", "memory", "none"]
TOLD_EVERY = 64  # images
HELD_SHARE = 0.25  # of the memory that is left
KEPT_AT_ONCE = 256  # images


@dataclass(frozen=True)
class Geometry:
    """How an image becomes an array of the model's size.

    Parameters
    ----------
    fit : callable
        From an RGB image to an array of ``shape``; one that pickles, for other processes decode as well.
    shape : tuple of int
        Height, width, channels.
    opening : Opening
        How files become RGB.
    dtype : type
        uint8, or float32 where the preprocessing gives no bytes.
    cache : PixelCache, optional
        Where the arrays are kept.
    """

    fit: Callable[[Image.Image], Pixels]
    shape: tuple[int, int, int]
    opening: Opening = Opening.CAREFUL
    dtype: type[np.uint8] | type[np.float32] = np.uint8
    cache: PixelCache | None = None


def centred_square(size: int) -> Geometry:
    """Crop to a centred square and resize it, bicubic, to ``size`` pixels a side."""
    return Geometry(_CentredSquare(size), (size, size, 3))


@dataclass(frozen=True)
class _CentredSquare:
    size: int

    def __call__(self, image: Image.Image) -> Pixels:
        if image.size != (self.size, self.size):
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image)


def load_pixels(
    source: ImageSource,
    keys: Sequence[str | None],
    geometry: Geometry,
    *,
    progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode images and bring them to the model's size; several at once, on as many cores as there are.

    Parameters
    ----------
    source : ImageSource
        Opens a key as an RGB image.
    keys : sequence of str or None
        Which images, in order; None leaves a black one.
    geometry : Geometry
    progress : callable, optional
        Called with the number of images done.

    Returns
    -------
    numpy.ndarray, shape (len(keys), height, width, channels)
    """
    out: Pixels = np.zeros((len(keys), *geometry.shape), dtype=geometry.dtype)
    places = [place for place, key in enumerate(keys) if key is not None]

    def fitted(place: int) -> Path | None:
        """Fill in an image; return the file in which it is to be kept, where it is not yet."""
        key, cache = str(keys[place]), geometry.cache
        if cache is None or not isinstance(source, ByteSource):
            out[place] = geometry.fit(open_image(source, key, geometry.opening))
            return None
        content = source.read(key)
        file = cache.file_of(content)
        if cache.read(file, out[place]):
            return None
        out[place] = geometry.fit(source.decode(key, content, geometry.opening))
        return file

    # A process that decodes for another one is one of as many as there are cores.
    with ThreadPoolExecutor(1 if multiprocessing.parent_process() else os.cpu_count()) as pool:
        try:
            for done, (place, file) in enumerate(zip(places, pool.map(fitted, places), strict=True), start=1):
                if geometry.cache is not None and file is not None:
                    geometry.cache.write(file, out[place])
                if progress is not None and done % TOLD_EVERY == 0:
                    progress(done)
        except BaseException:  # an image that cannot be opened, or an interrupted run: the others are not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return out


def with_cache(geometry: Geometry, folder: Path, made_by: Mapping[str, object]) -> Geometry:
    """Return the geometry with its arrays kept in a folder, by all that they depend on.

    Parameters
    ----------
    geometry : Geometry
    folder : pathlib.Path
    made_by : mapping of str to object
        What is known of the preprocessing and its code; what it makes of a picture of noise is added, since a library
        may have settings that nobody names.

    Raises
    ------
    UnfinishedError
        If the folder cannot be written to.
    """
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture, "JPEG")
    tried = geometry.fit(decode_image("noise", picture.getvalue(), geometry.opening))
    known = [made_by, pillow_version, geometry.shape, str(np.dtype(geometry.dtype))]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode() + tried.tobytes())
    return replace(geometry, cache=PixelCache(folder, digest.hexdigest()))


def keep(images: ImagesOnDemand, progress: Progress) -> None:
    """Decode the images that their cache does not hold yet, while there is room."""
    cache = images.geometry.cache
    if cache is None or not isinstance(images.source, ByteSource):
        return
    for part in batches(len(images), KEPT_AT_ONCE):
        if cache.is_full:
            return
        images[part]
        progress(part.stop, len(images))


class Images(Protocol):
    """Images of one size: an array that is held in memory, or what decodes them as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, height, width, channels."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Rows, /) -> Pixels: ...


@dataclass(frozen=True)
class ImagesOnDemand:
    """Images that are decoded whenever they are asked for.

    Parameters
    ----------
    source : ImageSource
        Opens a key as an RGB image.
    keys : sequence of str or None
        By row; None stands for a black image.
    geometry : Geometry
    workers : int
        Processes that decode the next batches of a pass while this one computes; with 0 the pass waits for each batch,
        which all cores decode then.
    """

    source: ImageSource
    keys: Sequence[str | None]
    geometry: Geometry
    workers: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, height, width, channels."""
        return (len(self.keys), *self.geometry.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return np.dtype(self.geometry.dtype)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice | Rows) -> Pixels:
        """Decode some of the images."""
        some = np.arange(len(self))[rows]
        return load_pixels(self.source, [self.keys[row] for row in some], self.geometry)

    def reduce_elsewhere(self) -> tuple[Any, ...]:
        """Return how another machine has these images: it keeps none on a disk, and its tasks are its processes."""
        return ImagesOnDemand, (self.source, self.keys, replace(self.geometry, cache=None))


@dataclass(frozen=True)
class ImagesHeld:
    """Images that are decoded and held in memory; another machine opens them for itself.

    Parameters
    ----------
    images : ImagesOnDemand
        What decoded them.
    pixels : numpy.ndarray
        Of all rows.
    """

    images: ImagesOnDemand
    pixels: Pixels

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, height, width, channels."""
        return self.pixels.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.pixels.dtype

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | Rows) -> Pixels:
        """Return some of the images."""
        found: Pixels = self.pixels[rows]
        return found

    def reduce_elsewhere(self) -> tuple[Any, ...]:
        """Return how another machine has these images: it decodes those that it needs, and holds them."""
        return ImagesOnce, (self.images,)


@dataclass(frozen=True)
class ImagesOnce:
    """Images that are decoded when they are first asked for, and held from then on while memory has room for them.

    Parameters
    ----------
    images : ImagesOnDemand
    """

    images: ImagesOnDemand
    held: dict[int, Pixels] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, height, width, channels."""
        return self.images.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Rows) -> Pixels:
        """Return some of the images."""
        some = np.arange(len(self))[rows].tolist()
        absent = sorted({row for row in some if row not in self.held})
        fresh = dict(zip(absent, self.images[np.array(absent, dtype=np.int64)], strict=True))
        if size_of(self.images) // max(1, len(self)) * (len(self.held) + len(fresh)) <= HELD_SHARE * room():
            self.held.update(fresh)
        out: Pixels = np.empty((len(some), *self.shape[1:]), dtype=self.dtype)
        for place, row in enumerate(some):
            out[place] = fresh[row] if row in fresh else self.held[row]
        return out


@dataclass(frozen=True)
class View:
    """Some rows of images, as they are or flipped left to right; nothing is copied or decoded before it is asked for.

    Parameters
    ----------
    images : Images
    rows : numpy.ndarray
        Of ``images``.
    flipped : bool
    """

    images: Images
    rows: Rows
    flipped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, height, width, channels."""
        return (len(self.rows), *self.images.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Rows) -> Pixels:
        """Return some of them as an array."""
        pixels = self.images[self.rows[rows]]
        return np.ascontiguousarray(pixels[:, :, ::-1]) if self.flipped else pixels


def can_be_sent(images: Images | object) -> bool:
    """Tell whether another machine is sent how images are opened, in place of the images."""
    while isinstance(images, View):
        images = images.images
    return isinstance(images, ImagesHeld | ImagesOnDemand | ImagesOnce)


def fits(images: Images, cache: Cache) -> bool:
    """Tell whether images are to be held in memory: with "auto" where they take at most a quarter of what is left."""
    return cache == "memory" or (cache == "auto" and size_of(images) <= HELD_SHARE * room())


def size_of(images: Images) -> int:
    """Return how many bytes decoded images take."""
    return math.prod(images.shape) * images.dtype.itemsize


def select(images: Images, rows: Rows) -> View:
    """Return some of the images, by their rows."""
    return View(images, rows)


def mirrored(images: Images) -> View:
    """Return the images flipped left to right."""
    if isinstance(images, View):
        return View(images.images, images.rows, not images.flipped)
    return View(images, np.arange(len(images), dtype=np.int64), flipped=True)
