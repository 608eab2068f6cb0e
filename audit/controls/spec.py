"""The two channels of information that the control models differ in: colour, and fine detail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from audit.controls.control_images import ROLES, ControlSet, Role
from audit.controls.control_models import ControlModels
from audit.controls.measure import Index
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model, adapter, input_channels
from audit.units import Unit


@dataclass(frozen=True)
class ChannelSpec:
    """What a channel is called, and the sizes that its controls name."""

    name: Role  # "colour" | "blur"
    carries: str  # "colour" | "fine detail"
    corruption: str  # "gray" | "blur"
    layers: range
    seeds: int  # of the donors, and of the null donors
    unit: Unit = "head"


GRAY_ROLES: tuple[Role, ...] = ("blur",)  # what can be taken away from a model that reads gray images
CALLED: Mapping[Role, tuple[str, str]] = {"colour": ("colour", "gray"), "blur": ("fine detail", "blur")}


def roles_of(model: Model) -> tuple[Role, ...]:
    """Return what can be taken away from what a model reads: colour only where it reads colour."""
    return ROLES if input_channels(model) > 1 else GRAY_ROLES


@dataclass(frozen=True)
class Channel:
    """Colour or blur: its models, images, and the words for it.

    Parameters
    ----------
    clean, null : tuple of Model
        The donors, trained on clean and on corrupted images; those at the same place are of one seed.
    corrupted : Model
        The recipient, of a seed of its own.
    untrained : Model
        Of the same architecture, weights drawn at random.
    """

    spec: ChannelSpec
    clean: tuple[Model, ...]
    corrupted: Model
    null: tuple[Model, ...]
    untrained: Model
    pixels: Pixels
    targets: Index


def channels(models: ControlModels, images: ControlSet, layers: range, *, untrained: Model) -> list[Channel]:
    """Return the colour and the blur channel, as far as there are models of them."""
    made = []
    for role in [role for role, (_, corruption) in CALLED.items() if corruption in models.models]:
        carries, corruption = CALLED[role]
        clean, null = models.donors(role, "clean"), models.donors(role, corruption)
        made.append(
            Channel(
                spec=ChannelSpec(role, carries, corruption, layers, len(null), adapter(untrained).unit),
                clean=tuple(models.models[n] for n in clean),
                corrupted=models.models[corruption],
                null=tuple(models.models[n] for n in null),
                untrained=untrained,
                pixels=images.evaluate,
                targets=images.targets[role][1],
            )
        )
    return made
