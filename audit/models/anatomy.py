"""What patching must know of an architecture: how an image becomes a stream, and what each layer adds to it from where.

Every supported model is a row of layers that each add something to a residual stream. A layer's attention ends in one
projection; its input, head by head, is z, and what a head adds to the stream is the projection's columns for it times
its part of z, times LayerScale where there is one. Families differ in what a block is given beside the stream (rotary
or relative positions), in the names of their parts, and in the layout of the stream; all of that stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.swin_transformer import SwinTransformer, WindowAttention, window_partition, window_reverse
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

Model: TypeAlias = VisionTransformer | Beit | Eva | SwinTransformer


@dataclass(frozen=True)
class Sizes:
    """Of a layer: tokens, and the widths of the stream, of all heads together, and inside the MLP."""

    tokens: int
    width: int
    inner: int
    hidden: int


class Anatomy:
    """timm's ``VisionTransformer``, and what the other families have in common with it.

    Parameters
    ----------
    model : torch.nn.Module
    """

    called: ClassVar[str] = "ViT, DeiT, DeiT III, DINOv2 (with registers), CLIP and SigLIP image towers, FlexiViT"
    named: ClassVar[tuple[str, ...]] = ("vit_*", "deit_*", "deit3_*", "flexivit_*")
    unit: ClassVar[str] = "attention head"
    notes: ClassVar[str] = "token, average, maximum and attention pools; query and key norms; LayerScale"
    attentions: ClassVar[tuple[Any, ...]] = (Attention,)
    parts: ClassVar[tuple[str, ...]] = ("norm1", "norm2", "mlp", "ls1", "ls2")  # that every block must have

    def __init__(self, model: Model) -> None:
        self.model: Any = model

    @property
    def blocks(self) -> Sequence[Any]:
        """The blocks, in order."""
        return list(self.model.blocks)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.blocks)

    def units(self, layer: int) -> int:
        """Return how many heads a layer has."""
        return int(self.blocks[layer].attn.num_heads)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        m = self.model
        stream: torch.Tensor = m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(images))))
        return stream

    def given(self, layer: int) -> Mapping[str, Any]:
        """Return what a block is given beside the stream; it does not depend on the image."""
        del layer
        return {}

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a layer."""
        out: torch.Tensor = self.blocks[layer](stream, **self.given(layer))
        return out

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of the stream that leaves the last layer."""
        logits: torch.Tensor = self.model.forward_head(self.model.norm(stream))
        return logits

    def projection(self, layer: int) -> Any:
        """Return the linear layer whose input is z."""
        return self.blocks[layer].attn.proj

    def written(self, layer: int) -> nn.Module:
        """Return the module whose output is what attention adds to the stream."""
        module: nn.Module = self.blocks[layer].ls1
        return module

    def written_after(self, layer: int) -> nn.Module:
        """Return the module whose output is what the MLP adds to the stream."""
        module: nn.Module = self.blocks[layer].ls2
        return module

    def scale(self, layer: int) -> torch.Tensor | None:
        """Return LayerScale's gamma (width,) of the attention branch, or None."""
        gamma = getattr(self.blocks[layer].ls1, "gamma", None)
        return None if gamma is None else gamma.detach()

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run what comes after a layer's attention was added."""
        block = self.blocks[layer]
        out: torch.Tensor = stream + block.ls2(block.mlp(block.norm2(stream)))
        return out

    def tokens(self, layer: int) -> int:
        """Return how many tokens a layer sees."""
        del layer
        return int(self.model.patch_embed.num_patches + self.model.num_prefix_tokens)

    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of a layer, for estimates of memory."""
        block = self.blocks[layer]
        width, inner = self.projection(layer).out_features, self.projection(layer).in_features
        first = getattr(block.mlp, "fc1", None)
        hidden = 2 * block.mlp.fc2.in_features if first is None else first.out_features
        return Sizes(self.tokens(layer), int(width), int(inner), int(hidden))

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Lay out (..., tokens, width), in the order of z, as the stream is."""
        del layer
        return tokens

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Lay out what lies as the stream does in the order of z: (B, tokens, width)."""
        del layer
        return stream

    def z_of(self, layer: int, entered: torch.Tensor, images: int) -> torch.Tensor:
        """Turn what enters the projection into z (images, tokens, heads * head width)."""
        del layer, images
        return entered

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.norm_pre
        return module

    def end(self) -> nn.Module:
        """Return the module whose input is the stream that leaves the last layer."""
        module: nn.Module = self.model.norm
        return module

    def classifiers(self) -> dict[str, Any]:
        """Return the linear layers that give the logits, by their names in the model."""
        return {name: part for name in ("head", "head_dist") if (part := getattr(self.model, name, None)) is not None}

    def modules(self, layer: int) -> Sequence[nn.Module]:
        """Return the modules that are a layer's own."""
        return [self.blocks[layer]]

    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a layer's tensors begin."""
        return (f"blocks.{layer}.",)

    def inner_weights(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weights of queries, keys and values, each (heads * head width, width)."""
        q, k, v = self.blocks[layer].attn.qkv.weight.chunk(3)
        return q, k, v

    def values(self, layer: int) -> list[torch.Tensor]:
        """Return the parameters that make the values, views of which the first axis is heads * head width."""
        attention = self.blocks[layer].attn
        found = [attention.qkv.weight, attention.qkv.bias, getattr(attention, "v_bias", None)]
        third = attention.qkv.weight.shape[0] // 3
        return [p[-third:] for p in found if p is not None]

    def head_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return a head's own weights (Q, K, V, O and what they add for positions), by their names in the block."""
        named = self.blocks[layer].attn.named_parameters()
        return {f"attn.{name}": weight for name, weight in named if "norm" not in name}

    def fault(self) -> str:
        """Return why heads cannot be told apart, or "" if they can."""
        if self.depth == 0:
            return "it has no block; give a depth of 1 or more in model.overrides"
        for i, block in enumerate(self.blocks):
            attention = getattr(block, "attn", None)
            if attention is None or not all(hasattr(block, part) for part in self.parts):
                return f"block {i} is a {type(block).__name__}, not attention then MLP"
            if not isinstance(attention, self.attentions):
                return f"attention of block {i} is a {type(attention).__name__}"
            if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
                return f"block {i} normalises across heads before the projection"
            if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
                return f"block {i} has heads that share keys and values"
            if getattr(attention, "gate", None) is not None:
                return f"block {i} scales its heads by a gate, so that what they hold cannot be rotated"
        return ""


class Biased(Anatomy):
    """BEiT: relative positions as a bias on the scores, of each block or shared by all; LayerScale without a module."""

    called: ClassVar[str] = "BEiT, BEiT v2"
    named: ClassVar[tuple[str, ...]] = ("beit_*", "beitv2_*")
    notes: ClassVar[str] = "relative positions of each block or shared by all"
    attentions: ClassVar[tuple[Any, ...]] = (BeitAttention,)
    parts: ClassVar[tuple[str, ...]] = ("norm1", "norm2", "mlp", "drop_path1", "drop_path2")

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        m = self.model
        stream = m.patch_embed(images)
        stream = torch.cat((m.cls_token.expand(len(stream), -1, -1), stream), dim=1)
        entering: torch.Tensor = m.pos_drop(stream if m.pos_embed is None else stream + m.pos_embed)
        return entering

    def given(self, layer: int) -> Mapping[str, Any]:
        """Return the positions that all blocks share, where they do."""
        del layer
        shared = self.model.rel_pos_bias
        return {} if shared is None else {"shared_rel_pos_bias": shared()}

    def written(self, layer: int) -> nn.Module:
        """Return the module whose output is what attention adds to the stream."""
        module: nn.Module = self.blocks[layer].drop_path1
        return module

    def written_after(self, layer: int) -> nn.Module:
        """Return the module whose output is what the MLP adds to the stream."""
        module: nn.Module = self.blocks[layer].drop_path2
        return module

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

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.pos_drop
        return module


class Rotary(Biased):
    """EVA and what else timm builds on it (RoPE ViT, DINOv3, Perception Encoder): rotary positions."""

    called: ClassVar[str] = "EVA, EVA-02, RoPE ViT, DINOv3, Perception Encoder"
    named: ClassVar[tuple[str, ...]] = ("eva_*", "eva02_*", "vit_*_rope_*", "vit_*_dinov3*", "vit_pe_*")
    notes: ClassVar[str] = "rotary positions; query and key norms"
    attentions: ClassVar[tuple[Any, ...]] = (EvaAttention, AttentionRope)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        stream, _ = self.model._pos_embed(self.model.patch_embed(images))
        entering: torch.Tensor = self.model.norm_pre(stream)
        return entering

    def given(self, layer: int) -> Mapping[str, Any]:
        """Return the rotation of queries and keys by their place; "mixed" models have one for each layer."""
        rope = self.model.rope
        if rope is None:
            return {}
        shape = {} if getattr(rope, "feat_shape", None) else {"shape": self.model.patch_embed.grid_size}
        places = rope.get_embed(**shape)
        return {"rope": places[layer] if getattr(self.model, "rope_mixed", False) else places}

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.norm_pre
        return module

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
        """Return why heads cannot be told apart, or "" if they can."""
        odd = next((i for i, block in enumerate(self.blocks) if type(block) is not EvaBlock), None)
        if odd is not None:
            return f"block {odd} normalises what its heads have written together"
        return super().fault()


class Windowed(Biased):
    """Swin: attention within windows, which every other block shifts; the image shrinks from stage to stage.

    The stream is (B, rows, columns, width). z is kept window by window, so its tokens stand in another order.
    """

    called: ClassVar[str] = "Swin"
    named: ClassVar[tuple[str, ...]] = ("swin_*",)
    notes: ClassVar[str] = "heads within windows; layers of all stages are counted through"
    attentions: ClassVar[tuple[Any, ...]] = (WindowAttention,)

    @property
    def blocks(self) -> Sequence[Any]:
        """The blocks of all stages, in order."""
        return [block for stage in self.model.layers for block in stage.blocks]

    def _where(self, layer: int) -> tuple[int, int]:
        """Return stage and place in it of a layer."""
        for number, stage in enumerate(self.model.layers):
            if layer < len(stage.blocks):
                return number, layer
            layer -= len(stage.blocks)
        raise IndexError(layer)

    def _following(self, layer: int) -> int | None:
        """Return the stage that reads what this layer leaves, or None within a stage and at the end."""
        stage, place = self._where(layer)
        ends = place + 1 == len(self.model.layers[stage].blocks) and stage + 1 < len(self.model.layers)
        return stage + 1 if ends else None

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        stream: torch.Tensor = self.model.patch_embed(images)
        return stream

    def given(self, layer: int) -> Mapping[str, Any]:
        """Return nothing: positions are the attention's own."""
        del layer
        return {}

    def run(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run a layer; the last one of a stage hands on what the next stage reads."""
        return self._hand_on(layer, self.blocks[layer](stream))

    def after(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run what comes after a layer's attention was added."""
        block = self.blocks[layer]
        tokens = stream.flatten(1, 2)
        tokens = tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
        return self._hand_on(layer, tokens.view_as(stream))

    def _hand_on(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        following = self._following(layer)
        out: torch.Tensor = stream if following is None else self.model.layers[following].downsample(stream)
        return out

    def tokens(self, layer: int) -> int:
        """Return how many tokens a layer sees."""
        rows, columns = self.blocks[layer].input_resolution
        return int(rows * columns)

    def scale(self, layer: int) -> torch.Tensor | None:
        """Return None: there is no LayerScale."""
        del layer
        return None

    def _padded(self, block: Any) -> tuple[int, int, int, int]:
        """Return rows and columns of the stream, and of the windows that cover it."""
        rows, columns = block.input_resolution
        high, wide = block.window_size
        return rows, columns, -(-rows // high) * high, -(-columns // wide) * wide

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Put windows (..., tokens, width) back to where they were cut out."""
        block = self.blocks[layer]
        rows, columns, high, wide = self._padded(block)
        windows = tokens.reshape(-1, *block.window_size, tokens.shape[-1])
        shifted = window_reverse(windows, block.window_size, high, wide)[:, :rows, :columns]
        stream = torch.roll(shifted, shifts=tuple(block.shift_size), dims=(1, 2))
        return stream.reshape(*tokens.shape[:-2], rows, columns, tokens.shape[-1])

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Cut (B, rows, columns, width) into windows."""
        block = self.blocks[layer]
        rows, columns, high, wide = self._padded(block)
        shifted = torch.roll(stream, shifts=tuple(-s for s in block.shift_size), dims=(1, 2))
        padded = F.pad(shifted, (0, 0, 0, wide - columns, 0, high - rows))
        windows: torch.Tensor = window_partition(padded, block.window_size)
        return windows.reshape(len(stream), -1, stream.shape[-1])

    def z_of(self, layer: int, entered: torch.Tensor, images: int) -> torch.Tensor:
        """Turn windows (images * windows, tokens, width) into z (images, tokens, width)."""
        del layer
        return entered.reshape(images, -1, entered.shape[-1])

    def stem(self) -> nn.Module:
        """Return the module whose output is the stream that enters the first layer."""
        module: nn.Module = self.model.patch_embed
        return module

    def classifiers(self) -> dict[str, Any]:
        """Return the linear layers that give the logits, by their names in the model."""
        return {"head.fc": self.model.head.fc}

    def modules(self, layer: int) -> Sequence[nn.Module]:
        """Return the modules that are a layer's own: the last of a stage has what leads on, too."""
        following = self._following(layer)
        return [self.blocks[layer], *([] if following is None else [self.model.layers[following].downsample])]

    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a layer's tensors begin."""
        (stage, place), following = self._where(layer), self._following(layer)
        leading_on = () if following is None else (f"layers.{following}.downsample.",)
        return (f"layers.{stage}.blocks.{place}.", *leading_on)


ANATOMIES: Mapping[type[nn.Module], type[Anatomy]] = {
    VisionTransformer: Anatomy,
    Beit: Biased,
    Eva: Rotary,
    SwinTransformer: Windowed,
}


def anatomy(model: Model) -> Anatomy:
    """Return what is known of a model.

    Raises
    ------
    TypeError
        If it is of no supported family; ``why_not_patchable`` tells beforehand.
    """
    for kind, made in ANATOMIES.items():
        if isinstance(model, kind):
            return made(model)
    raise TypeError(f"{type(model).__name__} is of no family that can be patched")
