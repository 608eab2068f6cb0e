"""Where a head writes: the sites of a model, and a record of one forward pass at all of them.

What head h of a layer adds to the residual stream is ``u_h = gamma * W_O[:, h] z_h``: z_h is the head's slice of
the input of the output projection, W_O[:, h] the columns of that projection that read it, gamma the LayerScale where
the model has one. The projection's bias belongs to no head. In a convolutional network a slice of channels takes the
head's place, and u_h is those channels of what the block adds. Where these parts are, and how the stream lies, differs
between architectures and is in ``audit.models.adapters``; "head" below is either, "tokens" are rows and columns
where the stream has them, which in a convolutional network come after the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from audit.models.adapters.registry import Model, adapter


@dataclass(frozen=True, order=True)
class Site:
    """One attention head or slice of channels, counted from 0."""

    layer: int
    head: int


def heads_of(model: Model, layer: int) -> int:
    """Return how many heads a layer has."""
    return adapter(model).units(layer)


def sites_of(model: Model, layers: range | None = None) -> list[Site]:
    """Return all heads, layer by layer; of some layers only where ``layers`` is given."""
    body = adapter(model)
    return [Site(i, h) for i in (range(body.depth) if layers is None else layers) for h in range(body.units(i))]


def bias_output(model: Model, layer: int) -> torch.Tensor | float:
    """Return what the output projection's bias, which belongs to no head, adds to the residual stream: (width,)."""
    return adapter(model).bias(layer)


@dataclass(frozen=True)
class Trace:
    """One forward pass of B images, kept at every layer."""

    entering: list[torch.Tensor]  # (B, tokens, width), the residual stream before each block
    # (B, tokens, width), what each block's attention adds to it, LayerScale and bias included
    attention: list[torch.Tensor]
    # (B, tokens, heads * head width), the input of each output projection (z in the literature)
    head_activations: list[torch.Tensor]
    leaving: torch.Tensor  # (B, tokens, width), the residual stream after the last block

    def take(self, rows: torch.Tensor) -> Trace:
        """Return the trace of some of the images."""
        rows = rows.to(self.leaving.device)
        return Trace(
            [t[rows] for t in self.entering],
            [t[rows] for t in self.attention],
            [t[rows] for t in self.head_activations],
            self.leaving[rows],
        )


def trace_bytes(model: Model) -> int:
    """Return the size of one image's trace in float32."""
    body = adapter(model)
    leaving = body.sizes(body.depth - 1)
    return 4 * (sum(map(body.traced, range(body.depth))) + leaving.tokens * leaving.width)


@torch.inference_mode()
def record(model: Model, images: torch.Tensor, *, prefix: Trace | None = None, start: int = 0) -> Trace:
    """Run ``images`` (B, 3, H, W) through the model and keep what patching needs.

    Parameters
    ----------
    prefix : Trace, optional
        The same images through a model that is this one up to block ``start``: what it holds of those blocks is
        taken over, not computed again.
    start : int
        First block that is run where ``prefix`` is given.
    """
    body = adapter(model)
    if prefix is None:
        entering, attention, head_activations, start = [], [], [], 0
        stream = body.embed(images)
    else:
        entering, attention, head_activations = (
            prefix.entering[:start],
            prefix.attention[:start],
            prefix.head_activations[:start],
        )
        stream = prefix.entering[start]
    with listening(model, head_activations, attention, images=len(images)):
        for layer in range(start, body.depth):
            entering.append(stream)
            stream = body.run(layer, stream)
    return Trace(entering, attention, head_activations, stream)


def same_up_to(a: Model, b: Model, start: int) -> bool:
    """Tell whether two models are one, bit for bit, up to block ``start``, so that they can share a pass."""
    ours, theirs = ({k: v for k, v in m.state_dict().items() if not k.startswith(_after(m, start))} for m in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def _after(model: Model, start: int) -> tuple[str, ...]:
    """Return the prefixes of the names of what comes after block ``start``."""
    body = adapter(model)
    later = (name for layer in range(start, body.depth) for name in body.names(layer))
    return (*(f"{part}." for part in body.last), *later)


@contextmanager
def listening(
    model: Model, head_activations: list[torch.Tensor], attention: list[torch.Tensor], *, images: int
) -> Iterator[None]:
    """Append what each layer's heads hold and what they add to the stream; hooks are gone afterwards."""
    body = adapter(model)
    handles = [h for layer in range(body.depth) for h in body.listen(layer, head_activations, attention, images=images)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def head_outputs(
    model: Model, layer: int, head_activations: torch.Tensor, *, scale_from: Model | None = None
) -> torch.Tensor:
    """Return u of every head of a layer.

    Parameters
    ----------
    model : Model
        Its own output projection is used.
    layer : int
        0-based.
    head_activations : torch.Tensor (B, tokens, heads * head width)
        From the same model and layer.
    scale_from : Model, optional
        Whose LayerScale is used instead of the model's own.

    Returns
    -------
    torch.Tensor (heads, B, tokens, width)
    """
    return adapter(model).head_outputs(layer, head_activations, scale_from=adapter(scale_from or model))
