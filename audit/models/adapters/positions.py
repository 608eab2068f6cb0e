"""Transformers whose blocks are given the places of tokens: as a bias on the scores, or as a rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.layers.attention import AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention, EvaBlock

from audit.models.adapters.heads import Heads


class Biased(Heads):
    """BEiT: relative positions as a bias on the scores, of each block or shared by all; LayerScale without a module."""

    called: ClassVar[str] = "BEiT, BEiT v2"
    named: ClassVar[tuple[str, ...]] = ("beit_*", "beitv2_*")
    notes: ClassVar[str] = "relative positions of each block or shared by all"
    begins: ClassVar[str] = "pos_drop"
    writes: ClassVar[str] = "drop_path1"
    adds: ClassVar[tuple[str, ...]] = ("drop_path1", "drop_path2")
    attentions: ClassVar[tuple[Any, ...]] = (BeitAttention,)
    parts: ClassVar[tuple[str, ...]] = ("norm1", "norm2", "mlp", "drop_path1", "drop_path2")

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        m = self.model
        stream = m.patch_embed(images)
        stream = torch.cat((m.cls_token.expand(len(stream), -1, -1), stream), dim=1)
        entering: torch.Tensor = m.pos_drop(stream if m.pos_embed is None else stream + m.pos_embed)
        return entering

    def block_arguments(self, layer: int) -> Mapping[str, Any]:
        """Return the positions that all blocks share, where they do."""
        del layer
        shared = self.model.rel_pos_bias
        return {} if shared is None else {"shared_rel_pos_bias": shared()}

    def scale(self, layer: int) -> torch.Tensor | None:
        """Return LayerScale's gamma (width,) of the attention branch, or None."""
        gamma = getattr(self.blocks[layer], "gamma_1", None)
        return None if gamma is None else gamma.detach()

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run what comes after a layer's attention was added."""
        block = self.blocks[layer]
        gamma, added = getattr(block, "gamma_2", None), block.mlp(block.norm2(stream))
        out: torch.Tensor = stream + block.drop_path2(added if gamma is None else gamma * added)
        return out


class Rotary(Biased):
    """EVA and what else timm builds on it (RoPE ViT, DINOv3, Perception Encoder): rotary positions."""

    called: ClassVar[str] = "EVA, EVA-02, RoPE ViT, DINOv3, Perception Encoder"
    named: ClassVar[tuple[str, ...]] = ("eva_*", "eva02_*", "vit_*_rope_*", "vit_*_dinov3*", "vit_pe_*")
    notes: ClassVar[str] = "rotary positions; query and key norms"
    begins: ClassVar[str] = "norm_pre"
    attentions: ClassVar[tuple[Any, ...]] = (EvaAttention, AttentionRope)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        stream, _ = self.model._pos_embed(self.model.patch_embed(images))
        entering: torch.Tensor = self.model.norm_pre(stream)
        return entering

    def block_arguments(self, layer: int) -> Mapping[str, Any]:
        """Return the rotation of queries and keys by their place; "mixed" models have one for each layer."""
        rope = self.model.rope
        if rope is None:
            return {}
        shape = {} if getattr(rope, "feat_shape", None) else {"shape": self.model.patch_embed.grid_size}
        places = rope.get_embed(**shape)
        return {"rope": places[layer] if getattr(self.model, "rope_mixed", False) else places}

    def inner_weights(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weights of queries, keys and values, each (heads * head width, width)."""
        attention = self.blocks[layer].attn
        if attention.qkv is not None:
            return super().inner_weights(layer)
        return attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight

    def values(self, layer: int) -> list[torch.Tensor]:
        """Return the parameters that make the values, views of which the first axis is heads * head width."""
        attention = self.blocks[layer].attn
        if attention.qkv is not None:
            return super().values(layer)
        return [p for p in (attention.v_proj.weight, attention.v_proj.bias) if p is not None]

    def fault(self) -> str:
        """Return why heads cannot be separated, or "" if they can."""
        odd = next((i for i, block in enumerate(self.blocks) if type(block) is not EvaBlock), None)
        if odd is not None:
            return f"block {odd} normalises what its heads have written together"
        return super().fault()
