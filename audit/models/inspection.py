"""What a checkpoint holds, before anything is made of it: which model it seems to be, and what a card would say.

Shapes are read, tensors are not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from audit.errors import ModelError
from audit.filenames import printable
from audit.models.checkpoint import PREPROCESSING, SAVE, STRANGERS, open_checkpoint, stored_preprocessing
from audit.models.guess import (
    HUGGING_FACE,
    Architecture,
    classifiers_beside,
    count_classes,
    describe_folder,
    describe_open_clip,
    find_prefix,
    guess_architecture,
    prefix_of_open_clip,
)
from audit.models.known_shapes import Shapes, known_models
from audit.models.weight_sets import WeightSet

FOUND = 5  # names in one line
OPEN_CLIP_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """How images are made for a model, as far as the checkpoint or its name says."""

    source: str  # what says so: a file of the folder, or the library's default for the name
    settings: Mapping[str, Any]  # as the source names them


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds.

    Parameters
    ----------
    path : pathlib.Path
        What was named.
    kind : str
        Of the file or folder.
    size : int
        Bytes on disk.
    sets : tuple of WeightSet
        Every set of weights, with its place, state, stored types and what is before its names.
    chosen : WeightSet
        The set that is described: that of the last step, where there is one.
    stripped : str
        What is before the names of all of the model's tensors.
    architecture : Architecture
    classes : int, optional
        Outputs of the classifier, None where there is none.
    class_names : tuple of str, optional
        What they mean, where the folder says so.
    preprocessing : Preprocessing, optional

    Examples
    --------
    >>> import timm, torch, vit_audit as va
    >>> torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), "mine.pth")
    >>> found = va.inspect_checkpoint("mine.pth")
    >>> found.architecture.name, found.classes
    ('vit_tiny_patch16_224', 3)
    """

    path: Path
    kind: str
    size: int
    sets: tuple[WeightSet, ...]
    chosen: WeightSet
    stripped: str
    architecture: Architecture
    classes: int | None
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing | None

    @property
    def card(self) -> str:
        """The sections of a card that name this model; "" where it cannot be audited."""
        made = self.architecture
        if not made.name or made.missing or made.doubtful:
            return ""
        section: dict[str, Any] = {"name": made.name, "weights": str(self.path)}
        if len({s.state for s in self.sets}) > 1:
            section["state"] = self.chosen.state
        if self.classes == 1:
            section |= {"classes": self._pair, "output": "sigmoid"}
        elif self.classes is not None and made.name != HUGGING_FACE:
            section["classes"] = list(self.class_names or [f"class {i}" for i in range(self.classes)])
        if self._other_side is not None:
            section["image_size"] = self._other_side
        if made.overrides:
            section["overrides"] = dict(made.overrides)
        if made.reads_text:
            section["prompts"] = {f"class {i}": [f"a photo of class {i}"] for i in range(2)}
        as_is = self.classes is not None or made.reads_text
        card: dict[str, Any] = {"model": section} | ({"training": "none"} if as_is else {})
        return yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)

    @property
    def _pair(self) -> list[str]:
        """The two classes of a single logit, which is that of the second."""
        return ["class 0", "class 1"] if self.class_names is None else [f"not {self.class_names[0]}", *self.class_names]

    @property
    def _other_side(self) -> int | None:
        """The images' side, where it is not what the name alone says."""
        made = self.architecture
        if made.overrides:
            return made.side
        usual = next((k.side for k in known_models() if k.name == made.name), made.side)
        return made.side if made.side != usual else None

    def to_frame(self) -> Any:
        """Return the sets of weights as a data frame, a row for each.

        Returns
        -------
        pandas.DataFrame
            Columns ``set``, ``state``, ``tensors``, ``parameters``, ``stored``, ``stripped``.

        Examples
        --------
        >>> import timm, torch, vit_audit as va
        >>> torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), "three.pth")
        >>> va.inspect_checkpoint("three.pth").to_frame()["tensors"].tolist()
        [152]
        """
        import pandas as pd

        return pd.DataFrame(
            [
                {"set": s.name, "state": s.state, "tensors": len(s.tensors), "parameters": _parameters(s),
                 "stored": _counted(s.stored), "stripped": "".join(s.stripped)}
                for s in self.sets
            ]
        )  # fmt: skip

    def __str__(self) -> str:
        said = [f"{label}: {printable(text)}" for label, text in _lines(self)]
        return "\n".join([*said, "card:", self.card.rstrip()] if self.card else said)

    __repr__ = __str__


def inspect_weights(path: Path) -> Inspection:
    """Say what a checkpoint holds.

    Raises
    ------
    ModelError
        If it cannot be opened, or holds no weights.
    """
    checkpoint = open_checkpoint(path)
    chosen = next((s for s in checkpoint.sets if s.state == "raw"), checkpoint.sets[0])
    config = _config(path)
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in chosen.tensors.items()}
    prefix = find_prefix(shapes)
    inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    classes = count_classes(inside, shapes)
    names = _class_names(config, classes)
    folder = path if path.is_dir() else path.parent
    if (folder / OPEN_CLIP_CONFIG).is_file():
        made, classes = describe_folder(path, chosen, f"open_clip/{folder.resolve().name}")
    elif "model_type" in config and "architecture" not in config:
        made, classes = describe_folder(path, chosen)
        names = _class_names(config, classes)
    elif (before := prefix_of_open_clip(shapes)) is not None:
        prefix, classes, names = "", None, None
        made = describe_open_clip(path, chosen, before)
    else:
        made = guess_architecture(inside, checkpoint, str(config.get("architecture", "")))
        beside = tuple(sorted(n for n in shapes if not n.startswith(prefix) and n not in classifiers_beside(shapes)))
        made = dataclasses.replace(
            made,
            left_over=(*made.left_over, *beside),
            doubtful=tuple(
                name
                for name in (*made.left_over, *beside)
                if not STRANGERS.search(name) and not (prefix and name in beside and len(shapes[name]) < 2)
            ),
        )
    return Inspection(
        path=path,
        kind=checkpoint.kind,
        size=checkpoint.size,
        sets=checkpoint.sets,
        chosen=chosen,
        stripped="".join(chosen.stripped) + prefix,
        architecture=made,
        classes=classes,
        class_names=names,
        preprocessing=preprocessing_of(path, config, made.name),
    )


