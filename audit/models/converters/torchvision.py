"""torchvision's vision transformers and ResNets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers.norm import LayerNorm
from timm.models import resnet as timm_resnet
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from audit.errors import ModelError
from audit.models.converters.conversion import Conversion, SameNames, State
from audit.models.pretrained import kept_by_torch, not_loaded
from audit.models.undrawn import without_memory

SIDE = 224  # of the images that torchvision's ResNets are trained on
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
    """Return torchvision's models that are converted."""
    return [name for name in list_models() if name.startswith(("vit_", "resnet", "resnext", "wide_resnet"))]


def read_model(name: str) -> Conversion:
    """Return how a model is converted, by its name.

    Raises
    ------
    ModelError
        If torchvision has no such model, or it is of no kind that is converted.
    """
    if name not in torchvision_names():
        supported = ", ".join(f"torchvision/{m}" for m in torchvision_names())
        raise ModelError("model.name", f"'torchvision/{name}' is not converted", f"supported: {supported}")
    with without_memory():
        model = get_model(name)
    seen = get_model_weights(name).DEFAULT.transforms()
    pixels = {"mean": tuple(seen.mean), "std": tuple(seen.std)}
    return convert_vit(model, **pixels) if isinstance(model, VisionTransformer) else convert_resnet(model, **pixels)


def convert_resnet(model: ResNet, **pixels: Any) -> Conversion:
    """Return how a model in memory is converted: timm's has the same names and shapes."""
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    options = {
        "block": timm_resnet.BasicBlock if isinstance(stages[0][0], BasicBlock) else timm_resnet.Bottleneck,
        "layers": [len(stage) for stage in stages],
        "cardinality": model.groups,
        "base_width": model.base_width,
    }
    return SameNames(options, SIDE, {}, made=make_resnet, head="fc", unit="slice", **pixels)


def make_resnet(*, img_size: int, **options: Any) -> timm_resnet.ResNet:
    """Make timm's model; convolutions take images of any size."""
    del img_size
    return timm_resnet.ResNet(**options).to(memory_format=torch.channels_last)


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


def kept(name: str) -> Path | None:
    """Return the file of a model's pretrained weights, or None where they would have to be fetched."""
    return kept_by_torch(get_model_weights(name).DEFAULT.url)


def fetch(name: str) -> State:
    """Fetch the pretrained weights of a model by name."""
    try:
        state: State = dict(get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # whatever a file that is not whole makes torch say
        if (file := kept(name)) is not None:
            raise not_loaded(file, error) from error
        if not isinstance(error, OSError | RuntimeError):
            raise
        what = f"pretrained weights of torchvision/{name} could not be fetched ({type(error).__name__})"
        raise ModelError("model.weights", what, "connect to the network once, or name a weights FILE") from error
    return state
