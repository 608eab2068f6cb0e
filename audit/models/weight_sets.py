"""Sets of weights in what a file holds: where each is, whether it is an average, and what was put before its names."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from audit.errors import ModelError

State = Literal["ema", "raw"]  # averaged over training steps, or as the last step left them
EMA = re.compile(r"(^|[_.])(ema|swa|averaged?|shadow)([_.]|$)", re.IGNORECASE)
WRAPPERS = {  # a whole model under one more name
    "module", "model", "net", "network", "backbone", "encoder", "_orig_mod", "online_model",
}  # fmt: skip
COUNTERS = {"n_averaged", "num_updates", "initted", "step", "decay"}  # of averages, beside the averaged weights
USUAL = ("state_dict", "model", "current_model_state")  # where training scripts keep the weights of the last step
TRAINING_STATE = re.compile(r"optim|sched|scaler|loops|rng", re.IGNORECASE)  # entries of a file that are no weights
SETTINGS = ("args", "hyper_parameters", "hparams", "config", "model_args", "model_kwargs")
HEADS = ("num_heads", "n_heads", "num_attention_heads")
WHOLE_NUMBERS = (torch.int8, torch.uint8)
FLOAT8 = {getattr(torch, name) for name in dir(torch) if name.startswith("float8_")}
SCALES = re.compile(r"\.(weight_scale\w*|scale_weight|SCB|absmax|scales)$")  # by which quantised weights are multiplied


@dataclass(frozen=True)
class WeightSet:
    """One set of weights of a file: every tensor on the CPU, of the type that was stored."""

    name: str  # where it is in the file; "" for the file itself
    state: State
    tensors: dict[str, torch.Tensor]
    stripped: tuple[str, ...]  # what was before all of its names, the outermost first
    stored: Mapping[str, int]  # how many tensors are stored in each type


def find_sets(content: object, path: Path) -> list[WeightSet]:
    """Return the sets of weights of a file.

    Raises
    ------
    ModelError
        If something in a state dict is no tensor.
    """
    found = {place: _tensors_of(entries, path) for place, entries in _find(content, "")}
    sets = [part for place, tensors in found.items() for part in _parted(place, tensors)]
    if "current_model_state" in found:  # Lightning's WeightAveraging puts the average where the weights were
        sets = [s if s.name != "state_dict" else _set(s.name, "ema", s.tensors, s.stripped) for s in sets]
    return _without_strangers(sets)


def as_numbers(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return tensors of which each holds the numbers that it stands for: of 8 bits in float32, others as they are.

    Raises
    ------
    ModelError
        If weights are stored in 8 bits with a scale that is elsewhere, or nowhere.
    """
    scaled = any(SCALES.search(name) for name in tensors)
    for name, tensor in tensors.items():
        whole = tensor.dtype in WHOLE_NUMBERS and tensor.ndim > 1 and not tensor.is_quantized
        if whole or (scaled and tensor.dtype in FLOAT8):
            where = "stands beside it in a form that is not known" if scaled else "is not in the file"
            kind = str(tensor.dtype).removeprefix("torch.")
            what = f"{name} is stored in 8 bits ({kind}), and the scale that makes weights of them {where}"
            raise ModelError(str(path), what, "name the weights as they were before they were quantised")
    return {name: _plain(tensor) for name, tensor in tensors.items()}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.float() if tensor.dtype in FLOAT8 else tensor


def _set(name: str, state: State, tensors: dict[str, torch.Tensor], stripped: tuple[str, ...]) -> WeightSet:
    stored = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return WeightSet(name, state, tensors, stripped, dict(stored.most_common()))


def _find(content: object, place: str) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield the state dicts of a file, by where they are: mappings that hold tensors of one or more dimensions."""
    if not isinstance(content, Mapping):
        return
    inside = [
        found
        for key, value in content.items()
        if not TRAINING_STATE.search(str(key))
        for found in _find(value, f"{place}.{key}".removeprefix("."))
    ]
    if inside:
        yield from inside
    elif any(isinstance(v, torch.Tensor) and v.ndim for v in content.values()):
        yield place, content


def _tensors_of(entries: Mapping[object, object], path: Path) -> dict[str, torch.Tensor]:
    for key, value in entries.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(str(path), f"'{key}' is not a tensor", "save model.state_dict() as .safetensors")
    return {str(key): value for key, value in entries.items() if isinstance(value, torch.Tensor)}


def _parted(place: str, tensors: dict[str, torch.Tensor]) -> list[WeightSet]:
    """Part averaged weights from others that are beside them in one state dict, and take off common prefixes."""
    tensors, stripped, averaged = _unwrapped(tensors)
    if averaged or EMA.search(place):
        return [_set(place, "ema", tensors, stripped)]
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(_averaged_part(name), {})[name] = tensor
    others = len(groups.get("", ()))
    for part in [p for p, held in groups.items() if p and 2 * len(held) < others]:  # a layer that has such a name
        groups[""] |= groups.pop(part)
    made = []
    for part, held in groups.items():
        inner, more, _ = _unwrapped({name.removeprefix(part): tensor for name, tensor in held.items()})
        named = f"{place}.{part}".strip(".")
        made.append(_set(named, "ema" if part else "raw", inner, (*stripped, *([part] if part else []), *more)))
    return made


def _averaged_part(name: str) -> str:
    """Return the beginning of a tensor's name up to the first module that says average, or ""."""
    *modules, _ = name.split(".")
    ends = [i for i, module in enumerate(modules) if EMA.search(module)]
    return ".".join(modules[: ends[0] + 1]) + "." if ends else ""


def _unwrapped(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...], bool]:
    """Take off prefixes that all names share, and counters of averages.

    Returns tensors, prefixes (outermost first), and whether a prefix or a counter says that they are averages.
    """
    stripped: list[str] = []
    averaged = "n_averaged" in tensors
    tensors = {k: v for k, v in tensors.items() if k not in COUNTERS or v.numel() > 1}
    while True:
        first = {name.partition(".")[0] for name in tensors if "." in name}
        same = len(first) == 1 and all("." in name for name in tensors)
        prefix = next(iter(first)) if same else ""
        if prefix not in WRAPPERS and not EMA.search(prefix):
            return tensors, tuple(stripped), averaged
        averaged |= EMA.search(prefix) is not None
        stripped.append(f"{prefix}.")
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}


def _without_strangers(sets: list[WeightSet]) -> list[WeightSet]:
    """Leave out what is beside the weights of the model, such as a loss's own, where these are in their usual place."""
    usual = [s for s in sets if s.state == "raw" and s.name.partition(".")[0] in USUAL]
    return [s for s in sets if s.state == "ema" or s in usual] if usual else sets


def settings_of(content: object) -> tuple[int | None, str | None]:
    """Return the number of heads and timm's name of the model, where the settings in a file name them."""
    if not isinstance(content, Mapping):
        return None, None
    settings = [s for key in SETTINGS if (s := _mapping(content.get(key))) is not None]
    heads = next((n for s in settings for n in _named(s, HEADS) if type(n) is int), None)
    names = [content.get("arch"), *(s.get("model") for s in settings)]
    return heads, next((n for n in names if isinstance(n, str)), None)


def _mapping(settings: object) -> Mapping[object, object] | None:
    settings = vars(settings) if isinstance(settings, argparse.Namespace) else settings
    return settings if isinstance(settings, Mapping) else None


def _named(settings: Mapping[object, object], names: tuple[str, ...]) -> Iterator[object]:
    for key, value in settings.items():
        if key in names:
            yield value
        elif (inner := _mapping(value)) is not None:
            yield from _named(inner, names)
