"""Weights of a file: the set that a card asks for, checked; written as safetensors; named by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from audit.errors import ModelError
from audit.models.containers import open_container
from audit.models.weight_sets import State, WeightSet, as_numbers, find_sets, settings_of

StateDict = Mapping[str, torch.Tensor]
PREPROCESSING = "vit-audit.preprocessing"  # in a file's metadata: how images are made for the model
METADATA = "__metadata__"  # in a safetensors file's header
STARTED_FROM = "started_from"  # in a file's metadata: hash_state of the weights before training
PARTS = 12  # in which a file is read at most
PART_BYTES = 16 << 20  # at least: a small file is read at once
SHOWN = 5  # names of tensors in one message
# What training code keeps beside a model, and what takes no part in its answers.
STRANGERS = re.compile(
    r"(^|[._])(criterion|\w*loss(es|_fn)?|metrics?|class_weights?|pos_weight|\w*acc(uracy)?|auroc|f1(_?score)?"
    r"|precision|recall|conf(usion)?_?mat(rix)?)([._]|$)",
    re.IGNORECASE,
)
SAVE = "save the state_dict of the model that is in use as .safetensors, and name that file"


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds."""

    path: Path
    kind: str  # of the file or folder
    size: int  # bytes on disk
    sets: tuple[WeightSet, ...]  # one at least
    heads: int | None = None  # attention heads of each layer, where the settings stored beside the weights name them
    architecture: str | None = None  # timm's name of the model, where they name that

    def take(self, state: State | None) -> WeightSet:
        """Return the set that the card asks for, or the only one, after a look at every value.

        Raises
        ------
        ModelError
            As ``choose``, and if some value of it is not finite.
        """
        found: dict[str, str] = {}
        for part in self.in_parts(lambda opened, _: opened.choose(state).tensors):
            found |= _not_finite(part)
        _refuse(found, str(self.path))
        return self.choose(state)

    def in_parts(self, tensors: Callable[[Checkpoint, Collection[str]], StateDict]) -> Iterator[StateDict]:
        """Yield tensors a few at a time, and open the file again for each few.

        What was read of a mapped file is memory of this process until the file is closed.

        Parameters
        ----------
        tensors : callable
            Returns them, given the opened file and the names of those that are read; each time under the same names.
        """
        mapped = self.kind != "torch.distributed"  # which keeps nothing of what was read
        for names in _parts(tensors(self, ())):
            held = tensors(open_checkpoint(self.path) if mapped else self, names)
            part = {name: held[name] for name in names}
            del held
            yield part
            del part

    def choose(self, state: State | None) -> WeightSet:
        """Return the set that the card asks for, or the only one; nothing of it is read.

        Raises
        ------
        ModelError
            If the file holds several sets and the card does not say which, or none of the kind that it asks for.
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
        return dataclasses.replace(found[0], tensors=as_numbers(found[0].tensors, self.path))


def _parts(tensors: StateDict) -> list[list[str]]:
    """Cut names in parts of about equal bytes, few where these are few; parts of a layer stay together."""
    whole, done = sum(t.nbytes for t in tensors.values()), 0
    parts: dict[int, list[str]] = {}
    count = min(PARTS, 1 + whole // PART_BYTES)
    for name in sorted(tensors):
        parts.setdefault(count * done // (whole + 1), []).append(name)
        done += tensors[name].nbytes
    return list(parts.values())


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a file or folder of weights without running anything that it says, and without reading a tensor.

    Parameters
    ----------
    path : pathlib.Path
        As :func:`open_container` takes it. State dicts are found under any names (``state_dict``, ``model``,
        ``state_dict_ema``, ``callbacks.EMA.ema_state_dict``, ...), and averaged ones beside others in one state dict
        (``ema_model.module.blocks.0...``). A prefix that all names share (``module.``, ``model.``) is taken off.

    Raises
    ------
    ModelError
        If it is missing, damaged, or holds anything but tensors where its weights should be.
    """
    held = open_container(path)
    sets = find_sets(held.content, held.path)
    if not sets:
        raise ModelError(str(held.path), "holds no state dict", "save model.state_dict() as .safetensors")
    return Checkpoint(held.path, held.kind, held.size, tuple(sets), *settings_of(held.content))


def check_finite(state: StateDict, where: str) -> None:
    """Raise where a tensor holds NaN or an infinity, naming the tensors; masks of attention may.

    Raises
    ------
    ModelError
    """
    _refuse(_not_finite(state), where)


def _not_finite(state: StateDict) -> dict[str, str]:
    """Return the names of tensors that are not finite, with what they hold."""
    return {
        name: "NaN" if tensor.isnan().any() else "infinite values"
        for name, tensor in state.items()
        if tensor.is_floating_point() and not name.endswith("mask") and not _is_finite(tensor)
    }


def _is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether every value is; the extremes, NaN if any value is, say so without a copy of them."""
    return not tensor.numel() or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def _refuse(found: Mapping[str, str], where: str) -> None:
    if found:
        what = f"{listed(list(found))} {'holds' if len(found) == 1 else 'hold'} {next(iter(found.values()))}"
        raise ModelError(where, what, "name weights that are finite, such as those of an earlier epoch")


def listed(names: list[str]) -> str:
    """Return names in a row, the first few where there are many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def save_weights(
    state: StateDict, path: Path, *, started_from: str | None = None, preprocessing: str | None = None
) -> None:
    """Write a state dict as safetensors, whole or not at all.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
    path : pathlib.Path
    started_from : str, optional
        Hash of the weights it was trained from.
    preprocessing : str, optional
        How images are made for it, as JSON.
    """
    from audit.store import atomic_write  # takes pandas along, which reading needs not

    metadata = {} if started_from is None else {STARTED_FROM: started_from}
    metadata |= {} if preprocessing is None else {PREPROCESSING: preprocessing}
    with atomic_write(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary, metadata or None)
        except SafetensorError as error:  # which says in words alone what the system said
            found = re.search(r"(?:os error |Os { code: )(\d+)", str(error))  # safetensors 0.4 has the latter
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes them in another each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if METADATA in header:
            header[METADATA] = dict(sorted(header[METADATA].items()))
            sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            if len(sorted_header) <= length:
                file.seek(8)
                file.write(sorted_header.ljust(length))


def started_from(path: Path) -> str:
    """Return the hash of the weights that a safetensors file says it was trained from, or ""."""
    return _metadata(path).get(STARTED_FROM, "")


def stored_preprocessing(path: Path | None) -> str | None:
    """Return what a safetensors file says of how images are made, as JSON; None of any other file."""
    if path is None or path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        return _metadata(path).get(PREPROCESSING)
    except SafetensorError:  # whoever reads its tensors says more
        return None


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as opened:
        return dict(opened.metadata() or {})


def hash_state(state: StateDict) -> str:
    """SHA-256 over the names, shapes, types and bytes of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
