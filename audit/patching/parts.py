"""Parts of a model that can be patched, beyond single heads: what layers write, and the stream at a depth.

A part that *writes* (heads, attention, MLPs, layers) adds what the donor's adds; a part that is *stream* is the donor's
stream, or some of its tokens, at that depth. All else the recipient computes again. Depth l is where the stream
enters layer l, counted from 0; the last depth is where it leaves the last layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from audit.errors import InputError
from audit.units import Unit, name_of, parse_name


class Kind(StrEnum):
    """What a part is."""

    EMBEDDING = "embedding"  # the stream that enters the first layer
    ATTENTION = "attention"  # all that attention adds, the projection's bias included
    MLP = "MLP"
    LAYER = "layer"  # all that a layer adds: attention and MLP, or the branch of a convolutional block
    HEAD = "head"  # or a slice of channels
    # with the other tokens that are no patches: registers, a distillation token
    CLASS_TOKEN = "class token"  # noqa: S105
    PATCH_TOKENS = "patch tokens"
    RESIDUAL = "residual stream"  # all tokens


WRITES = (Kind.ATTENTION, Kind.MLP, Kind.LAYER)
STREAM = (Kind.CLASS_TOKEN, Kind.PATCH_TOKENS, Kind.RESIDUAL)
ALL = {Kind.ATTENTION: "all attention", Kind.MLP: "all MLPs", Kind.LAYER: "all layers"}
OF_LAYER = re.compile(rf"L(\d+)(?: ({Kind.ATTENTION}|{Kind.MLP}))?")
OF_STREAM = re.compile(rf"({'|'.join(STREAM)}) at (\d+)")


@dataclass(frozen=True)
class Part:
    """One part.

    Parameters
    ----------
    kind : Kind
    layer : int, optional
        Counted from 0; of the stream its depth. Attention, MLPs and layers without one are those of all layers.
    head : int, optional
        Of a head (slice of channels) alone.
    unit : {"head", "slice"}
        What a head is called.
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None
    unit: Unit = "head"

    def __post_init__(self) -> None:
        wanted = {
            "layer": self.kind is Kind.HEAD or self.kind in STREAM,
            "head": self.kind is Kind.HEAD,
        }
        optional = {"layer": self.kind in WRITES, "head": False}
        for name, needed in wanted.items():
            given = getattr(self, name)
            if given is None and needed:
                raise InputError(f"part '{self.kind}'", f"has no {name}", f"say which {name}, counted from 0")
            if given is not None and not needed and not optional[name]:
                raise InputError(f"part '{self.kind}'", f"has a {name}", f"leave {name} out")

    def __str__(self) -> str:
        """Return the name of the part: ``L7H2``, ``L7 attention``, ``all MLPs``, ``class token at 5``."""
        if self.kind is Kind.HEAD and self.layer is not None and self.head is not None:
            return name_of(self.unit, self.layer, self.head)
        if self.kind in STREAM:
            return f"{self.kind} at {self.layer}"
        if self.kind is Kind.EMBEDDING:
            return str(self.kind)
        if self.kind is Kind.LAYER and self.layer is not None:
            return f"L{self.layer}"
        return ALL[self.kind] if self.layer is None else f"L{self.layer} {self.kind}"


def parse_part(name: str) -> Part:
    """Return the part of a name, as ``str(part)`` gives it.

    Raises
    ------
    InputError
        If it is no name of a part.
    """
    for kind, text in {**ALL, Kind.EMBEDDING: Kind.EMBEDDING}.items():
        if name == text:
            return Part(kind)
    if found := OF_STREAM.fullmatch(name):
        return Part(Kind(found[1]), int(found[2]))
    if found := OF_LAYER.fullmatch(name):
        return Part(Kind(found[2] or Kind.LAYER), int(found[1]))
    try:
        layer, head = parse_name(name)
    except ValueError:
        fix = f"name one as L7H2, L7 attention, L7 MLP, L7, {', '.join(ALL.values())}, embedding, residual stream at 5"
        raise InputError(f"part '{name}'", "is none", fix) from None
    return Part(Kind.HEAD, layer, head, "slice" if "C" in name else "head")


@dataclass(frozen=True)
class Step:
    """What is patched at one depth: of the stream there, then of what the layer that it enters writes."""

    class_token: bool = False
    patch_tokens: bool = False
    attention: bool = False
    mlp: bool = False
    heads: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all of the stream is patched, so that nothing before it matters."""
        return self.class_token and self.patch_tokens

    @property
    def empty(self) -> bool:
        """Whether nothing is patched."""
        return self == Step()

    def with_part(self, part: Part) -> Step:
        """Return this step with a part added."""
        if part.kind is Kind.HEAD:
            return replace(self, heads=tuple(sorted({*self.heads, part.head or 0})))
        everything = part.kind in (Kind.RESIDUAL, Kind.EMBEDDING)
        return replace(
            self,
            class_token=self.class_token or everything or part.kind is Kind.CLASS_TOKEN,
            patch_tokens=self.patch_tokens or everything or part.kind is Kind.PATCH_TOKENS,
            attention=self.attention or part.kind in (Kind.ATTENTION, Kind.LAYER),
            mlp=self.mlp or part.kind in (Kind.MLP, Kind.LAYER),
        )


def steps_of(parts: Iterable[Part], depth: int) -> list[Step]:
    """Return what is patched at each depth (depth + 1 of them) of a model of ``depth`` layers."""
    steps = [Step() for _ in range(depth + 1)]
    for part in parts:
        every = range(depth) if part.kind in WRITES and part.layer is None else [part.layer or 0]
        for layer in every:
            steps[layer] = steps[layer].with_part(part)
    return steps
