"""Where the bytes of images lie: files below one folder, each key in its one spelling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

from PIL import Image

from audit.card.schema import Card
from audit.data.decode import REPAIR, ImageError, Opening, decode_image
from audit.data.samples import ImageSource
from audit.errors import DataError, InputError
from audit.filenames import name_on_disk, printable
from audit.records import LeftOut
from audit.remote import RemotePath

_ODD, _STEPS = frozenset("\\:\0"), frozenset(("", ".", ".."))  # signs and parts without which a path is as it should be


class ByteSource(ABC):
    """An image source that can also say which bytes are behind a key."""

    held: ClassVar[bool] = False  # whether the images' bytes are held in memory, and in no file that could be opened
    at_once: ClassVar[int] = 2  # images that are read side by side when each is opened once

    def reduce_elsewhere(self) -> Any:
        """Return how another machine has this source; one that holds images is sent to none."""
        if self.held:
            fix = "save its images as files with a table, or leave --shards or --ray out"
            raise InputError("data", "images that are held in memory are sent to no other machine", fix)
        return NotImplemented

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the stored bytes of an image; raise ``DataError`` where there are none."""

    def decode(self, key: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
        """Return the image that ``content`` holds as RGB; raise ``DataError`` where it is none."""
        return decode_image(key, content, opening)

    def open(self, key: str) -> Image.Image:
        """Return the image as RGB; raise ``DataError`` where it cannot be read."""
        return self.decode(key, self.read(key))


def opening_of(card: Card) -> Opening:
    """Return how a card's image files become RGB."""
    if card.model.is_legacy:
        return Opening.CAREFUL
    return Opening.TURNED if card.data.exif == "apply" else Opening.AS_STORED


def open_image(source: ImageSource, key: str, opening: Opening) -> Image.Image:
    """Return an image of any source; only of files and bytes there is a choice how they become RGB."""
    return source.decode(key, source.read(key), opening) if isinstance(source, ByteSource) else source.open(key)


@dataclass(frozen=True)
class FileSource(ByteSource):
    """Images that lie as files under one folder.

    Parameters
    ----------
    root : pathlib.Path
        Keys are relative to it, with forward slashes.
    links : bool
        Follow links that lead out of the root.
    """

    root: Path
    links: bool = False

    def read(self, key: str) -> bytes:
        """Return the bytes of the file; raise ``DataError`` where it is missing or outside the root."""
        try:
            file = (self.root / name_on_disk(safe_key(key, str(self.root)))).resolve()
            if not self.links and not file.is_relative_to(self.root.resolve()):
                raise ImageError(key, LeftOut.LINK_OUT, "copy the file, or set data.links: true")
            if file.exists() and not file.is_file():
                raise ImageError(key, LeftOut.NO_FILE, "correct the path")
            return file.read_bytes()
        except FileNotFoundError:
            raise ImageError(key, LeftOut.MISSING, "check the path, relative to the table") from None
        except UnicodeEncodeError:
            raise ImageError(key, LeftOut.IMPOSSIBLE_NAME, "correct the path") from None
        except (OSError, RuntimeError) as error:  # the latter of links that lead in a circle
            detail = getattr(error, "strerror", None) or LeftOut.LINK_IN_CIRCLE
            raise ImageError(key, LeftOut.NOT_OPENED, REPAIR, detail) from None


@dataclass(frozen=True)
class RemoteSource(ByteSource):
    """Images that lie as files in one folder of a store; each is read when it is asked for, and kept nowhere.

    Parameters
    ----------
    root : RemotePath
        Keys are relative to it, with forward slashes.
    """

    at_once: ClassVar[int] = 16

    root: RemotePath

    def read(self, key: str) -> bytes:
        """Return the bytes of the file; raise ``DataError`` where it is missing or the store refuses."""
        try:
            return (self.root / safe_key(key, str(self.root))).read_bytes()
        except FileNotFoundError:
            raise ImageError(key, LeftOut.MISSING, "check the path, relative to the table") from None


def safe_key(value: str, where: str) -> str:
    """Return an image path in its one spelling: relative, forward slashes, no ``.``.

    Parameters
    ----------
    value : str
        As it is in the table.
    where : str
        The table, for the message.

    Returns
    -------
    str

    Raises
    ------
    DataError
        If the path is absolute, is an address, or climbs out of its folder.
    """
    if not _ODD.intersection(value) and not _STEPS.intersection(value.split("/")):
        return value
    if "\0" in value:
        raise DataError(where, f"image '{printable(value)}' holds a zero byte", "correct the path")
    path = PurePosixPath(value.replace("\\", "/"))
    absolute = path.is_absolute() or bool(PureWindowsPath(value).drive) or "://" in value
    if absolute or ".." in path.parts:
        what = "is not relative to the table" if absolute else "climbs out of its folder"
        raise DataError(where, f"image path '{printable(value)}' {what}", "write paths relative to the table's folder")
    return path.as_posix()
