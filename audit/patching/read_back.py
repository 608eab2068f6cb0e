"""One step back: what a part of the network that writes the log-odds reads of what was written before it.

A head is linear in the stream that enters its layer once its attention and the scales of its norm are held; an MLP is
once its norm and its gates are, ``act(z) = g z`` with ``g = act(z) / z`` as it was (of GELU ``g`` is the normal
distribution function of z). So what either writes into the log-odds is a sum over what was written before, token by
token, and a constant. Nothing is approximated; what is held is not explained. It is one step, and no more: what an
earlier part wrote is itself made of what that part read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.mlp import Mlp
from torch import nn
from torch.nn import functional as F

from audit.batching import in_batches, max_batch_size
from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.models.blocks import is_plain, rows_read
from audit.models.device import device_of, in_double, memory_of
from audit.models.readout import readout_of
from audit.patching.attention import attention_weights
from audit.patching.contributions import Component, coefficients
from audit.patching.reading import held_scale, reading_of
from audit.patching.sites import trace_bytes
from audit.patching.written import AT_ONCE, Pass, listening
from audit.records import PartKind

PASSES = 4.0  # recorded passes' worth of memory that an image takes
AT_ZERO = 0.5  # the gate of what is exactly 0, on which nothing hangs

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Writes:
    """What is written before a layer and by its heads, token by token: of B images, of one, or the mean of many."""

    entering: torch.Tensor  # (..., T, W)
    heads: tuple[torch.Tensor, ...]  # (..., T, heads * head width) by layer: z, before the output projection
    mlps: tuple[torch.Tensor, ...]  # (..., T, W) by layer

    @property
    def every(self) -> tuple[torch.Tensor, ...]:
        """All of it, in the order in which ``flat`` has it."""
        return (self.entering, *self.heads, *self.mlps)

    def flat(self) -> npt.NDArray[np.float64]:
        """Return all numbers one after the other."""
        return torch.cat([in_double(part).reshape(-1) for part in self.every]).numpy()

    def over_images(self, of: Callable[[torch.Tensor], torch.Tensor]) -> Writes:
        """Return the same function of all parts."""
        return self.with_parts([of(part) for part in self.every])

    def with_parts(self, parts: Sequence[torch.Tensor]) -> Writes:
        """Return other parts, in the same order."""
        heads = 1 + len(self.heads)
        return Writes(parts[0], tuple(parts[1:heads]), tuple(parts[heads:]))

    def of_one(self, numbers: Array) -> Writes:
        """Return the writes of one image from their numbers, on the device and in the precision of these."""
        one = [part[0] for part in self.every]
        parts = np.split(numbers, np.cumsum([part.numel() for part in one])[:-1])
        return self.with_parts([torch.tensor(n).to(p).reshape(p.shape) for n, p in zip(parts, one, strict=True)])

    def minus(self, mean: Writes) -> Writes:
        """Return these, counted from their mean."""
        return self.with_parts([part - of_mean for part, of_mean in zip(self.every, mean.every, strict=True)])


@dataclass(frozen=True)
class Read:
    """What one part of the network writes into the log-odds, by what it reads; N images, O outcomes, nats."""

    writer: Component
    sources: tuple[Component, ...]
    values: Array  # (N, K, O), of what each source wrote, counted from its mean
    places: Array  # (N, O, T), the same of all sources together, by the token at which it was read
    reference: Array  # (N, O), what the means, and the biases on the way, would have had it write
    own: Array  # (N, O), what it writes

    @property
    def closure(self) -> float:
        """Largest |sum - what it writes|, as a share of the largest of these or of 1 nat."""
        if not self.own.size:
            return 0.0
        total = self.values.sum(axis=1, dtype=np.float64) + self.reference
        return float(np.abs(total - self.own).max() / max(1.0, float(np.abs(self.own).max())))


def can_read(model: Model, writer: Component) -> bool:
    """Tell whether what a head or an MLP reads can be said: its block is of a kind whose parts are known."""
    if writer.layer is None or not is_plain(model, writer.layer):
        return False
    if writer.kind == PartKind.HEAD:
        return True
    mlp = adapter(model).blocks[writer.layer].mlp
    known = type(mlp) is Mlp and isinstance(mlp.norm, nn.Identity) and isinstance(mlp.fc1, nn.Linear)
    return writer.kind == PartKind.MLP and known and bool(mlp.act(torch.zeros(1)).item() == 0)


def sum_of_writes(model: Model, images: torch.Tensor, layer: int) -> Writes:
    """Return what was written up to the heads of a layer, summed over images (N, 3, H, W), in double precision."""

    def batch(part: slice) -> Writes:
        kept = _pass(model, images[part].to(device_of(model)), [])[1]
        return _writes(kept, layer).over_images(lambda write: in_double(write).sum(0))

    parts = in_batches(batch, len(images), _images_at_once(model))
    return parts[0].with_parts([torch.stack(same).sum(0) for same in zip(*(p.every for p in parts), strict=True)])


def read_back(
    model: Model,
    images: torch.Tensor,
    outcomes: Mapping[str, int],
    writers: Sequence[Component],
    mean: Array | None = None,
) -> list[Read]:
    """Return what some heads and MLPs read, image by image.

    One forward pass a batch, and of each writer one way back through its own weights.

    Parameters
    ----------
    model : Model
        In evaluation mode.
    images : torch.Tensor (N, 3, H, W)
        Normalised, of the model's size.
    outcomes : mapping of str to int
        Names and class numbers.
    writers : sequence of Component
        For which ``can_read`` holds.
    mean : numpy.ndarray, optional
        What writes are counted from: ``flat`` of the mean of the writes up to the last writer's layer. By default 0.

    Returns
    -------
    list of Read
        In the model's precision, in the order of the writers.

    Raises
    ------
    NotSummedError
        If the log-odds are no exact sum for a network of this kind; ``reason`` says why.
    """

    def batch(part: slice) -> list[Read]:
        return _read(model, images[part].to(device_of(model)), outcomes, writers, mean)

    found = in_batches(batch, len(images), _images_at_once(model))
    return [_joined(of_writer) for of_writer in zip(*found, strict=True)]


def last_layer(writers: Sequence[Component]) -> int:
    """Return the deepest layer of some writers."""
    return max(writer.layer or 0 for writer in writers)


def _images_at_once(model: Model) -> int:
    return max_batch_size(AT_ONCE, PASSES * trace_bytes(model), share=0.5, free=memory_of(device_of(model)))


def _joined(parts: Sequence[Read]) -> Read:
    numbers = ("values", "places", "reference", "own")
    together = (np.concatenate([getattr(part, name) for part in parts]) for name in numbers)
    return Read(parts[0].writer, parts[0].sources, *together)


@torch.no_grad()
def _pass(
    model: Model, images: torch.Tensor, normed: Sequence[nn.Module]
) -> tuple[torch.Tensor, Pass, dict[nn.Module, torch.Tensor]]:
    """Return the logits, what a pass left behind, and what entered some norms."""
    kept = Pass()
    with listening(_body(model), kept, None, len(images)), _inputs_of(normed) as entered:
        logits = model(images)
    return logits, kept, entered


@contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, torch.Tensor]]:
    """Keep what enters some modules."""
    entered: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        entered[module] = args[0]

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(keep).remove)
        yield entered


def _body(model: Model) -> Heads:
    body = adapter(model)
    assert isinstance(body, Heads)  # of others ``can_read`` is false
    return body


def _writes(kept: Pass, layer: int) -> Writes:
    """Return what was written up to the heads of a layer."""
    heads = tuple(kept.head_activations[i] for i in range(layer + 1))
    return Writes(kept.entering[0], heads, tuple(kept.mlp[i] for i in range(layer)))


@torch.no_grad()
def _read(
    model: Model, images: torch.Tensor, outcomes: Mapping[str, int], writers: Sequence[Component], mean: Array | None
) -> list[Read]:
    """Return what writers read of one batch."""
    body = _body(model)
    norms = [_norm(body, writer) for writer in writers]
    logits, kept, entered = _pass(model, images, norms)
    writes = _writes(kept, last_layer(writers))
    means = writes.over_images(lambda part: torch.zeros_like(part[0])) if mean is None else writes.of_one(mean)
    apart = writes.minus(means)
    at_end = _at_end(model, logits, kept.leaving[0], outcomes)
    found = []
    for writer, norm in zip(writers, norms, strict=True):
        linear = _of_head if writer.kind == PartKind.HEAD else _of_mlp
        at_stream, constant = linear(body, writer, entered[norm], at_end, rows_read(model))
        sources, read = _read_by_source(body, writer, apart, at_stream)
        reference = constant + torch.einsum("botw,tw->bo", at_stream, _stream(body, writer, means))
        own = torch.einsum("botw,btw->bo", at_end, _written(body, writer, kept))
        numbers = {"values": read.sum(-1), "places": read.sum(1), "reference": reference, "own": own}
        found.append(Read(writer, sources, **{name: number.cpu().numpy() for name, number in numbers.items()}))
    return found


def _at_end(model: Model, logits: torch.Tensor, leaving: torch.Tensor, outcomes: Mapping[str, int]) -> torch.Tensor:
    """Return what the log-odds read of the stream that leaves the last layer, (B, O, T, W)."""
    given, exclusive = in_double(logits).numpy(), readout_of(model).exclusive
    along = np.stack([coefficients(given, number, exclusive=exclusive) for number in outcomes.values()], axis=2)
    reading, _ = reading_of(model, leaving)
    directions = torch.einsum("bco,rcw->brow", torch.from_numpy(along).to(logits), reading.directions)
    return torch.einsum("brt,brow->botw", reading.weights, directions)


def _norm(body: Heads, writer: Component) -> nn.Module:
    """Return the norm through which a part reads the stream."""
    block = body.blocks[writer.layer or 0]
    norm: nn.Module = block.norm1 if writer.kind == PartKind.HEAD else block.norm2
    return norm


def _out(body: Heads, layer: int) -> torch.Tensor:
    """Return what heads write to the stream for what they hold, (W, heads * head width)."""
    weight: torch.Tensor = body.projection(layer).weight
    gamma = body.scale(layer)
    return weight if gamma is None else weight * gamma.unsqueeze(1)


def _own_part(body: Heads, writer: Component) -> slice:
    """Return which part of what its layer's heads hold is a head's own."""
    layer, index = writer.layer or 0, writer.index or 0
    width = int(body.projection(layer).in_features) // body.units(layer)
    return slice(index * width, (index + 1) * width)


def _written(body: Heads, writer: Component, kept: Pass) -> torch.Tensor:
    """Return what a part writes into the stream, (B, T, W)."""
    layer = writer.layer or 0
    if writer.kind == PartKind.MLP:
        return kept.mlp[layer]
    own = _own_part(body, writer)
    return kept.head_activations[layer][..., own] @ _out(body, layer)[:, own].mT


def _of_head(
    body: Heads, writer: Component, entering: torch.Tensor, at_end: torch.Tensor, rows: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a head reads of the stream that enters its layer (B, O, T, W), and a constant (B, O)."""
    layer, own = writer.layer or 0, _own_part(body, writer)
    block = body.blocks[layer]
    attention = attention_weights(block, entering, body.units(layer), rows)[:, writer.index]
    at_held = at_end[:, :, :rows] @ _out(body, layer)[:, own]
    at_values = torch.einsum("bts,botd->bosd", attention, at_held)
    inner = int(body.projection(layer).in_features)
    weight, bias = block.attn.qkv.weight[2 * inner :][own], block.attn.qkv.bias
    constant = at_values.new_zeros(at_values.shape[:2])
    if bias is not None:
        constant = constant + at_values.sum(2) @ bias[2 * inner :][own]
    return _through_norm(block.norm1, entering, at_values @ weight, constant)


