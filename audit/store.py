"""The run directory: found again by what the run is made of, locked while in use, written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import IO

import pandas as pd

from audit.errors import DISK_FIXES, InputError, NotWrittenError, UnfinishedError
from audit.remote import is_address

CACHE_VARIABLE = "VIT_AUDIT_CACHE"
SAMPLES = "effects/samples.parquet"  # of a run: what statistics need to know of every image
UNDETECTED = "effects/undetected.parquet"  # of a run: images that never reached the classifier, where they are known
LOCK = ".lock"
OF_RUNS = ("audit.json", "manifest.json", "preregistration.json", "log.jsonl")  # what a run directory holds
WORK = "work"  # of a run: pieces of sweeps, until they are put together
ORPHANED = 3.0  # seconds that workers of a killed run may live on; their run's folder is waited for as long
UNFINISHED = ".part"  # how the names of half-written files end
TRIES = 3  # of a file that cannot be written
PAUSE = 0.2  # seconds before the second; what is in the way may pass
DAY = 86_400.0  # seconds; no file takes as long to write
_locks: list[IO[str]] = []  # held by this process
_holders: dict[Path, str] = {}  # what this process wrote into the locks that it holds, by folder


def cache_folder() -> Path:
    """Return the folder of trained control models: ``VIT_AUDIT_CACHE``, else the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given) if given else Path(base) / "vit-audit"


def open_cache() -> Path:
    """Return the cache folder, made if need be.

    Raises
    ------
    InputError
        If there is no such folder to be had.
    UnfinishedError
        If the disk is full or may not be written to.
    """
    folder = cache_folder()
    with _told_of_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        clear_unfinished(folder, older_than=DAY)
    return folder


def check_cache() -> None:
    """Raise as ``open_cache`` does where there is no cache folder to be had; nothing is left behind."""
    folder = cache_folder()
    with _told_of_cache(folder), tempfile.TemporaryFile(dir=_nearest(folder)):
        pass


@contextmanager
def _told_of_cache(folder: Path) -> Iterator[None]:
    """Say of an error that it is the cache's."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FIXES:
            raise not_written(
                folder, error, f"{DISK_FIXES[error.errno]} or name another with {CACHE_VARIABLE}"
            ) from error
        what = f"the cache cannot be written ({error.strerror})"
        raise InputError(str(folder), what, f"name another folder with {CACHE_VARIABLE}") from error


def check_writable(folder: Path, holds: str = "runs", option: str = "--out") -> None:
    """Raise where nothing can be written to a folder, or where it cannot be made; nothing is left behind.

    ``holds`` is what goes there, and ``option`` names the folder.

    Raises
    ------
    InputError
        If it is a file.
    UnfinishedError
        If the disk is full or may not be written to.
    """
    if is_address(str(folder)):
        what = f"is an address, and {holds} lie on a disk: files are locked and renamed, which no object store does"
        raise InputError(str(folder), what, f"name a folder with {option}; copy it to the store when all is done")
    nearest = _nearest(folder)
    if nearest.is_file():
        raise InputError(str(nearest), f"is a file, and {holds} go to a folder", f"name a folder with {option}")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise not_written(folder, error) from error


def run_around(folder: Path) -> Path | None:
    """Return the run directory that a folder is or lies in, if any."""
    above = (folder.resolve(), *folder.resolve().parents)
    return next((place for place in above if any((place / name).exists() for name in OF_RUNS)), None)


def _nearest(folder: Path) -> Path:
    """Return what there is of a path: itself, or the first folder above it that is there."""
    return next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))


def folder_name(name: str) -> str:
    """Return a name that is safe as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "audit"


