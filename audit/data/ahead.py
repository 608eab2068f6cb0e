"""Images in batches, those of the next batches being decoded while one is computed."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from audit.batching import batches, in_halves, slice_in_two
from audit.data.pixels import Images, ImagesOnDemand, Pixels, Rows, View

Result = TypeVar("Result")
Needed = Sequence[Sequence[Rows]]  # rows by batch and view
BATCHES_AHEAD = 2  # of each process that decodes


@dataclass(frozen=True)
class Decoded:
    """Those of some images that a batch needs, decoded; they keep their row numbers."""

    images: Images
    rows: Rows  # sorted
    pixels: Pixels

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
        """Return some of them as an array."""
        return self.pixels[np.searchsorted(self.rows, np.arange(len(self))[rows] if isinstance(rows, slice) else rows)]


def ahead(views: Sequence[Images], needed: Sequence[Sequence[Rows]]) -> Iterator[Sequence[Images]]:
    """Yield for each batch the images that it needs, those of the next batches being decoded meanwhile.

    Parameters
    ----------
    views : sequence of Images
    needed : sequence of sequence of numpy.ndarray
        For each batch the rows that it needs of each view.

    Yields
    ------
    sequence of Images
        Of each view what the batch needs, under the same row numbers; images that are held are yielded as they are.
    """
    sources = [found for view in views if (found := _on_demand(view)) is not None]
    if not sources:
        yield from (views for _ in needed)
        return
    asked = [[np.unique(rows) for rows in batch] for batch in needed]
    workers = min(max(found.workers for found in sources), len(asked) - 1)
    for rows, pixels in zip(asked, _decoded(views, asked, workers), strict=True):
        yield [Decoded(view, own, seen) for view, own, seen in zip(views, rows, pixels, strict=True)]


def in_image_batches(
    work: Callable[[Pixels], Result], images: Images, rows: Rows | None = None, *, size: int
) -> list[Result]:
    """Do some work on images batch by batch, at most ``size`` at once; less where memory does not suffice.

    Parameters
    ----------
    work : callable
        Nothing of it may be left behind where it fails.
    images : Images
    rows : numpy.ndarray, optional
        Which of them, in order; all where not given.
    size : int

    Returns
    -------
    list
        What ``work`` returned for each batch, in order.
    """
    every = np.arange(len(images), dtype=np.int64) if rows is None else rows
    parts = [every[part] for part in batches(len(every), size)]
    found: list[Result] = []
    for part, (seen,) in zip(parts, ahead([images], [[part] for part in parts]), strict=True):
        found += _on_part(work, seen, part)
    return found


def _on_part(work: Callable[[Pixels], Result], seen: Images, part: Rows) -> list[Result]:
    return in_halves(lambda cut: work(seen[part[cut]]), slice(0, len(part)), slice_in_two)


def _on_demand(images: Images) -> ImagesOnDemand | None:
    """Return what decodes images; None where they are held."""
    while isinstance(images, View):
        images = images.images
    return images if isinstance(images, ImagesOnDemand) else None


def _decoded(views: Sequence[Images], needed: Needed, workers: int) -> Iterator[Sequence[Pixels]]:
    """Yield for each batch the pixels of its rows of each view, decoded by so many processes, or here.

    A batch of which an image cannot be opened is decoded here again, where the error can be raised as it is.
    """
    if workers < 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from (_pixels(views, rows) for rows in needed)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside threads (Python 3.12), and of more processes than cores
        loader: DataLoader[list[Pixels] | None] = DataLoader(
            _Batches(views, needed),
            batch_size=None,
            shuffle=False,
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD,
            collate_fn=_as_it_is,
            multiprocessing_context="fork",  # sources and preprocessings may be what no other process could be given
            generator=Generator(),  # the run's own draws do not depend on how images are decoded
        )
        opened = iter(loader)
    for rows, pixels in zip(needed, opened, strict=True):
        yield _pixels(views, rows) if pixels is None else pixels


def _pixels(views: Sequence[Images], rows: Sequence[Rows]) -> list[Pixels]:
    return [view[own] for view, own in zip(views, rows, strict=True)]


def _as_it_is(pixels: Any) -> Any:
    """Keep arrays: tensors would travel in shared memory, of which containers have little."""
    return pixels


@dataclass(frozen=True)
class _Batches(Dataset[list[Pixels] | None]):
    """Batches by number, as a dataset; None where an image of a batch cannot be opened."""

    views: Sequence[Images]
    needed: Needed

    def __len__(self) -> int:
        return len(self.needed)

    def __getitem__(self, number: int) -> list[Pixels] | None:
        try:
            return _pixels(self.views, self.needed[number])
        except Exception:  # whatever somebody else's source raises
            return None
