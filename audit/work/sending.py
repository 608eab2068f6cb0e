"""Tasks as bytes, for other machines: no pixel and no feature of an image is among them.

The module stands in for ``pickle`` where torch saves. What holds images says by ``reduce_elsewhere`` how another
machine opens them.
"""

from __future__ import annotations

import io
import pickle
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import audit
from audit.errors import InputError
from audit.store import source_hash
from audit.work.tasks import Task

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pandas", "pyarrow", "pillow")  # that all results depend on
OF_SOME = {"transformers": "transformers", "open_clip": "open-clip-torch"}  # of models that import them: their packages
PROCESSOR = "CPU capability"  # the instructions that torch chooses among its own functions by


class Pickler(pickle.Pickler):
    """Writes how images are opened in place of images."""

    def reducer_override(self, obj: object) -> Any:
        """Return what an object is rebuilt from, where it holds images; all others are written as ever."""
        reduce = getattr(type(obj), "reduce_elsewhere", None)
        return NotImplemented if reduce is None else reduce(obj)


def pack(tasks: Sequence[Task]) -> bytes:
    """Return tasks as bytes.

    Raises
    ------
    InputError
        If what is computed cannot be sent.
    """
    content = io.BytesIO()
    try:
        torch.save(list(tasks), content, pickle_module=sys.modules[__name__])
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        what = f"what is computed cannot be sent to other machines ({' '.join(str(error).split())[:200]})"
        raise InputError(tasks[0].name, what, "define models and data in a module, or run on one machine") from error
    return content.getvalue()


def unpack(content: bytes | memoryview, device: str) -> list[Task]:
    """Return the tasks that bytes hold, their tensors on this machine's device of a kind.

    They are programs: bytes must be of whoever runs them.
    """
    found: list[Task] = torch.load(io.BytesIO(content), map_location=device, weights_only=False)
    return found


def made_with() -> dict[str, str]:
    """Return the versions of all that results depend on, to the bit: what runs here, and what it runs on."""
    return {**_always(), **{package: version(package) for module, package in OF_SOME.items() if module in sys.modules}}


@cache
def _always() -> dict[str, str]:
    """Return them but for what only some models need; once a process, which runs what it has imported."""
    return {
        "vit-audit": audit.__version__,
        "code": source_hash((audit,)),
        "python": platform.python_version(),
        PROCESSOR: torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in LIBRARIES},
    }


def refuse_others(planned: Mapping[str, str]) -> None:
    """Refuse to work where versions are others than where the work was planned.

    Raises
    ------
    InputError
        With the first that differs.
    """
    own = made_with()
    for name, there in planned.items():
        here = own.get(name) or _installed(name)
        if there == here:
            continue
        what = f"{name} is {here} here, and {there} where the run was planned"
        fix = "install the same versions on all machines"
        if name == "code":
            what = "vit-audit has other source code here than where the run was planned"
            fix = "run the copy that the run was planned with"
        elif name == PROCESSOR:
            fix = "take machines with processors of one kind"
        error = InputError(socket.gethostname(), what, fix)
        error.of_machine = True
        raise error


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
