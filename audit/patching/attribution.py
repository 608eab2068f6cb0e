"""Attribution patching: a first-order estimate of every head's patch at once, from one backward pass an outcome.

What a head writes enters the residual stream as a sum, so the gradient with respect to it is the gradient with respect
to the stream after that layer's attention, the same for all heads of the layer. The estimate of a patch is its inner
product with the change of the write (Nanda 2023). It is taken of a class's log-odds, and carried to the probability by
the logistic function, which saturates as softmax does. It is still wrong where the model is far from linear between
recipient and donor: effects that cancel, points without slope. It says where to look, and lets fewer exact patches
suffice; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from audit.models.adapters.registry import Model, adapter
from audit.patching.engine import Donor
from audit.patching.sites import Trace, heads_of, listening

Slopes = Mapping[int, torch.Tensor]  # by layer: (B, tokens, width)
HeadActivations = Mapping[int, torch.Tensor]  # by layer: z (B, tokens, heads * head width)


@dataclass(frozen=True)
class Linearised:
    """A recorded pass, its logits (B, classes), and the slopes of scalars of them, by the scalar's name."""

    trace: Trace
    logits: torch.Tensor
    slopes: Mapping[str, Slopes]


def linearise(
    model: Model,
    images: torch.Tensor,
    scalars: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    layers: range,
) -> Linearised:
    """Run images once forward, and once backward a scalar.

    Parameters
    ----------
    model : Model
        In evaluation mode.
    images : torch.Tensor (B, 3, H, W)
    scalars : mapping of str to callable
        Each from logits (B, classes) to (B,), such as a class's log-odds.
    layers : range
        At which layers the slopes are wanted, 0-based. Blocks before the first are run without a graph.

    Returns
    -------
    Linearised
        The trace as ``record`` makes it, and for each scalar the gradient with respect to the residual stream after the
        attention of each of ``layers``.
    """
    entering: list[torch.Tensor] = []
    attention: list[torch.Tensor] = []
    head_activations: list[torch.Tensor] = []
    probes: dict[int, torch.Tensor] = {}
    body = adapter(model)
    with torch.no_grad():
        stream = body.embed(images)
    with (
        listening(model, head_activations, attention, images=len(images)),
        _probing(model, layers, probes),
        torch.enable_grad(),
    ):
        for layer in range(body.depth):
            entering.append(stream)
            stream = body.run(layer, stream)
        logits = body.classify(stream)
    slopes = {}
    for name, scalar in scalars.items():
        with torch.enable_grad():
            found = torch.autograd.grad(scalar(logits).sum(), [probes[i] for i in layers], retain_graph=True)
        slopes[name] = dict(zip(layers, found, strict=True))
    entered, added, inside = ([t.detach() for t in part] for part in (entering, attention, head_activations))
    return Linearised(Trace(entered, added, inside, stream.detach()), logits.detach(), slopes)


@contextmanager
def _probing(model: Model, layers: range, probes: dict[int, torch.Tensor]) -> Iterator[None]:
    """Add a zero to each layer's attention output, whose gradient is the slope there; hooks are gone afterwards."""

    def probe(layer: int) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
        def hook(_module: nn.Module, _args: object, out: torch.Tensor) -> torch.Tensor:
            probes[layer] = torch.zeros_like(out, requires_grad=True)
            return out + probes[layer]

        return hook

    with ExitStack() as stack:
        for i in layers:
            stack.callback(adapter(model).output_module(i).register_forward_hook(probe(i)).remove)
        yield


@torch.inference_mode()
def attribute(model: Model, recipient: HeadActivations, donor: HeadActivations, slopes: Slopes) -> torch.Tensor:
    """Estimate what patching each head by itself does to the scalar whose slopes are given, from every donor.

    Parameters
    ----------
    model : Model
        The recipients' and the donors'.
    recipient : mapping of int to torch.Tensor (B, tokens, heads * head width)
        By layer the input of its output projection (z), for the B images of the slopes.
    donor : mapping of int to torch.Tensor (D, tokens, heads * head width)
        Likewise, for D images.
    slopes : mapping of int to torch.Tensor (B, tokens, width)
        From ``linearise``.

    Returns
    -------
    torch.Tensor (B, D, K)
        The estimated change of the scalar, for each head of each layer of ``slopes``.
    """
    columns = []
    for layer, slope in slopes.items():
        at_z, n_heads = adapter(model).gradient_at_heads(layer, slope), heads_of(model, layer)
        along, own, given = (_by_head(t, n_heads) for t in (at_z, recipient[layer], donor[layer]))
        columns.append(along @ given.mT - (along * own).sum(-1, keepdim=True))
    return torch.cat(columns).permute(1, 2, 0)


@torch.inference_mode()
def attribute_pairs(model: Model, recipient: Trace, donor: Donor, slopes: Slopes) -> torch.Tensor:
    """Estimate what patching each head by itself does to the scalar whose slopes are given, row i into recipient i.

    The donor may be another model; its heads write with its own weights.

    Parameters
    ----------
    model : Model
        The recipients'.
    recipient : Trace
        Its recorded pass over B images, those of the slopes.
    donor : Donor
        B images beside them.
    slopes : mapping of int to torch.Tensor (B, tokens, width)
        From ``linearise``.

    Returns
    -------
    torch.Tensor (B, K)
        The estimated change of the scalar, for each head of each layer of ``slopes``.
    """
    columns = []
    for layer, slope in slopes.items():
        n_heads = heads_of(model, layer)
        given, own = (
            (adapter(m).gradient_at_heads(layer, slope) * trace.head_activations[layer])
            .unflatten(-1, (n_heads, -1))
            .sum((1, 3))
            for m, trace in ((donor.model, donor.trace), (model, recipient))
        )
        columns.append(given - own)
    return torch.cat(columns, dim=1)


def _by_head(head_activations: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Turn (B, tokens, heads * head width) into (heads, B, tokens * head width)."""
    by_head: torch.Tensor = head_activations.unflatten(-1, (n_heads, -1)).movedim(-2, 0).flatten(2)
    return by_head
