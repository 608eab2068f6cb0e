"""The fast exact engine: every head of a layer in one batch, each patch started at its own layer.

A patch at layer l cannot change anything before l, so the engine starts from the recorded residual stream of the
recipient, adds ``u_h(donor) - u_h(recipient)``, and runs only what comes after. Where the classifier reads
prefix tokens only, the last block computes only their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.func import functional_call
from torch.nn import functional as F

from audit.batching import in_halves, max_batch_size
from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.models.blocks import attend, is_plain, rows_read
from audit.models.device import CPU, computing_in, device_of, memory_of, send
from audit.models.predict import finish
from audit.patching.hooks import replacing_head_outputs
from audit.patching.sites import Site, Trace, bias_output, head_outputs, heads_of

CACHED = 10 * 2**20  # bytes of a batch inside an MLP; more fall out of a processor's caches, and take longer each
ROWS_AT_ONCE = 128  # patched images in one batch; more do not pay, small as they may be
ROWS_ON_ACCELERATOR = 256  # fewer leave much of it idle
STREAMS = 8  # copies of the residual stream that a block holds at once, in addition to what its MLP holds
ROOM = 0.8  # of what is left of the memory's limit


@dataclass(frozen=True)
class Donor:
    """A model and its recorded forward pass, image for image beside the recipient's."""

    model: Model
    trace: Trace


def _continue(model: Model, layer: int, stream: torch.Tensor) -> torch.Tensor:
    """Return the logits from a residual stream (B, tokens, width) after the attention of ``layer``.

    Convolutions round differently where the same numbers lie in another order in memory.
    """
    return finish(model, adapter(model).after(layer, _read(model, layer, stream.contiguous())), layer + 1)


def _continue_all(model: Model, layer: int, streams: torch.Tensor) -> torch.Tensor:
    """Return logits (K, B, classes) of K streams (K, B, tokens, width), as many images at once as pay."""
    parts = streams.flatten(0, 1).split(rows_at_once(model, layer))
    logits: torch.Tensor = torch.cat([_continue(model, layer, part) for part in parts]).unflatten(0, streams.shape[:2])
    return logits