def question_hash(made_of: Mapping[str, object]) -> str:
    """Return the SHA-256 of all that a run is made of."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()


def source_hash(modules: Iterable[ModuleType]) -> str:
    """SHA-256 over the source of modules and packages: what other code has measured is not taken for this code's."""
    digest = hashlib.sha256()
    for module in modules:
        folders = map(Path, getattr(module, "__path__", ()))
        files = [file for folder in folders for file in folder.rglob("*.py")] or [Path(str(module.__file__))]
        for source in sorted(files):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def run_folder(out: Path, name: str, key: str) -> Path:
    """Return the folder of a run: an earlier one of the same question, else a new one named by date and hash."""
    ending = f"-{key[:8]}"
    earlier = sorted(p for p in out.glob(f"{folder_name(name)}-*{ending}") if p.is_dir())
    if earlier:
        return earlier[-1]
    return out / f"{folder_name(name)}-{now():%Y-%m-%d}{ending}"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run directory; a second run in it is refused. The folder goes again if nothing was written.

    Who holds it is written into the lock: where a disk gives one lock twice, ``check_lock`` tells the first of it.

    Raises
    ------
    UnfinishedError
        If another process holds it, or it cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = (run / LOCK).open("a+")  # what its holder wrote stays
    except OSError as error:
        raise UnfinishedError(str(run), f"cannot be written ({error.strerror})", "choose another --out") from error
    with handle:
        deadline = time.monotonic() + ORPHANED
        while not (held := _is_ours(handle, run / LOCK)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not held:
            raise UnfinishedError(str(run), "another run is at work in this folder", "wait for it to end")
        _locks.append(handle)
        holder = _holders[run.absolute()] = uuid.uuid4().hex
        handle.truncate(0)
        handle.write(holder)
        handle.flush()
        os.fsync(handle.fileno())
        try:
            yield
        finally:
            _locks.remove(handle)
            if not _is_taken(run):
                (run / LOCK).unlink(missing_ok=True)  # by its holder alone, while it is held
            _holders.pop(run.absolute(), None)
            if not any(run.iterdir()):
                run.rmdir()


def _is_ours(handle: IO[str], path: Path) -> bool:
    """Take a lock; tell whether this process has it now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False  # or its holder has let go since it was opened, and removed it
    except OSError as error:
        what = f"its disk keeps no locks ({error.strerror})"
        raise UnfinishedError(str(path.parent), what, "mount it with locks, or choose another --out") from error


def check_lock(run: Path) -> None:
    """Raise where another process has taken the lock that this one holds: the disk gave it twice.

    Raises
    ------
    UnfinishedError
        If so; what that one does is left alone.
    """
    if run.absolute() in _holders and _is_taken(run):
        what = "another run took this folder, though its disk had given this one the lock"
        raise UnfinishedError(str(run), what, "let that one end, and mount the disk with locks")


def _is_taken(run: Path) -> bool:
    """Tell whether the lock that this process holds names another."""
    try:
        return (run / LOCK).read_text(encoding="utf-8") not in ("", _holders.get(run.absolute(), ""))
    except OSError:
        return False


def let_go_of_locks() -> None:
    """Close the locks that this process has from the one that forked it, so that they end with that one."""
    for handle in _locks:
        handle.close()
    _locks.clear()


def now() -> datetime:
    """Return the time to the second; that of SOURCE_DATE_EPOCH where it is set, as in reproducible builds."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(fixed) if fixed.isdecimal() else int(time.time()), UTC)


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a name to write to; what was written there is at ``path`` afterwards, whole, or nothing is.

    The content is on the disk before the name is, so that not even a power failure leaves half a file. ``mode`` says
    who may read it.

    Raises
    ------
    UnfinishedError
        If it cannot be written; the file that was there before, if any, still is.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(mode)
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    except OSError as error:  # of a full disk nothing but this place knows which file it was
        raise not_written(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def patiently(write: Callable[[], None]) -> None:
    """Write what took long to compute; what keeps it from being written, of a shared disk say, may pass."""
    for tried in range(1, TRIES):
        try:
            return write()
        except NotWrittenError:
            time.sleep(PAUSE * tried)
    return write()


def not_written(path: Path, error: OSError, fix: str = "") -> NotWrittenError:
    """Return what to tell of a file or folder that cannot be written."""
    what = f"cannot be written ({os.strerror(error.errno) if error.errno else error})"
    least = DISK_FIXES.get(error.errno or 0, "make room, or look at the disk")
    return NotWrittenError(str(path), what, fix or f"{least} or name another place, and give the command again")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_unfinished(folder: Path, *, older_than: float = 0.0, spared: str = "") -> None:
    """Remove what processes that were killed have left half-written.

    Those at work are spared by ``older_than`` in seconds, or by ``spared``, the folder that they write to.
    """
    for left in list(folder.rglob(f".*{UNFINISHED}")):
        if spared and folder / spared in left.parents:
            continue
        with suppress(OSError):  # another process may have finished it
            if left.stat().st_mtime > time.time() - older_than:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path, mode) as temporary:
        temporary.write_bytes(content)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a Parquet file, whole or not at all."""
    with atomic_write(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
