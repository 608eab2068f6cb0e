"""Downloads that a card names: checked by their hashes, there whole or not at all.

Nothing is fetched while an audit runs, but for CIFAR-100 where a card's controls ask for it and it is not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from audit.card.schema import Download
from audit.data.sources import safe_key
from audit.data.unpack import unpack
from audit.errors import DataError, InputError, UnfinishedError
from audit.store import write_text

OFFLINE_ENV = "VIT_AUDIT_OFFLINE"
RECEIPT = ".fetched"  # in a folder: the hashes of the archives that were unpacked there
MAX_BYTES = 200_000_000_000
TIMEOUT_S = 30  # without a sign of the server
CHUNK_BYTES = 1 << 20
FETCHING = ".fetching-"  # how the names of folders begin that are downloaded to
JUST_MADE_S = 60  # such a folder may not be held yet
Tick = Callable[[int, int], None]


def fetch(downloads: Sequence[Download], root: Path, step: Callable[[str], Tick] | None = None) -> list[Path]:
    """Fetch what a card names, where it is not there yet, as :func:`vit_audit.fetch` describes it.

    ``step``, given a name, returns what is called with bytes done and bytes in all.
    """
    answer = []
    for each in downloads:
        tick = step(f"fetch: {_name_of(each.url)}") if step is not None else None
        answer.append(fetch_one(each, root, tick))
    return answer


def fetch_one(download: Download, root: Path, tick: Tick | None = None) -> Path:
    """Fetch one file or archive; see ``fetch``."""
    name = _name_of(download.url)
    key = download.to or ("." if download.unpack else name)
    target = root / safe_key(key, "data.download")
    if download.unpack:
        if download.hash in _receipt(target):
            return target
    elif target.exists():
        return _same(target, download)
    if os.environ.get(OFFLINE_ENV):
        raise InputError(download.url, f"is not fetched, {OFFLINE_ENV} is set", "unset it, or fetch it by hand")
    _clear_leftovers(root)
    with tempfile.TemporaryDirectory(dir=root, prefix=FETCHING) as folder, _held(Path(folder)):
        file = _retrieved(download, Path(folder), tick)
        if not download.unpack:
            target.parent.mkdir(parents=True, exist_ok=True)
            return file.rename(target)
        unpacked = Path(folder) / "unpacked"
        unpack(file, unpacked, download.url)
        _move_into(unpacked, target, download.hash)
    return target


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which goes with the process, however that ends; yield whether it could be had."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _clear_leftovers(root: Path) -> None:
    """Remove what downloads that were killed have left."""
    for left in root.glob(f"{FETCHING}*"):
        with suppress(OSError), _held(left) as is_left:
            if is_left and left.stat().st_mtime < time.time() - JUST_MADE_S:
                shutil.rmtree(left)


def _name_of(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name or "download"


def _receipt(folder: Path) -> list[str]:
    path = folder / RECEIPT
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _same(target: Path, download: Download) -> Path:
    if not target.is_file() or not _is_meant(target, download):
        raise DataError(str(target), f"is there, and is not what {download.url} has", "move it away")
    return target


def _is_meant(file: Path, download: Download) -> bool:
    """Tell whether a file has the hash that the card names."""
    kind, _, digest = download.hash.partition(":")
    with file.open("rb") as content:
        return hashlib.file_digest(content, kind).hexdigest() == digest


def _retrieved(download: Download, folder: Path, tick: Tick | None) -> Path:
    """Return the file as it was downloaded, once its hash agrees."""
    from requests.exceptions import RequestException

    file = folder / "download"
    try:
        _stream(download.url, file, tick)
    except RequestException as error:
        fix = "give the same command again later, or fetch it by hand"
        raise UnfinishedError(download.url, f"could not be fetched ({_in_words(error)})", fix) from None
    if not _is_meant(file, download):
        what = f"what the server sends is not the file that was meant: its hash is not {download.hash}"
        raise DataError(download.url, what, "do not use it; ask who wrote the card")
    return file


def _stream(url: str, file: Path, tick: Tick | None) -> None:
    """Write what a server sends to a file; no more than the limit, as it may send for ever."""
    import requests

    done = 0
    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response, file.open("wb") as out:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        for chunk in response.iter_content(CHUNK_BYTES):
            done += len(chunk)
            if done > MAX_BYTES:
                raise DataError(url, f"sends more than {MAX_BYTES:,} bytes", "fetch it by hand")
            out.write(chunk)
            if tick is not None:
                tick(done, int(length) if length.isdecimal() else 0)


def _in_words(error: Exception) -> str:
    from requests import exceptions

    response = getattr(error, "response", None)
    if response is not None:
        return " ".join(f"{response.status_code} {response.reason}".split())
    if isinstance(error, exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "broken off"
    return "no connection" if isinstance(error, exceptions.ConnectionError) else type(error).__name__


def _move_into(unpacked: Path, target: Path, digest: str) -> None:
    """Move what was unpacked to its folder; nothing that lies there is written over.

    The receipt says first what is about to be moved, so that a move that was broken off is taken up again: a child that
    lies there by then is whole.
    """
    children = sorted(unpacked.iterdir())
    begun = _receipt(target)
    for child in children:
        if (target / child.name).exists() and _moving(digest, child) not in begun:
            raise DataError(
                str(target / child.name), "is there already, and the archive holds the same", "move it away"
            )
    target.mkdir(parents=True, exist_ok=True)
    before = [line for line in begun if not line.startswith(f"{digest} ")]
    write_text(target / RECEIPT, "\n".join([*before, *(_moving(digest, child) for child in children)]) + "\n")
    for child in children:
        if not (target / child.name).exists():
            child.rename(target / child.name)
    write_text(target / RECEIPT, "\n".join([*before, digest]) + "\n")


def _moving(digest: str, child: Path) -> str:
    """Return the receipt's line on a part of an archive that is on its way."""
    return f"{digest} {child.name}"
