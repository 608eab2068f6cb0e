"""Packages that only some audits need: what brings each, said in one line where it is missing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from audit.errors import InputError

EXTRAS = {
    "transformers": "hf",
    "open_clip": "clip",
    "openpyxl": "excel",
    "onnxruntime": "onnx",
    "concept_erasure": "repair",
    "pyhanko": "sign",
    "ray": "ray",
    "s3fs": "s3",
    "gcsfs": "gs",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
}


def needs(package: str, where: str, *, error: type[InputError] = InputError, otherwise: str = "") -> Any:
    """Import a package that an extra brings, and return it.

    Parameters
    ----------
    package : str
        One of ``EXTRAS``.
    where : str
        What asks for it, for the message.
    error : type of InputError, optional
    otherwise : str, optional
        What else can be done: "save it as CSV".

    Raises
    ------
    InputError
        If it is not installed, or cannot be imported; the line names the extra.
    """
    try:
        return import_module(package)
    except ImportError as fault:
        absent = isinstance(fault, ModuleNotFoundError) and fault.name == package
        said = "is not installed" if absent else f"cannot be imported ({' '.join(str(fault).split())[:200]})"
        fix = f"pip install 'vit-audit[{EXTRAS[package]}]'" + (f", or {otherwise}" if otherwise else "")
        told = error(where, f"needs {package}, which {said}", fix)
        told.of_machine = True
        raise told from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let transformers report nothing but errors and draw no bar, for the length of a block."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    logger = logging.getLogger("transformers")
    level, bars, hub_has_none = logger.level, is_progress_bar_enabled(), are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a variable of the environment decides on bars
        logger.setLevel(logging.ERROR)
        disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            logger.setLevel(level)
            if bars:
                enable_progress_bar()  # type: ignore[no-untyped-call]
            (disable_progress_bars if hub_has_none else enable_progress_bars)()  # which both of these change
