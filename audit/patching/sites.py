"""Where a head writes: the sites of a model, and a record of one forward pass at all of them.

What head h of a layer adds to the residual stream is ``u_h = gamma * W_O[:, h] z_h``: z_h is the head's slice of
the input of the output projection, W_O[:, h] the columns of that projection that read it, gamma the LayerScale where
the model has one. The projection's bias belongs to no head. In a convolutional network a slice of channels takes the
head's place, and u_h is those channels of what the block adds. Where these parts are, and how the stream lies, differs
between architectures and is in ``audit.models.adapters``; "head" below is either, "tokens" are rows and columns
where the stream has them, which in a convolutional network come after the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from audit.errors import InputError
from audit.models.adapters.heads import Heads
from audit.models.adapters.own import Plain
from audit.models.adapters.registry import Model, adapter
from audit.patching.parts import STREAM, WRITES, Kind, Part

DEPTHS = 3  # at which an audit asks tokens


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


def kinds_of(model: Model) -> list[Kind]:
    """Return which kinds of parts of a model can be patched."""
    body = adapter(model)
    apart = isinstance(body, Heads)
    found = {
        Kind.ATTENTION: apart,
        Kind.MLP: apart and body.mlp(0) is not None,
        Kind.LAYER: body.writes_apart,
        Kind.CLASS_TOKEN: body.prefix_tokens > 0,
        Kind.PATCH_TOKENS: body.prefix_tokens > 0,
    }
    return [kind for kind in Kind if found.get(kind, True)]


def parts_swept(model: Model) -> list[Part]:
    """Return the parts that an audit asks: all attention, all MLPs, each layer, and tokens at a few depths.

    The whole stream is none of them: whatever the depth, it is the donor's answer, and so is any layer of a network
    without residuals. Of a network whose layers do not write apart, each layer's attention is asked in its place.
    """
    depth, kinds = adapter(model).depth, kinds_of(model)
    whole = [kind for kind in (Kind.ATTENTION, Kind.MLP) if kind in kinds]
    of_layer = Kind.LAYER if Kind.LAYER in kinds else Kind.ATTENTION
    asked = of_layer in kinds and not isinstance(adapter(model), Plain)
    layers = [Part(of_layer, layer) for layer in range(depth)] if asked else []
    depths = sorted({round(depth * k / (DEPTHS + 1)) for k in range(1, DEPTHS + 1)} - {0, depth})
    tokens = [Part(kind, at) for kind in (Kind.CLASS_TOKEN, Kind.PATCH_TOKENS) if kind in kinds for at in depths]
    return [*map(Part, whole), *layers, *tokens]


def parts_of(model: Model) -> list[Part]:
    """Return all parts larger than heads: of all layers, layer by layer, and of the stream depth by depth."""
    depth, kinds = adapter(model).depth, kinds_of(model)
    writes = [kind for kind in WRITES if kind in kinds]
    stream = [kind for kind in STREAM if kind in kinds]
    return [
        Part(Kind.EMBEDDING),
        *(Part(kind) for kind in writes),
        *(Part(kind, layer) for kind in writes for layer in range(depth)),
        *(Part(kind, at) for kind in stream for at in range(depth + 1)),
    ]


def head_part(model: Model, site: Site) -> Part:
    """Return a head, or slice of channels, as a part."""
    return Part(Kind.HEAD, site.layer, site.head, adapter(model).unit)


def check_parts(model: Model, parts: Iterable[Part]) -> None:
    """Raise unless a model has these parts.

    Raises
    ------
    InputError
        Naming the part, and what there is.
    """
    body, kinds = adapter(model), kinds_of(model)
    for part in parts:
        if part.kind not in kinds:
            what = f"cannot be told apart in a {type(model).__name__}"
            raise InputError(f"part '{part}'", what, f"choose from {', '.join(kinds)}")
        last = body.depth if part.kind in STREAM else body.depth - 1
        if not 0 <= (part.layer or 0) <= last:
            where = "depth" if part.kind in STREAM else "layer"
            raise InputError(f"part '{part}'", f"has a {where} beyond {last}", "count from 0")
        if part.kind is Kind.HEAD and not 0 <= (part.head or 0) < body.units(part.layer or 0):
            units = body.units(part.layer or 0)
            raise InputError(f"part '{part}'", f"is none of the layer's {units}", "count from 0")


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
    # what each block's MLP adds, as its module puts it out, images first; empty where it was not asked for
    mlp: list[torch.Tensor] = field(default_factory=list)

    def stream(self, depth: int) -> torch.Tensor:
        """Return the residual stream that enters layer ``depth``, or leaves the last one."""
        return self.leaving if depth == len(self.entering) else self.entering[depth]

    def take(self, rows: torch.Tensor) -> Trace:
        """Return the trace of some of the images."""
        rows = rows.to(self.leaving.device)
        return Trace(
            [t[rows] for t in self.entering],
            [t[rows] for t in self.attention],
            [t[rows] for t in self.head_activations],
            self.leaving[rows],
            [t[rows] for t in self.mlp],
        )


def trace_bytes(model: Model) -> int:
    """Return the size of one image's trace in float32."""
    body = adapter(model)
    leaving = body.sizes(body.depth - 1)
    return 4 * (sum(map(body.traced, range(body.depth))) + leaving.tokens * leaving.width)


@torch.inference_mode()
def record(
    model: Model, images: torch.Tensor, *, prefix: Trace | None = None, start: int = 0, mlp: bool = False
) -> Trace:
    """Run ``images`` (B, 3, H, W) through the model and keep what patching needs.

    Parameters
    ----------
    prefix : Trace, optional
        The same images through a model that is this one up to block ``start``: what it holds of those blocks is
        taken over, not computed again.
    start : int
        First block that is run where ``prefix`` is given.
    mlp : bool
        Whether to keep what MLPs add, too, which takes a third more memory; of a ``prefix`` it must be there.
    """
    body = adapter(model)
    mlps: list[torch.Tensor] = [] if prefix is None or not mlp else prefix.mlp[:start]
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
    with listening(model, head_activations, attention, images=len(images), mlp=mlps if mlp else None):
        for layer in range(start, body.depth):
            entering.append(stream)
            stream = body.run(layer, stream)
    return Trace(entering, attention, head_activations, stream, mlps)


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
    model: Model,
    head_activations: list[torch.Tensor],
    attention: list[torch.Tensor],
    *,
    images: int,
    mlp: list[torch.Tensor] | None = None,
) -> Iterator[None]:
    """Append what each layer's heads hold and what they and its MLP add to the stream; hooks are gone afterwards."""
    body = adapter(model)
    handles = [h for layer in range(body.depth) for h in body.listen(layer, head_activations, attention, images=images)]
    modules = [body.mlp(layer) for layer in range(body.depth)] if mlp is not None else []
    handles += [module.register_forward_hook(_keeping(mlp)) for module in modules if module is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeping(kept: list[torch.Tensor] | None) -> Callable[..., None]:
    """Return a hook that appends what a module puts out."""
    return lambda _module, _args, out: None if kept is None else kept.append(out)


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
