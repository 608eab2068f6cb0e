"""A look: measurements that do not depend on each other. What the next look measures may depend on what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from audit.controls.measure import Array
from audit.models.adapters.registry import Model

Found = Mapping[str, Array]  # by name: (images, ...)


class Measure(Protocol):
    """What measures."""

    def __call__(self, *, images: range) -> Found:
        """Return what is found of some images, one row each."""
        ...


@dataclass(frozen=True)
class Measurement:
    """What is measured of images, of each by itself.

    Parameters
    ----------
    name : str
        Tells it from all others of a run: "colour, models: every head".
    model : Model
        The recipient; all models are of its size.
    images : range
        Places of the images.
    shapes : mapping of str to tuple of int
        What is found of each image, by name.
    measure : callable
        Does it for some of the images.
    patches : int
        Of each image, about.
    made_of : mapping
        What earlier looks decided, as JSON takes it.
    whole : bool
        Whether it is done in one piece, because something is drawn for one image after the other.
    """

    name: str
    model: Model
    images: range
    shapes: Mapping[str, tuple[int, ...]]
    measure: Measure
    patches: int
    made_of: Mapping[str, object] = field(default_factory=dict)
    whole: bool = False


Look = Callable[[str, Sequence[Measurement]], dict[str, Found]]  # given what the look is at


def measure_here(_at: str, asked: Sequence[Measurement]) -> dict[str, Found]:
    """Measure one after the other, in this process; return what was found by the measurements' names."""
    return {m.name: m.measure(images=m.images) for m in asked}
