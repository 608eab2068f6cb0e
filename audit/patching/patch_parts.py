"""Parts patched jointly, started at the first of them, and in both directions.

Each block runs as it is, but for what is given to it, so a part patched with itself changes not one bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from audit.errors import InputError
from audit.models.adapters.registry import Model, adapter
from audit.patching.engine import Donor
from audit.patching.parts import Part, Step, steps_of
from audit.patching.sites import Trace, check_parts


@torch.inference_mode()
def patch_parts(model: Model, recipient: Trace, donor: Donor, parts: Iterable[Part]) -> torch.Tensor:
    """Patch parts jointly, row i of the donor's trace into recipient i.

    What a part writes given the patches before it is replaced by what the donor's writes. A stream that is patched
    whole makes what is before it irrelevant; of the recipient's layers those before the first part do not run.

    Parameters
    ----------
    model : Model
        The recipients' model, in evaluation mode.
    recipient : Trace
        Its recorded pass over the recipients.
    donor : Donor
        The donors' recorded pass; where MLPs or layers are patched, with what MLPs add (``record(..., mlp=True)``).
    parts : iterable of Part
        None: the recipients' own logits.

    Returns
    -------
    torch.Tensor (B, classes)

    Raises
    ------
    InputError
        If the model has no such part, or the donor's pass does not hold what it needs.
    """
    asked, body = list(parts), adapter(model)
    check_parts(model, asked)
    if any(step.mlp for step in steps_of(asked, body.depth)) and body.mlp(0) is not None and not donor.trace.mlp:
        raise InputError("donor", "was recorded without what MLPs add", "record it with mlp=True")
    return run_given(model, recipient, donor, asked)


def run_given(model: Model, recipient: Trace, donor: Donor, parts: Iterable[Part]) -> torch.Tensor:
    """Do what :func:`patch_parts` does, without its checks, and with gradients where they are wanted."""
    body = adapter(model)
    steps = steps_of(parts, body.depth)
    start = _first(steps)
    stream = recipient.stream(start)
    for layer in range(start, body.depth):
        entering = _given_stream(body.prefix_tokens, steps[layer], stream, donor.trace.stream(layer))
        stream = _run(model, layer, entering, donor, steps[layer])
    stream = _given_stream(body.prefix_tokens, steps[-1], stream, donor.trace.leaving)
    return body.classify(stream)


def layers_run(model: Model, parts: Iterable[Part]) -> int:
    """Return how many layers run again where ``parts`` are patched jointly: the cost of one patch."""
    depth = adapter(model).depth
    return depth - min(_first(steps_of(parts, depth)), depth)


def _first(steps: list[Step]) -> int:
    """Return the depth from which on something happens; the last one where nothing is patched."""
    last = len(steps) - 1
    whole = [at for at, step in enumerate(steps) if step.whole]
    return whole[-1] if whole else next((at for at, step in enumerate(steps) if not step.empty), last)


def _given_stream(prefix: int, step: Step, own: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return the stream with the donor's tokens where they are patched."""
    if step.whole:
        return given
    if not (step.class_token or step.patch_tokens):
        return own
    first, rest = (given, own) if step.class_token else (own, given)
    return torch.cat([first[:, :prefix], rest[:, prefix:]], dim=1)


def _run(model: Model, layer: int, stream: torch.Tensor, donor: Donor, step: Step) -> torch.Tensor:
    """Run a layer of which parts write what the donor's do."""
    body = adapter(model)
    with ExitStack() as stack:
        module = body.mlp(layer)
        if step.mlp and module is not None:
            stack.enter_context(_replacing(module, lambda _out: donor.trace.mlp[layer]))
        if step.attention and body.writes_apart:  # nothing is left to attend to
            return body.after(layer, body.residual_input(layer, stream) + donor.trace.attention[layer])
        if step.attention:  # a block of unknown code rounds as the stream lies in memory, so that it runs as it is
            given = body.to_output(layer, donor.trace.attention[layer])
            stack.enter_context(_replacing(body.output_module(layer), lambda _out: given))
        elif step.heads:
            stack.enter_context(_replacing_heads(model, layer, donor, step.heads, len(stream)))
        return body.run(layer, stream)


@contextmanager
def _replacing(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let a module put out what ``change`` makes of its output, for the length of a block."""

    def hook(_module: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        return change(out)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replacing_heads(model: Model, layer: int, donor: Donor, heads: Iterable[int], images: int) -> Iterator[None]:
    """Let some heads of a layer write what the donor's do, for the length of a block."""
    body, units = adapter(model), adapter(model).units(layer)
    caught: list[torch.Tensor] = []
    theirs = donor.trace.head_activations[layer].unflatten(-1, (units, -1))

    def changed(out: torch.Tensor) -> torch.Tensor:
        ours = caught[-1].unflatten(-1, (units, -1))
        for head in heads:
            own, given = ours[..., head, :], theirs[..., head, :]
            if donor.model is model:
                change = body.head_output(layer, head, given - own)
            else:
                change = adapter(donor.model).head_output(layer, head, given) - body.head_output(layer, head, own)
            out = out + body.to_output(layer, change)
        return out

    handles = body.listen(layer, caught, [], images=images)
    try:
        with _replacing(body.output_module(layer), changed):
            yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Directions:
    """Logits (B, classes) of recipients and donors as they are, and each with the other's parts.

    ``denoised``: the recipient with the donor's parts, what they suffice for. ``noised``: the donor with the
    recipient's, what they are needed for.
    """

    recipient: torch.Tensor
    donor: torch.Tensor
    denoised: torch.Tensor
    noised: torch.Tensor

    def effects(self, read: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both effects of the donor's parts, of the number that ``read`` takes from logits.

        ``read(denoised) - read(recipient)`` and ``read(donor) - read(noised)``: where all paths add up, they are
        equal. Where others carry the same, the second is less; where the parts need others, the first.
        """
        return read(self.denoised) - read(self.recipient), read(self.donor) - read(self.noised)


def both_directions(model: Model, recipient: Trace, donor: Donor, parts: Iterable[Part]) -> Directions:
    """Patch the donor's parts into the recipient, and the recipient's into the donor, on the same pairs.

    Parameters are those of :func:`patch_parts`; where MLPs or layers are patched, both passes hold what MLPs add.
    """
    asked, swapped = list(parts), Donor(model, recipient)
    return Directions(
        recipient=patch_parts(model, recipient, donor, ()),
        donor=patch_parts(donor.model, donor.trace, swapped, ()),
        denoised=patch_parts(model, recipient, donor, asked),
        noised=patch_parts(donor.model, donor.trace, swapped, asked),
    )
