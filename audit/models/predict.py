"""Running a model over pixels, batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional as F

from audit.data.pixels import Pixels
from audit.models.transforms import as_input

Floats = npt.NDArray[np.float32]


def batches(n: int, size: int) -> Iterator[slice]:
    """Cut ``range(n)`` into slices of at most ``size``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@torch.inference_mode()
def predict_logits(model: VisionTransformer, pixels: Pixels, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of a model in evaluation mode."""
    model.eval()
    parts = [finish(model, embed(model, as_input(model, pixels[s])), 0).numpy() for s in batches(len(pixels), batch)]
    return np.concatenate(parts).astype(np.float32)


@torch.inference_mode()
def finish_logits(model: VisionTransformer, stream: torch.Tensor, start: int, *, batch: int = 64) -> Floats:
    """Return the logits (N, classes) of the residual stream (N, tokens, width) that enters block ``start``."""
    model.eval()
    return np.concatenate([finish(model, stream[s], start).numpy() for s in batches(len(stream), batch)])


def embed(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Return the residual stream (B, tokens, width) that enters the first block."""
    x: torch.Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return x


def classify(model: VisionTransformer, stream: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, classes) of the residual stream (B, tokens, width) that leaves the last block."""
    logits: torch.Tensor = model.forward_head(model.norm(stream))
    return logits


def finish(model: VisionTransformer, stream: torch.Tensor, start: int) -> torch.Tensor:
    """Return the logits (B, classes) of the residual stream (B, tokens, width) that enters block ``start``.

    Where the classifier reads nothing but prefix tokens, the last block is computed for these alone. In exact
    arithmetic logits and gradients are those of the whole model.
    """
    *others, last = model.blocks
    for block in others[start:]:
        stream = block(stream)
    if start < len(model.blocks):
        rows = _rows_read(model)
        stream = last(stream) if rows is None or not _is_plain(last) else _leading_rows(last, stream, rows)
    return classify(model, stream)


def drops_at_random(model: nn.Module) -> bool:
    """Tell whether any layer of a model draws lots while it trains: dropout, stochastic depth, dropped patches."""
    rates = ("p", "drop_prob", "prob")  # as nn.Dropout, timm's DropPath and its PatchDropout name theirs
    dropping = (m for m in model.modules() if "drop" in type(m).__name__.lower())
    return any(getattr(m, rate, 0.0) > 0.0 for m in dropping for rate in rates)


def _rows_read(model: VisionTransformer) -> int | None:
    """Return how many leading tokens the classifier reads, or None if it reads all."""
    if model.attn_pool is None and model.global_pool == "token":
        return int(model.num_prefix_tokens)
    return None


def _is_plain(block: nn.Module) -> bool:
    """Tell whether ``_leading_rows`` knows all that a block does."""
    known = type(block) is Block and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None
    return known and not (block.training and drops_at_random(block))


def _leading_rows(block: Block, stream: torch.Tensor, rows: int) -> torch.Tensor:
    """Run a block for its first ``rows`` tokens: queries of those, keys and values of all."""
    attention = block.attn
    inner = attention.num_heads * attention.head_dim
    normed, weight, bias = block.norm1(stream), attention.qkv.weight, attention.qkv.bias
    q = F.linear(normed[:, :rows], weight[:inner], None if bias is None else bias[:inner])
    kv = F.linear(normed, weight[inner:], None if bias is None else bias[inner:])
    q = attention.q_norm(q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    k, v = kv.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    z = F.scaled_dot_product_attention(q, attention.k_norm(k), v).transpose(1, 2).flatten(2)
    stream = stream[:, :rows] + block.ls1(attention.proj(attention.norm(z)))
    out: torch.Tensor = stream + block.ls2(block.mlp(block.norm2(stream)))
    return out
