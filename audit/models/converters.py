"""Vision transformers of Hugging Face and torchvision, translated into timm's, which compute the same.

Patching reads one form of attention block. A checkpoint of another library has the same blocks under other names, with
queries, keys and values in one matrix or in three; renaming and joining them gives a model whose logits are those of
the original. Nothing of ``transformers`` is needed, and no code that a folder may hold is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.errors import ModelError
from audit.models.checkpoint import read_weights

HUGGING_FACE, TORCHVISION = "huggingface", "torchvision/"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
State = dict[str, torch.Tensor]
Config = Mapping[str, Any]


class ClassAndPatches(VisionTransformer):  # type: ignore[misc]
    """A vision transformer whose classifier reads the class token beside the mean of the patches, as DINOv2's does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, global_pool="avg", fc_norm=False)
        self.head = nn.Linear(2 * self.embed_dim, self.num_classes)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the logits of normed tokens (B, tokens, width)."""
        both = torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(1)], dim=1)
        logits: torch.Tensor = both if pre_logits else self.head(both)
        return logits


@dataclass(frozen=True)
class Translation:
    """How a checkpoint of another library becomes a timm model.

    Parameters
    ----------
    options : mapping
        Keyword arguments of ``made``; image size and classes are added.
    names : sequence of (str, str)
        Regular expressions over the checkpoint's names, and timm's; what matches none is left out.
    made : type
        The timm class.
    image_size : int
        The checkpoint's own.
    classes : list of str, optional
        What its outputs mean.
    mean, std : tuple of float, optional
        What its pixels were shifted and scaled by, where the folder says so.
    fix : callable
        Whatever renaming and joining does not do.
    """

    options: Mapping[str, Any]
    names: tuple[tuple[str, str], ...]
    image_size: int
    made: type[VisionTransformer] = VisionTransformer
    classes: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fix: Callable[[State], None] = field(default=lambda _state: None)

    def create(self, classes: int, image_size: int | None) -> VisionTransformer:
        """Return the model with random weights."""
        model = self.made(img_size=image_size or self.image_size, num_classes=classes, **self.options)
        model.pretrained_cfg = {"mean": self.mean, "std": self.std}
        return model

    def renamed(self, state: Mapping[str, torch.Tensor]) -> State:
        """Return a checkpoint's tensors under timm's names; queries, keys and values are joined."""
        made: State = {}
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            for pattern, ours in self.names:
                found = re.fullmatch(pattern, name)
                if found is None:
                    continue
                new = found.expand(ours)
                joined, _, part = new.partition("#")
                if part:
                    parts.setdefault(joined, {})[part] = tensor
                else:
                    made[new] = tensor
                break
        for joined, held in parts.items():
            if set(held) == {"q", "k", "v"}:
                made[joined] = torch.cat([held["q"], held["k"], held["v"]])
        self.fix(made)
        return made


def is_foreign(name: str) -> bool:
    """Tell whether a card's model name is one of another library."""
    return name == HUGGING_FACE or name.startswith(TORCHVISION)


def read_foreign(name: str, weights: Path | None) -> Translation:
    """Return the translation of a card's model: of a Hugging Face folder, or of a torchvision model by name.

    Raises
    ------
    ModelError
        If there is no such folder or model, or it is of a kind that cannot be translated.
    """
    if name == HUGGING_FACE:
        if weights is None:
            raise ModelError("model.weights", f"name: {name} needs a folder", "name one that holds config.json")
        return _hugging_face(weights)
    return _torchvision(name.removeprefix(TORCHVISION))


def kept_configuration(folder: Path) -> dict[str, bytes]:
    """Return what a run keeps of a Hugging Face folder, so that its model can be built again: files by name.

    Private entries, such as the path that the model was once loaded from, are left out.
    """
    kept = {}
    for name in ("config.json", "preprocessor_config.json"):
        if name == "config.json" or (folder / name).is_file():
            public = {key: value for key, value in _json(folder / name).items() if not key.startswith("_")}
            kept[name] = (json.dumps(public, indent=1) + "\n").encode()
    return kept


def foreign_weights(name: str, weights: Path | None) -> State:
    """Read the tensors of a foreign checkpoint; torchvision's own are fetched where no file is named."""
    if weights is None:
        return _fetch(name.removeprefix(TORCHVISION))
    if name == HUGGING_FACE:
        there = next((weights / file for file in WEIGHTS if (weights / file).is_file()), None)
        if there is None:
            raise ModelError(str(weights), "holds no weights", f"put {' or '.join(WEIGHTS)} there, in one file")
        return read_weights(there)
    return read_weights(weights)


