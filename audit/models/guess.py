"""Which model a set of weights seems to be, by names and shapes.

A model that the table of known shapes has is named without timm, which takes seconds to import; other vision
transformers are described by their shapes and then compared with timm's model.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit.errors import ModelError
from audit.models.checkpoint import Checkpoint
from audit.models.known_shapes import Known, Shapes, hash_shapes, known_models
from audit.models.weight_sets import WeightSet

HUGGING_FACE, OPEN_CLIP = "huggingface", "open_clip/"
# A tensor at the beginning of each kind of model, and another that tells it from a part of itself.
MARKS = (
    ("patch_embed.proj.weight", ""),
    ("layer1.0.conv1.weight", ""),
    ("stages.0.blocks.0.conv_dw.weight", ""),
    ("conv_proj.weight", "encoder.pos_embedding"),
)
OF_HUGGING_FACE = re.compile(r"embeddings\.patch_embeddings?\.(projection\.)?weight$")
TOWERS = ("visual.class_embedding", "visual.trunk.patch_embed.proj.weight")  # open_clip's own, or one of timm's
CLASSIFIERS = ("head.fc.weight", "head.weight", "heads.head.weight", "fc.weight", "classifier.weight")
HEAD_WIDTH = 64  # of most vision transformers; nothing in the shapes tells
PLAIN_VIT = "vit_base_patch16_224"  # whose arguments describe other vision transformers


@dataclass(frozen=True)
class Architecture:
    """Which model a set of weights seems to be."""

    name: str = ""  # as a card has it; "" where no model that can be audited has these shapes
    also: tuple[str, ...] = ()  # other models of the same shapes, between which a file does not tell
    unit: str = "head"  # what is patched: "head" or "slice"
    layers: int | None = None
    units: int | None = None  # of the first layer
    # whether the number of units follows from the file or the name; else it is the usual one for the width
    units_known: bool = True
    side: int | None = None  # of the images, in pixels
    # of vision transformers
    width: int | None = None
    patch: int | None = None
    registers: int | None = None
    layer_scale: bool | None = None
    reads_text: bool = False  # whether a text tower lies beside it, so that texts can take the place of a classifier
    # arguments of timm's model where it is not as the name alone makes it
    overrides: Mapping[str, Any] = field(default_factory=dict)
    # tensors that the model needs and the file lacks; tensors of the file that are no part of it
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    # those of the left over that may take part in its answers all the same, so that it is not audited
    doubtful: tuple[str, ...] = ()
    why: str = ""  # why no name was found


def find_prefix(shapes: Shapes) -> str:
    """Return what is before the names of the model's tensors, the shortest where several models are there."""
    found = [
        name.removesuffix(mark)
        for mark, second in MARKS
        for name in shapes
        if (name == mark or name.endswith(f".{mark}"))
        and (not second or name.removesuffix(mark) + second in shapes)
    ]  # fmt: skip
    return min(found, key=len, default="")


def prefix_of_open_clip(shapes: Shapes) -> str | None:
    """Return what is before the names of an open_clip model of images and texts; None where there is none."""
    found = [name.removesuffix("logit_scale") for name in shapes if re.search(r"(^|\.)logit_scale$", name)]
    return next((before for before in found if any(before + tower in shapes for tower in TOWERS)), None)


def classifiers_beside(shapes: Shapes) -> list[str]:
    """Return the tensors of classifiers that stand outside the model."""
    weights = [n for n in shapes if re.search(r"(^|\.)(head|classifier|fc)(\.0)?\.weight$", n) and len(shapes[n]) == 2]
    return [*weights, *(name.removesuffix("weight") + "bias" for name in weights)]


def count_classes(inside: Shapes, shapes: Shapes) -> int | None:
    """Return the outputs of the classifier, of the model's own or of one beside it."""
    own = [name for name in CLASSIFIERS if name in inside]
    if own:
        return inside[own[0]][0]
    beside = {shapes[name][0] for name in classifiers_beside(shapes) if name.endswith("weight")}
    return beside.pop() if len(beside) == 1 else None