@dataclass(frozen=True)
class Patches:
    """M patches of one layer, each of one head. The numbers are in main memory, wherever the model is."""

    head: torch.Tensor  # (M,), 0-based
    # (M,), rows of the recipients' trace and of the donors'
    recipient: torch.Tensor
    donor: torch.Tensor

    @staticmethod
    def of_heads(heads: Sequence[int], recipient: torch.Tensor, donor: torch.Tensor) -> Patches:
        """Return the patches of each of ``heads`` for all pairs of rows, head by head."""
        n = len(recipient)
        return Patches(torch.tensor(heads).repeat_interleave(n), recipient.repeat(len(heads)), donor.repeat(len(heads)))

    def __len__(self) -> int:
        return len(self.head)

    def halves(self) -> tuple[Patches, Patches] | None:
        """Cut in two; None where there is one patch only."""
        if len(self) < 2:
            return None
        first, second = self.split((len(self) + 1) // 2)
        return first, second

    def split(self, size: int) -> Iterator[Patches]:
        """Cut into parts of at most ``size``."""
        columns = zip(self.head.split(size), self.recipient.split(size), self.donor.split(size), strict=True)
        return (Patches(*part) for part in columns)


def rows_at_once(model: Model, layer: int, precision: torch.dtype = torch.float32) -> int:
    """Return how many images patched at a layer are computed at once: as many as pay, or as fit into memory."""
    body = adapter(model)
    largest = max((body.sizes(i) for i in range(layer, body.depth)), key=lambda s: s.tokens * s.hidden)
    width, hidden, tokens = largest.width, largest.hidden, largest.tokens
    device = device_of(model)
    if device.type != CPU:
        most = ROWS_ON_ACCELERATOR
    elif precision != torch.float32:  # pays more for few rows than for memory
        most = ROWS_AT_ONCE // 2
    else:
        most = min(max(CACHED // (4 * tokens * hidden), 1), ROWS_AT_ONCE)
    return max_batch_size(most, 4 * tokens * (STREAMS * width + 2 * hidden), share=ROOM, free=memory_of(device))


@torch.inference_mode()
def patch(
    model: Model,
    recipient: Trace,
    donor: Donor,
    layer: int,
    patches: Patches,
    *,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Patch single heads of a layer, each patch by itself.

    Parameters
    ----------
    model : Model
        The recipients' model, in evaluation mode.
    recipient : Trace
        Its recorded pass over the recipients.
    donor : Donor
        The donors' recorded pass.
    layer : int
        0-based.
    patches : Patches
        Which heads, from which donor into which recipient.
    precision : torch.dtype, optional
        Of the matrix products after the patch. What the patch changes is computed in float32 whatever it is.

    Returns
    -------
    torch.Tensor (M, classes)
        The logits of each patch, in float32 (of a model in double precision, in that).
    """

    def logits_of(part: Patches) -> torch.Tensor:
        patched = _patched(model, recipient, donor, layer, part)
        with computing_in(precision, patched.device):
            return _continue(model, layer, patched)

    parts = patches.split(rows_at_once(model, layer, precision))
    patched = torch.cat([logits for part in parts for logits in in_halves(logits_of, part, Patches.halves)])
    return patched.to(torch.promote_types(patched.dtype, torch.float32))


def patch_layer(
    model: Model,
    recipient: Trace,
    donor: Donor,
    layer: int,
    heads: Sequence[int] | None = None,
    *,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Patch each head of a layer (or each of ``heads``), one at a time, row i of the donor's trace into recipient i.

    Parameters are those of :func:`patch`.

    Returns
    -------
    torch.Tensor (heads, B, classes)
        The logits with that head patched.
    """
    every = torch.arange(len(recipient.leaving))
    asked = range(heads_of(model, layer)) if heads is None else heads
    patches = Patches.of_heads(list(asked), every, every)
    logits = patch(model, recipient, donor, layer, patches, precision=precision)
    by_head: torch.Tensor = logits.unflatten(0, (len(asked), len(every)))
    return by_head


def _patched(model: Model, recipient: Trace, donor: Donor, layer: int, patches: Patches) -> torch.Tensor:
    """Return the residual streams (M, tokens, width) after a layer's attention, a head of each patched."""
    body = adapter(model)
    stream = _read(model, layer, body.residual_input(layer, recipient.entering[layer]))
    attention = _read(model, layer, recipient.attention[layer])
    rows, given_rows = (send(index, stream.device) for index in (patches.recipient, patches.donor))
    patched = stream[rows] + attention[rows]
    n_heads = body.units(layer)
    ours, theirs = (
        _read(model, layer, t.head_activations[layer]).unflatten(-1, (n_heads, -1)) for t in (recipient, donor.trace)
    )
    for head in patches.head.unique().tolist():
        at = send((patches.head == head).nonzero().squeeze(-1), stream.device)
        own, given = ours[rows[at], :, head], theirs[given_rows[at], :, head]
        if donor.model is model:
            change = body.head_output(layer, head, given - own)
        else:
            change = adapter(donor.model).head_output(layer, head, given) - body.head_output(layer, head, own)
        patched[at] += change
    return patched


@torch.inference_mode()
def transplant_layer(
    model: Model, recipient: Trace, donor: Model, layer: int, heads: Sequence[int] | None = None
) -> torch.Tensor:
    """Give each head of a layer (or each of ``heads``), one at a time, the donor's weights (its Q, K, V and O slices).

    The head still reads the recipient's residual stream: what it writes changes by its weights alone, not by what the
    donor's earlier layers would have told it. Norms and LayerScale stay the recipient's. A slice of channels takes the
    weights of the donor's whole branch, norms included, and is patched by itself.

    Returns
    -------
    torch.Tensor (heads, B, classes)
    """
    body, entering = adapter(model), recipient.entering[layer]
    caught: list[torch.Tensor] = []
    handles = body.listen(layer, caught, [], images=len(entering))
    try:
        functional_call(
            body.blocks[layer], adapter(donor).own_weights(layer), (entering,), dict(body.block_arguments(layer))
        )
    finally:
        for handle in handles:
            handle.remove()
    given = head_outputs(donor, layer, _read(model, layer, caught[0]), scale_from=model)
    change = given - head_outputs(model, layer, _read(model, layer, recipient.head_activations[layer]))
    change = change if heads is None else change[list(heads)]
    return add_to_stream(model, recipient, layer, change)


def _read(model: Model, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    """Keep of (..., tokens, width) after a layer's attention what can still reach the classifier."""
    rows = rows_read(model)
    return tokens if rows is None or layer < adapter(model).depth - 1 else tokens[..., :rows, :]


def _unpatched(model: Model, recipient: Trace, layer: int) -> torch.Tensor:
    """Return the recipients' residual stream after a layer's attention was added."""
    return adapter(model).residual_input(layer, recipient.entering[layer]) + recipient.attention[layer]


@torch.inference_mode()
def add_to_stream(model: Model, recipient: Trace, layer: int, change: torch.Tensor) -> torch.Tensor:
    """Return logits (K, B, classes) with each of ``change`` (K, B, tokens, width) added after a layer's attention."""
    after = _read(model, layer, _unpatched(model, recipient, layer))
    return _continue_all(model, layer, after.unsqueeze(0) + _read(model, layer, change))


@torch.inference_mode()
def patch_attention(model: Model, recipient: Trace, donor: Donor, layers: range) -> torch.Tensor:
    """Patch all heads of adjacent layers together; return the logits (B, classes).

    Every head writes what the donor's does, so nothing is left to attend to: between the layers only the MLPs run (in
    a convolutional network, what goes around the branches).
    The biases of the output projections, which belong to no head, stay the recipient's.
    """
    body, stream = adapter(model), recipient.entering[layers.start]
    for layer in layers:
        ours, theirs = (bias_output(m, layer) for m in (model, donor.model))
        added = _read(model, layer, donor.trace.attention[layer]) - theirs + ours
        stream = body.after(layer, _read(model, layer, body.residual_input(layer, stream)) + added)
    for layer in range(layers.stop, body.depth):
        stream = body.run(layer, stream)
    return body.classify(stream)


@torch.inference_mode()
def patch_together(model: Model, recipient: Trace, donor: Donor, sites: Sequence[Site]) -> torch.Tensor:
    """Patch several heads, of any layers, at once; return the logits (B, classes).

    Each head writes what the donor's does, instead of what it would write given the patches below it.
    """
    body = adapter(model)
    first, last = min(site.layer for site in sites), body.depth - 1
    rows = rows_read(model)
    stream = recipient.entering[first]
    for layer in range(first, body.depth):
        block, heads = body.blocks[layer], [site.head for site in sites if site.layer == layer]
        if not is_plain(model, layer):
            with replacing_head_outputs(model, _outputs_of(donor, layer, heads), images=len(stream)):
                stream = body.run(layer, stream)
            continue
        few = rows if layer == last else None
        head_activations, added = (
            attend(block, stream, few)
            if layer > first
            else (recipient.head_activations[layer], recipient.attention[layer])
        )
        if heads:
            change = _of_heads(donor.model, layer, donor.trace.head_activations[layer][:, :few], heads)
            added = added[:, :few] + change - _of_heads(model, layer, head_activations[:, :few], heads)
        stream = body.after(layer, stream[:, :few] + added)
    return body.classify(stream)


def _of_heads(model: Model, layer: int, head_activations: torch.Tensor, heads: list[int]) -> torch.Tensor:
    """Return what some heads of a layer write together: (B, tokens, width)."""
    body = adapter(model)
    assert isinstance(body, Heads)  # of a plain block
    every, weight = (
        t.unflatten(-1, (body.units(layer), -1)) for t in (head_activations, body.projection(layer).weight)
    )
    u = F.linear(every[..., heads, :].flatten(-2), weight[:, heads].flatten(1))
    gamma = body.scale(layer)
    return u if gamma is None else u * gamma


def _outputs_of(donor: Donor, layer: int, heads: list[int]) -> dict[Site, torch.Tensor]:
    given = head_outputs(donor.model, layer, donor.trace.head_activations[layer])
    return {Site(layer, head): given[head] for head in heads}


@torch.inference_mode()
def continue_unpatched(model: Model, recipient: Trace, layer: int, copies: int) -> torch.Tensor:
    """Return (copies, B, classes) logits by the engine's own path with no patch: the yardstick of a self-patch."""
    after = _unpatched(model, recipient, layer)
    return _continue_all(model, layer, after.unsqueeze(0).expand(copies, *after.shape))
