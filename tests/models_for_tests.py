"""Tiny models of every supported kind, with weights large enough that every head moves the logits."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from timm.layers.attention import Attention

from audit.models.adapters.registry import Model

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}
SWIN: dict[str, Any] = {
    "patch_size": 4,
    "window_size": 3,
    "depths": (2, 1),
    "embed_dim": 16,
    "num_heads": (2, 4),
    "img_size": 32,
}  # windows of 3 do not fill a grid of 8, nor one of 4; every other block shifts them
CONVOLUTIONS: dict[str, Any] = {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}
RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 16, 24, 32), "output_stride": 8, **CONVOLUTIONS}
CONVNEXT: dict[str, Any] = {"depths": (1, 2, 1, 1), "dims": (16, 16, 24, 32), "ls_init_value": 0.5, **CONVOLUTIONS}
CLASSES = 3


class Gated(Attention):
    """Attention whose output a gate scales, token by token and channel by channel, before its projection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, gated=True, **options)


class Unknown(Attention):
    """Attention of a kind that the fast path does not know, though it does nothing new."""


class FourGroups(torch.nn.GroupNorm):
    """A norm of four groups of channels."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(4, channels, **options)


# What distinguishes the supported models, each on a tiny variant of the real architecture.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {}),
    "average pool": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "average pool, registers": ("vit_medium_patch16_reg4_gap_256", {}),
    "attention pool": ("vit_base_patch16_siglip_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "LayerScale": ("vit_tiny_patch16_224", {"init_values": 0.5}),
    "deit3": ("deit3_small_patch16_224", {}),
    "dinov2, registers": ("vit_small_patch14_reg4_dinov2", {}),
    "dinov2, SwiGLU": ("vit_giant_patch14_reg4_dinov2", {}),
    "clip, pre-norm": ("vit_base_patch16_clip_224", {}),
    "flexivit": ("flexivit_small", {}),
    "qk norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "unknown attention": ("vit_tiny_patch16_224", {}),
    "no bias": ("vit_tiny_patch16_224", {"qkv_bias": False, "proj_bias": False}),
    "one layer": ("vit_tiny_patch16_224", {"depth": 1}),
    "one layer, average pool": ("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg"}),
    "one head": ("vit_tiny_patch16_224", {"num_heads": 1}),
    "three layers": ("vit_tiny_patch16_224", {"depth": 3}),
    "beit": ("beit_base_patch16_224", {}),
    "beit, shared positions": ("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "eva": ("eva_giant_patch14_224", {"mlp_ratio": 2.0}),
    "eva02, rotary": ("eva02_tiny_patch14_224", {}),
    "rotary by layer": ("vit_small_patch16_rope_mixed_224", {}),
    "dinov3": ("vit_small_patch16_dinov3_qkvb", {}),
    "perception encoder": ("vit_pe_core_tiny_patch16_384", {}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin v2": ("swinv2_tiny_window8_256", {**SWIN, "window_size": 4}),
    "swin v2, padded windows": ("swinv2_tiny_window8_256", SWIN),
    "resnet, basic": ("resnet18", {"layers": (1, 2, 1, 1)}),
    "resnet, bottleneck": ("resnet50", {"layers": (1, 2, 1, 1), "channels": (8, 8, 8, 16), "output_stride": 32}),
    "resnet, average pools around": ("resnet26d", {}),
    "resnext": ("resnext50_32x4d", {"cardinality": 4, "base_width": 16}),
    "squeeze and excitation": ("seresnet50", {}),
    "blurred pools": ("resnetblur18", {}),
    "group norm": ("resnet26", {"norm_layer": FourGroups}),
    "convnext": ("convnext_tiny", {}),
    "convnext, convolutional MLP": ("convnext_atto", {}),
    "convnext, norm before pool": ("convnext_tiny_hnf", {}),
    "convnext v2": ("convnextv2_atto", {}),
}
OLDER_TIMM = tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31)
if OLDER_TIMM:
    del FAMILIES["swin v2, padded windows"]  # which timm has not padded before
CONVOLUTIONAL = [name for name, (model, _) in FAMILIES.items() if re.match("resn|seresn|convnext", model)]


def tiny(family: str = "class token", *, seed: int = 0, classes: int = CLASSES, **options: Any) -> Any:
    """Build a tiny model of a family with random weights drawn from ``seed``."""
    name, own = FAMILIES[family]
    model = timm.create_model(name, num_classes=classes, **{**base_of(family), **own, **options})
    if family == "unknown attention":
        for block in model.blocks:
            block.attn.__class__ = Unknown
    return enlarged(model, seed).eval()


def base_of(family: str) -> dict[str, Any]:
    """Return what makes the models of a family tiny."""
    name, own = FAMILIES[family]
    if "window_size" in own:
        return {}
    if family in CONVOLUTIONAL:
        return CONVNEXT if name.startswith("convnext") else RESNET
    return TINY


def enlarged(model: Model, seed: int) -> Any:
    """Draw every weight again, matrices at unit gain and norms around one, so that no part is idle.

    So are the statistics of batch norms.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                around_one = re.search(r"gamma$|(norm|bn|downsample).*weight$", name) is not None
                rectified = re.search(r"(bn|downsample).*bias$", name) is not None  # nothing is idle below zero
                weight.copy_(float(around_one or rectified) + 0.2 * noise)
            elif name.endswith("weight"):
                gain = 2.0 if re.search("head|attn|conv[123]", name) else 1.0
                weight.copy_(noise * gain / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.5 * noise)
        for name, statistic in model.named_buffers():
            noise = torch.randn(statistic.shape, generator=generator)
            if name.endswith("running_mean"):
                statistic.copy_(0.2 * noise)
            elif name.endswith("running_var"):
                statistic.copy_(1 + noise.abs())
    return model


def hugging_face() -> Any:
    """Import transformers, for whose seconds other tests need not wait."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    return transformers


def noise_images(n: int, *, seed: int = 0, size: int = 32) -> torch.Tensor:
    """Return random model input (n, 3, size, size)."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def noise_pixels(n: int, *, seed: int = 0, size: int = 32) -> npt.NDArray[np.uint8]:
    """Return random uint8 pixels (n, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def two_tones(n: int, *, seed: int = 0, size: int = 32) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return a separable toy: noise whose left half (class 0) or right half (class 1) is brighter."""
    rng = np.random.default_rng(seed)
    targets = (np.arange(n) % 2).astype(np.int64)
    pixels = rng.integers(0, 120, (n, size, size, 3), dtype=np.uint8)
    half = size // 2
    pixels[targets == 0, :, :half] += 100
    pixels[targets == 1, :, half:] += 100
    return pixels, targets


def hooks_left(model: Model) -> int:
    """Count the hooks that stand on any part of a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
