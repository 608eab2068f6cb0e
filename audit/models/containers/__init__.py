"""Files and folders that hold weights: opened without running what they say, and without reading a tensor before use.

Tensors lie in mapped memory and are of the type that was stored, so that a file takes no more memory than what is read
of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from audit.errors import ModelError
from audit.models.containers.pytorch import read_pytorch
from audit.models.containers.safetensors_files import read_safetensors
from audit.models.containers.sharded import INDEX, read_sharded

Kind = Literal["safetensors", "PyTorch", "sharded", "torch.distributed"]
IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
METADATA = ".metadata"  # of torch.distributed.checkpoint
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")  # of a single file in a folder
FIX = "name a .safetensors or PyTorch file, or a folder that save_pretrained or torch.distributed.checkpoint wrote"


@dataclass(frozen=True)
class Container:
    """What a file or folder of weights holds."""

    path: Path  # what was opened: the file, the index of a sharded checkpoint, or the folder of a distributed one
    kind: Kind
    content: Mapping[object, object]  # tensors by name, or mappings of such, beside whatever else was stored
    size: int  # bytes on disk


def open_container(path: Path) -> Container:
    """Open a file, an index or a folder.

    Parameters
    ----------
    path : pathlib.Path
        ``.safetensors``; a PyTorch file under any name, which is read with ``weights_only=True``; the
        ``*.index.json`` of a sharded checkpoint; or a folder that holds one of these or is a
        ``torch.distributed.checkpoint``.

    Raises
    ------
    ModelError
        If it is missing, damaged, needs code to be read, or a folder holds several files of weights.
    """
    found = find_in_folder(path) if path.is_dir() else path
    if found.is_dir():
        from audit.models.containers.distributed import read_distributed  # slow to import

        parts = [part for part in found.iterdir() if part.is_file()]
        return Container(found, "torch.distributed", read_distributed(found), sum(p.stat().st_size for p in parts))
    if not found.is_file():
        raise ModelError(str(path), "no such weights file", "correct the path")
    if found.name.endswith(INDEX):
        content, size = read_sharded(found)
        return Container(found, "sharded", content, size)
    size = found.stat().st_size
    if found.suffix == ".safetensors":
        return Container(found, "safetensors", read_safetensors(found), size)
    read = read_pytorch(found)
    return Container(found, "PyTorch", read if isinstance(read, Mapping) else {}, size)


def find_in_folder(folder: Path) -> Path:
    """Return what of a folder is opened: a file, the index of a sharded checkpoint, or the folder itself.

    Raises
    ------
    ModelError
        If it holds no weights, or several files of which none has a usual name.
    """
    if (folder / METADATA).is_file():
        return folder
    usual = [folder / name for name in IN_FOLDER if (folder / name).is_file()]
    indices = sorted(folder.glob(f"*{INDEX}"), key=lambda p: (".safetensors." not in p.name, p.name))
    others = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    found = usual[:1] or indices[:1] or others
    if not found:
        raise ModelError(str(folder), "holds no weights", FIX)
    if len(found) > 1:
        what = f"holds {len(found)} files of weights: {', '.join(p.name for p in found[:3])}"
        raise ModelError(str(folder), what, "name the one in use")
    return found[0]
