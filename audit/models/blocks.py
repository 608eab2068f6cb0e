"""A block of timm's vision transformer in parts: attention for some of the tokens, then what comes after it."""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional as F

from audit.models.adapters.registry import Model, adapter


def rows_read(model: Model) -> int | None:
    """Return how many leading tokens the classifier reads, or None if it reads all, or that is not known."""
    if isinstance(model, VisionTransformer) and model.attn_pool is None and model.global_pool == "token":
        return int(model.num_prefix_tokens)
    return None


def is_plain(model: Model, layer: int) -> bool:
    """Tell whether the functions of this module know all that a layer's block does."""
    if not isinstance(model, VisionTransformer):
        return False
    block = adapter(model).blocks[layer]
    known = type(block) is Block and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None
    return known and not (block.training and drops_at_random(block))


def unknown_blocks(model: Model) -> list[int]:
    """Return the layers whose blocks must be run whole, and by hooks where sets of heads are patched."""
    return [i for i in range(adapter(model).depth) if not is_plain(model, i)]


def drops_at_random(model: nn.Module) -> bool:
    """Tell whether any layer of a model is random in training: dropout, stochastic depth, dropped patches."""
    rates = ("p", "drop_prob", "prob")  # as nn.Dropout, timm's DropPath and its PatchDropout name theirs
    dropping = (m for m in model.modules() if "drop" in type(m).__name__.lower())
    return any(getattr(m, rate, 0.0) > 0.0 for m in dropping for rate in rates)


def leading_rows(block: Block, stream: torch.Tensor, rows: int) -> torch.Tensor:
    """Run a block for its first ``rows`` tokens: queries of those, keys and values of all."""
    return after_attention(block, stream[:, :rows] + attend(block, stream, rows)[1])


def attend(block: Block, stream: torch.Tensor, rows: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the head activations of the first ``rows`` tokens, as ``attended`` does, and what attention adds."""
    activations = attended(block, stream, rows)
    return activations, block.ls1(block.attn.proj(activations))


def attended(block: Block, stream: torch.Tensor, rows: int | None) -> torch.Tensor:
    """Return head activations (B, rows, heads * head width) of the first ``rows`` tokens; None: all."""
    attention, normed = block.attn, block.norm1(stream)
    fold = rows is not None and rows < attention.head_dim and _folds(block)
    activations: torch.Tensor = attention.norm((_folded if fold else _unfolded)(block, normed, rows))
    return activations


def after_attention(block: Block, stream: torch.Tensor) -> torch.Tensor:
    """Run the MLP half of a block."""
    out: torch.Tensor = stream + block.ls2(block.mlp(block.norm2(stream)))
    return out


def _folds(block: Block) -> bool:
    """Tell whether keys enter the scores as they leave their projection, so that its weights can be folded.

    A block in training is left as it is: its gradients are those of timm's own arithmetic.
    """
    return not block.training and isinstance(block.attn.k_norm, nn.Identity)


def _queries(block: Block, normed: torch.Tensor, rows: int | None) -> torch.Tensor:
    """Return the queries (B, heads, rows, head width) of the first ``rows`` tokens."""
    attention, inner = block.attn, block.attn.num_heads * block.attn.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    few = normed[:, :rows].contiguous()  # else torch 2.6 rounds otherwise where the weights ask for gradients
    q = F.linear(few, weight[:inner], None if bias is None else bias[:inner])
    queries: torch.Tensor = attention.q_norm(q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    return queries


def _unfolded(block: Block, normed: torch.Tensor, rows: int | None) -> torch.Tensor:
    """Return z from keys and values of all tokens."""
    attention, inner = block.attn, block.attn.num_heads * block.attn.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    kv = F.linear(normed, weight[inner:], None if bias is None else bias[inner:])
    k, v = kv.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q = _queries(block, normed, rows)
    head_activations: torch.Tensor = (
        F.scaled_dot_product_attention(q, attention.k_norm(k), v).transpose(1, 2).flatten(2)
    )
    return head_activations


def _folded(block: Block, normed: torch.Tensor, rows: int | None) -> torch.Tensor:
    """Return z without computing keys and values: their weights are applied to the few queries and outputs instead.

    ``softmax((q W_k) x^T) x W_v^T + b_v``: the keys' bias adds the same to every score of a query, which softmax does
    not see, and the values' bias is weighted by shares that add up to 1.
    """
    attention, n_heads = block.attn, block.attn.num_heads
    _, of_keys, of_values = attention.qkv.weight.unflatten(0, (3, n_heads, -1))  # each (heads, head width, width)
    q = _queries(block, normed, rows)
    scores = attention.scale * (q @ of_keys).flatten(1, 2) @ normed.mT
    seen = (scores.softmax(-1) @ normed).unflatten(1, (n_heads, -1)) @ of_values.mT
    if attention.qkv.bias is not None:
        seen = seen + attention.qkv.bias.unflatten(0, (3, n_heads, 1, -1))[2]
    folded: torch.Tensor = seen.transpose(1, 2).flatten(2)
    return folded
