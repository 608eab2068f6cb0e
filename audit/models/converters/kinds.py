"""Hugging Face's kinds of vision transformer: what timm calls their options and parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva

from audit.models.converters.conversion import ClassAndPatches, Conversion, Joint, State
from audit.models.converters.staged import activation, convnext, required, resnet, side_of, swin, swin_v2

Config = Mapping[str, Any]
BERT_LIKE = {
    "attention.attention.query": "attn.qkv#q",
    "attention.attention.key": "attn.qkv#k",
    "attention.attention.value": "attn.qkv#v",
    "attention.output.dense": "attn.proj",
}
VIT_LIKE = BERT_LIKE | {
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
DINO_LIKE = BERT_LIKE | {
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
CLIP_LIKE = {
    "self_attn.q_proj": "attn.qkv#q",
    "self_attn.k_proj": "attn.qkv#k",
    "self_attn.v_proj": "attn.qkv#v",
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
AROUND = {  # what is before and after the layers
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.register_tokens": "reg_token",
    "layernorm": "norm",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
AROUND_CLIP = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",
    "classifier": "head",
}
ATTENTION_POOL = {
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_weight": "attn_pool.in_proj.weight",
    "head.attention.in_proj_bias": "attn_pool.in_proj.bias",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
BEIT_LIKE = VIT_LIKE | {
    "attention.attention.query.weight": "attn.qkv#q.weight",
    "attention.attention.key.weight": "attn.qkv#k.weight",
    "attention.attention.value.weight": "attn.qkv#v.weight",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
}
DINO_V3_LIKE = {
    "attention.q_proj.weight": "attn.qkv#q.weight",
    "attention.k_proj.weight": "attn.qkv#k.weight",
    "attention.v_proj.weight": "attn.qkv#v.weight",
    "attention.q_proj.bias": "attn.q_bias",
    "attention.v_proj.bias": "attn.v_bias",
    "attention.o_proj": "attn.proj",
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1.lambda1": "gamma_1",
    "layer_scale2.lambda1": "gamma_2",
    "mlp.down_proj": "mlp.fc2",
}
BERT_LAYERS, CLIP_LAYERS, TOWER = "encoder.layer.", "encoder.layers.", "vision_model."


def _common(config: Config, hidden: int) -> dict[str, Any]:
    """Return what all kinds name alike; ``hidden`` units has the first layer of each MLP."""
    width, eps = int(config["hidden_size"]), float(config["layer_norm_eps"])
    required(config, "num_channels", 3)
    return {
        "patch_size": int(config["patch_size"]),
        "embed_dim": width,
        "depth": int(config["num_hidden_layers"]),
        "num_heads": int(config["num_attention_heads"]),
        "mlp_ratio": (hidden + 0.25) / width,  # timm rounds down
        "act_layer": activation(config),
        "norm_layer": partial(LayerNorm, eps=eps),
    }


def _classifies(config: Config, what: str = "ForImageClassification") -> bool:
    return any(what in str(name) for name in config.get("architectures") or [])


def _vit(config: Config) -> Conversion:
    options = _common(config, int(config["intermediate_size"])) | {"qkv_bias": bool(config["qkv_bias"])}
    return Conversion(options, side_of(config), AROUND, BERT_LAYERS, VIT_LIKE, prefix="vit.")


def _deit(config: Config) -> Conversion:
    """DeiT: its distillation token is a register to the plain classifier, and has a classifier of its own beside it."""
    options = _common(config, int(config["intermediate_size"])) | {"qkv_bias": bool(config["qkv_bias"])}
    taught = _classifies(config, "WithTeacher")
    names = AROUND | {"embeddings.distillation_token": "dist_token" if taught else "reg_token"}
    if taught:
        made = VisionTransformerDistilled
        return Conversion(options, side_of(config), names, BERT_LAYERS, VIT_LIKE, prefix="deit.", made=made)
    return Conversion(options | {"reg_tokens": 1}, side_of(config), names, BERT_LAYERS, VIT_LIKE, prefix="deit.")


def _dinov2(config: Config) -> Conversion:
    width, packed = int(config["hidden_size"]), bool(config["use_swiglu_ffn"])
    hidden = int(width * config["mlp_ratio"])
    if packed:
        hidden = 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8)
    registers = int(config.get("num_register_tokens", 0))
    options = _common(config, hidden) | {
        "qkv_bias": bool(config["qkv_bias"]),
        "init_values": 1.0,
        **({"mlp_layer": SwiGLUPacked, "act_layer": "silu"} if packed else {}),
        **({"reg_tokens": registers, "no_embed_class": True} if registers else {}),
    }
    return Conversion(
        options,
        side_of(config),
        AROUND,
        BERT_LAYERS,
        DINO_LIKE,
        prefix=f"{config['model_type']}.",
        made=ClassAndPatches,
        antialias=bool(registers),
        fix=_place_of_class if registers else (lambda _state: None),
    )


def _place_of_class(state: State) -> None:
    """Move the class token's position into the token: registers have none, so timm gives positions to patches only."""
    if "pos_embed" in state and "cls_token" in state:
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]


