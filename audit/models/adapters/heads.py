"""Vision transformers: the unit is an attention head.

A layer's attention ends in one projection; its input, head by head, is z, and what a head adds to the stream is the
projection's columns for it times its part of z, times LayerScale where there is one. The projection's bias belongs to
no head. Families differ in what a block is given besides the stream, in the names of their parts, and in the layout of
the stream; what differs is in ``positions`` and ``windows``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.layers.attention import Attention
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from audit.models.adapters.base import Adapter, Product, Sizes
from audit.units import Unit


class Heads(Adapter):
    """timm's ``VisionTransformer``, and what the other families have in common with it."""

    called: ClassVar[str] = "ViT, DeiT, DeiT III, DINOv2 (with registers), CLIP and SigLIP image towers, FlexiViT"
    named: ClassVar[tuple[str, ...]] = ("vit_*", "deit_*", "deit3_*", "flexivit_*")
    unit: ClassVar[Unit] = "head"
    mark: ClassVar[str] = "patch_embed.proj.weight"
    resampled: ClassVar[tuple[str, ...]] = ("pos_embed", "patch_embed", "relative_position_bias_table")
    notes: ClassVar[str] = "token, average, maximum and attention pools; query and key norms; LayerScale"
    begins: ClassVar[str] = "norm_pre"
    ends: ClassVar[str] = "norm"
    follow: ClassVar[tuple[str, ...]] = ("attn_pool", "norm", "fc_norm", "head", "head_dist")
    scores: ClassVar[tuple[str, ...]] = ("head", "head_dist")
    writes: ClassVar[str] = "ls1"
    adds: ClassVar[tuple[str, ...]] = ("ls1", "ls2")
    halves: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("norm1.", "attn.", "ls1.", "gamma_1"),
        ("norm2.", "mlp.", "ls2.", "gamma_2"),
    )
    attentions: ClassVar[tuple[Any, ...]] = (Attention,)
    parts: ClassVar[tuple[str, ...]] = ("norm1", "norm2", "mlp", "ls1", "ls2")  # that every block must have

    @property
    def blocks(self) -> Sequence[Any]:
        """The blocks, in order."""
        return list(self.model.blocks)

    @property
    def side(self) -> int:
        """Side of the images, in pixels."""
        return int(self.model.patch_embed.img_size[0])

    def side_fault(self) -> tuple[str, str] | None:
        """Return what is wrong with images of this size, and the fix; None where they fit."""
        patch = int(self.model.patch_embed.patch_size[0])
        down = self.side // patch
        near = f"take {max(1, down) * patch} or {(down + 1) * patch}"
        return (f"{self.side} is no multiple of the patch size {patch}", near) if self.side % patch else None

    def units(self, layer: int) -> int:
        """Return how many heads a layer has."""
        return int(self.blocks[layer].attn.num_heads)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the stream that enters the first layer."""
        m = self.model
        stream: torch.Tensor = m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(images))))
        return stream

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of the stream that leaves the last layer."""
        logits: torch.Tensor = self.model.forward_head(self.model.norm(stream))
        return logits

    def projection(self, layer: int) -> Any:
        """Return the linear layer whose input is z."""
        return self.blocks[layer].attn.proj

    def branch(self, layer: int) -> Sequence[nn.Parameter]:
        """Return the parameters that make what the heads write."""
        return list(self.blocks[layer].attn.parameters())

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

    @property
    def prefix_tokens(self) -> int:
        """How many tokens, the first of the stream, are of no patch."""
        return int(self.model.num_prefix_tokens)

    def to_stream(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Lay out (..., tokens, width), in the order of z, as the stream is."""
        del layer
        return tokens

    def from_stream(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Lay out what lies as the stream does in the order of z: (B, tokens, width)."""
        del layer
        return stream

    def listen(
        self, layer: int, head_activations: list[torch.Tensor], outputs: list[torch.Tensor], *, images: int
    ) -> list[RemovableHandle]:
        """Append z (images, tokens, inner) and what attention adds to the stream, of every pass from now on."""

        def keep(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            head_activations.append(self.head_activations_of(layer, args[0], images))

        def keep_output(_module: nn.Module, _args: object, out: torch.Tensor) -> None:
            outputs.append(self.from_output(layer, out, images))

        return [
            self.projection(layer).register_forward_pre_hook(keep),
            self.output_module(layer).register_forward_hook(keep_output),
        ]

    def head_output(self, layer: int, unit: int, head_activations: torch.Tensor) -> torch.Tensor:
        """Return what one head writes, laid out as the stream, from its own part of z (..., tokens, head width)."""
        u = F.linear(head_activations, self.projection(layer).weight.unflatten(1, (self.units(layer), -1))[:, unit])
        gamma = self.scale(layer)
        return self.to_stream(layer, u if gamma is None else u * gamma)

    def head_outputs(
        self, layer: int, head_activations: torch.Tensor, *, scale_from: Adapter | None = None
    ) -> torch.Tensor:
        """Return what each head writes (heads, ..., as the stream), from z (..., tokens, inner)."""
        n_heads, weight = self.units(layer), self.projection(layer).weight
        per_head = head_activations.unflatten(-1, (n_heads, -1)).movedim(-2, 0)
        columns = weight.unflatten(1, (n_heads, -1)).movedim(1, 0)  # (heads, width, head width)
        u = torch.matmul(per_head, columns.mT.unsqueeze(1))
        gamma = (scale_from if isinstance(scale_from, Heads) else self).scale(layer)
        return self.to_stream(layer, u if gamma is None else u * gamma)

    def bias(self, layer: int) -> torch.Tensor | float:
        """Return what the projection's bias, which belongs to no head, adds to the stream: (width,)."""
        bias, gamma = self.projection(layer).bias, self.scale(layer)
        if bias is None:
            return 0.0
        added: torch.Tensor = bias.detach() if gamma is None else bias.detach() * gamma
        return added

    def gradient_at_heads(self, layer: int, slope: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to z (B, tokens, inner), given that with respect to the writes."""
        gamma = self.scale(layer)
        weight: torch.Tensor = self.projection(layer).weight
        return self.from_stream(layer, slope if gamma is None else slope * gamma) @ weight

    def head_activations_of(self, layer: int, entered: torch.Tensor, images: int) -> torch.Tensor:
        """Turn what enters the projection into z (images, tokens, heads * head width)."""
        del layer, images
        return entered

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

    def own_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the heads' own weights (Q, K, V, O and what they add for positions), by their names in the block."""
        named = self.blocks[layer].attn.named_parameters()
        return {f"attn.{name}": weight for name, weight in named if "norm" not in name}

    def products(self, layer: int) -> Sequence[Product]:
        """Return the factors of the QK and OV products of each head, through which alone its weights enter.

        W_Q' W_K and W_O W_V, whatever coordinates a head uses inside (Elhage et al. 2021).
        """
        n = self.units(layer)
        q, k, v = (w.detach().unflatten(0, (n, -1)).mT for w in self.inner_weights(layer))
        out = self.projection(layer).weight.detach().unflatten(1, (n, -1)).movedim(1, 0)
        return [(q, k), (out, v)]

    @torch.no_grad()
    def reparameterize_(self, layer: int, generator: torch.Generator) -> None:
        """Transform, in place, V and W_O of each head by a random rotation and its inverse."""
        weight = self.projection(layer).weight
        width = weight.shape[1] // self.units(layer)
        for head in range(self.units(layer)):
            q, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
            rotation = q.float().to(weight.device)
            own = slice(head * width, (head + 1) * width)
            for made in self.values(layer):
                made[own] = rotation @ made[own]
            weight[:, own] = weight[:, own] @ rotation.T

    def fault(self) -> str:
        """Return why heads cannot be separated, or "" if they can."""
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
