"""Archives from the network, unpacked as from a stranger: nothing leaves the folder, nothing grows without bound."""

from __future__ import annotations

import errno
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from audit.data.sources import safe_key
from audit.errors import DataError

MAX_FILES = 5_000_000
MAX_TIMES, MAX_ANYWAY_BYTES = 100, 10_000_000  # unpacked: so many times the archive's size, or so much
CHUNK_BYTES = 1 << 20
IN_THE_ARCHIVE = (None, errno.EINVAL, errno.ENAMETOOLONG)  # damaged bzip2, names that no file can have
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError,
    RuntimeError, NotImplementedError, ValueError,
)  # fmt: skip


def unpack(archive: Path, into: Path, where: str, *, max_files: int = MAX_FILES) -> None:
    """Unpack a zip or a tar archive into a new folder.

    Parameters
    ----------
    archive : pathlib.Path
        ``.zip``, ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz``, recognised by its content.
    into : pathlib.Path
        Is made. What is there after an error is for the caller to remove.
    where : str
        From where the archive is, for messages.

    Raises
    ------
    DataError
        If it is no such archive, is damaged, holds a link, a path that leaves the folder or one path twice, or unpacks
        to more than 100 times its size.
    """
    left = max(MAX_TIMES * archive.stat().st_size, MAX_ANYWAY_BYTES)
    into.mkdir()
    try:
        for count, (name, content) in enumerate(_files(archive, where), start=1):
            if count > max_files:
                raise DataError(where, f"holds more than {max_files:,} files", "unpack it by hand")
            path = into / safe_key(name, where)
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("xb") as out:
                while chunk := content.read(CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise DataError(where, f"unpacks to over {MAX_TIMES} times its size", "it may be a bomb")
                    out.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise DataError(where, "holds one path twice", "unpack it by hand") from None
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in IN_THE_ARCHIVE:
            raise  # no space, no permission
        raise DataError(where, f"cannot be unpacked ({type(error).__name__})", "unpack it by hand") from None


def _files(archive: Path, where: str) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        yield from _of_zip(archive, where)
    elif tarfile.is_tarfile(archive):
        yield from _of_tar(archive, where)
    else:
        raise DataError(where, "is neither a zip nor a tar archive", "leave out 'unpack'")


def _of_zip(archive: Path, where: str) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _no_link(info.filename, where)
            if not info.is_dir():
                yield info.filename, opened.open(info)


def _of_tar(archive: Path, where: str) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive) as opened:
        for member in opened:
            content = opened.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
            elif not member.isdir():
                raise _no_link(member.name, where)


def _no_link(name: str, where: str) -> DataError:
    return DataError(where, f"'{name}' in it is no plain file", "unpack it by hand")
