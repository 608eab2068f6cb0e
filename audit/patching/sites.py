"""Where a head writes: the sites of a model, and a record of one forward pass at all of them.

What head h of a layer adds to the residual stream is ``u_h = gamma * W_O[:, h] z_h``: z_h is the head's slice of
the input of the output projection ``attn.proj``, W_O[:, h] the columns of that projection that read it, gamma
the LayerScale where the model has one. The projection's bias belongs to no head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.models.predict import embed


@dataclass(frozen=True, order=True)
class Site:
    """One attention head, counted from 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


def heads_of(model: VisionTransformer, layer: int) -> int:
    """Return how many heads a layer has."""
    return int(model.blocks[layer].attn.num_heads)


def sites_of(model: VisionTransformer, layers: range | None = None) -> list[Site]:
    """Return all heads, layer by layer; of some layers only where ``layers`` is given."""
    return [
        Site(i, h) for i in (range(len(model.blocks)) if layers is None else layers) for h in range(heads_of(model, i))
    ]


def scale_of(block: nn.Module) -> torch.Tensor | None:
    """Return LayerScale's gamma (width,) of a block's attention branch, or None."""
    gamma = getattr(block.ls1, "gamma", None)
    return None if gamma is None else gamma.detach()


def bias_write(model: VisionTransformer, layer: int) -> torch.Tensor | float:
    """Return what the output projection's bias, which belongs to no head, adds to the residual stream: (width,)."""
    block = model.blocks[layer]
    bias, gamma = block.attn.proj.bias, scale_of(block)
    if bias is None:
        return 0.0
    written: torch.Tensor = bias.detach() if gamma is None else bias.detach() * gamma
    return written


@dataclass(frozen=True)
class Trace:
    """One forward pass of B images, kept at every layer.

    Parameters
    ----------
    entering : list of torch.Tensor (B, tokens, width)
        The residual stream before each block.
    attention : list of torch.Tensor (B, tokens, width)
        What each block's attention adds to it, LayerScale and bias included.
    z : list of torch.Tensor (B, tokens, heads * head width)
        The input of each output projection.
    leaving : torch.Tensor (B, tokens, width)
        The residual stream after the last block.
    """

    entering: list[torch.Tensor]
    attention: list[torch.Tensor]
    z: list[torch.Tensor]
    leaving: torch.Tensor

    def take(self, rows: torch.Tensor) -> Trace:
        """Return the trace of some of the images."""
        rows = rows.to(self.leaving.device)
        return Trace(
            [t[rows] for t in self.entering],
            [t[rows] for t in self.attention],
            [t[rows] for t in self.z],
            self.leaving[rows],
        )


def trace_bytes(model: VisionTransformer) -> int:
    """Return the size of one image's trace in float32."""
    block = model.blocks[0]
    width, inner = int(model.embed_dim), int(block.attn.num_heads * block.attn.head_dim)
    return 4 * tokens_of(model) * (len(model.blocks) * (2 * width + inner) + width)


def tokens_of(model: VisionTransformer) -> int:
    """Return how many tokens the blocks see."""
    return int(model.patch_embed.num_patches + model.num_prefix_tokens)


@torch.inference_mode()
def record(model: VisionTransformer, images: torch.Tensor, *, prefix: Trace | None = None, start: int = 0) -> Trace:
    """Run ``images`` (B, 3, H, W) through the model and keep what patching needs.

    Parameters
    ----------
    prefix : Trace, optional
        The same images through a model that is this one up to block ``start``: what it holds of those blocks is
        taken over, not computed again.
    start : int
        First block that is run where ``prefix`` is given.
    """
    if prefix is None:
        entering, attention, z, start = [], [], [], 0
        stream = embed(model, images)
    else:
        entering, attention, z = prefix.entering[:start], prefix.attention[:start], prefix.z[:start]
        stream = prefix.entering[start]
    with listening(model, z, attention):
        for block in model.blocks[start:]:
            entering.append(stream)
            stream = block(stream)
    return Trace(entering, attention, z, stream)


def same_up_to(a: VisionTransformer, b: VisionTransformer, start: int) -> bool:
    """Tell whether two models are one, bit for bit, up to block ``start``, so that they can share a pass."""
    ours, theirs = ({k: v for k, v in m.state_dict().items() if not k.startswith(_after(m, start))} for m in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def _after(model: VisionTransformer, start: int) -> tuple[str, ...]:
    """Return the prefixes of the names of what comes after block ``start``."""
    return ("norm.", "fc_norm.", "head", "attn_pool.", *(f"blocks.{i}." for i in range(start, len(model.blocks))))


@contextmanager
def listening(model: VisionTransformer, z: list[torch.Tensor], attention: list[torch.Tensor]) -> Iterator[None]:
    """Append what enters each output projection and what leaves each attention branch; hooks are gone afterwards."""
    handles = []
    for block in model.blocks:
        handles.append(block.attn.proj.register_forward_pre_hook(lambda _m, args: z.append(args[0])))
        handles.append(block.ls1.register_forward_hook(lambda _m, _a, out: attention.append(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def head_writes(
    model: VisionTransformer, layer: int, z: torch.Tensor, *, scale_from: VisionTransformer | None = None
) -> torch.Tensor:
    """Return u of every head of a layer.

    Parameters
    ----------
    model : VisionTransformer
        Its own output projection is used.
    layer : int
        0-based.
    z : torch.Tensor (B, tokens, heads * head width)
        From the same model and layer.
    scale_from : VisionTransformer, optional
        Whose LayerScale is used instead of the model's own.

    Returns
    -------
    torch.Tensor (heads, B, tokens, width)
    """
    block = model.blocks[layer]
    n_heads, weight = heads_of(model, layer), block.attn.proj.weight
    per_head = z.unflatten(-1, (n_heads, -1)).movedim(-2, 0)
    columns = weight.unflatten(1, (n_heads, -1)).movedim(1, 0)  # (heads, width, head width)
    u = torch.matmul(per_head, columns.mT.unsqueeze(1))
    gamma = scale_of((scale_from or model).blocks[layer])
    return u if gamma is None else u * gamma