def guess_architecture(inside: Shapes, checkpoint: Checkpoint, named: str) -> Architecture:
    """Say which of the known models has these shapes; else describe a vision transformer by them."""
    digest, stored = hash_shapes(inside), named or (checkpoint.architecture or "")
    stored = stored.split(".")[0]
    matching = [known for known in known_models() if known.shapes == digest]
    positions = next((inside[n][1] for n in ("pos_embed", "encoder.pos_embedding") if len(inside.get(n, ())) == 3), 0)

    def order(known: Known) -> tuple[bool, bool, int, str]:
        return (known.name != stored, known.side_of(positions) != known.side, len(known.name), known.name)

    if not matching:
        return _described(inside, checkpoint, positions)
    best, *others = sorted(matching, key=order)
    return Architecture(
        name=best.name,
        also=tuple(known.name for known in others),
        unit=best.unit,
        layers=best.layers,
        units=best.units,
        side=best.side_of(positions),
        **_parts(inside),
    )


def _parts(inside: Shapes) -> dict[str, Any]:
    """Return what shapes tell of a vision transformer."""
    embedding = inside.get("patch_embed.proj.weight", inside.get("conv_proj.weight"))
    if embedding is None or len(embedding) != 4:
        return {}
    return {
        "width": embedding[0],
        "patch": embedding[-1],
        "registers": inside["reg_token"][1] if "reg_token" in inside else 0,
        "layer_scale": any(name.endswith(("ls1.gamma", ".gamma_1")) for name in inside),
    }


def _described(inside: Shapes, checkpoint: Checkpoint, positions: int) -> Architecture:
    """Describe a plain vision transformer by arguments of timm's, and compare it with what these make."""
    parts = _parts(inside)
    blocks = {int(found[1]) for name in inside if (found := re.match(r"blocks\.(\d+)\.", name))}
    hidden = inside.get("blocks.0.mlp.fc1.weight")
    if not parts or not blocks or hidden is None or "blocks.0.attn.qkv.weight" not in inside:
        foreign = any(OF_HUGGING_FACE.search(name) for name in inside)
        why = "its names are Hugging Face's: name the folder that holds its config.json" if foreign else (
            "no model that can be audited has these names and shapes; 'vit-audit models' lists those that can"
        )  # fmt: skip
        return Architecture(why=why, left_over=tuple(sorted(inside)))
    width, patch = parts["width"], parts["patch"]
    heads = checkpoint.heads or max(1, width // HEAD_WIDTH)
    before = sum(inside[name][1] for name in ("cls_token", "reg_token") if name in inside)
    inexact = "no_embed_class" if positions and round((positions - before) ** 0.5) ** 2 != positions - before else ""
    grid = round((positions if inexact else positions - before) ** 0.5)
    overrides: dict[str, Any] = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": max(blocks) + 1,
        "num_heads": heads,
        "mlp_ratio": (hidden[0] + 0.25) / width if hidden[0] % width else hidden[0] // width,
    }
    overrides |= {"qkv_bias": False} if "blocks.0.attn.qkv.bias" not in inside else {}
    overrides |= {"init_values": 1e-5} if parts["layer_scale"] else {}
    overrides |= {"reg_tokens": parts["registers"]} if parts["registers"] else {}
    overrides |= {"pre_norm": True} if "norm_pre.weight" in inside else {}
    overrides |= {"qk_norm": True} if "blocks.0.attn.q_norm.weight" in inside else {}
    overrides |= {"class_token": False} if "cls_token" not in inside else {}
    overrides |= {"global_pool": "avg"} if "fc_norm.weight" in inside or "cls_token" not in inside else {}
    overrides |= {"fc_norm": False} if "cls_token" not in inside and "fc_norm.weight" not in inside else {}
    overrides |= {"no_embed_class": True} if inexact else {}
    wanted = _made_by_timm(overrides, grid * patch)
    missing = tuple(sorted(n for n in wanted if n not in inside and not n.startswith("head.")))
    surplus = tuple(sorted(n for n in inside if n not in wanted))
    return Architecture(
        name=PLAIN_VIT,
        layers=max(blocks) + 1,
        units=heads,
        units_known=checkpoint.heads is not None,
        side=grid * patch,
        overrides=overrides,
        missing=missing,
        left_over=surplus,
        **parts,
    )


def _made_by_timm(overrides: Mapping[str, Any], side: int) -> set[str]:
    """Return the names of the tensors of timm's model of these arguments; none where it refuses them."""
    import timm

    from audit.models.undrawn import without_memory

    try:
        with without_memory():
            model = timm.create_model(PLAIN_VIT, img_size=side, num_classes=2, **overrides)
    except (TypeError, AssertionError, ValueError, ZeroDivisionError):
        return set()
    return set(model.state_dict())


