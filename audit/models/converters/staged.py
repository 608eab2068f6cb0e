"""Hugging Face's models in stages: Swin, Swin V2, ConvNeXt, ConvNeXt V2, ResNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2

from audit.models.converters.conversion import Conversion, State

Config = Mapping[str, Any]
STEM_WIDTH, REDUCTION = 64, 4  # of timm's ResNet
SWIN_LIKE = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
SWIN = SWIN_LIKE | {
    "attention.self.query": "attn.qkv#q",
    "attention.self.key": "attn.qkv#k",
    "attention.self.value": "attn.qkv#v",
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
}
SWIN_V2 = SWIN_LIKE | {
    "attention.self.query.weight": "attn.qkv#q.weight",
    "attention.self.key.weight": "attn.qkv#k.weight",
    "attention.self.value.weight": "attn.qkv#v.weight",
    "attention.self.query.bias": "attn.q_bias",
    "attention.self.value.bias": "attn.v_bias",
    "attention.self.logit_scale": "attn.logit_scale",
    "attention.self.continuous_position_bias_mlp.0": "attn.cpb_mlp.0",
    "attention.self.continuous_position_bias_mlp.2": "attn.cpb_mlp.2",
}
CONVNEXT = {
    "dwconv": "conv_dw",
    "layernorm": "norm",
    "pwconv1": "mlp.fc1",
    "pwconv2": "mlp.fc2",
    "layer_scale_parameter": "gamma",
    "grn": "mlp.grn",
}


def required(config: Config, name: str, wanted: object) -> None:
    """Raise where a configuration asks for what has no counterpart in timm's model.

    Raises
    ------
    ValueError
    """
    if config.get(name, wanted) != wanted:
        raise ValueError(f"{name} {config[name]}")


def swin(config: Config) -> Conversion:
    """Swin: what leads to the next stage ends a stage there, and begins the next in timm's."""
    required(config, "hidden_act", "gelu")
    names = _swin_names(config, "swin", SWIN)
    return Conversion(_swin_options(config), side_of(config), names, made=_made_swin, head="head.fc")


def swin_v2(config: Config) -> Conversion:
    """Swin V2, likewise."""
    windows = tuple(int(w) for w in config.get("pretrained_window_sizes", [0] * len(config["depths"])))
    options = _swin_options(config) | {"pretrained_window_sizes": windows, "act_layer": activation(config)}
    names = _swin_names(config, "swinv2", SWIN_V2)
    return Conversion(options, side_of(config), names, made=_made_swin_v2, head="head.fc")


def convnext(config: Config) -> Conversion:
    """ConvNeXt, and V2: the norm after the pool has a width of its own, of which nothing is divided by zero."""
    second = config["model_type"] == "convnextv2"
    scale = float(config.get("layer_scale_init_value", 0.0))
    options = {
        "depths": tuple(int(d) for d in config["depths"]),
        "dims": tuple(int(d) for d in config["hidden_sizes"]),
        "patch_size": int(config["patch_size"]),
        "ls_init_value": scale if scale > 0 and not second else None,
        "use_grn": second,
        "act_layer": activation(config),
        "pooled_eps": float(config["layer_norm_eps"]),
    }
    required(config, "num_channels", 3)
    prefix = str(config["model_type"])
    names = {
        f"{prefix}.embeddings.patch_embeddings": "stem.0",
        f"{prefix}.embeddings.layernorm": "stem.1",
        f"{prefix}.layernorm": "head.norm",
        "classifier": "head.fc",
    }
    for stage, depth in enumerate(options["depths"]):
        theirs, ours = f"{prefix}.encoder.stages.{stage}.", f"stages.{stage}."
        names |= {f"{theirs}downsampling_layer.{i}": f"{ours}downsample.{i}" for i in range(2)}
        names |= _each(f"{theirs}layers.", f"{ours}blocks.", depth, CONVNEXT)
    return Conversion(
        options, side_of(config, 224), names, made=_made_convnext, head="head.fc", unit="slice", fix=_flat_response
    )


def resnet(config: Config) -> Conversion:
    """ResNet: the convolution that shrinks is the middle one of a bottleneck, as in torchvision's."""
    required(config, "embedding_size", STEM_WIDTH)
    required(config, "downsample_in_first_stage", False)
    required(config, "downsample_in_bottleneck", False)
    required(config, "num_channels", 3)
    basic = config["layer_type"] == "basic"
    widths = [int(w) for w in config["hidden_sizes"]]
    options = {
        "block": BasicBlock if basic else Bottleneck,
        "layers": tuple(int(d) for d in config["depths"]),
        "channels": tuple(w if basic else w // REDUCTION for w in widths),
        "act_layer": activation(config),
    }
    names = _convolution("resnet.embedder.embedder", "conv1", "bn1") | {"classifier.1": "fc"}
    for stage, depth in enumerate(options["layers"]):
        for place in range(depth):
            theirs, ours = f"resnet.encoder.stages.{stage}.layers.{place}.", f"layer{stage + 1}.{place}."
            for i in range(2 if basic else 3):
                names |= _convolution(f"{theirs}layer.{i}", f"{ours}conv{i + 1}", f"{ours}bn{i + 1}")
            names |= _convolution(f"{theirs}shortcut", f"{ours}downsample.0", f"{ours}downsample.1")
    return Conversion(options, side_of(config, 224), names, made=_made_resnet, head="fc", unit="slice")


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}


