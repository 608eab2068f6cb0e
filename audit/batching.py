"""How much memory a run takes: what the C library keeps for the next tensor, and how many images fit at once.

By default glibc hands large freed blocks back at once, and asks for them again. Patching allocates and frees the same
large tensors thousands of times. Keeping them costs no more than the peak.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import psutil

from audit.errors import InputError, MemoryExhaustedError, UnfinishedError, is_exhausted

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))
_DEFAULTS = ((_MMAP_THRESHOLD, 2**17), (_MMAP_MAX, 2**16), (_TRIM_THRESHOLD, 2**17), (_TOP_PAD, 2**17))
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
PLANNED = 0.5  # of a limit, for what tasks compute; the rest is for Python, models and images
LEAST = 2**30  # Python, torch and a small model alone take most of it
Part = TypeVar("Part")
Result = TypeVar("Result")
Value = TypeVar("Value")
# By controllers, version 2 first: the limit, what is used of it, and where it is mounted.
CGROUPS = {
    "": ("memory.max", "memory.current", "/sys/fs/cgroup"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "/sys/fs/cgroup/memory"),
}
_limit: ContextVar[int | None] = ContextVar("memory limit", default=None)
_most: ContextVar[int | None] = ContextVar("batch size limit", default=None)
_planned: ContextVar[bool] = ContextVar("sizes are those of the plan", default=False)
_keeping = 0  # blocks in which freed memory is kept
_returning = 0  # blocks within them in which it is handed back


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next tensor; return whether it was.

    Elsewhere than on Linux with glibc nothing happens.
    """
    return _tell_glibc(_KEEP)


def _tell_glibc(options: Iterable[tuple[int, int]]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in options)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep freed memory for the length of a block; then it hands it back, with the thresholds it starts with.

    Blocks may be nested: the outermost counts.
    """
    global _keeping
    _keeping += 1
    keep_freed_memory()
    try:
        yield
    finally:
        _keeping -= 1
        if not _keeping and _tell_glibc(_DEFAULTS):
            _trim()


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Let glibc hand freed memory back at once for the length of a block, also where a run keeps it.

    For what takes a few arrays that grow with the data, each of another size: kept, they leave holes that the next ones
    do not fit into, and the process would hold about twice what they take. What is kept goes back first. Blocks may be
    nested.
    """
    global _returning
    _returning += 1
    if _tell_glibc(_DEFAULTS):
        _trim()
    try:
        yield
    finally:
        _returning -= 1
        if _keeping and not _returning:
            keep_freed_memory()


def _trim() -> None:
    ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def arrow_in_one_heap() -> Iterator[None]:
    """Let Arrow take its memory from the C library, as NumPy and torch do, for the length of a block.

    The pool that it has of its own keeps what is freed, and no one else can use it: the texts of a table and the
    numbers that are made of them would be held side by side, though they are needed in turn.
    """
    import pyarrow as pa

    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@contextmanager
def failing_in_time(room: int | None = None) -> Iterator[None]:
    """Let an allocation fail that the machine has no room for, for the length of a block.

    Else Linux grants it, and ends the process by a signal once it is used: nothing could be halved or reported.
    Elsewhere than on Linux nothing happens.

    Parameters
    ----------
    room : int, optional
        Bytes that may still be taken; as many as the machine and its control groups leave where not given.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    left = available() if room is None else room
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = [held for held in before if held != resource.RLIM_INFINITY]
    taken = psutil.Process().memory_info().data  # writable, shared with nobody, whether used yet or not
    resource.setrlimit(resource.RLIMIT_DATA, (min([taken + left, *most]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def share_memory(number: int) -> None:
    """Leave this process one of so many parts of what it may still take; for the rest of its life."""
    if sys.platform.startswith("linux"):
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY:
            taken = psutil.Process().memory_info().data
            resource.setrlimit(resource.RLIMIT_DATA, (taken + max(0, soft - taken) // number, hard))


def available(groups: Mapping[str, tuple[str, str, str]] = CGROUPS) -> int:
    """Return the bytes that this process may still take: of the machine's memory and swap, and of its control groups'.

    Pages of files can be let go, and count as free.
    """
    return max(0, min([psutil.virtual_memory().available + psutil.swap_memory().free, *_left_in(groups)]))


def _left_in(groups: Mapping[str, tuple[str, str, str]]) -> Iterator[int]:
    """Yield what the control groups of this process leave it, which psutil does not look at."""
    own = Path("/proc/self/cgroup")
    for line in own.read_text(encoding="utf-8").splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        limit, usage, root = groups.get(controllers, ("", "", ""))
        for folder in {Path(root), Path(root + path)} if root else ():
            most = (folder / limit).read_text(encoding="ascii").strip() if (folder / limit).is_file() else ""
            if most.isdecimal():
                stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
                yield int(most) - int((folder / usage).read_text(encoding="ascii")) + int(stat.get("inactive_file", 0))


def parse_size(text: str) -> int:
    """Return the bytes of a size such as "6G", "512M" or "1.5g".

    Raises
    ------
    InputError
        If it is no size, or less than anything could run in.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", str(text).lower())
    size = 0 if match is None else int(float(match[1]) * UNITS[match[2]])
    if size < LEAST:
        raise InputError("--memory", f"'{text}' is no size of {LEAST >> 30}G or more", "write 4G or 1.5G, as you mean")
    return size


