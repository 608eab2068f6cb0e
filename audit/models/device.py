"""Where models compute: the processor, or a CUDA device for the sweeps."""

from __future__ import annotations

import os

import torch
from torch import nn

from audit.errors import InputError

CPU, CUDA = "cpu", "cuda"


def open_device(name: str) -> torch.device:
    """Return a device, ready to compute in whole float32 and the same bits every time.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if name == CUDA:
        if not torch.cuda.is_available():
            raise InputError("--device", "torch sees no CUDA device", "leave it out, or install torch for your device")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or deterministic products are refused
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device


def device_name(device: torch.device) -> str:
    """Name a device for the record: "CPU", or the accelerator's model."""
    return torch.cuda.get_device_name(device) if device.type == CUDA else "CPU"
