"""Weights files: opened safely, with every set of weights that they hold; written as safetensors; named by content."""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from audit.errors import ModelError
from audit.store import atomic_write

StateDict = Mapping[str, torch.Tensor]
State = Literal["ema", "raw"]  # averaged over training steps, or as the last step left them
STARTED_FROM = "started_from"  # in a file's metadata: hash_state of the weights before training
SHOWN = 5  # names of tensors in one message
# What training scripts store beside weights, and what runs nothing when it is read.
NUMPY_SCALAR: Callable[..., object] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
HARMLESS: list[Callable[..., object]] = [argparse.Namespace, pathlib.PosixPath, np.dtype, NUMPY_SCALAR]
HARMLESS += {type(np.dtype(kind)) for kind in "?fdilq"}
EMA = re.compile(r"(^|[_.])(ema|swa|averaged?|shadow)([_.]|$)", re.IGNORECASE)
WRAPPERS = {"module", "model", "net", "network", "_orig_mod", "online_model"}  # a whole model under one more name
COUNTERS = {"n_averaged", "num_updates", "initted", "step", "decay"}  # of averages, beside the averaged weights
USUAL = ("state_dict", "model", "current_model_state")  # where training scripts keep the weights of the last step
TRAINING_STATE = re.compile(r"optim|sched|scaler|loops|rng", re.IGNORECASE)  # entries of a file that are no weights
SETTINGS = ("args", "hyper_parameters", "hparams", "config", "model_args", "model_kwargs")
HEADS = ("num_heads", "n_heads", "num_attention_heads")


@dataclass(frozen=True)
class WeightSet:
    """One set of weights of a file: every tensor on the CPU, floating-point ones in float32."""

    name: str  # where it is in the file; "" for the file itself
    state: State
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds.

    Parameters
    ----------
    path : pathlib.Path
    sets : tuple of WeightSet
        One at least.
    heads : int, optional
        Attention heads of each layer, where the settings stored beside the weights name them.
    architecture : str, optional
        timm's name of the model, where they name that.
    """

    path: Path
    sets: tuple[WeightSet, ...]
    heads: int | None = None
    architecture: str | None = None

    def take(self, state: State | None) -> WeightSet:
        """Return the set that the card asks for, or the only one.

        Raises
        ------
        ModelError
            If the file holds several sets and the card does not say which, it holds none of the kind that the card
            asks for, or some value of it is not finite.
        """
        found = [s for s in self.sets if state in (None, s.state)]
        held = ", ".join(f"{s.name or 'the file itself'} ({s.state})" for s in self.sets)
        if not found:
            raise ModelError(str(self.path), f"holds no {state} weights, only {held}", "correct or remove model.state")
        if len({s.state for s in found}) > 1:
            what = f"holds {len(self.sets)} sets of weights: {held}"
            raise ModelError(str(self.path), what, "say which one is in use: model.state: ema, or raw")
        if len(found) > 1:
            what = f"holds {len(self.sets)} sets of weights: {held}"
            raise ModelError(str(self.path), what, "save the one in use as .safetensors, and name that file")
        check_finite(found[0].tensors, str(self.path))
        return found[0]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a weights file without running anything that it says.

    Parameters
    ----------
    path : pathlib.Path
        ``.safetensors``, or a PyTorch file, which is read with ``weights_only=True``. State dicts are found under any
        names (``state_dict``, ``model``, ``state_dict_ema``, ``callbacks.EMA.ema_state_dict``, ...), and averaged ones
        beside others in one state dict (``ema_model.module.blocks.0...``). A prefix that all names share (``module.``,
        ``model.``) is taken off.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or holds anything but tensors where its weights should be.
    """
    content = _read(path)
    found = {place: _tensors_of(entries, path) for place, entries in _find_sets(content, "")}
    sets = [part for place, tensors in found.items() for part in _parted(place, tensors)]
    if "current_model_state" in found:  # Lightning's WeightAveraging puts the average where the weights were
        sets = [WeightSet(s.name, "ema" if s.name == "state_dict" else s.state, s.tensors) for s in sets]
    sets = _without_strangers(sets)
    if not sets:
        raise ModelError(str(path), "holds no state dict", "save model.state_dict() as .safetensors")
    return Checkpoint(path, tuple(sets), *_settings_of(content))


def _read(path: Path) -> object:
    if not path.is_file():
        raise ModelError(str(path), "no such weights file", "correct model.weights in the card")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([*HARMLESS]):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything while it is parsed
        # Its kind only: what torch says of a pickle is to load it unsafely, in colours.
        what = f"cannot be read as weights ({type(error).__name__})"
        raise ModelError(str(path), what, "save it as .safetensors and name that file") from error
    return loaded


