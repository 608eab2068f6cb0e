"""Folders of ``torch.distributed.checkpoint``: ``.metadata`` beside ``__0_0.distcp`` and so on.

``.metadata`` is a pickle, which torch reads with no restriction. Here it may name the classes that describe a
checkpoint and nothing else. Of the tensors only those of the model are read, not the optimizer's.
"""

from __future__ import annotations

import collections
import inspect
import pathlib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from audit.errors import ModelError

METADATA = ".metadata"
FIX = "save model.state_dict() as .safetensors, and name that file"
OPTIMIZER = re.compile(r"(^|\.)(optim\w*|lr_?schedulers?|scaler)(\.|$)", re.IGNORECASE)
LARGEST = 2**40  # bytes; a tensor that says it is larger is no weight


class _Restricted(pickle.Unpickler):
    """Finds the classes that describe a checkpoint, and nothing else."""

    described_in: ClassVar[tuple[str, ...]] = (
        "torch.distributed.checkpoint.metadata",
        "torch.distributed._shard.sharded_tensor.metadata",
    )
    single: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch", "Size"): torch.Size,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("pathlib", "PosixPath"): pathlib.PurePosixPath,
        ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,
        ("pathlib", "WindowsPath"): pathlib.PureWindowsPath,
        ("pathlib._local", "WindowsPath"): pathlib.PureWindowsPath,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, or refuse it."""
        if (module, name) in self.single:
            return self.single[module, name]
        plain = "." not in name
        if module in self.described_in or (module, name) == ("torch.distributed.checkpoint.filesystem", "_StorageInfo"):
            found = super().find_class(module, name) if plain else None
            if inspect.isclass(found) and found.__module__ == module:
                return found
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.layout):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class _Reader(FileSystemReader):
    """torch's reader, given a description that was read under restriction."""

    def __init__(self, folder: Path, described: Metadata) -> None:
        super().__init__(folder)
        self.described = described

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """Return the description."""
        del args, options
        return self.described


def read_distributed(folder: Path) -> dict[object, object]:
    """Return the model's tensors of a checkpoint, nested as they were when they were saved.

    Raises
    ------
    ModelError
        If the checkpoint is damaged, or its description names anything but classes that describe one.
    """
    described = _describe(folder)
    wanted = {
        name: held
        for name, held in described.state_dict_metadata.items()
        if isinstance(held, TensorStorageMetadata) and not OPTIMIZER.search(name)
    }
    try:
        _check_files(described)
        if any(held.size.numel() * held.properties.dtype.itemsize > LARGEST for held in wanted.values()):
            raise ValueError("size")
        tensors: dict[str, Any] = {
            name: torch.empty(held.size, dtype=held.properties.dtype) for name, held in wanted.items()
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")
            load(tensors, storage_reader=_Reader(folder, described))
    except (Exception, CheckpointException) as error:  # a damaged checkpoint may raise anything while it is parsed
        what = f"cannot be read as a torch.distributed checkpoint ({type(error).__name__})"
        raise ModelError(str(folder), what, FIX) from error
    return _nested(tensors, described.planner_data)


def _describe(folder: Path) -> Metadata:
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            described = _Restricted(file).load()
    except Exception as error:
        named = str(error) if isinstance(error, pickle.UnpicklingError) and "." in str(error) else type(error).__name__
        what = f"is not the description of a torch.distributed checkpoint alone ({named})"
        raise ModelError(str(path), " ".join(what.split()), FIX) from error
    if not isinstance(described, Metadata):
        raise ModelError(str(path), "is not the description of a torch.distributed checkpoint", FIX)
    return described


def _check_files(described: Metadata) -> None:
    """Raise where a part of a tensor is said to lie outside the folder."""
    for place in described.storage_data.values():
        if Path(place.relative_path).name != place.relative_path:
            raise ValueError(place.relative_path)


def _nested(tensors: dict[str, Any], paths: Any) -> dict[object, object]:
    """Return tensors in the mappings that they were saved in, where the checkpoint says so."""
    made: dict[object, object] = {}
    for name, tensor in tensors.items():
        place = paths.get(name) if isinstance(paths, dict) else None
        *outer, last = place if isinstance(place, tuple) and place else (name,)
        inner = made
        for key in outer:
            found = inner.setdefault(key, {})
            inner = found if isinstance(found, dict) else {}
        inner[last] = tensor
    return made
