"""Packages that only some audits need: what brings each, said in one line where it is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from audit.errors import InputError

EXTRAS = {"transformers": "hf", "open_clip": "clip", "openpyxl": "excel", "onnxruntime": "onnx"}


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
        raise error(where, f"needs {package}, which {said}", fix) from None