def _find_sets(content: object, place: str) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield the state dicts of a file, by where they are: mappings that hold tensors of one or more dimensions."""
    if not isinstance(content, Mapping):
        return
    inside = [
        found
        for key, value in content.items()
        if not TRAINING_STATE.search(str(key))
        for found in _find_sets(value, f"{place}.{key}".removeprefix("."))
    ]
    if inside:
        yield from inside
    elif any(isinstance(v, torch.Tensor) and v.ndim for v in content.values()):
        yield place, content


def _tensors_of(entries: Mapping[object, object], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict, in float32 where they are of a floating-point type."""
    tensors = {}
    for key, value in entries.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(str(path), f"'{key}' is not a tensor", "save model.state_dict() as .safetensors")
        tensors[str(key)] = value.float() if value.is_floating_point() else value
    return tensors


def _parted(place: str, tensors: dict[str, torch.Tensor]) -> list[WeightSet]:
    """Part averaged weights from others that are beside them in one state dict, and take off common prefixes."""
    tensors, averaged = _unwrapped(tensors)
    if averaged or EMA.search(place):
        return [WeightSet(place, "ema", tensors)]
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        first = name.split(".")[0]
        groups.setdefault(first if "." in name and EMA.search(first) else "", {})[name] = tensor
    return [
        WeightSet(f"{place}.{first}".strip("."), "ema" if first else "raw", _unwrapped(part)[0])
        for first, part in groups.items()
    ]


def _unwrapped(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Take off prefixes that all names share, and counters of averages; tell whether any of them says average."""
    averaged = "n_averaged" in tensors
    tensors = {k: v for k, v in tensors.items() if k not in COUNTERS or v.numel() > 1}
    while True:
        first = {name.partition(".")[0] for name in tensors if "." in name}
        same = len(first) == 1 and all("." in name for name in tensors)
        prefix = next(iter(first)) if same else ""
        if prefix not in WRAPPERS and not EMA.search(prefix):
            return tensors, averaged
        averaged |= EMA.search(prefix) is not None
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}


def _without_strangers(sets: list[WeightSet]) -> list[WeightSet]:
    """Leave out what is beside the weights of the model, such as a loss's own, where these are in their usual place."""
    usual = [s for s in sets if s.state == "raw" and s.name.partition(".")[0] in USUAL]
    return [s for s in sets if s.state == "ema" or s in usual] if usual else sets


def _settings_of(content: object) -> tuple[int | None, str | None]:
    """Return the number of heads and timm's name of the model, where the settings in a file name them."""
    if not isinstance(content, Mapping):
        return None, None
    settings = [s for key in SETTINGS if (s := _plain(content.get(key))) is not None]
    heads = next((n for s in settings for n in _named(s, HEADS) if type(n) is int), None)
    names = [content.get("arch"), *(s.get("model") for s in settings)]
    return heads, next((n for n in names if isinstance(n, str)), None)


def _plain(settings: object) -> Mapping[object, object] | None:
    settings = vars(settings) if isinstance(settings, argparse.Namespace) else settings
    return settings if isinstance(settings, Mapping) else None


def _named(settings: Mapping[object, object], names: tuple[str, ...]) -> Iterator[object]:
    for key, value in settings.items():
        if key in names:
            yield value
        elif (inner := _plain(value)) is not None:
            yield from _named(inner, names)


def check_finite(state: StateDict, where: str) -> None:
    """Raise where a tensor holds NaN or an infinity, naming the tensors; masks of attention may.

    Raises
    ------
    ModelError
    """
    found = {
        name: "NaN" if tensor.isnan().any() else "infinite values"
        for name, tensor in state.items()
        if tensor.is_floating_point() and not name.endswith("mask") and not tensor.isfinite().all()
    }
    if found:
        what = f"{listed(list(found))} {'holds' if len(found) == 1 else 'hold'} {next(iter(found.values()))}"
        raise ModelError(where, what, "name weights that are finite, such as those of an earlier epoch")


def listed(names: list[str]) -> str:
    """Return names in a row, the first few where there are many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def save_weights(state: StateDict, path: Path, *, started_from: str | None = None) -> None:
    """Write a state dict as safetensors, whole or not at all, with the hash of the weights it was trained from."""
    metadata = None if started_from is None else {STARTED_FROM: started_from}
    with atomic_write(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary, metadata)
        except SafetensorError as error:  # which says in words alone what the system said
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def started_from(path: Path) -> str:
    """Return the hash of the weights that a safetensors file says it was trained from, or ""."""
    with safe_open(path, framework="pt") as opened:
        return str((opened.metadata() or {}).get(STARTED_FROM, ""))


def hash_state(state: StateDict) -> str:
    """SHA-256 over the names, shapes, types and bytes of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