def _beit(config: Config) -> Conversion:
    """BEiT: positions as biases on the scores, of each block or shared; the pool has a norm of its own, or none."""
    options = _common(config, int(config["intermediate_size"])) | {
        "qkv_bias": True,
        "init_values": float(config["layer_scale_init_value"]) or None,
        "global_pool": "avg" if config["use_mean_pooling"] else "token",
        "use_abs_pos_emb": bool(config["use_absolute_position_embeddings"]),
        "use_rel_pos_bias": bool(config["use_relative_position_bias"]),
        "use_shared_rel_pos_bias": bool(config["use_shared_relative_position_bias"]),
    }
    required(config, "hidden_act", "gelu")
    del options["act_layer"]
    shared = "encoder.relative_position_bias.relative_position_bias_table"
    names = AROUND | {"pooler.layernorm": "fc_norm", shared: "rel_pos_bias.relative_position_bias_table"}
    return Conversion(options, side_of(config), names, BERT_LAYERS, BEIT_LIKE, prefix="beit.", made=Beit)


def _dinov3(config: Config) -> Conversion:
    """DINOv3: rotary positions; it has no classifier of its own, and hands on the class token."""
    gated = bool(config["use_gated_mlp"])
    required(config, "key_bias", False)
    required(config, "value_bias", config["query_bias"])
    required(config, "proj_bias", True)
    required(config, "mlp_bias", True)
    options = _common(config, int(config["intermediate_size"])) | {
        "qkv_bias": bool(config["query_bias"]),
        "init_values": 1.0,
        "num_reg_tokens": int(config["num_register_tokens"]),
        "global_pool": "token",
        "use_fc_norm": False,
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_temperature": float(config["rope_theta"]),
        "rope_rotate_half": True,
        "swiglu_mlp": gated,
        "swiglu_align_to": 1 if gated else 0,  # any: gate and value in matrices of their own
    }
    required(config, "hidden_act", "silu" if gated else "gelu")
    del options["act_layer"]
    up = {"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x"} if gated else {"mlp.up_proj": "mlp.fc1"}
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "norm": "norm",
    }
    return Conversion(options, side_of(config), names, "layer.", DINO_V3_LIKE | up, made=Eva)


# What folders may leave out, as published SigLIP's do: the library's defaults.
TOWER_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224,
}  # fmt: skip
CLIP_DEFAULTS: Config = {
    **TOWER_DEFAULTS, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512,
}  # fmt: skip
SIGLIP_DEFAULTS: Config = {
    **TOWER_DEFAULTS,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


def _clip(config: Config) -> Conversion:
    """CLIP: its classifier reads the mean of the patches as they leave the last block; without one, the class token."""
    config = {**CLIP_DEFAULTS, **config}
    classifies = _classifies(config)
    pool = {"global_pool": "avg", "final_norm": False} if classifies else {"global_pool": "token"}
    options = _common(config, int(config["intermediate_size"])) | {"pre_norm": True, **pool}
    names = AROUND_CLIP if classifies else AROUND_CLIP | {"post_layernorm": "norm"}
    joint = Joint(int(config["projection_dim"]), "visual_projection.weight", biased=False)
    return _tower(config, options, names, joint, _with_batch)


def _siglip(config: Config) -> Conversion:
    """SigLIP: its classifier reads the mean of the patches; without one, an attention pool does."""
    config = {**SIGLIP_DEFAULTS, **config}
    classifies = _classifies(config)
    pool = {"global_pool": "avg", "fc_norm": False} if classifies else {"global_pool": "map"}
    options = _common(config, int(config["intermediate_size"])) | {"class_token": False, **pool}
    names = AROUND_CLIP | {"post_layernorm": "norm"} | ({} if classifies else ATTENTION_POOL)
    joint = Joint(int(config["hidden_size"]), "", biased=True)
    return _tower(config, options, names, joint, _split_pool)


def _tower(
    config: Config, options: dict[str, Any], names: Mapping[str, str], joint: Joint, fix: Callable[[State], None]
) -> Conversion:
    """Return the conversion of an image tower; where one of texts is beside it, with the space that both share."""
    reads_text = any(name in ("CLIPModel", "SiglipModel") for name in config.get("architectures") or [])
    shared = joint if reads_text else None
    return Conversion(options, side_of(config), names, CLIP_LAYERS, CLIP_LIKE, prefix=TOWER, fix=fix, joint=shared)


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


DEFAULTS: Mapping[str, Config] = {"clip": CLIP_DEFAULTS, "siglip": SIGLIP_DEFAULTS}

KINDS: Mapping[str, Callable[[Config], Conversion]] = {
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "clip": _clip,
    "clip_vision_model": _clip,
    "siglip": _siglip,
    "siglip_vision_model": _siglip,
    "beit": _beit,
    "dinov3_vit": _dinov3,
    "swin": swin,
    "swinv2": swin_v2,
    "convnext": convnext,
    "convnextv2": convnext,
    "resnet": resnet,
}
