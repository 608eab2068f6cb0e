"""Who writes it into the answer: the log-odds as an exact sum of what was written into the residual stream.

With the statistics of each image's norms held as they were at the end, the logits are a linear map of the last stream
(``reading``), and that stream is a sum: the embedding, what every head adds, the bias of every attention, every MLP.
Where stages merge tokens, their norms are held too. So the log-odds are a sum over these parts, without a rest. It says
what is written at the end, not where it was first computed.

Several classes that exclude each other: ``m_c = l_c - sum_j q_j l_j - H(q)`` with q, the softmax over the other
classes, held; ``-H(q)`` is a part. Independent outputs: the logit itself.

In convolutional networks gates and maxima behind a write are held as well (``held``). Without a residual stream, what
the slices of one layer hand on is all there is at that depth: the parts are those of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from torch import nn

from audit.batching import in_batches, max_batch_size
from audit.errors import InputError
from audit.models.adapters.channels import Channels
from audit.models.adapters.heads import Heads
from audit.models.adapters.own import Adapted, Plain
from audit.models.adapters.registry import Model, adapter
from audit.models.adapters.windows import NormedWindows, Windowed
from audit.models.blocks import rows_read
from audit.models.device import device_of, in_double, memory_of
from audit.models.readout import readout_of
from audit.patching.contributions import Codes, Component, NotSummedError, Written, coefficients, joined
from audit.patching.held import parts_of
from audit.patching.reading import Part, Reading, reading_of
from audit.patching.sites import record, trace_bytes
from audit.records import PartKind, WhyNoLedger

AT_ONCE = 64  # images
BLOCKS_HELD = 4  # layers' worth of a trace that a pass holds at once where no more than a few tokens are kept


def written(
    model: Model,
    images: torch.Tensor,
    outcomes: Mapping[str, int],
    labels: Sequence[int] | Codes | None = None,
    *,
    cut: int | None = None,
) -> Written:
    """Return what every part of a network writes into the log-odds of some classes, image by image.

    One forward pass a batch (of a convolutional network, one back through what goes around the branches for each
    outcome besides); memory is bounded by the batch.

    Parameters
    ----------
    model : Model
        In evaluation mode.
    images : torch.Tensor (N, 3, H, W)
        Normalised, of the model's size.
    outcomes : mapping of str to int
        Names and class numbers.
    labels : sequence of int (N,), optional
        Codes from 0: writes are centred on their means over the images of one label. By default all have one.
    cut : int, optional
        Of a network without a residual stream, the layer whose slices are the parts; by default the last. Each layer is
        one complete cut, and layers are never added.

    Returns
    -------
    Written
        In the model's precision.

    Raises
    ------
    NotSummedError
        If the log-odds are no exact sum for a network of this kind; ``reason`` says why.
    """
    depth = adapter(model).depth
    if cut is not None and not (isinstance(adapter(model), Plain) and 0 <= cut < depth):
        raise InputError("cut", f"is {cut}", "name a layer of a network without a residual stream, counted from 0")
    last = depth - 1 if cut is None else cut
    codes = np.zeros(len(images), dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    device, highest = device_of(model), int(codes.max(initial=0)) + 1

    def batch(part: slice) -> Written:
        return _summed(model, images[part].to(device), outcomes, codes[part], highest, last)

    return joined(in_batches(batch, len(images), images_at_once(model)))


def images_at_once(model: Model) -> int:
    """Return how many images are taken at once: as many as pay, or as fit into memory."""
    body = adapter(model)
    held = trace_bytes(model) * (1.0 if _rows(model) is None else min(1.0, BLOCKS_HELD / body.depth))
    return max_batch_size(AT_ONCE, 2 * held, share=0.5, free=memory_of(device_of(model)))


def _rows(model: Model) -> int | None:
    """Return how many leading tokens the logits read, or None if they read all."""
    if isinstance(model, Beit | Eva):
        by_token = model.global_pool == "token" and getattr(model, "attn_pool", None) is None
        return int(model.num_prefix_tokens) if by_token else None
    return rows_read(model)


@torch.no_grad()
def _summed(
    model: Model,
    images: torch.Tensor,
    outcomes: Mapping[str, int],
    labels: npt.NDArray[np.int64],
    highest: int,
    cut: int,
) -> Written:
    """Return what is written for one batch."""
    body, exclusive, classes = adapter(model), readout_of(model).exclusive, tuple(outcomes.values())

    def along_of(logits: torch.Tensor) -> npt.NDArray[np.float64]:
        given = in_double(logits).numpy()
        return np.stack([coefficients(given, number, exclusive=exclusive) for number in classes], axis=2)

    if isinstance(body, Channels):
        trace = record(model, images)
        logits = body.classify(trace.leaving)
        along = along_of(logits)
        of_outcomes = [parts_of(body, trace, a, cut) for a in torch.from_numpy(along).to(logits).unbind(2)]
        parts = of_outcomes[0]
        added = torch.stack([torch.cat([p.logits for p in of], dim=1) for of in of_outcomes], dim=2)  # (B, K, O)
        values = added.cpu().numpy()
    else:
        logits, parts = _parts(model, images)
        along = along_of(logits)
        added = torch.stack([p.logits for p in parts], dim=1)  # (B, K, classes)
        values = (added @ torch.from_numpy(along).to(added)).cpu().numpy()
    scales = torch.stack([p.scale.expand(len(images)) for p in parts], dim=1)
    components = [p.component for p in parts]
    by_label = torch.zeros(highest, *added.shape[1:], dtype=torch.float64)
    by_label.index_add_(0, torch.from_numpy(labels), in_double(added / scales.unsqueeze(-1)))
    scales_of, sums = scales.cpu().numpy(), by_label.numpy()
    if exclusive and logits.shape[1] > 2:
        entropy = np.stack([_entropy(along[..., o], number) for o, number in enumerate(classes)], axis=1)
        values = np.concatenate([values, -entropy[:, None].astype(values.dtype)], axis=1)
        components.append(Component(PartKind.ENTROPY))
        scales_of, sums = np.pad(scales_of, ((0, 0), (0, 1)), constant_values=1), np.pad(sums, ((0, 0), (0, 1), (0, 0)))
    log_odds = readout_of(model).log_odds(logits)[:, list(classes)]
    return Written(
        components=tuple(components),
        outcomes=tuple(outcomes),
        values=values,
        log_odds=log_odds.cpu().numpy(),
        logits=logits.cpu().numpy(),
        classes=classes,
        exclusive=exclusive,
        by_class=not isinstance(body, Channels),
        scales=scales_of,
        labels=labels,
        sums=sums,
        counts=np.bincount(labels, minlength=highest),
    )


def _entropy(along: npt.NDArray[np.float64], number: int) -> npt.NDArray[np.float64]:
    """Return H(q) of each image, (N,), from the coefficients of its logits."""
    q = np.delete(-along, number, axis=1)
    entropy: npt.NDArray[np.float64] = -(q * np.log(np.where(q > 0, q, 1.0))).sum(axis=1)
    return entropy


@dataclass
class Pass:
    """What one forward pass leaves behind, tokens as rows: (B, T, W)."""

    entering: list[torch.Tensor] = field(default_factory=list)
    leaving: list[torch.Tensor] = field(default_factory=list)
    head_activations: dict[int, torch.Tensor] = field(default_factory=dict)
    together: dict[int, torch.Tensor] = field(default_factory=dict)  # what heads wrote, where a norm reads their sum
    mlp: dict[int, torch.Tensor] = field(default_factory=dict)
    merged: dict[int, torch.Tensor] = field(default_factory=dict)  # by the layer that leads to another stage


def _parts(model: Model, images: torch.Tensor) -> tuple[torch.Tensor, list[Part]]:
    """Return the logits and what each part adds to them, in the order of the pass."""
    body = adapter(model)
    if isinstance(body, Adapted):
        raise NotSummedError(WhyNoLedger.UNKNOWN_BLOCKS, type(model).__name__)
    assert isinstance(body, Heads)  # all others are convolutional
    kept = Pass()
    with listening(body, kept, _rows(model), len(images)):
        logits = model(images)
    read, behind = reading_of(model, kept.leaving[0])
    layers: list[list[Part]] = []
    for layer in reversed(range(body.depth)):
        own, read = _of_layer(body, layer, kept, read)
        layers.append(own)
    entering = _of_entering(model, kept.entering[0], read)
    return logits, [*entering, *(part for own in reversed(layers) for part in own), *behind]


def _of_layer(body: Heads, layer: int, kept: Pass, read: Reading) -> tuple[list[Part], Reading]:
    """Return what a layer adds to the logits, and what they read of the stream that enters it."""
    between: list[Part] = []
    if layer in kept.merged:
        after, scale = read.constant, read.scale
        read = read.through_merging(body.modules(layer)[1], kept.merged[layer])
        between = [Part(Component(PartKind.BIASES, layer), read.constant - after, scale)]
        read = replace(read, constant=torch.zeros_like(after))
    heads, at_heads = read, read.weights
    if isinstance(body, NormedWindows):
        heads = read.through_norm(body.blocks[layer].norm1, kept.together[layer])
        at_heads = heads.weights
    if isinstance(body, Windowed):
        rows, columns = body.blocks[layer].input_resolution
        laid_out = at_heads.transpose(1, 2).unflatten(1, (rows, columns))
        at_heads = body.windows_of(layer, laid_out).transpose(1, 2)
    projection, gamma = body.projection(layer), body.scale(layer)
    out = projection.weight if gamma is None else projection.weight * gamma.unsqueeze(1)
    each = replace(heads, weights=at_heads).of_units(kept.head_activations[layer], out, body.units(layer))
    parts = [Part(Component(PartKind.HEAD, layer, h), each[:, h], heads.scale) for h in range(each.shape[1])]
    bias = heads.constant
    if projection.bias is not None:
        bias = bias + heads.of_all(projection.bias if gamma is None else projection.bias * gamma)
    parts.append(Part(Component(PartKind.ATTENTION_BIAS, layer), bias, heads.scale))
    parts.append(Part(Component(PartKind.MLP, layer), read.of(kept.mlp[layer]), read.scale))
    return [*parts, *between], read


def _of_entering(model: Model, entering: torch.Tensor, read: Reading) -> list[Part]:
    """Return what the embedding adds to the logits: tokens that stand before the patches, and patches."""
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    ends = [(PartKind.TOKENS, slice(0, prefix)), (PartKind.PATCHES, slice(prefix, None))]
    return [
        Part(Component(kind), replace(read, weights=read.weights[..., at]).of(entering[:, at]), read.scale)
        for kind, at in ends
        if entering[:, at].shape[1]
    ]


@contextmanager
def listening(body: Heads, kept: Pass, rows: int | None, images: int) -> Iterator[None]:
    """Keep what a pass writes for the length of a block, of the first ``rows`` tokens where no others are read."""

    def few(tokens: torch.Tensor) -> torch.Tensor:
        flat = tokens.flatten(1, -2)
        return flat if rows is None else flat[:, :rows].clone()

    def keep(where: dict[int, torch.Tensor], layer: int, lay_out: Callable[[Any], torch.Tensor]) -> Callable[..., None]:
        return lambda _module, _args, out=None: where.__setitem__(layer, lay_out(_args[0] if out is None else out))

    def before(module: nn.Module, hook: Callable[..., None]) -> None:
        stack.callback(module.register_forward_pre_hook(hook).remove)

    def after(module: nn.Module, hook: Callable[..., None]) -> None:
        stack.callback(module.register_forward_hook(hook).remove)

    with ExitStack() as stack:
        after(body.stem(), lambda _module, _args, out: kept.entering.append(few(out)))
        before(body.end(), lambda _module, args: kept.leaving.append(few(args[0])))
        for i in range(body.depth):
            lay_out = lambda z, i=i: few(body.head_activations_of(i, z, images))  # noqa: E731
            before(body.projection(i), keep(kept.head_activations, i, lay_out))
            after(body.branches(i)[1], keep(kept.mlp, i, few))
            if isinstance(body, NormedWindows):
                before(body.blocks[i].norm1, keep(kept.together, i, few))
            for merging in body.modules(i)[1:]:
                before(merging, keep(kept.merged, i, lambda stream: stream))
        yield
