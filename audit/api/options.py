"""How an audit is to be run, looked at before anything is opened."""

from __future__ import annotations

import os
from pathlib import Path

from audit.batching import parse_size
from audit.card.load import locate
from audit.card.schema import Card
from audit.data.samples import ImageSource
from audit.data.sources import FileSource
from audit.errors import InputError
from audit.given import as_path
from audit.models.device import CPU, FLOAT32, kind_of_device, numbered_devices, open_precision
from audit.store import check_writable, run_around


def check_options(
    device: str, precision: str = FLOAT32, memory: str | None = None, workers: int | None = None
) -> tuple[str, int | None]:
    """Return the device that is meant, and the limit of memory in bytes.

    Raises
    ------
    InputError
        If one of them is none that there is.
    """
    chosen, several = kind_of_device(device), max(1, len(numbered_devices(device)))
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InputError("--workers", f"is {workers!r}", "give a number of processes, 1 or more")
    if workers is not None and workers not in (1, several) and chosen != CPU:
        what = f"{workers} processes cannot share {'one' if several == 1 else several} {chosen} device"
        raise InputError("--workers", what + ("s" if several > 1 else ""), "leave it out")
    open_precision(precision, chosen)
    return chosen, None if memory is None else parse_size(memory)


def check_cache_dir(
    given: str | os.PathLike[str] | None,
    runs: Path | None,
    card: Card,
    *,
    card_path: Path,
    data_root: Path | None,
    source: ImageSource | None = None,
) -> Path | None:
    """Return the folder where decoded images are to be kept, if any; nothing is left behind.

    ``runs`` is where runs go, or this run's own folder, and ``source`` where the images are from, once that is known.

    Raises
    ------
    InputError
        If it is a file, in a run or where runs go, or where the data lie.
    UnfinishedError
        If it cannot be written to.
    """
    if given is None:
        return None
    folder, fix = as_path("cache_dir", given), "name another folder with --cache-dir"
    where, inside = folder.resolve(), run_around(folder)
    if inside is None and runs is not None and where.is_relative_to(runs.resolve()):
        inside = runs
    if inside is not None:
        raise InputError(str(folder), f"is in {inside}, where runs are, and no run holds images", fix)
    roots = [data_root] if data_root is not None else []
    roots += [source.root] if isinstance(source, FileSource) else []
    within = False
    data = None
    if card.data.path is not None:
        data = locate(card.data.path, card_path=card_path, data_root=data_root, missing_ok=True)
    if isinstance(data, Path):
        roots += [data.parent] if data.is_file() else []
        within = where.is_relative_to(data.resolve())
    if within or where in [root.resolve() for root in roots]:
        raise InputError(str(folder), "is where the data lie", fix)
    check_writable(folder, "decoded images", "--cache-dir")
    return folder