def _of_mlp(
    body: Heads, writer: Component, entering: torch.Tensor, at_end: torch.Tensor, rows: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what an MLP reads of the stream that enters its norm (B, O, T, W), and a constant (B, O)."""
    block = body.blocks[writer.layer or 0]
    seen, at_write = entering[:, :rows], at_end[:, :, :rows]
    gamma = getattr(block.ls2, "gamma", None)
    at_write = at_write if gamma is None else at_write * gamma
    inside = block.mlp.fc1(block.norm2(seen))
    gates = torch.where(inside == 0, AT_ZERO, block.mlp.act(inside) / inside)
    at_inside = (at_write @ block.mlp.fc2.weight) * gates.unsqueeze(1)
    constant = at_write.new_zeros(at_write.shape[:2])
    for at, bias in ((at_write, block.mlp.fc2.bias), (at_inside, block.mlp.fc1.bias)):
        if bias is not None:
            constant = constant + at.sum(2) @ bias
    at_seen, constant = _through_norm(block.norm2, seen, at_inside @ block.mlp.fc1.weight, constant)
    return F.pad(at_seen, (0, 0, 0, entering.shape[1] - seen.shape[1])), constant


def _through_norm(
    norm: nn.Module, entering: torch.Tensor, at_normed: torch.Tensor, constant: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is read of the input of a norm, its scale held, given what is read of its output."""
    if isinstance(norm, nn.Identity):
        return at_normed, constant
    scale, centres = held_scale(norm, entering)
    gain, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if shift is not None:
        constant = constant + at_normed.sum(2) @ shift
    at_input = at_normed if gain is None else at_normed * gain
    if centres:
        at_input = at_input - at_input.mean(-1, keepdim=True)
    return at_input * scale[:, None, :, None], constant


def _layers_read(writer: Component) -> tuple[int, int]:
    """Return of how many layers a part reads the heads, and of how many the MLPs."""
    layer = writer.layer or 0
    return layer + (writer.kind == PartKind.MLP), layer


def _read_by_source(
    body: Heads, writer: Component, writes: Writes, at_stream: torch.Tensor
) -> tuple[tuple[Component, ...], torch.Tensor]:
    """Return the sources of a part, and what it reads of each at each token (B, K, O, T)."""

    def along(write: torch.Tensor) -> torch.Tensor:
        return torch.einsum("botw,btw->bot", at_stream, write)

    whole, prefix = along(writes.entering), body.prefix_tokens
    is_prefix = torch.arange(whole.shape[-1], device=whole.device) < prefix
    sources, read = [Component(PartKind.PATCHES)], [whole * ~is_prefix]
    if prefix:
        sources, read = [Component(PartKind.TOKENS), *sources], [whole * is_prefix, *read]
    of_heads, of_mlps = _layers_read(writer)
    for layer in range(of_heads):
        products = (at_stream @ _out(body, layer)) * writes.heads[layer].unsqueeze(1)
        read += products.unflatten(-1, (body.units(layer), -1)).sum(-1).unbind(-1)
        sources += [Component(PartKind.HEAD, layer, head) for head in range(body.units(layer))]
        if layer < of_mlps:
            read.append(along(writes.mlps[layer]))
            sources.append(Component(PartKind.MLP, layer))
    return tuple(sources), torch.stack(read, dim=1)


def _stream(body: Heads, writer: Component, writes: Writes) -> torch.Tensor:
    """Return the stream (T, W) that a part would read if this had been written, biases of attentions included."""
    of_heads, of_mlps = _layers_read(writer)
    stream = writes.entering
    for layer in range(of_heads):
        stream = stream + writes.heads[layer] @ _out(body, layer).mT + body.bias(layer)
    return torch.stack([stream, *writes.mlps[:of_mlps]]).sum(0)
