"""Checkpoints: what a file or folder of weights holds."""

from __future__ import annotations

from pathlib import Path

from audit.models.inspection import Inspection, inspect_weights

__all__ = ["Inspection", "inspect_checkpoint"]


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Say what a checkpoint holds: which model it seems to be, its classes, and the lines of a card that name it.

    Shapes are read, tensors are not: this takes a moment whatever the size.

    Parameters
    ----------
    path : str or pathlib.Path
        A file of weights, the index of a sharded checkpoint, or a folder.

    Returns
    -------
    Inspection
        Printed, it is what ``vit-audit inspect`` shows.

    Raises
    ------
    ModelError
        If it cannot be opened without running code, or holds no weights.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.inspect_checkpoint("nowhere.pth")
    Traceback (most recent call last):
        ...
    audit.errors.ModelError: nowhere.pth: no such weights file; ...
    """
    return inspect_weights(Path(path))
