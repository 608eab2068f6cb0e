"""Parametric faces: every parameter of one face, and the edits that change one attribute, all else equal."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audit.errors import DataError

TONES = 10
HAIR_STEPS = 256  # hair_extent lies on this dyadic grid, so that mirroring it twice is exact in floating point

# Attribute -> its groups, the first one first. Named for what is drawn, never for who is meant.
GROUPS: Mapping[str, tuple[str, str]] = {
    "skin_tone": ("lighter", "darker"),
    "hair_length": ("long", "short"),
    "glasses": ("yes", "no"),
    "earrings": ("yes", "no"),
    "hat": ("yes", "no"),
}


@dataclass(frozen=True)
class Face:
    """Everything that decides the pixels of one rendered face."""

    intensity: float  # expression, -1 (deep frown) to 1 (broad smile), continuous and ambiguous near 0
    monk_tone: int  # skin tone on the Monk scale, 1 (lightest) to 10 (darkest)
    # how far the hair reaches down beside the face, 0 (short cap) to 1 (below the shoulders), in steps of 1/256 and
    # never 0.5, so that every face has a group and a mirror image in the other
    hair_extent: float
    # displacement of the head in pixels of the 64 px image
    shift_x: float = 0.0
    shift_y: float = 0.0
    tilt_deg: float = 0.0  # roll of the head in degrees, clockwise
    scale: float = 1.0  # size of the head, 1 = standard
    # direction the light comes from, and how much brighter that edge is than the middle (fraction)
    light_angle_deg: float = 0.0
    light_gradient: float = 0.0
    brightness: float = 1.0  # overall factor on the pixel values
    # colours as ``#rrggbb``
    background: str = "#8c98a4"
    hair_colour: str = "#4a3222"
    clothes: str = "#3c4a64"
    # accessories
    glasses: bool = False
    earrings: bool = False
    hat: bool = False
    # full widths in pixels at scale 1
    face_width: float = 38.0
    mouth_width: float = 20.5
    noise_seed: int = 0  # seed of this face's pixel noise, 0 or more

    def __post_init__(self) -> None:
        _require(-1.0 <= self.intensity <= 1.0, "intensity", self.intensity, "a number in [-1, 1]")
        _require(1 <= self.monk_tone <= TONES, "monk_tone", self.monk_tone, f"1 to {TONES}")
        on_grid = float(self.hair_extent * HAIR_STEPS).is_integer()
        _require(
            0.0 <= self.hair_extent <= 1.0 and on_grid and self.hair_extent != 0.5,
            "hair_extent",
            self.hair_extent,
            f"a multiple of 1/{HAIR_STEPS} in [0, 1] other than 0.5",
        )

    @property
    def skin_tone(self) -> str:
        """The group by Monk tone: 1-5 are "lighter", 6-10 "darker"."""
        return "lighter" if self.monk_tone <= TONES // 2 else "darker"

    @property
    def hair_length(self) -> str:
        """The group by hair extent: below one half is "short", above it "long"."""
        return "short" if self.hair_extent < 0.5 else "long"

    def group(self, attribute: str) -> str:
        """Return the face's group in an attribute of ``GROUPS``."""
        if attribute in ("skin_tone", "hair_length"):
            return str(getattr(self, attribute))
        return yes_no(getattr(self, attribute))


def _require(holds: bool, name: str, found: object, wanted: str) -> None:
    if not holds:
        raise DataError(f"face.{name}", f"{found} is out of range", f"give {wanted}")


def yes_no(flag: bool) -> str:
    """Return the group name of an accessory."""
    return "yes" if flag else "no"


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return a fix for a name that is not among the known ones.

    Parameters
    ----------
    name : str
        What was written.
    known : sequence of str
        What may be written.

    Returns
    -------
    str
        "did you mean 'x'?" where something is close, else the list of what there is.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known)}"


def edit(face: Face, **changes: str) -> Face:
    """Change attributes of a face to the named groups; everything else, pixel noise included, stays equal.

    Skin tone and hair length are mirrored (Monk tone t becomes 11 - t, hair extent h becomes 1 - h), so that
    editing there and back gives the identical face, and the edited faces fill the other group as evenly as
    the faces they come from.

    Parameters
    ----------
    face : Face
        The face to start from.
    **changes : str
        Attribute to group, e.g. ``skin_tone="darker"``. A group that the face is in already changes nothing.

    Returns
    -------
    Face
        The edited face.

    Raises
    ------
    DataError
        If an attribute or a group is not known.
    """
    for attribute, group in changes.items():
        if attribute not in GROUPS:
            raise DataError("edit", f"no attribute '{attribute}'", suggestion(attribute, list(GROUPS)))
        if group not in GROUPS[attribute]:
            raise DataError(f"edit {attribute}", f"no group '{group}'", suggestion(group, GROUPS[attribute]))
        if face.group(attribute) != group:
            face = _in_other_group(face, attribute)
    return face


def _in_other_group(face: Face, attribute: str) -> Face:
    if attribute == "skin_tone":
        return dataclasses.replace(face, monk_tone=TONES + 1 - face.monk_tone)
    if attribute == "hair_length":
        return dataclasses.replace(face, hair_extent=1.0 - face.hair_extent)
    accessory: dict[str, Any] = {attribute: not getattr(face, attribute)}
    return dataclasses.replace(face, **accessory)


PARAMETERS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Face))
_ACCESSORIES = ("glasses", "earrings", "hat")
_INTEGERS = ("monk_tone", "noise_seed")
_COLOURS = ("background", "hair_colour", "clothes")


def face_of_row(row: Mapping[str, Any]) -> Face:
    """Return the face that a row of :func:`sample_faces` describes.

    Parameters
    ----------
    row : mapping
        Holds every name of ``PARAMETERS``; accessories as "yes" or "no".

    Returns
    -------
    Face
        Equal to the face that was sampled.
    """
    values: dict[str, Any] = {}
    for name in PARAMETERS:
        if name in _ACCESSORIES:
            values[name] = row[name] == "yes"
        elif name in _INTEGERS:
            values[name] = int(row[name])
        elif name in _COLOURS:
            values[name] = str(row[name])
        else:
            values[name] = float(row[name])
    return Face(**values)
