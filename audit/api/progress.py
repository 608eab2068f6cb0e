"""Progress, reported to a callback and to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from audit.errors import InputError
from audit.progress import Step

logger = logging.getLogger("vit_audit")
Callback = Callable[[str, int, int], None]  # name of the step, done, total (0: not known)


def as_step(callback: Callback | None) -> Step:
    """Return what stages report to: each step's name goes to the log, and its progress to the callback."""
    if callback is not None and not callable(callback):
        fix = "give a function of a step's name, what is done, and in all"
        raise InputError("callback", f"is a {type(callback).__name__}", fix)

    def step(name: str) -> Callable[[int, int], None]:
        logger.info("%s", name)
        if callback is None:
            return lambda _done, _total: None
        callback(name, 0, 0)
        return lambda done, total: callback(name, done, total)

    return step