def activation(config: Config) -> str:
    """Return timm's name of the function inside the MLPs.

    Raises
    ------
    ValueError
        If timm has none.
    """
    name = str(config["hidden_act"])
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act '{name}'")
    return ACTIVATIONS[name]


def side_of(config: Config, default: int | None = None) -> int:
    """Return the image's side; some configurations name both.

    Raises
    ------
    ValueError
        If they differ.
    """
    size = config["image_size"] if default is None else config.get("image_size", default)
    sides = {int(s) for s in (size if isinstance(size, list | tuple) else [size])}
    if len(sides) != 1:
        raise ValueError(f"image_size {size}")
    return sides.pop()


def _swin_options(config: Config) -> dict[str, Any]:
    required(config, "num_channels", 3)
    required(config, "use_absolute_embeddings", False)
    return {
        "patch_size": int(config["patch_size"]),
        "window_size": int(config["window_size"]),
        "embed_dim": int(config["embed_dim"]),
        "depths": tuple(int(d) for d in config["depths"]),
        "num_heads": tuple(int(n) for n in config["num_heads"]),
        "mlp_ratio": float(config["mlp_ratio"]),
        "qkv_bias": bool(config["qkv_bias"]),
        "block_eps": float(config["layer_norm_eps"]),
    }


def _swin_names(config: Config, prefix: str, parts: Mapping[str, str]) -> dict[str, str]:
    names = {
        f"{prefix}.embeddings.patch_embeddings.projection": "patch_embed.proj",
        f"{prefix}.embeddings.norm": "patch_embed.norm",
        f"{prefix}.layernorm": "norm",
        "classifier": "head.fc",
    }
    for stage, depth in enumerate(config["depths"]):
        theirs = f"{prefix}.encoder.layers.{stage}."
        names |= {f"{theirs}downsample.{p}": f"layers.{stage + 1}.downsample.{p}" for p in ("norm", "reduction")}
        names |= _each(f"{theirs}blocks.", f"layers.{stage}.blocks.", int(depth), parts)
    return names


def _each(theirs: str, ours: str, depth: int, parts: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the parts of each block of a stage."""
    return {f"{theirs}{i}.{old}": f"{ours}{i}.{new}" for i in range(depth) for old, new in parts.items()}


def _convolution(theirs: str, convolution: str, norm: str) -> dict[str, str]:
    return {f"{theirs}.convolution": convolution, f"{theirs}.normalization": norm}


def _flat_response(state: State) -> None:
    """Take away the leading dimensions of what the global response norm learns."""
    for name in state:
        if ".grn." in name:
            state[name] = state[name].flatten()


def _made_swin(*, block_eps: float, **options: Any) -> SwinTransformer:
    return _with_eps(SwinTransformer(**options), block_eps)


def _made_swin_v2(*, block_eps: float, **options: Any) -> SwinTransformerV2:
    try:
        model = SwinTransformerV2(**options)
    except RuntimeError as error:  # of timm before 1.0.31, which cuts no image whose windows are not full
        what = f"windows of {options['window_size']} do not fill the image: take another size, or timm 1.0.31"
        raise ValueError(what) from error
    return _with_eps(model, block_eps)


def _with_eps(model: Any, eps: float) -> Any:
    """Give the norms of the blocks and the last one another width; those between stages keep torch's."""
    for stage in model.layers:
        for block in stage.blocks:
            block.norm1.eps = block.norm2.eps = eps
            unfilled = any(r % w for r, w in zip(block.input_resolution, block.window_size, strict=True))
            if unfilled and any(block.shift_size):  # Hugging Face pads before the shift, timm after it
                places = " x ".join(map(str, block.input_resolution))
                raise ValueError(f"windows of {block.window_size[0]} do not fill {places} places: take another size")
    model.norm.eps = eps
    return model


def _made_convnext(*, img_size: int, pooled_eps: float, **options: Any) -> ConvNeXt:
    del img_size  # convolutions take any
    model = ConvNeXt(**options)
    model.head.norm.eps = pooled_eps
    return model.to(memory_format=torch.channels_last)


def _made_resnet(*, img_size: int, **options: Any) -> ResNet:
    del img_size
    return ResNet(**options).to(memory_format=torch.channels_last)
