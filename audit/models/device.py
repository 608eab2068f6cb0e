"""Where models compute, and how exactly: the processor, or an accelerator; float32, or less of it.

The one place that knows what devices differ in: which there are, what memory they have, how images get there, and that
Apple's have no double precision.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn

from audit.errors import InputError
from audit.given import check_choice
from audit.process_state import run_state

CPU, CUDA, MPS = "cpu", "cuda", "mps"
DEVICES = ("auto", CPU, CUDA, MPS)
VISIBLE = "CUDA_VISIBLE_DEVICES"
FLOAT32 = "float32"
DECODERS = 8  # processes that decode images; more are seldom needed, and each takes memory
PRECISIONS = {FLOAT32: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def devices_here() -> list[str]:
    """Return the devices that torch sees, the fastest first; the processor is the last."""
    seen = {CUDA: torch.cuda.is_available(), MPS: torch.backends.mps.is_available()}
    return [*(name for name, there in seen.items() if there), CPU]


def resolve_device(name: str) -> str:
    """Return the device that a name means; "auto" is an accelerator where torch sees one: CUDA, else Apple's MPS.

    Raises
    ------
    InputError
        If there is no such device.
    """
    check_choice("--device", name, DEVICES)
    here = devices_here()
    if name == "auto":
        return here[0]
    if name not in here:
        what = f"torch {torch.__version__} sees no {name} device, only {' and '.join(here)}"
        raise InputError("--device", what, f"choose {' or '.join(here)}, or install torch for your device")
    return name


def numbered_devices(names: str) -> tuple[int, ...]:
    """Return the numbers of accelerators that are named one by one, as in "cuda:0,cuda:1"; none of "cuda".

    Raises
    ------
    InputError
        If one of them is not there, comes twice, or another is named beside them.
    """
    if ":" not in names and "," not in names:
        return ()
    fix = f"name each as {CUDA}:0,{CUDA}:1"
    found = [re.fullmatch(rf"{CUDA}:(\d+)", name.strip()) for name in names.split(",")]
    numbers = tuple(int(match[1]) for match in found if match is not None)
    if len(numbers) < len(found):
        raise InputError("--device", f"'{names}' is no list of {CUDA} devices", fix)
    if len(set(numbers)) < len(numbers):
        raise InputError("--device", f"'{names}' names one twice", "name each once: one process computes on each")
    resolve_device(CUDA)
    if max(numbers) >= torch.cuda.device_count():
        raise InputError("--device", f"'{names}' names more than the {torch.cuda.device_count()} there are", fix)
    return numbers


def kind_of_device(names: str) -> str:
    """Return the kind of what ``--device`` of ``run`` names: one kind, or several devices of one.

    Raises
    ------
    InputError
        If there is no such device.
    """
    return CUDA if numbered_devices(names) else resolve_device(names)


@contextmanager
def first_of(numbers: Sequence[int]) -> Iterator[None]:
    """Let "cuda" mean the first of some devices, for the length of a block."""
    with torch.cuda.device(numbers[0]) if numbers else nullcontext():
        yield


def seen_alone(numbers: Sequence[int]) -> tuple[dict[str, str], ...]:
    """Return for each of some devices the environment of a process that sees no other, where there are several."""
    if len(numbers) < 2:
        return ()
    visible = os.environ.get(VISIBLE)
    names = visible.split(",") if visible else [str(number) for number in range(max(numbers) + 1)]
    return tuple({VISIBLE: names[number].strip()} for number in numbers)


def open_device(name: str) -> torch.device:
    """Return a device, ready to compute in whole float32 and the same bits every time.

    Raises
    ------
    InputError
        If there is no such device.
    """
    resolved = resolve_device(name)
    if resolved == CUDA:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or deterministic products are refused
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(resolved)


@contextmanager
def computing_on(name: str) -> Iterator[torch.device]:
    """Open a device for the length of a block; what an accelerator needs set of torch is put back afterwards.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if resolve_device(name) == CPU:
        yield torch.device(CPU)
        return
    with run_state(fail_in_time=False):
        yield open_device(name)


@contextmanager
def held_on(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Hold models on a device for the length of a block; afterwards they are where they were."""
    before = [device_of(model) for model in models]
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for model, place in zip(models, before, strict=True):
            model.to(place)


def open_precision(name: str, device: str = CPU) -> torch.dtype:
    """Return the type of a name such as "bf16".

    Raises
    ------
    InputError
        If nothing is computed in such a type, or not on the device.
    """
    check_choice("--precision", name, tuple(PRECISIONS))
    if device == MPS and name != FLOAT32:
        raise InputError(
            "--precision", f"{name} is not computed on {MPS}", f"leave it out: {MPS} computes in {FLOAT32}"
        )
    return PRECISIONS[name]


def precision_name(precision: torch.dtype) -> str:
    """Return torch's name of a type, such as "bfloat16"."""
    return str(precision).removeprefix("torch.")


def computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Let matrix products be computed in another type than float32, for the length of a block (autocast)."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, dtype=precision)


@dataclass(frozen=True)
class Compute:
    """Where a model computes, and in which type its matrix products are."""

    device: torch.device = field(default_factory=lambda: torch.device(CPU))
    precision: torch.dtype = torch.float32

    @property
    def exact(self) -> Compute:
        """The same device in float32."""
        return Compute(self.device)

    @property
    def name(self) -> str:
        """The kind of the device and the type, for the keys of what is kept: both change results."""
        return f"{self.device.type} {precision_name(self.precision)}"


ON_CPU = Compute()


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of an accelerator's memory, else None.

    Not those that are free at the moment: batches of another size round otherwise, and a run shall repeat itself. Of
    Apple's, which shares the processor's memory, half of that.
    """
    if device.type == MPS:
        return int(psutil.virtual_memory().total) // 2
    return torch.cuda.get_device_properties(device).total_memory if device.type == CUDA else None


def idle_cores(device: torch.device) -> int:
    """Return how many cores computing leaves to processes that decode images; at most ``DECODERS``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = torch.get_num_threads() if device.type == CPU else 1
    return max(0, min(DECODERS, cores - busy))


def device_name(device: torch.device) -> str:
    """Name a device for the record: "CPU", or the accelerator's model."""
    if device.type == MPS:
        return "Apple GPU (MPS)"
    return torch.cuda.get_device_name(device) if device.type == CUDA else "CPU"


def send(tensor: torch.Tensor, device: torch.device, *, pinned: bool = False) -> torch.Tensor:
    """Send a tensor to a device; to CUDA while that computes, at best from pinned memory."""
    if device.type != CUDA:
        return tensor.to(device)
    return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, on the processor: Apple's accelerators have none."""
    return tensor.cpu().double()
