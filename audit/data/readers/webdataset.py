"""``reader: webdataset``: tar files whose members of one name are a sample, on a disk or in a store.

``00017.jpg``, ``00017.json`` and ``00017.cls`` are one sample: an image, columns by the names in the JSON object, and a
column ``cls``. A shard is read once from end to end; afterwards each image is read where it lies, and kept nowhere.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, ClassVar

import pandas as pd

from audit.card.read_table import plain_text
from audit.card.schema import DataSpec
from audit.data.decode import IMAGE_SUFFIXES, REPAIR, ImageError
from audit.data.readers.raw import RawTable, files_of
from audit.data.sources import ByteSource
from audit.errors import DataError
from audit.filenames import printable, whole_characters
from audit.records import LeftOut
from audit.remote import Place, RemotePath

TEXTS = 1 << 20  # bytes of a text or JSON member, at most
_Sample = tuple[dict[str, str | None], str, tuple[int, int]]  # its columns, its key, and where its image lies


@dataclass(frozen=True)
class TarSource(ByteSource):
    """Images in tar files, by key: SHARD/NAME.

    Parameters
    ----------
    files : mapping of str to Place
        By shard.
    places : mapping of str to (int, int)
        By key, where the image begins in its file, and how many bytes it has.
    """

    at_once: ClassVar[int] = 16

    files: Mapping[str, Place]
    places: Mapping[str, tuple[int, int]]

    def read(self, key: str) -> bytes:
        """Return the encoded image; raise ``DataError`` where there is none, or the file ends within it."""
        if key not in self.places:
            raise DataError(key, "no such image", "use the keys that 'vit-audit check' lists")
        start, size = self.places[key]
        file = self.files[key.partition("/")[0]]
        try:
            content = _part(file, start, size)
        except FileNotFoundError:
            raise ImageError(key, LeftOut.MISSING, "restore the tar file") from None
        except OSError as error:
            raise ImageError(key, LeftOut.NOT_OPENED, REPAIR, error.strerror or "") from None
        if len(content) < size:
            raise ImageError(key, LeftOut.DAMAGED, "upload the tar file again", f"{len(content)} of {size} bytes")
        return content


def _part(file: Place, start: int, size: int) -> bytes:
    if isinstance(file, RemotePath):
        return file.read_bytes(start, start + size)
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(size)


def read_webdataset(spec: DataSpec, path: Place) -> RawTable:
    """Read a WebDataset.

    Parameters
    ----------
    spec : DataSpec
        Keys of images go to the column that it names.
    path : pathlib.Path or RemotePath
        A folder of tar files, or one.

    Returns
    -------
    RawTable
        Members that belong to no image are no rows.

    Raises
    ------
    DataError
        If there is no tar file, one is none, or two samples have one name.
    """
    files = files_of(path, "*.tar")
    if not files:
        raise DataError(str(path), "holds no *.tar", "name a folder of tar files (not compressed), or one")
    shards = {file.stem: file for file in files}
    if len(shards) < len(files):
        raise DataError(str(path), "two tar files have one name", "rename one of them")
    rows: list[dict[str, str | None]] = []
    places: dict[str, tuple[int, int]] = {}
    for name, file in shards.items():
        for row, key, place in _samples(name, file, spec.image):
            if key in places:
                raise DataError(str(file), f"two samples are named '{printable(key)}'", "give each another name")
            rows.append(row)
            places[key] = place
    if not rows:
        raise DataError(str(path), "holds no images", f"members must end in {', '.join(IMAGE_SUFFIXES[:4])}, ...")
    frame = pd.DataFrame(rows, dtype=object)
    return RawTable(frame.where(frame.notna(), None), TarSource(shards, places), str(path))


def _samples(shard: str, file: Place, column: str) -> list[_Sample]:
    """Return the samples of a file that have an image."""

    def read(opened: IO[bytes]) -> list[_Sample]:
        columns: dict[str, dict[str, str | None]] = {}
        images: dict[str, tuple[str, tuple[int, int]]] = {}
        try:
            for member, content in _members(opened):
                path = member.name.removeprefix("./")
                ending = path.rpartition("/")[2].partition(".")[2]
                sample = path[: len(path) - len(ending) - 1] if ending else path
                if _is_image(member):
                    images.setdefault(sample, (f"{shard}/{path}", (member.offset_data, member.size)))
                elif ending:
                    columns.setdefault(sample, {}).update(_columns(ending, content))
        except tarfile.TarError as error:
            raise DataError(str(file), f"is no tar file ({error})", "write it again, not compressed") from None
        return [({**columns.get(s, {}), column: key}, key, place) for s, (key, place) in images.items()]

    try:
        if isinstance(file, RemotePath):
            return file.opened(read)
        with file.open("rb") as local:
            return read(local)
    except OSError as error:
        raise DataError(str(file), f"cannot be read ({error.strerror or error})", "name readable tar files") from None


def _members(opened: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the files of a tar file, of short ones with their content; of a file that was cut, those that are there."""
    begun = False
    with tarfile.open(fileobj=opened, mode="r:") as tar:
        try:
            while (member := tar.next()) is not None:
                if member.isreg():
                    begun = True
                    short = tar.extractfile(member) if member.size <= TEXTS and not _is_image(member) else None
                    yield member, b"" if short is None else short.read()
        except tarfile.ReadError:  # images that are cut are counted when they are opened
            if not begun:
                raise


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.name.lower().endswith(IMAGE_SUFFIXES)


def _columns(ending: str, content: bytes) -> dict[str, str | None]:
    """Return the columns of a member: those of a JSON object, else one named by its ending."""
    text = content.decode("utf-8", "replace")
    if ending == "json":
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        flat = {k: v for k, v in row.items() if not isinstance(v, dict | list)} if isinstance(row, dict) else {}
        return {whole_characters(k).strip(): plain_text(v) for k, v in flat.items()}
    return {ending: whole_characters(text).strip() or None}
