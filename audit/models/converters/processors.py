"""How a Hugging Face folder says that its images are made: the file, its settings, and the library's own processor."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from audit.errors import ModelError
from audit.extras import needs, quiet_transformers

CONFIG = "config.json"
WHOLE, IMAGES = "processor_config.json", "preprocessor_config.json"
PROCESSORS = (WHOLE, IMAGES)  # the library takes the first that names an image processor
NESTED = "image_processor"  # its place in the file of a whole processor


def folder_of(named: Path) -> Path:
    """Return the folder that a card names, or that of the file or index that it names."""
    return named.parent if named.is_file() else named


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a file holds.

    Raises
    ------
    ModelError
        If there is no such file, or it holds none.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(str(path), "no such file", "name a folder that save_pretrained wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read as JSON ({type(error).__name__})"
        raise ModelError(str(path), what, "restore the file") from None
    if not isinstance(content, dict):
        raise ModelError(str(path), "holds no mapping", "restore the file")
    return content


def processor_file(folder: Path) -> Path | None:
    """Return the file that names a folder's image processor; None where none does.

    Raises
    ------
    ModelError
        If a file cannot be read.
    """
    whole, images = (folder_of(folder) / name for name in PROCESSORS)
    if whole.is_file() and NESTED in read_json(whole):
        return whole
    return images if images.is_file() else None


def stated_settings(file: Path) -> dict[str, Any]:
    """Return what a file says of its image processor.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    content = read_json(file)
    nested = content.get(NESTED) if file.name == WHOLE else content
    if not isinstance(nested, dict):
        raise ModelError(str(file), f"{NESTED} is no mapping", "restore the file")
    return nested


def processor_settings(file: Path) -> dict[str, Any]:
    """Return the settings of the image processor that a file names; what it leaves open, the library says.

    Raises
    ------
    ModelError
        If the file cannot be read, or the library makes no processor of it.
    """
    stated = stated_settings(file)
    if _says_all(stated):
        return stated
    try:
        import_module("transformers")
    except ImportError:  # whoever calls the processor says so
        return stated
    loaded: dict[str, Any] = json.loads(open_processor(file.parent)[0].to_json_string())
    if not {"size", "crop_size"} & set(stated):  # then the model's own side is taken
        loaded = {key: value for key, value in loaded.items() if key not in ("size", "crop_size")}
    return loaded


def _says_all(stated: Mapping[str, Any]) -> bool:
    """Tell whether settings say normalisation and side without the defaults of a class."""
    size = stated.get("size")
    crops = not isinstance(size, Mapping) or "shortest_edge" not in size or "do_center_crop" in stated
    return crops and (not stated.get("do_normalize", True) or {"image_mean", "image_std"} <= set(stated))


def open_processor(folder: Path | None) -> tuple[Any, bool]:
    """Return the image processor that ``AutoImageProcessor`` makes of a folder, and whether the folder names it.

    Where it names none, the library's default for a model of that kind is taken, of the backend that the library takes.

    Raises
    ------
    ModelError
        If ``transformers`` is not installed, or knows no processor for the folder.
    """
    needs("transformers", "model.name: huggingface", error=ModelError)
    from transformers import AutoImageProcessor

    if folder is None:
        raise ModelError("model.weights", "name: huggingface needs a folder", "name one that holds config.json")
    folder = folder_of(folder)
    file = processor_file(folder)
    try:
        with quiet_transformers(), tempfile.TemporaryDirectory() as name:
            if file is None:
                (Path(name) / CONFIG).write_bytes((folder / CONFIG).read_bytes())
                (Path(name) / IMAGES).write_text("{}", encoding="utf-8")
            place = name if file is None else folder
            made = AutoImageProcessor.from_pretrained(place, local_files_only=True)  # type: ignore[no-untyped-call]
            return made, file is not None
    except Exception as error:  # whatever odd settings make of a processor
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        what = f"gives no image processor ({said})"
        raise ModelError(str(file or folder / IMAGES), what, "restore the file, or state model.preprocess") from None
