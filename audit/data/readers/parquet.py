"""Images that lie in a column of Parquet files, on a disk or in a store: read group by group as they are asked for."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from audit.data.sources import ByteSource
from audit.errors import DataError
from audit.remote import Place, RemotePath

HELD = 1 << 30  # bytes of groups that are held at most; the last one always is
ANSWER = TypeVar("ANSWER")


@dataclass(frozen=True)
class Shard:
    """A file, with the number of its first row among those of its split, and how many rows each group has."""

    file: Place
    first: int
    groups: tuple[int, ...]


@dataclass
class _Groups:
    """Groups of rows that were read last; read by one thread at a time, for the others mostly want the same."""

    read: OrderedDict[tuple[str, int], pa.ChunkedArray] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.Lock)
    _process: int = field(default_factory=os.getpid)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Groups, ()

    @property
    def lock(self) -> Any:
        """The lock of this process: in a forked one nobody would give back what a thread of the other held."""
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
        return self._lock


@dataclass(frozen=True)
class ParquetSource(ByteSource):
    """Encoded images in Parquet files, by key: SPLIT/ROW.

    Parameters
    ----------
    shards : mapping of str to tuple of Shard
        In order, by split.
    column : str
        Of the images: bytes, or structures with a field ``bytes``.
    """

    shards: Mapping[str, tuple[Shard, ...]]
    column: str
    _groups: _Groups = field(default_factory=_Groups, repr=False, compare=False)

    def read(self, key: str) -> bytes:
        """Return the encoded image; raise ``DataError`` where there is none."""
        split, _, number = key.partition("/")
        shards = self.shards.get(split, ())
        row = int(number) if number.isdecimal() else -1
        place = bisect_right([shard.first for shard in shards], row) - 1
        if place >= 0:
            shard = shards[place]
            ends = list(accumulate(shard.groups))
            group = bisect_right(ends, row - shard.first)
            if group < len(ends):
                images = self._images(shard.file, group)
                content = images[row - shard.first - (ends[group] - shard.groups[group])].as_py()
                if content is not None:
                    return bytes(content)
        raise DataError(key, "no such image", "use the keys that 'vit-audit check' lists")

    def _images(self, file: Place, group: int) -> pa.ChunkedArray:
        """Return the encoded images of a group of rows."""
        kept, name = self._groups.read, (str(file), group)
        with self._groups.lock:
            if name not in kept:
                images = read_parquet_file(file, lambda opened: _group(opened, group, self.column))
                assert images is not None  # as it was when the table was read
                kept[name] = images
                while len(kept) > 1 and sum(images.nbytes for images in kept.values()) > HELD:
                    kept.popitem(last=False)
            kept.move_to_end(name)
            return kept[name]


def _group(opened: IO[bytes], group: int, column: str) -> pa.ChunkedArray | None:
    return encoded_images(pq.ParquetFile(opened).read_row_group(group, columns=[column]).column(0))


def encoded_images(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the encoded images of a column, missing where a row has none; None of a column of anything else."""
    if pa.types.is_struct(column.type):
        names = [column.type.field(number).name for number in range(column.type.num_fields)]
        if "bytes" not in names:
            return None
        column = pa.chunked_array([chunk.flatten()[names.index("bytes")] for chunk in column.chunks])
    return column if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type) else None


def read_parquet_file(file: Place, read: Callable[[IO[bytes]], ANSWER]) -> ANSWER:
    """Return what is read of a file.

    Raises
    ------
    DataError
        If it cannot be read as Parquet.
    """

    def told(error: Exception) -> DataError:
        return DataError(str(file), f"cannot be read as Parquet ({type(error).__name__})", "download it again")

    def parsed(opened: IO[bytes]) -> ANSWER:
        try:
            return read(opened)
        except pa.ArrowException as error:
            raise told(error) from None

    if isinstance(file, RemotePath):
        return file.opened(parsed)
    try:
        with file.open("rb") as opened:  # pyarrow cannot open each name in each locale
            return parsed(opened)
    except OSError as error:
        raise told(error) from None
