"""open_clip's image towers: its own vision transformer, or one of timm's as the trunk of an image tower."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer

from audit.errors import ModelError
from audit.extras import needs
from audit.models.adapters.registry import FAMILIES, family_of
from audit.models.converters.conversion import Conversion, Joint, State

Config = Mapping[str, Any]
CONFIG = "open_clip_config.json"
TRUNK, HEAD_WIDTH, EPS = "visual.trunk.", 64, 1e-5
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's, unless stated
NAMES = {
    "visual.class_embedding": "cls_token",
    "visual.positional_embedding": "pos_embed",
    "visual.conv1": "patch_embed.proj",
    "visual.ln_pre": "norm_pre",
    "visual.ln_post": "norm",
}
LAYERS = "visual.transformer.resblocks."
PARTS = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ls_1": "ls1",
    "ls_2": "ls2",
}
UNKNOWN = (  # settings that make another network of it
    "attentional_pool", "no_ln_pre", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn",
    "scale_fc", "output_tokens",
)  # fmt: skip


def read_configuration(name: str, named: Path) -> dict[str, Any]:
    """Return what lies beside the weights, or what open_clip itself says of a model's name.

    Parameters
    ----------
    name : str
        open_clip's.
    named : pathlib.Path
        The folder or file of the card.

    Returns
    -------
    dict
        ``model_cfg``, and ``preprocess_cfg`` where it is known.

    Raises
    ------
    ModelError
        If neither says anything, or open_clip is needed and not installed.
    """
    path = (named if named.is_dir() else named.parent) / CONFIG
    if path.is_file():
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            what = f"cannot be read as JSON ({type(error).__name__})"
            raise ModelError(str(path), what, "restore the file") from None
        if not isinstance(content, dict) or not isinstance(content.get("model_cfg"), dict):
            raise ModelError(str(path), "holds no model_cfg", "restore the file that was saved with the weights")
        return content
    open_clip = needs("open_clip", str(path), error=ModelError, otherwise="restore the file")
    found = open_clip.get_model_config(name)
    if found is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        fix = (
            f"did you mean {', '.join(f'open_clip/{n}' for n in near)}" if near else f"put {CONFIG} beside the weights"
        )
        raise ModelError("model.name", f"open_clip has no model '{name}'", fix)
    return {"model_cfg": found}


def kept_open_clip(name: str, named: Path) -> dict[str, bytes]:
    """Return what a run keeps of the configuration: files by name."""
    return {CONFIG: (json.dumps(read_configuration(name, named), indent=1) + "\n").encode()}


def read_open_clip(name: str, named: Path) -> Conversion:
    """Return how the image tower of a model becomes timm's.

    Raises
    ------
    ModelError
        If it cannot be converted; its setting is named.
    """
    content = read_configuration(name, named)
    config, seen = content["model_cfg"], content.get("preprocess_cfg") or {}
    pixels = {key: tuple(map(float, seen.get(key) or given)) for key, given in (("mean", MEAN), ("std", STD))}
    try:
        vision = config["vision_cfg"]
        of_timm = vision.get("timm_model_name")
        return _of_timm(config, vision, pixels) if of_timm else _of_open_clip(config, vision, pixels)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        what = f"is no model that can be converted ({type(error).__name__}: {error})"
        raise ModelError(f"open_clip/{name}", what, "supported: vision transformers with plain attention") from None


def _side(vision: Config) -> int:
    size = vision.get("image_size", 224)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise ValueError(f"image_size {size}")
    return int(sides.pop())


def _biased(config: Config) -> bool:
    return config.get("init_logit_bias") is not None


def _of_open_clip(config: Config, vision: Config, pixels: dict[str, Any]) -> Conversion:
    """open_clip's own vision transformer."""
    for key in UNKNOWN:
        if vision.get(key):
            raise ValueError(f"{key} {vision[key]}")
    if vision.get("block_type") not in (None, "default"):
        raise ValueError(f"block_type {vision['block_type']}")
    layers, width = vision.get("layers", 12), int(vision.get("width", 768))
    if not isinstance(layers, int):
        raise ValueError("a ResNet")
    pool = vision.get("pool_type", "tok")
    if pool not in ("tok", "avg") or (pool == "avg" and vision.get("final_ln_after_pool")):
        raise ValueError(f"pool_type {pool}")
    options = {
        "patch_size": int(vision.get("patch_size", 16)),
        "embed_dim": width,
        "depth": layers,
        "num_heads": width // int(vision.get("head_width", HEAD_WIDTH)),
        "mlp_ratio": (int(width * vision.get("mlp_ratio", 4.0)) + 0.25) / width,
        "act_layer": _activation(config, vision),
        "norm_layer": partial(LayerNorm, eps=float((vision.get("norm_kwargs") or {}).get("eps", EPS))),
        "init_values": vision.get("ls_init_value"),
        "pre_norm": True,
        **({"global_pool": "token"} if pool == "tok" else {"global_pool": "avg", "fc_norm": False}),
    }
    joint = Joint(int(config["embed_dim"]), "visual.proj", biased=_biased(config))
    return Conversion(
        options, _side(vision), NAMES, LAYERS, PARTS, antialias=True, fix=_laid_out, joint=joint, **pixels
    )


def _activation(config: Config, vision: Config) -> str:
    given = vision.get("act_kwargs")
    if config.get("quick_gelu"):
        return "quick_gelu"
    if given not in (None, {}, {"approximate": "tanh"}):
        raise ValueError(f"act_kwargs {given}")
    return "gelu_tanh" if given else "gelu"


def _laid_out(state: State) -> None:
    """Give tokens and positions timm's leading dimensions, and the projection the layout of a linear layer."""
    for name in ("cls_token", "pos_embed"):
        if name in state:
            state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    if "head.proj.weight" in state:
        state["head.proj.weight"] = state["head.proj.weight"].T.contiguous()


@dataclass(frozen=True)
class Trunk(Conversion):
    """A tower whose trunk is timm's own, under timm's names."""

    def _new_name(self, name: str) -> str:
        return self.names.get(name) or (name.removeprefix(TRUNK) if name.startswith(TRUNK) else "")


def _of_timm(config: Config, vision: Config, pixels: dict[str, Any]) -> Conversion:
    """One of timm's vision transformers, with a matrix of open_clip's behind it or none."""
    name, projection = str(vision["timm_model_name"]), vision.get("timm_proj", "linear")
    if not timm.is_model(name) or family_of(name) is not FAMILIES[VisionTransformer]:
        raise ValueError(f"timm_model_name {name}")
    if projection not in ("none", "linear") or vision.get("timm_proj_bias"):
        raise ValueError(f"timm_proj {projection or 'left to the trunk'}")
    joint = Joint(
        int(config["embed_dim"]), "visual.head.proj.weight" if projection == "linear" else "", biased=_biased(config)
    )
    made = partial(_make_trunk, name, str(vision.get("timm_pool", "avg")), late=projection == "linear")
    return Trunk({}, _side(vision), {}, made=made, joint=joint, **pixels)


def _make_trunk(name: str, pool: str, *, late: bool, num_classes: int, img_size: int) -> Any:
    """Make timm's model as open_clip does: its pool is set with the rest, or ``late``, which leaves norms in place."""
    given = {} if late or not pool else {"global_pool": pool}
    model = timm.create_model(name, num_classes=num_classes, img_size=img_size, **given)
    if late and pool:
        model.reset_classifier(num_classes, global_pool=pool)
    return model