def preprocessing_of(path: Path, config: Mapping[str, Any], name: str) -> Preprocessing | None:
    """Return how images are made for the model of a folder or a name, as far as anything says so."""
    from audit.models.converters.processors import processor_file, stated_settings  # takes timm along

    folder = path if path.is_dir() else path.parent
    if name == HUGGING_FACE and (processor := processor_file(folder)) is not None:
        kept = ("size", "crop_size", "do_center_crop", "resample", "image_mean", "image_std", "rescale_factor")
        settings = stated_settings(processor)
        return Preprocessing(processor.name, {key: settings[key] for key in kept if settings.get(key) is not None})
    of_open_clip = folder / OPEN_CLIP_CONFIG
    if name.startswith("open_clip/") and of_open_clip.is_file():
        return Preprocessing(of_open_clip.name, _json(of_open_clip).get("preprocess_cfg") or {})
    if name.startswith("open_clip/"):
        from audit.models.converters.open_clip import MEAN, STD  # slow to import, and imported by now

        return Preprocessing("open_clip's default; the file itself says nothing", {"mean": MEAN, "std": STD})
    given = config.get("pretrained_cfg")
    of_timm = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    if isinstance(given, dict):
        return Preprocessing("config.json", {key: given[key] for key in of_timm if given.get(key) is not None})
    if (text := stored_preprocessing(path)) is not None:
        return Preprocessing(f"metadata {PREPROCESSING}", _parsed(text))
    known = next((k for k in known_models() if k.name == name), None)
    if known is None:
        return None
    usual = {"side": known.side, **{key: getattr(known, key) for key in ("crop_pct", "interpolation", "mean", "std")}}
    library = "torchvision" if name.startswith("torchvision/") else "timm"
    return Preprocessing(f"{library}'s default for {name}; the file itself says nothing", usual)


def _config(path: Path) -> dict[str, Any]:
    """Return what ``config.json`` beside the weights says; {} where there is none."""
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json"
    return _json(file) if file.is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(str(file), f"cannot be read as JSON ({type(error).__name__})", "restore the file") from None
    return content if isinstance(content, dict) else {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = text
    return content if isinstance(content, dict) else {"unreadable": text[:100]}


def _class_names(config: Mapping[str, Any], classes: int | None) -> tuple[str, ...] | None:
    """Return what the outputs mean, where a configuration names as many."""
    named = config.get("id2label")
    if isinstance(named, dict) and all(str(key).isdecimal() for key in named):
        listed = [str(named[key]) for key in sorted(named, key=int)]
    else:
        given = config.get("label_names")
        listed = [str(name) for name in given] if isinstance(given, list) else []
    return tuple(listed) if classes is not None and len(listed) == classes else None


def _parameters(held: WeightSet) -> int:
    return sum(tensor.numel() for tensor in held.tensors.values())


def _counted(stored: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in stored.items())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - FOUND} more" if len(names) > FOUND else ""
    return ", ".join(names[:FOUND]) + more


def _lines(found: Inspection) -> list[tuple[str, str]]:
    """Return what is printed of a checkpoint: labels and texts."""
    made = found.architecture
    lines = [("file", f"{found.path} ({found.kind}, {found.size / 1e6:,.1f} MB)")]
    for held in found.sets:
        said = f"{held.name or 'the file itself'}: {held.state}, {len(held.tensors)} tensors, {_parameters(held):,} "
        taken = " (described here)" if held is found.chosen and len(found.sets) > 1 else ""
        lines.append(("weights", f"{said}numbers, stored as {_counted(held.stored)}{taken}"))
    if found.stripped:
        lines.append(("before all names", found.stripped))
    lines.append(("model", made.name or f"not known: {made.why}"))
    if made.also:
        told = "; name the one that it was trained as" if made.reads_text else ""
        lines.append(("same shapes", f"{_some(made.also)}; shapes do not tell these apart{told}"))
    sizes = [
        (made.layers, f"{made.layers} layers"),
        (made.units, f"{made.units} {made.unit}s" + ("" if made.units_known else " (a guess: shapes do not tell)")),
        (made.width, f"width {made.width}"),
        (made.patch, f"patch {made.patch}"),
        (made.side, f"images of {made.side} x {made.side}"),
        (made.registers, f"{made.registers} registers"),
        (made.layer_scale, "LayerScale"),
    ]
    said = ", ".join(text for value, text in sizes if value)
    lines += [("sizes", said)] if said else []
    names = "" if found.class_names is None else f": {_some(found.class_names)}"
    lines.append(("classes", "no classifier" if found.classes is None else f"{found.classes}{names}"))
    if found.preprocessing is not None:
        settings = ", ".join(f"{key} {value}" for key, value in found.preprocessing.settings.items())
        lines.append(("images", f"{settings} ({found.preprocessing.source})"))
    lines += [("missing", _some(made.missing))] if made.missing else []
    lines += [("left over", _some(made.left_over))] if made.left_over else []
    if made.doubtful and made.name:
        fix = f"name the output in use under model.output_key, or {SAVE}"
        lines.append(("no card", f"{_some(made.doubtful)} may be part of the model; {fix}"))
    return lines