@contextmanager
def _during(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """Give a variable a value for the length of a block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def memory_limit(size: int | None) -> AbstractContextManager[None]:
    """Let as many images be computed at once as this process can hold in so many bytes; None: no limit."""
    return _during(_limit, size)


def batch_size_limit(number: int | None) -> AbstractContextManager[None]:
    """Let at most so many images, or patches, be computed at once (None: any); results depend on it by rounding."""
    return _during(_most, number)


def as_planned() -> AbstractContextManager[None]:
    """Let the sizes of batches depend on nothing that changes from run to run, for the length of a block.

    Nothing is cut where memory runs out, and of a limit it counts what was asked for, not what is left of it.
    """
    return _during(_planned, True)


def limit_of_memory() -> int | None:
    """Return the bytes that the process was told to keep within, if it was."""
    return _limit.get()


def max_batch_size(most: int, bytes_each: float, *, share: float = 1.0, free: int | None = None) -> int:
    """Return how many things fit into a share of what is left of the limit.

    Parameters
    ----------
    most : int
        At most so many, which is the answer without a limit.
    bytes_each : float
    share : float, optional
    free : int, optional
        What an accelerator has, where the things lie there: as many as fit into that too, but never less than one.

    Raises
    ------
    UnfinishedError
        If not even one fits.
    """
    most = min(most, _most.get() or most)
    if free is not None:
        most = max(1, min(most, int(free * share / bytes_each)))
    limit = _limit.get()
    if limit is None:
        return most
    planned = _planned.get()
    number = int((limit * PLANNED if planned else limit - used()) * share / bytes_each)
    if number < 1:
        needed = (bytes_each / share / PLANNED if planned else used() + bytes_each / share) / 2**30
        raise UnfinishedError("memory", f"one image more does not fit into {limit / 2**30:.1f}G",
                              f"give --memory {needed:.1f}G or more")  # fmt: skip
    return min(most, number)


def room() -> int:
    """Return the bytes that this process may still take: what is left of the limit, else of the machine's memory."""
    limit = _limit.get()
    return available() if limit is None else max(0, limit - used())


def in_halves(
    work: Callable[[Part], Result], part: Part, cut: Callable[[Part], tuple[Part, Part] | None]
) -> list[Result]:
    """Do some work; where memory does not suffice for a part, do its halves one after the other, unless it is planned.

    Parameters
    ----------
    work : callable
        What is done with a part; nothing of it may be left behind where it fails.
    part : object
    cut : callable
        Returns the halves of a part, or None where it cannot be cut.

    Returns
    -------
    list
        What ``work`` returned for each part, in order.

    Raises
    ------
    MemoryExhaustedError
        If memory does not suffice for the smallest part.
    """
    try:
        return [work(part)]
    except (MemoryError, RuntimeError, MemoryExhaustedError) as error:
        if _planned.get() or not is_exhausted(error):
            raise
    gc.collect()  # outside of the handler, whose traceback would hold on to what was computed so far
    halves = cut(part)
    if halves is None:
        fix = "close other programs, take a smaller model or image_size, or a larger machine"
        raise MemoryExhaustedError("memory", "does not suffice, with as few images at once as there can be", fix)
    return [result for half in halves for result in in_halves(work, half, cut)]


def batches(n: int, size: int) -> Iterator[slice]:
    """Cut ``range(n)`` into slices of at most ``size``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def in_batches(work: Callable[[slice], Result], n: int, size: int) -> list[Result]:
    """Do some work slice by slice of ``range(n)``, at most ``size`` at once; less where memory does not suffice."""
    return [result for part in batches(n, size) for result in in_halves(work, part, slice_in_two)]


def slice_in_two(part: slice) -> tuple[slice, slice] | None:
    """Cut a slice in two; None where it holds one thing only."""
    middle = (part.start + part.stop + 1) // 2
    return (slice(part.start, middle), slice(middle, part.stop)) if part.stop - part.start > 1 else None


def used() -> int:
    """Return the bytes of this process in memory, without what the C library is known to keep for reuse."""
    return int(psutil.Process().memory_info().rss) - _kept()


def _kept() -> int:
    """Return the bytes that glibc holds free, but for the top of its heap, which may never have been used; or 0."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform.startswith("linux") else None
    if mallinfo is None:
        return 0
    mallinfo.restype = _Mallinfo
    held = mallinfo()
    return int(held.fordblks - held.keepcost)
