"""Where models compute, and how exactly: the processor, or a CUDA device for the sweeps; float32, or less of it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from audit.errors import InputError
from audit.given import check_choice

CPU, CUDA = "cpu", "cuda"
DEVICES = ("auto", CPU, CUDA)
PRECISIONS = ("float32", "bfloat16", "float16")


def resolve_device(name: str) -> str:
    """Return the device that a name means; "auto" is an accelerator where torch sees one.

    Raises
    ------
    InputError
        If there is no such device.
    """
    check_choice("--device", name, DEVICES)
    if name == CUDA and not torch.cuda.is_available():
        raise InputError("--device", "torch sees no CUDA device", "leave it out, or install torch for your device")
    return (CUDA if torch.cuda.is_available() else CPU) if name == "auto" else name


def open_device(name: str) -> torch.device:
    """Return a device, ready to compute in whole float32 and the same bits every time.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if resolve_device(name) == CUDA:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or deterministic products are refused
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def open_precision(name: str) -> torch.dtype:
    """Return the type of a name such as "bfloat16".

    Raises
    ------
    InputError
        If nothing is computed in such a type.
    """
    check_choice("--precision", name, PRECISIONS)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def precision_name(precision: torch.dtype) -> str:
    """Return the name of a type, such as "bfloat16"."""
    return str(precision).removeprefix("torch.")


def computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Let matrix products be computed in another type than float32, for the length of a block (autocast)."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, dtype=precision)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of an accelerator's memory, else None.

    Not those that are free at the moment: batches of another size round otherwise, and a run shall repeat itself.
    """
    return torch.cuda.get_device_properties(device).total_memory if device.type == CUDA else None


def device_name(device: torch.device) -> str:
    """Name a device for the record: "CPU", or the accelerator's model."""
    return torch.cuda.get_device_name(device) if device.type == CUDA else "CPU"
