"""How an audit is to be run, looked at before anything is opened."""

from __future__ import annotations

from audit.batching import parse_size
from audit.errors import InputError
from audit.models.device import CPU, FLOAT32, kind_of_device, numbered_devices, open_precision


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
