"""torchvision's vision transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers.norm import LayerNorm
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.vision_transformer import VisionTransformer

from audit.errors import ModelError
from audit.models.converters.conversion import Conversion, State

NAMES: Mapping[str, str] = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj": "patch_embed.proj",
    "encoder.ln": "norm",
    "heads.head": "head",
}
PARTS: Mapping[str, str] = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.in_proj_weight": "attn.qkv.weight",
    "self_attention.in_proj_bias": "attn.qkv.bias",
    "self_attention.out_proj": "attn.proj",
    **dict.fromkeys(("mlp.0", "mlp.linear_1"), "mlp.fc1"),
    **dict.fromkeys(("mlp.3", "mlp.linear_2"), "mlp.fc2"),
}


def torchvision_names() -> list[str]:
    """Return torchvision's vision transformers."""
    return [name for name in list_models() if name.startswith("vit_")]


def read_model(name: str) -> Conversion:
    """Return how a model is converted, by its name.

    Raises
    ------
    ModelError
        If torchvision has no such vision transformer.
    """
    if name not in torchvision_names():
        supported = ", ".join(f"torchvision/{m}" for m in torchvision_names())
        raise ModelError("model.name", f"torchvision has no vision transformer '{name}'", f"supported: {supported}")
    with torch.device("meta"):
        model = get_model(name)
    seen = get_model_weights(name).DEFAULT.transforms()
    return convert_vit(model, mean=tuple(seen.mean), std=tuple(seen.std))


def convert_vit(model: VisionTransformer, **pixels: Any) -> Conversion:
    """Return how a model in memory is converted; ``pixels`` are the conversion's ``mean`` and ``std``."""
    layers = list(model.encoder.layers)
    options = {
        "patch_size": model.patch_size,
        "embed_dim": model.hidden_dim,
        "depth": len(layers),
        "num_heads": layers[0].num_heads,
        "mlp_ratio": (model.mlp_dim + 0.25) / model.hidden_dim,
        "norm_layer": partial(LayerNorm, eps=layers[0].ln_1.eps),
    }
    return Conversion(
        options, model.image_size, NAMES, "encoder.layers.encoder_layer_", PARTS, align_corners=True, **pixels
    )


def fetch(name: str) -> State:
    """Fetch the pretrained weights of a model by name."""
    try:
        state: State = dict(get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        what = f"pretrained weights of torchvision/{name} could not be fetched ({type(error).__name__})"
        raise ModelError("model.weights", what, "connect to the network once, or name a weights FILE") from error
    return state
