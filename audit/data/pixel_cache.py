"""Decoded images kept on the disk, where a person asks for it: a file each, in a folder outside any run directory."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from audit.errors import DISK_FIXES
from audit.store import DAY, UNFINISHED, clear_unfinished, not_written

LEFT_FREE = 1 << 30  # bytes of the disk that are left to the run itself
OWNER_ONLY = 0o700  # mode of folders
CHECKSUM = 4  # bytes of CRC-32, which follow the pixels
logger = logging.getLogger("vit_audit")


class PixelCache:
    """Pixels that one preprocessing makes of images, by the SHA-256 of the images' bytes.

    The process that opens it writes, and those that it starts read: one line says that the disk is full. A file that is
    not as it was written counts as missing.

    Parameters
    ----------
    folder : pathlib.Path
        Made if need be, for its owner alone.
    made_by : str
        Hash of the preprocessing and of all that its pixels depend on beside the image.

    Raises
    ------
    UnfinishedError
        If the folder cannot be written to.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder = folder / f"pixels-{made_by[:16]}"
        self.is_full = False
        self._writer = os.getpid()
        try:
            folder.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
            self.folder.mkdir(mode=OWNER_ONLY, exist_ok=True)
            self.folder.chmod(OWNER_ONLY)
        except OSError as error:
            raise not_written(self.folder, error) from error
        clear_unfinished(self.folder, older_than=DAY)

    def file_of(self, content: bytes) -> Path:
        """Return where the pixels of an image of these bytes are kept."""
        name = hashlib.sha256(content).hexdigest()
        return self.folder / name[:2] / name[2:]

    def read(self, file: Path, out: npt.NDArray[Any]) -> bool:
        """Fill in the pixels that a file holds; return False where it is not there, or not as it was written."""
        try:
            content = file.read_bytes()
        except OSError:
            return False
        pixels = memoryview(content)[:-CHECKSUM]
        if len(pixels) != out.nbytes or _checksum(pixels) != content[-CHECKSUM:]:
            return False
        out[...] = np.frombuffer(pixels, dtype=out.dtype).reshape(out.shape)
        return True

    def write(self, file: Path, pixels: npt.NDArray[Any]) -> None:
        """Write a file, whole or not at all; nothing more is written once that fails."""
        if self.is_full or os.getpid() != self._writer:
            return
        content, temporary = pixels.tobytes(), None
        try:
            if shutil.disk_usage(self.folder).free < LEFT_FREE + len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.parent.mkdir(mode=OWNER_ONLY, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=UNFINISHED)
            temporary = Path(name)
            with os.fdopen(descriptor, "wb") as opened:  # not synced: what a power failure spoils is seen when read
                opened.write(content + _checksum(content))
            temporary.replace(file)
        except OSError as error:
            self.is_full = True
            told = "%s: no more images are kept (%s), and are decoded whenever they are needed; %s"
            logger.warning(told, self.folder, error.strerror, DISK_FIXES.get(error.errno or 0, "look at the disk"))
        finally:
            if temporary is not None:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)


def _checksum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM, "big")