def describe_folder(path: Path, chosen: WeightSet, name: str = HUGGING_FACE) -> tuple[Architecture, int | None]:
    """Describe the model of a Hugging Face or open_clip folder by its configuration, and compare its weights."""
    from audit.models.adapters.registry import adapter
    from audit.models.converters import read_conversion
    from audit.models.undrawn import without_memory

    try:
        conversion = read_conversion(name, path if path.is_dir() else path.parent)
    except ModelError as error:
        return Architecture(why=f"{error.what}; {error.fix}", left_over=tuple(sorted(chosen.tensors))), None
    with without_memory():
        model = conversion.create(2, None)
    found = conversion.renamed({name: tensor.to("meta") for name, tensor in chosen.tensors.items()})
    body, options = adapter(model), conversion.options
    classifiers = tuple(f"{name}." for name in body.classifiers())
    heads = [name for name in found if name.startswith(classifiers) and name.endswith("weight")]
    made = Architecture(
        name=name,
        reads_text=conversion.joint is not None,
        layers=body.depth,
        units=body.units(0),
        side=conversion.image_size,
        width=options.get("embed_dim"),
        patch=options.get("patch_size"),
        registers=options.get("reg_tokens", 0),
        layer_scale=any(".ls1." in name for name in found),
        missing=tuple(sorted(n for n in model.state_dict() if n not in found and not n.startswith(classifiers))),
        left_over=tuple(sorted(name for name in chosen.tensors if not conversion.takes(name))),
    )
    return made, len(found[heads[0]]) if heads else None


def describe_open_clip(path: Path, chosen: WeightSet, before: str) -> Architecture:
    """Say which of open_clip's models has these shapes, and compare its image tower's weights."""
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in chosen.tensors.items()}
    if before:
        why = f"open_clip's model under '{before}' lies beside other tensors: save its state_dict alone"
        return Architecture(why=why, left_over=tuple(sorted(shapes)))
    names = [name for name, config in _configurations() if _is_made_by(config, shapes)]
    if not names:
        why = "its names are open_clip's, its shapes those of no model that is known here: write name: open_clip/NAME"
        return Architecture(
            why=f"{why} and prompts, or put its open_clip_config.json beside it", left_over=tuple(shapes)
        )
    first, *others = (OPEN_CLIP + name for name in sorted(names, key=lambda name: (len(name), name)))
    made, _ = describe_folder(path, chosen, first)
    return dataclasses.replace(made, also=tuple(others))


def _configurations() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what open_clip says of each of its models, where it is installed; to import it takes seconds."""
    found = importlib.util.find_spec("open_clip")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        for file in sorted((Path(folder) / "model_configs").glob("*.json")):
            yield file.stem, json.loads(file.read_bytes())


def _is_made_by(config: Mapping[str, Any], shapes: Shapes) -> bool:
    """Tell whether an open_clip configuration makes towers of these shapes, as far as it says."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    before = "" if "token_embedding.weight" in shapes else "text."
    said: dict[str, tuple[int, ...]] = {
        f"{before}token_embedding.weight": (text.get("vocab_size", 49408), text.get("width", 512)),
        f"{before}positional_embedding": (text.get("context_length", 77), text.get("width", 512)),
    }
    size, layers = vision.get("image_size", 224), vision.get("layers", 12)
    if "timm_model_name" in vision:
        trunk = {n.removeprefix("visual.trunk."): shape for n, shape in shapes.items() if n.startswith("visual.trunk.")}
        digest, positions = hash_shapes(trunk), trunk.get("pos_embed", (1, 0))[1]
        known = [k for k in known_models() if k.shapes == digest and k.name == vision["timm_model_name"]]
        fits = any(k.side_of(positions) == size for k in known)
    else:
        found = {name.split(".")[3] for name in shapes if name.startswith("visual.transformer.resblocks.")}
        fits = layers == len(found) and isinstance(size, int)  # else a ResNet, or images that are no squares
    if fits and "timm_model_name" not in vision:
        width, patch = vision.get("width", 768), vision.get("patch_size", 16)
        said["visual.conv1.weight"] = (width, 3, patch, patch)
        said["visual.positional_embedding"] = ((size // patch) ** 2 + 1, width)
        said["visual.proj"] = (width, config["embed_dim"])
    fits = fits and "hf_model_name" not in text  # whose text tower's shapes the configuration does not say
    return fits and all(shapes.get(name) == shape for name, shape in said.items())
