"""The table of samples: what every stage after the readers sees of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.extensions import ExtensionArray
from PIL import Image

from audit.card.schema import Shares
from audit.records import AttributeInfo, Contrast, DataSource, DataWarning, ExcludedRow, SourceKind, TableForm

SPLITS = tuple(Shares.model_fields)  # train, discovery, confirmation, repair, sealed
AUDIT_SPLITS = Shares.AUDITED
HELD_BACK = ("repair", "sealed")  # read by no audit; the last by nothing but a certificate
UNKNOWN = "unknown"
EXAMPLES = 5  # images that are named where many are counted
IN_MEMORY = DataSource(kind=SourceKind.MEMORY)
OTHERS = "all others"  # values of a nuisance column that are not listed one by one


class ImageSource(Protocol):
    """Where pixels come from: files, archives, or the renderer."""

    def open(self, key: str) -> Image.Image:
        """Return the image as RGB; raise ``audit.errors.DataError`` where it cannot be read."""
        ...


@runtime_checkable
class EditableSource(ImageSource, Protocol):
    """A source that can show an image with one attribute changed and all else equal."""

    def can_edit(self, attribute: str) -> bool:
        """Tell whether it can change this attribute."""
        ...

    def edited(self, key: str, attribute: str, group: str) -> str:
        """Return the key of that image."""
        ...


def pair_column(attribute: str) -> str:
    """Return the column that names an image's exact pair in an attribute, where the card names pairs."""
    return f"pair:{attribute}"


@dataclass(frozen=True)
class Keys(Sequence[str | None]):
    """The key of each image, None for those that are held back.

    Read from the table whenever one is asked for: held as texts, they would take some 75 bytes of each image.
    """

    images: ExtensionArray
    held_back: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.held_back)

    @overload
    def __getitem__(self, place: int) -> str | None: ...

    @overload
    def __getitem__(self, place: slice) -> list[str | None]: ...

    def __getitem__(self, place: int | slice) -> str | list[str | None] | None:
        """Return one key, or those of a slice."""
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return None if self.held_back[place] else str(self.images[place])


@dataclass(frozen=True)
class Samples:
    """Images with labels, groups, subjects and splits."""

    # one row per image, index 0..n-1. Columns: ``image`` (key for ``source``), ``label``, ``subject``, ``split`` (one
    # of SPLITS), one column per attribute of ``attributes`` (string, ``unknown`` where missing), one per ``nuisance``
    # name (string) and one per covariate of ``calipers`` (a number, as text or not; ``unknown`` where missing). Sorted
    # by image key, so that it does not depend on file order.
    frame: pd.DataFrame
    source: ImageSource  # opens the pixels of a key
    labels: tuple[str, ...]  # class names in the order of the model's outputs
    attributes: Mapping[str, AttributeInfo]  # the card's groups
    nuisance: tuple[str, ...] = ()  # the card's ``match_on`` columns of categories
    calipers: Mapping[str, float] = field(default_factory=dict)  # those of numbers, with how far apart donors may be
    # what was left out, and why
    excluded: Sequence[ExcludedRow] = ()
    quarantined: Sequence[ExcludedRow] = ()
    fingerprint: str = ""  # SHA-256 over the rows and the bytes of the images
    origin: DataSource = IN_MEMORY  # where they are from, for people
    # as the data's own metadata say, for what the card does not
    licence: str = ""
    citation: str = ""
    warnings: Sequence[DataWarning] = ()  # what is odd about what was not
    tables: Sequence[TableForm] = ()  # how the tables were read
    # images that never reached the classifier: ``image``, ``label``, ``subject`` and the attributes. None where the
    # card does not say which.
    undetected: pd.DataFrame | None = None
    opened: bool = True  # whether images were opened

    def of_split(self, *splits: str) -> pd.DataFrame:
        """Return the rows of the named splits, index kept; the sealed one is ``audit.data.sealed``'s to open."""
        if "sealed" in splits:
            raise ValueError("sealed rows are read by audit.data.sealed.open_sealed, which counts it")
        return self.frame[self.frame["split"].isin(splits)]

    @property
    def keys(self) -> Keys:
        """The key of each image, None for those that are held back."""
        return Keys(self.frame["image"].array, self.frame["split"].isin(HELD_BACK).to_numpy(dtype=bool))

    @property
    def contrasts(self) -> list[Contrast]:
        """Every group of every attribute that has an image, against its reference."""
        return [
            Contrast(name, group, info.reference)
            for name, info in self.attributes.items()
            for group in info.groups
            if group != info.reference and (self.frame[name] == group).any()
        ]