# Hugging Face


def _hugging_face(folder: Path) -> Translation:
    config = _json(folder / "config.json")
    kind = str(config.get("model_type", ""))
    known = KINDS.get(kind)
    if known is None:
        what = f"model_type '{kind}' cannot be translated"
        raise ModelError(str(folder / "config.json"), what, f"supported: {', '.join(KINDS)}")
    try:
        found = known({**config, **config["vision_config"]} if "vision_config" in config else config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"is not the configuration of a {kind} model ({type(error).__name__}: {error})"
        raise ModelError(
            str(folder / "config.json"), what, "restore the file that was saved with the weights"
        ) from None
    mean, std = _normalisation(folder / "preprocessor_config.json")
    return Translation(**{**vars(found), "classes": _labels(config), "mean": mean, "std": std})


def _json(path: Path) -> dict[str, Any]:
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


def _labels(config: Config) -> list[str] | None:
    """Return what the outputs mean, where the configuration names all of them."""
    named = config.get("id2label")
    if not isinstance(named, dict) or not all(str(k).isdecimal() for k in named):
        return None
    by_number = {int(k): str(v) for k, v in named.items()}
    return [by_number[i] for i in range(len(by_number))] if set(by_number) == set(range(len(by_number))) else None


def _normalisation(path: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if not path.is_file():
        return None, None
    config = _json(path)
    if config.get("do_normalize", True) is False:
        return (0.0,) * 3, (1.0,) * 3
    return tuple(
        tuple(map(float, v)) if isinstance(v := config.get(f"image_{name}"), list) and len(v) == 3 else None
        for name in ("mean", "std")
    )  # type: ignore[return-value]


def _common(config: Config, hidden: int) -> dict[str, Any]:
    """Return what all kinds name alike; ``hidden`` units has the first layer of each MLP."""
    width, eps, act = int(config["hidden_size"]), float(config["layer_norm_eps"]), str(config["hidden_act"])
    if act not in ACTIVATIONS:
        raise ValueError(f"hidden_act '{act}'")
    if int(config.get("num_channels", 3)) != 3:
        raise ValueError(f"num_channels {config['num_channels']}")
    return {
        "patch_size": int(config["patch_size"]),
        "embed_dim": width,
        "depth": int(config["num_hidden_layers"]),
        "num_heads": int(config["num_attention_heads"]),
        "mlp_ratio": (hidden + 0.25) / width,  # timm rounds down
        "act_layer": ACTIVATIONS[act],
        "norm_layer": partial(LayerNorm, eps=eps),
    }


def _names(layer: str, parts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the patterns of what stands in each layer: ``parts`` in the checkpoint's words, to timm's.

    A mark after "#" says which third of a joined matrix a part is.
    """
    found = []
    for there, ours in parts.items():
        part, _, third = ours.partition("#")
        found.append((rf"{layer}(\d+)\.{there}\.(weight|bias)", rf"blocks.\1.{part}.\2" + (third and f"#{third}")))
    return tuple(found)


_BERT_LIKE = {
    r"attention\.attention\.query": "attn.qkv#q",
    r"attention\.attention\.key": "attn.qkv#k",
    r"attention\.attention\.value": "attn.qkv#v",
    r"attention\.output\.dense": "attn.proj",
}
_VIT_LIKE = _BERT_LIKE | {
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_CLIP_LIKE = {
    r"self_attn\.q_proj": "attn.qkv#q",
    r"self_attn\.k_proj": "attn.qkv#k",
    r"self_attn\.v_proj": "attn.qkv#v",
    r"self_attn\.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    r"mlp\.fc1": "mlp.fc1",
    r"mlp\.fc2": "mlp.fc2",
}


def _embeddings(body: str) -> tuple[tuple[str, str], ...]:
    return (
        (rf"(?:{body}\.)?embeddings\.cls_token", "cls_token"),
        (rf"(?:{body}\.)?embeddings\.position_embeddings", "pos_embed"),
        (rf"(?:{body}\.)?embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
        (rf"(?:{body}\.)?layernorm\.(weight|bias)", r"norm.\1"),
        (r"classifier\.(weight|bias)", r"head.\1"),
    )


def _vit(config: Config) -> Translation:
    options = _common(config, int(config["intermediate_size"])) | {"qkv_bias": bool(config["qkv_bias"])}
    return Translation(options, (*_embeddings("vit"), *_names(r"(?:vit\.)?encoder\.layer\.", _VIT_LIKE)), _side(config))


def _deit(config: Config) -> Translation:
    """DeiT: its distillation token is a register to the plain classifier, and has a classifier of its own beside it."""
    options = _common(config, int(config["intermediate_size"])) | {"qkv_bias": bool(config["qkv_bias"])}
    taught = any("WithTeacher" in str(name) for name in config.get("architectures") or [])
    token = "dist_token" if taught else "reg_token"
    names = (
        *_embeddings("deit"),
        (r"(?:deit\.)?embeddings\.distillation_token", token),
        (r"cls_classifier\.(weight|bias)", r"head.\1"),
        (r"distillation_classifier\.(weight|bias)", r"head_dist.\1"),
        *_names(r"(?:deit\.)?encoder\.layer\.", _VIT_LIKE),
    )
    if taught:
        return Translation(options, names, _side(config), made=VisionTransformerDistilled)
    return Translation(options | {"reg_tokens": 1}, names, _side(config))


def _dinov2(config: Config) -> Translation:
    width, packed = int(config["hidden_size"]), bool(config["use_swiglu_ffn"])
    hidden = int(width * config["mlp_ratio"])
    if packed:
        hidden = 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8)
    body = str(config["model_type"])
    registers = int(config.get("num_register_tokens", 0))
    options = _common(config, hidden) | {
        "qkv_bias": bool(config["qkv_bias"]),
        "init_values": 1.0,
        **({"mlp_layer": SwiGLUPacked, "act_layer": "silu"} if packed else {}),
        **({"reg_tokens": registers, "no_embed_class": True} if registers else {}),
    }
    inside = {r"mlp\.weights_in": "mlp.fc1", r"mlp\.weights_out": "mlp.fc2", r"mlp\.fc1": "mlp.fc1"}
    parts = _BERT_LIKE | inside | {r"mlp\.fc2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"}
    names = (
        *_embeddings(body),
        (rf"(?:{body}\.)?embeddings\.register_tokens", "reg_token"),
        (rf"(?:{body}\.)?encoder\.layer\.(\d+)\.layer_scale(1|2)\.lambda1", r"blocks.\1.ls\2.gamma"),
        *_names(rf"(?:{body}\.)?encoder\.layer\.", parts),
    )
    fix = _place_of_class if registers else (lambda _state: None)
    return Translation(options, names, _side(config), made=ClassAndPatches, fix=fix)


def _place_of_class(state: State) -> None:
    """Move the class token's position into the token: registers have none, so timm gives positions to patches only."""
    if "pos_embed" in state and "cls_token" in state:
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]


def _clip(config: Config) -> Translation:
    """CLIP: its classifier reads the mean of the patches as they leave the last block; without one, the class token."""
    classifies = any("ForImageClassification" in str(name) for name in config.get("architectures") or [])
    pool = {"global_pool": "avg", "final_norm": False} if classifies else {"global_pool": "token"}
    options = _common(config, int(config["intermediate_size"])) | {"pre_norm": True, **pool}
    body = "vision_model"
    names = (
        (rf"(?:{body}\.)?embeddings\.class_embedding", "cls_token"),
        (rf"(?:{body}\.)?embeddings\.position_embedding\.weight", "pos_embed"),
        (rf"(?:{body}\.)?embeddings\.patch_embedding\.weight", "patch_embed.proj.weight"),
        (rf"(?:{body}\.)?pre_layrnorm\.(weight|bias)", r"norm_pre.\1"),
        *(() if classifies else ((rf"(?:{body}\.)?post_layernorm\.(weight|bias)", r"norm.\1"),)),
        (r"classifier\.(weight|bias)", r"head.\1"),
        *_names(rf"(?:{body}\.)?encoder\.layers\.", _CLIP_LIKE),
    )
    return Translation(options, names, _side(config), fix=_with_batch)


def _siglip(config: Config) -> Translation:
    """SigLIP: its classifier reads the mean of the patches; without one, an attention pool does."""
    classifies = any("ForImageClassification" in str(name) for name in config.get("architectures") or [])
    pool = {"global_pool": "avg", "fc_norm": False} if classifies else {"global_pool": "map"}
    options = _common(config, int(config["intermediate_size"])) | {"class_token": False, **pool}
    body = "vision_model"
    head = (
        (rf"(?:{body}\.)?head\.probe", "attn_pool.latent"),
        (rf"(?:{body}\.)?head\.attention\.in_proj_(weight|bias)", r"attn_pool.in_proj.\1"),
        (rf"(?:{body}\.)?head\.attention\.out_proj\.(weight|bias)", r"attn_pool.proj.\1"),
        (rf"(?:{body}\.)?head\.layernorm\.(weight|bias)", r"attn_pool.norm.\1"),
        (rf"(?:{body}\.)?head\.mlp\.(fc1|fc2)\.(weight|bias)", r"attn_pool.mlp.\1.\2"),
    )
    names = (
        (rf"(?:{body}\.)?embeddings\.position_embedding\.weight", "pos_embed"),
        (rf"(?:{body}\.)?embeddings\.patch_embedding\.(weight|bias)", r"patch_embed.proj.\1"),
        (rf"(?:{body}\.)?post_layernorm\.(weight|bias)", r"norm.\1"),
        (r"classifier\.(weight|bias)", r"head.\1"),
        *_names(rf"(?:{body}\.)?encoder\.layers\.", _CLIP_LIKE),
        *(() if classifies else head),
    )
    return Translation(options, names, _side(config), fix=_split_pool)


def _with_batch(state: State) -> None:
    """Give tokens and positions the leading dimensions that timm has."""
    for name in ("cls_token", "pos_embed"):
        if name in state:
            state[name] = state[name].reshape(1, -1, state[name].shape[-1])


def _split_pool(state: State) -> None:
    """Part the attention pool's joined projection into that of its query and that of keys and values."""
    _with_batch(state)
    for kind in ("weight", "bias"):
        joined = state.pop(f"attn_pool.in_proj.{kind}", None)
        if joined is not None:
            third = len(joined) // 3
            state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"] = joined[:third], joined[third:]


def _side(config: Config) -> int:
    """Return the image's side; some configurations name both."""
    size = config["image_size"]
    sides = {int(s) for s in (size if isinstance(size, list) else [size])}
    if len(sides) != 1:
        raise ValueError(f"image_size {size}")
    return sides.pop()


KINDS: Mapping[str, Callable[[Config], Translation]] = {
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "clip": _clip,
    "clip_vision_model": _clip,
    "siglip": _siglip,
    "siglip_vision_model": _siglip,
}


# torchvision


def torchvision_names() -> list[str]:
    """Return torchvision's vision transformers."""
    from torchvision.models import list_models

    return [name for name in list_models() if name.startswith("vit_")]


def _torchvision(name: str) -> Translation:
    from torchvision.models import get_model, get_model_weights
    from torchvision.models.vision_transformer import VisionTransformer as Original

    if name not in torchvision_names():
        supported = ", ".join(TORCHVISION + m for m in torchvision_names())
        raise ModelError("model.name", f"torchvision has no vision transformer '{name}'", f"supported: {supported}")
    with torch.device("meta"):
        model = get_model(name)
    assert isinstance(model, Original)
    layers = list(model.encoder.layers)
    options = {
        "patch_size": model.patch_size,
        "embed_dim": model.hidden_dim,
        "depth": len(layers),
        "num_heads": layers[0].num_heads,
        "mlp_ratio": (model.mlp_dim + 0.25) / model.hidden_dim,
        "norm_layer": partial(LayerNorm, eps=layers[0].ln_1.eps),
    }
    inside = {"ln_1": "norm1", "ln_2": "norm2", r"self_attention\.out_proj": "attn.proj"}
    inside |= {r"mlp\.(?:0|linear_1)": "mlp.fc1", r"mlp\.(?:3|linear_2)": "mlp.fc2"}
    names = (
        ("class_token", "cls_token"),
        (r"encoder\.pos_embedding", "pos_embed"),
        (r"conv_proj\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"encoder\.ln\.(weight|bias)", r"norm.\1"),
        (r"heads\.head\.(weight|bias)", r"head.\1"),
        (
            r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)",
            r"blocks.\1.attn.qkv.\2",
        ),
        *_names(r"encoder\.layers\.encoder_layer_", inside),
    )
    seen = get_model_weights(name).DEFAULT.transforms()
    return Translation(options, names, model.image_size, mean=tuple(seen.mean), std=tuple(seen.std))


def _fetch(name: str) -> State:
    from torchvision.models import get_model_weights

    try:
        state: State = dict(get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        what = f"pretrained weights of {TORCHVISION}{name} could not be fetched ({type(error).__name__})"
        raise ModelError("model.weights", what, "connect to the network once, or name a weights FILE") from error
    return state
