"""Where in the image a head looks: attention to each patch from the tokens that are read, averaged over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import Block

from audit.data.ahead import in_image_batches
from audit.data.pixels import Images, Pixels, Rows
from audit.models.adapters.registry import Model, adapter
from audit.models.blocks import is_plain, rows_read
from audit.models.device import in_double
from audit.models.transforms import as_input
from audit.patching.sites import Site, heads_of

BATCH = 16
Grid = npt.NDArray[np.float64]


def can_look(model: Model, site: Site) -> bool:
    """Tell whether the head's attention can be computed: its block is of a kind whose parts are known."""
    return is_plain(model, site.layer)


@torch.inference_mode()
def mean_attention(model: Model, images: Images, rows: Rows, sites: Sequence[Site]) -> dict[Site, Grid]:
    """Average the attention of some heads.

    Parameters
    ----------
    model : Model
        In evaluation mode.
    images : Images
    rows : numpy.ndarray (R,)
        Which of them.
    sites : sequence of Site
        Heads for which ``can_look`` holds.

    Returns
    -------
    dict of Site to numpy.ndarray (grid rows, grid columns)
        Share of the head's attention that falls on each patch, averaged over images and over the tokens that the
        classifier reads (all, where it pools them). What falls on the prefix tokens is left out, so the sum is at
        most 1.
    """

    def paid(pixels: Pixels) -> dict[Site, torch.Tensor]:
        passed = _by_layer(model, as_input(model, pixels), {s.layer for s in sites})
        return {
            site: in_double(attention[:, site.head].mean(1).sum(0))
            for layer, attention in passed
            for site in sorted({s for s in sites if s.layer == layer})
        }

    parts = in_image_batches(paid, images, rows, size=BATCH)
    sums = {site: sum((part[site] for part in parts[1:]), start=first) for site, first in parts[0].items()}
    grid = tuple(int(n) for n in model.patch_embed.grid_size)
    prefix = int(model.num_prefix_tokens)
    return {site: (total[prefix:] / len(rows)).reshape(grid).numpy() for site, total in sums.items()}


def _by_layer(model: Model, images: torch.Tensor, layers: set[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield layer and attention (B, heads, tokens that are read, tokens), as far as the last of ``layers``."""
    body = adapter(model)
    stream = body.embed(images)
    for layer, block in enumerate(body.blocks[: max(layers) + 1]):
        if layer in layers:
            yield layer, attention_weights(block, stream, heads_of(model, layer), rows_read(model))
        stream = body.run(layer, stream)


def attention_weights(block: Block, stream: torch.Tensor, n_heads: int, rows: int | None) -> torch.Tensor:
    """Return the weights (B, heads, queries, tokens) of a block's attention; queries are the first ``rows``, or all."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(stream)).unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
    weights: torch.Tensor = (attention.scale * q[:, :, :rows] @ k.mT).softmax(-1)
    return weights
