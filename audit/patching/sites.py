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
        return Trace(
            [t[rows] for t in self.entering],
            [t[rows] for t in self.attention],
            [t[rows] for t in self.z],
            self.leaving[rows],
        )


@torch.inference_mode()
def record(model: VisionTransformer, images: torch.Tensor) -> Trace:
    """Run ``images`` (B, 3, H, W) through the model and keep what patching needs."""
    entering: list[torch.Tensor] = []
    attention: list[torch.Tensor] = []
    z: list[torch.Tensor] = []
    with _listening(model, z, attention):
        stream = embed(model, images)
        for block in model.blocks:
            entering.append(stream)
            stream = block(stream)
    return Trace(entering, attention, z, stream)


@contextmanager
def _listening(model: VisionTransformer, z: list[torch.Tensor], attention: list[torch.Tensor]) -> Iterator[None]:
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
def head_writes(model: VisionTransformer, layer: int, z: torch.Tensor) -> torch.Tensor:
    """Return u of every head of a layer.

    Parameters
    ----------
    model : VisionTransformer
        Its own output projection and LayerScale are used.
    layer : int
        0-based.
    z : torch.Tensor (B, tokens, heads * head width)
        From the same model and layer.

    Returns
    -------
    torch.Tensor (heads, B, tokens, width)
    """
    block = model.blocks[layer]
    n_heads, weight = heads_of(model, layer), block.attn.proj.weight
    per_head = z.unflatten(-1, (n_heads, -1)).movedim(-2, 0)
    columns = weight.unflatten(1, (n_heads, -1)).movedim(1, 0)  # (heads, width, head width)
    u = torch.matmul(per_head, columns.mT.unsqueeze(1))
    gamma = scale_of(block)
    return u if gamma is None else u * gamma
