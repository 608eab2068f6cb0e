"""The slow reference: patching with plain PyTorch hooks, a whole forward pass for every patch.

The engine shares no arithmetic with it, so that their agreement means something; in blocks that the engine does not
know, sets of heads (``engine.patch_together``) are patched by these hooks themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.patching.parts import STREAM, WRITES, Kind, Part
from audit.patching.sites import Site

HeadOutputs = Mapping[Site, torch.Tensor]  # what each head shall add to the residual stream: (B, tokens, width)


def _head_output_of(model: Model, site: Site, caught: torch.Tensor, images: int) -> torch.Tensor:
    """Return what one head writes, from what was caught: all else is set to zero.

    Of a transformer that is the input of the output projection, which it passes through without the bias; of a
    convolutional network it is what the branch puts out.
    """
    body, head = adapter(model), site.head
    if not isinstance(body, Heads):
        return _only(caught, 1, head, body.units(site.layer))
    only = _only(body.head_activations_of(site.layer, caught, images), -1, head, body.units(site.layer))
    u = F.linear(only, body.projection(site.layer).weight)
    scaled = body.output_module(site.layer) is not body.projection(site.layer)
    gamma = _layer_scale(body.blocks[site.layer]) if scaled else None
    return body.to_stream(site.layer, u if gamma is None else u * gamma)


def _only(whole: torch.Tensor, axis: int, part: int, parts: int) -> torch.Tensor:
    """Return a tensor with all but one of its equal parts along an axis set to zero."""
    width = whole.shape[axis] // parts
    only = torch.zeros_like(whole)
    only.narrow(axis, part * width, width).copy_(whole.narrow(axis, part * width, width))
    return only


@contextmanager
def _catching(model: Model, layer: int, caught: list[torch.Tensor]) -> Iterator[None]:
    """Append what ``_write_of`` reads of a layer, of every pass within the block."""
    body = adapter(model)
    if isinstance(body, Heads):
        with _hooked(before=[(body.projection(layer), lambda _module, args: caught.append(args[0]))]):
            yield
    else:
        with _hooked((body.output_module(layer), lambda _module, _args, out: caught.append(out.clone()))):
            yield


def _layer_scale(block: nn.Module) -> torch.Tensor | None:
    """Return LayerScale's gamma under either of its names; found again here, so that a mistake elsewhere shows."""
    gamma = getattr(getattr(block, "ls1", None), "gamma", getattr(block, "gamma_1", None))
    return None if gamma is None else gamma.detach()


@contextmanager
def _hooked(
    *hooks: tuple[nn.Module, Callable[..., Any]], before: Sequence[tuple[nn.Module, Callable[..., Any]]] = ()
) -> Iterator[None]:
    """Hold forward hooks (and pre-hooks, ``before``) for the length of a block; none is left behind."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        for module, hook in before:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


@torch.inference_mode()
def donor_head_outputs(model: Model, images: torch.Tensor, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
    """Return what each of ``sites`` writes when ``model`` sees ``images`` (B, 3, H, W)."""
    caught: dict[int, list[torch.Tensor]] = {site.layer: [] for site in sites}
    with ExitStack() as stack:
        for layer, kept in caught.items():
            stack.enter_context(_catching(model, layer, kept))
        model(images)
    return {site: _head_output_of(model, site, caught[site.layer][0], len(images)) for site in sites}


@torch.inference_mode()
def patch_with_hooks(model: Model, images: torch.Tensor, outputs: HeadOutputs) -> torch.Tensor:
    """Return the logits (B, classes) when each head of ``outputs`` writes that instead of its own.

    Heads of several layers are patched in one pass: each replaces what the head would have written *given the
    patches below it*, so that the sum is the joint effect.
    """
    with replacing_head_outputs(model, outputs, images=len(images)):
        logits: torch.Tensor = model(images)
    return logits


@contextmanager
def replacing_head_outputs(model: Model, outputs: HeadOutputs, *, images: int) -> Iterator[None]:
    """Let each head of ``writes`` write that instead of its own in a pass of so many images."""
    with ExitStack() as stack:
        for layer, sites in groupby(sorted(outputs), key=lambda site: site.layer):
            caught: list[torch.Tensor] = []
            replace = _replace_outputs(model, {s: outputs[s] for s in sites}, caught, images)
            stack.enter_context(_catching(model, layer, caught))
            stack.enter_context(_hooked((adapter(model).output_module(layer), replace)))
        yield


def _replace_outputs(
    model: Model, outputs: HeadOutputs, caught: list[torch.Tensor], images: int
) -> Callable[..., torch.Tensor]:
    body = adapter(model)

    def hook(_module: nn.Module, _args: object, out: torch.Tensor) -> torch.Tensor:
        for site, output in outputs.items():
            change = output - _head_output_of(model, site, caught[-1], images)
            out = out + body.to_output(site.layer, change)
        return out

    return hook


@torch.inference_mode()
def patch_everything(
    model: Model, donor: Model, images: torch.Tensor, donor_images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patch the embeddings and all that is added to the stream, such as every attention and MLP output, of ``donor``.

    Returns
    -------
    tuple of torch.Tensor
        The patched model's last residual stream (B, tokens, width), the donor's own, and the patched logits.
    """
    body, strange = adapter(model), adapter(donor)
    parts, donor_parts = (
        [a.stem(), *(part for i in range(a.depth) for part in a.branches(i))] for a in (body, strange)
    )
    outputs: dict[int, torch.Tensor] = {}
    ends: dict[str, torch.Tensor] = {}

    def keep(i: int) -> Callable[..., None]:
        return lambda _module, _args, out: outputs.__setitem__(i, out.clone())  # some models add to it in place

    def give(i: int) -> Callable[..., torch.Tensor]:
        return lambda _module, _args, _out: outputs[i]

    def end(name: str) -> Callable[..., None]:
        return lambda _module, args: ends.__setitem__(name, args[0])

    with _hooked(*[(p, keep(i)) for i, p in enumerate(donor_parts)], before=[(strange.end(), end("donor"))]):
        donor(donor_images)
    with _hooked(*[(p, give(i)) for i, p in enumerate(parts)], before=[(body.end(), end("patched"))]):
        logits = model(images)
    return ends["patched"], ends["donor"], logits


