"""What the log-odds read of a convolutional network's stream, with gates, maxima and norms' statistics held.

What leads from a block's write to the logits, other blocks' branches left out, is then linear but for its biases: a
rectifier that follows an addition passes on what it passed on, a maximum is taken where it was. So the gradient of that
path, in which norms' deviations count as constants, times the write is what the write adds, exactly. What the path
makes of nothing, its biases through the held gates, is what remains. A path that is not of this kind shows it: the
gradient of its gradient is not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from timm.layers.norm import RmsNorm
from torch import nn

from audit.models.adapters.base import Adapter
from audit.models.adapters.channels import Channels
from audit.models.adapters.own import Plain
from audit.patching.contributions import Component, NotSummedError
from audit.patching.reading import Part
from audit.patching.sites import Trace
from audit.records import PartKind, WhyNoLedger

CURVED = 1e-5  # share of the gradient that its own gradient may reach by rounding
Path = Callable[[torch.Tensor], torch.Tensor]


def parts_of(body: Channels, trace: Trace, along: torch.Tensor, cut: int) -> list[Part]:
    """Return what every slice, the stem and the biases add to one outcome's log-odds; their classes are that one.

    Parameters
    ----------
    body : Channels
    trace : Trace
        Of B images.
    along : torch.Tensor (B, classes)
        What each logit counts in the log-odds.
    cut : int
        Of a network without a residual stream, the layer whose slices are the parts: each layer is one complete cut.
    """
    with _holding(body.model):
        if isinstance(body, Plain):
            return _of_cut(body, trace.attention[cut], along, cut)
        return _of_stream(body, trace, along)


def _of_cut(body: Plain, write: torch.Tensor, along: torch.Tensor, cut: int) -> list[Part]:
    def rest(stream: torch.Tensor) -> torch.Tensor:
        stream = body.after(cut, stream)
        for layer in range(cut + 1, body.depth):
            stream = body.run(layer, stream)
        return body.classify(stream)

    slope, biases = _pull_back(rest, write, along)
    return [*_slices(body, cut, write, slope), _part(PartKind.BIASES, cut, biases)]


def _of_stream(body: Channels, trace: Trace, along: torch.Tensor) -> list[Part]:
    """Follow the stream back from the logits: at each layer what its slices wrote, and biases on the way around it."""
    slope, constant = _pull_back(body.classify, trace.leaving, along)
    layers: list[list[Part]] = []
    for layer in reversed(range(body.depth)):
        entering, write = trace.entering[layer], trace.attention[layer]
        added = body.residual_input(layer, entering) + write
        slope, behind = _pull_back(lambda s, i=layer: body.after(i, s), added, slope)  # type: ignore[misc]
        own = _slices(body, layer, write, slope)
        slope, around = _pull_back(lambda s, i=layer: body.residual_input(i, s), entering, slope)  # type: ignore[misc]
        layers.append([*own, _part(PartKind.BIASES, layer, around + behind)])
    stem = _part(PartKind.PATCHES, None, (slope * trace.entering[0]).flatten(1).sum(1))
    return [stem, *(part for own in reversed(layers) for part in own), _part(PartKind.CONSTANT, None, constant)]


def _slices(body: Adapter, layer: int, write: torch.Tensor, slope: torch.Tensor) -> list[Part]:
    """Return what each slice of channels of a write adds."""
    by_channel = (slope * write).flatten(2).sum(2) if write.ndim > 2 else slope * write
    each = by_channel.unflatten(1, (body.units(layer), -1)).sum(2)
    return [_part(PartKind.SLICE, layer, each[:, k], k) for k in range(each.shape[1])]


def _part(kind: PartKind, layer: int | None, added: torch.Tensor, index: int | None = None) -> Part:
    return Part(Component(kind, layer, index), added.unsqueeze(1), torch.ones_like(added))


def _pull_back(path: Path, entering: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of ``slope . path(entering)``, and what remains of it besides gradient times ``entering``.

    Raises
    ------
    NotSummedError
        If the path is curved although norms are held.
    """
    _check_straight(path, entering[:1], slope[:1])
    with torch.enable_grad():
        start = entering.clone().requires_grad_()
        whole = (path(start.clone()) * slope).flatten(1).sum(1)
        (found,) = torch.autograd.grad(whole.sum(), start)
    return found, whole.detach() - (found * entering).flatten(1).sum(1)


def _check_straight(path: Path, entering: torch.Tensor, slope: torch.Tensor) -> None:
    with torch.enable_grad():
        start = entering.clone().requires_grad_()
        (first,) = torch.autograd.grad((path(start.clone()) * slope).sum(), start, create_graph=True)
        if not first.requires_grad:
            return
        drawn = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
        (second,) = torch.autograd.grad((first * drawn).sum(), start, allow_unused=True)
    if second is not None and bool(second.abs().max() * start.abs().max() > CURVED * first.abs().max()):
        raise NotSummedError(WhyNoLedger.CURVED, "the path from a layer to the logits")


@contextmanager
def _holding(model: nn.Module) -> Iterator[None]:
    """Let norms that depend on the image count their deviations as constants, for the length of a block."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | RmsNorm):
                stack.callback(module.register_forward_hook(_held).remove)
        yield


def _held(norm: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
    """Return what a norm puts out, its deviations held."""
    plain = args[0]
    if isinstance(norm, nn.GroupNorm):
        grouped = plain.unflatten(1, (norm.num_groups, -1)).flatten(2)
        axes, entering = (2,), grouped
    else:
        spatial = "2d" in type(norm).__name__  # channels before rows and columns
        axes, entering = ((1,) if spatial else (-1,)), plain
    centred = entering if isinstance(norm, nn.RMSNorm | RmsNorm) else entering - entering.mean(axes, keepdim=True)
    eps = norm.eps or torch.finfo(plain.dtype).eps
    scaled = (centred * (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()).reshape(out.shape)
    shape = (-1, *(1,) * (out.ndim - 2)) if axes != (-1,) else (-1,)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    scaled = scaled if weight is None else scaled * weight.reshape(shape)
    held: torch.Tensor = scaled if bias is None else scaled + bias.reshape(shape)
    return held
