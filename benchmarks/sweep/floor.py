"""The floor: the fewest operations that an exact sweep needs, and how fast this machine does such operations.

Operations are counted as two for each multiply-add of a matrix product; all else (norms, softmax, GELU, sums) is
counted as free, so the floor is lower than what can be reached.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer

from audit.models.blocks import rows_read

Flops = Counter[str]  # by kind of product
ROWS = 64  # images in one product whose speed is measured
TIMED_SECONDS = 0.1  # at least, for each product


@dataclass(frozen=True)
class Lap:
    """What a piece of work took."""

    seconds: float
    cpu_seconds: float


def timed(work: Callable[[], object]) -> Lap:
    """Do some work and return what it took, over all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Lap(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Sizes:
    """Of a plain vision transformer.

    Parameters
    ----------
    pixels : int
        Values in one patch of the image.
    inner : int
        Heads times their width.
    read : int
        Leading tokens of the last block that the classifier reads; all of them where it pools.
    """

    patches: int
    pixels: int
    tokens: int
    width: int
    heads: int
    inner: int
    hidden: int
    depth: int
    classes: int
    read: int


def sizes_of(model: VisionTransformer) -> Sizes:
    """Return the sizes of a model."""
    block, kernel = model.blocks[0], model.patch_embed.proj.weight
    tokens = int(model.pos_embed.shape[1])
    return Sizes(
        patches=int(model.patch_embed.num_patches),
        pixels=kernel[0].numel(),
        tokens=tokens,
        width=int(model.embed_dim),
        heads=int(block.attn.num_heads),
        inner=int(block.attn.num_heads * block.attn.head_dim),
        hidden=int(block.mlp.fc1.out_features),
        depth=len(model.blocks),
        classes=int(model.num_classes),
        read=rows_read(model) or tokens,
    )


def pass_flops(sizes: Sizes) -> Flops:
    """Count one image's forward pass."""
    whole = attention_operations(sizes, sizes.tokens) + _projection(sizes, sizes.tokens) + _mlp(sizes, sizes.tokens)
    return _embedding(sizes) + _times(whole, sizes.depth) + _classifier(sizes)


def naive_flops(sizes: Sizes, images: int) -> Flops:
    """Count a sweep that runs the whole forward pass for every head, and once for the donors."""
    return _times(pass_flops(sizes), images * (sizes.depth * sizes.heads + 1))


def bound_flops(sizes: Sizes, images: int) -> Flops:
    """Count what an exact sweep cannot do without.

    These are the recipients' and the donors' pass up to the last attention, what each head writes, and, for each
    head, all that follows its layer's attention. Of the last block only the tokens that the classifier reads are
    computed, and its keys and values only where that is no dearer than folding their weights into query and output.
    """
    s = sizes
    whole = attention_operations(s, s.tokens) + _projection(s, s.tokens) + _mlp(s, s.tokens)
    prefix = _embedding(s) + _times(whole, s.depth - 1) + _last_attention(s)
    once = _times(prefix, 2) + _projection(s, s.read)
    writes = _times(_product("u", s.tokens, s.inner, s.width), s.depth - 1) + _product("u", s.read, s.inner, s.width)
    end = _mlp(s, s.read) + _classifier(s)
    per_head = _times(end, s.depth)
    for layer in range(s.depth - 1):
        between = s.depth - 2 - layer
        per_head += _mlp(s, s.tokens) + _times(whole, between) + _last_attention(s) + _projection(s, s.read)
    return _times(once + writes + _times(per_head, s.heads), images)


def _product(kind: str, rows: int, inner: int, columns: int) -> Flops:
    return Counter({kind: 2 * rows * inner * columns})


def _times(flops: Flops, n: int) -> Flops:
    return Counter({kind: n * count for kind, count in flops.items()})


def _embedding(s: Sizes) -> Flops:
    return _product("embedding", s.patches, s.pixels, s.width)


def attention_operations(s: Sizes, rows: int) -> Flops:
    """Count z of the first ``rows`` tokens, keys and values of all."""
    products = _product("scores", rows, s.inner, s.tokens) + _product("values", rows, s.tokens, s.inner)
    return _product("qkv", rows, s.width, s.inner) + _product("qkv", 2 * s.tokens, s.width, s.inner) + products


def folded_attention_operations(s: Sizes, rows: int) -> Flops:
    """Count the same where queries go through the keys' weights, and the tokens' mean through the values'."""
    scores = _product("scores", rows * s.heads, s.width, s.tokens)
    return _product("qkv", 3 * rows, s.width, s.inner) + scores + _product("values", rows * s.heads, s.tokens, s.width)


def _last_attention(s: Sizes) -> Flops:
    return min(attention_operations(s, s.read), folded_attention_operations(s, s.read), key=Counter.total)


def _projection(s: Sizes, rows: int) -> Flops:
    return _product("proj", rows, s.inner, s.width)


def _mlp(s: Sizes, rows: int) -> Flops:
    return _product("fc1", rows, s.width, s.hidden) + _product("fc2", rows, s.hidden, s.width)


def _classifier(s: Sizes) -> Flops:
    return _product("head", 1, s.width, s.classes)


def floor_lap(sizes: Sizes, images: int) -> Lap:
    """Measure the sweep's own matrix products, at its own sizes, and return what the bound takes at their speed.

    The six products of a block stand for the others too, each weighted by its part in the bound.
    """
    flops = bound_flops(sizes, images)
    laps = {kind: _lap_of_product(a, b) for kind, (a, b) in _operands(sizes, min(ROWS, images * sizes.heads)).items()}
    scale = flops.total() / sum(flops[kind] for kind in laps)
    return Lap(
        scale * sum(flops[kind] * lap.seconds for kind, lap in laps.items()),
        scale * sum(flops[kind] * lap.cpu_seconds for kind, lap in laps.items()),
    )


def _operands(s: Sizes, images: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the two factors of each product of a block, for a batch of images."""
    rows, batch, head = images * s.tokens, images * s.heads, s.inner // s.heads
    linear = {
        "qkv": (s.width, 3 * s.inner),
        "proj": (s.inner, s.width),
        "fc1": (s.width, s.hidden),
        "fc2": (s.hidden, s.width),
    }
    found = {kind: (torch.randn(rows, k), torch.randn(n, k).T) for kind, (k, n) in linear.items()}
    found["scores"] = (torch.randn(batch, s.tokens, head), torch.randn(batch, s.tokens, head).mT)
    found["values"] = (torch.randn(batch, s.tokens, s.tokens), torch.randn(batch, s.tokens, head))
    return found


def _lap_of_product(a: torch.Tensor, b: torch.Tensor) -> Lap:
    """Return what one operation of a product takes, on average."""
    out = torch.matmul(a, b)
    laps: list[Lap] = []
    while not laps or sum(lap.seconds for lap in laps) < TIMED_SECONDS:
        laps.append(timed(lambda: torch.matmul(a, b, out=out)))
    n = len(laps) * 2 * out.numel() * a.shape[-1]
    return Lap(sum(lap.seconds for lap in laps) / n, sum(lap.cpu_seconds for lap in laps) / n)