@torch.inference_mode()
def patch_parts_with_hooks(
    model: Model, donor: Model, images: torch.Tensor, donor_images: torch.Tensor, parts: Sequence[Part]
) -> torch.Tensor:
    """Return the logits (B, classes) of ``images`` with parts of ``donor`` on ``donor_images``: two whole passes."""
    single = [one for part in parts for one in _by_layer(model, part)]
    heads = [Site(part.layer or 0, part.head or 0) for part in single if part.kind is Kind.HEAD]
    given = donor_head_outputs(donor, donor_images, heads)
    single = [part for part in single if part.kind is not Kind.HEAD]
    caught: list[list[torch.Tensor]] = [[] for _ in single]
    with ExitStack() as stack:
        for part, kept in zip(single, caught, strict=True):
            stack.enter_context(_at(donor, part, _keep(kept)))
        donor(donor_images)
    with ExitStack() as stack:
        stack.enter_context(replacing_head_outputs(model, given, images=len(images)))
        for part, (value,) in zip(single, caught, strict=True):
            tokens = _tokens(model, part)

            def give(own: torch.Tensor, value: torch.Tensor = value, tokens: slice | None = tokens) -> torch.Tensor:
                if tokens is None:
                    return value
                mixed = own.clone()
                mixed[:, tokens] = value[:, tokens]
                return mixed

            stack.enter_context(_at(model, part, give))
        logits: torch.Tensor = model(images)
    return logits


@torch.inference_mode()
def output_with_hooks(model: Model, images: torch.Tensor, part: Part) -> torch.Tensor:
    """Return what a part of one layer or depth puts out, images first; of a head what it writes."""
    if part.kind is Kind.HEAD:
        site = Site(part.layer or 0, part.head or 0)
        return donor_head_outputs(model, images, [site])[site]
    caught: list[torch.Tensor] = []
    (one,) = _by_layer(model, part)
    with _at(model, one, _keep(caught)):
        model(images)
    return _images_first(caught[0], len(images))[:, _tokens(model, part) or slice(None)]


@torch.inference_mode()
def shift_with_hooks(model: Model, images: torch.Tensor, part: Part, shift: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, classes) where a part puts out ``shift`` more, laid out as ``output_with_hooks`` has it."""
    if part.kind is Kind.HEAD:
        site = Site(part.layer or 0, part.head or 0)
        return patch_with_hooks(model, images, {site: output_with_hooks(model, images, part) + shift})
    tokens = _tokens(model, part) or slice(None)

    def more(own: torch.Tensor) -> torch.Tensor:
        moved = own.clone()
        _images_first(moved, len(images))[:, tokens] += shift
        return moved

    (one,) = _by_layer(model, part)
    with _at(model, one, more):
        logits: torch.Tensor = model(images)
    return logits


def _images_first(value: torch.Tensor, images: int) -> torch.Tensor:
    """Return a view with a row for each image, where windows of images stand one after the other."""
    return value if len(value) == images else value.view(images, -1, value.shape[-1])


def _keep(kept: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
    """Return what appends a copy of a value, which may be added to in place."""
    return lambda value: kept.append(value.clone())


def _by_layer(model: Model, part: Part) -> list[Part]:
    """Return a part layer by layer, attention and MLP apart; what a convolutional block adds stands for attention."""
    body = adapter(model)
    if part.kind is Kind.LAYER:
        kinds = (Kind.ATTENTION, Kind.MLP)[: len(body.branches(0))]
        return [one for kind in kinds for one in _by_layer(model, Part(kind, part.layer))]
    if part.kind in WRITES and part.layer is None:
        return [Part(part.kind, layer) for layer in range(body.depth)]
    return [part]


def _tokens(model: Model, part: Part) -> slice | None:
    """Return which tokens of the stream a part is; None of all."""
    first = adapter(model).prefix_tokens
    return {Kind.CLASS_TOKEN: slice(first), Kind.PATCH_TOKENS: slice(first, None)}.get(part.kind)


@contextmanager
def _at(model: Model, part: Part, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Hand what a part puts out to ``change``, and what that returns, if anything, to what follows."""
    body, layer = adapter(model), part.layer or 0

    def out_hook(_module: nn.Module, _args: object, out: torch.Tensor) -> torch.Tensor | None:
        return change(out)

    def in_hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = change(args[0])
        return None if changed is None else (changed, *args[1:])

    if part.kind in (*STREAM, Kind.EMBEDDING) and layer < body.depth:
        with _hooked(before=[(body.blocks[layer], in_hook)]):
            yield
        return
    module = body.blocks[-1]
    if part.kind in WRITES:
        module = body.branches(layer)[1] if part.kind is Kind.MLP else body.output_module(layer)
    with _hooked((module, out_hook)):
        yield
