"""Folders of ``torch.distributed.checkpoint``: ``.metadata`` beside ``__0_0.distcp`` and so on.

``.metadata`` is a pickle, which torch reads with no restriction. Here it may name the classes that describe a
checkpoint and nothing else. Of the tensors only those of the model are read, not the optimizer's, each whenever its
numbers are asked for.
"""

from __future__ import annotations

import collections
import inspect
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.utils._pytree import tree_map_only

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


class _Stored(torch.Tensor):
    """A tensor that is left in its file: whatever needs its numbers reads them, and nothing keeps them here."""

    read: Callable[[], torch.Tensor]

    @staticmethod
    def __new__(cls, held: TensorStorageMetadata, read: Callable[[], torch.Tensor]) -> _Stored:
        made: _Stored = torch.Tensor._make_wrapper_subclass(cls, held.size, dtype=held.properties.dtype)
        made.read = read
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch has it as the static method that turns it off
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute with what is in the file; shapes alone need nothing of it."""
        kwargs = kwargs or {}
        if kwargs.get("device") == torch.device("meta"):
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="meta")
        args, kwargs = tree_map_only(cls, lambda stored: stored.read(), (args, kwargs))
        return func(*args, **kwargs)


def read_distributed(folder: Path) -> dict[object, object]:
    """Return the model's tensors of a checkpoint, nested as when they were saved; each is read when it is used.

    Raises
    ------
    ModelError
        If the checkpoint is damaged, or its description names anything but classes that describe one. A damaged tensor
        is found when it is read.
    """
    described = _describe(folder)
    wanted = {
        name: held
        for name, held in described.state_dict_metadata.items()
        if isinstance(held, TensorStorageMetadata) and not OPTIMIZER.search(name)
    }
    try:
        _check_files(folder, described, wanted)
        if any(held.size.numel() * held.properties.dtype.itemsize > LARGEST for held in wanted.values()):
            raise ValueError("size")
        tensors = {name: _Stored(held, partial(_read, folder, described, name, held)) for name, held in wanted.items()}
    except Exception as error:  # a damaged description may raise anything while it is parsed
        raise _unreadable(folder, error) from error
    return _nested(tensors, described.planner_data)


def _read(folder: Path, described: Metadata, name: str, held: TensorStorageMetadata) -> torch.Tensor:
    tensor = torch.empty(held.size, dtype=held.properties.dtype)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")
            load({name: tensor}, storage_reader=_Reader(folder, described))
    except (Exception, CheckpointException) as error:  # a damaged tensor may raise anything while it is parsed
        raise _unreadable(folder, error) from error
    return tensor


def _unreadable(folder: Path, error: BaseException) -> ModelError:
    what = f"cannot be read as a torch.distributed checkpoint ({type(error).__name__})"
    return ModelError(str(folder), what, FIX)


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


def _check_files(folder: Path, described: Metadata, wanted: Collection[str]) -> None:
    """Raise where a part of a tensor is said to lie outside the folder, or beyond the end of its file."""
    for part, place in described.storage_data.items():
        if Path(place.relative_path).name != place.relative_path:
            raise ValueError(place.relative_path)
        if part.fqn in wanted and place.offset + place.length > (folder / place.relative_path).stat().st_size:
            raise EOFError(place.relative_path)


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
