"""Data given in Python: a data frame of files, or a map-style dataset with a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

from audit.card.schema import Card
from audit.data.assemble import samples_from_frame
from audit.data.hub_table import is_hub_dataset, table_of
from audit.data.in_memory import SHOWN, DatasetSource, MapDataset, dataset_keys
from audit.data.samples import Samples
from audit.data.sources import ByteSource, FileSource
from audit.errors import DataError, InputError
from audit.given import as_path, check_kind

__all__ = ["Data", "fetch", "rendered_faces"]

Groups = Mapping[str, str | Mapping[str, Any]]


@dataclass(frozen=True)
class Data:
    """Images with labels, groups and subjects, for :func:`vit_audit.plan`.

    Made by :meth:`from_frame` or :meth:`from_dataset`.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per image.
    source : ByteSource
        Opens the image of a key.
    sections : mapping
        The sections ``data`` and ``groups`` of a card that say which column is what.

    Examples
    --------
    >>> import pandas as pd, vit_audit as va
    >>> frame = pd.DataFrame({"path": ["a.png", "b.png"], "smiles": ["yes", "no"], "sex": ["female", "male"]})
    >>> data = va.Data.from_frame(frame, images="path", label="smiles", groups={"gender": "sex"})
    >>> len(data.table)
    2
    """

    table: pd.DataFrame
    source: ByteSource
    sections: Mapping[str, Any]

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        images: str,
        label: str,
        groups: Groups,
        subject: str | Sequence[str] | None = None,
        split: str | None = None,
        root: str | Path = ".",
        **options: Any,
    ) -> Data:
        """Take images from files that a data frame names.

        Parameters
        ----------
        frame : pandas.DataFrame
            One row per image.
        images, label : str
            Columns of the files' paths and of their labels.
        groups : mapping
            Attribute to its column, or to what a card's ``groups.NAME`` says (column, reference, assigned_by, ...).
        subject : str or sequence of str, optional
            Columns that say who is in the picture: the unit of splitting and inference. By default the image.
        split : str, optional
            Column that names the split of each image; by default splits are drawn.
        root : str or pathlib.Path
            Folder that relative paths start at; absolute ones must lie below it.
        **options
            Further fields of a card's ``data``: ``labels``, ``shares``, ``seed``, ``licence``, ...

        Raises
        ------
        DataError
            If a column is missing or a path lies outside ``root``.

        Examples
        --------
        >>> import pandas as pd, vit_audit as va
        >>> frame = pd.DataFrame({"path": ["a.png"], "smiles": ["yes"], "sex": ["female"]})
        >>> data = va.Data.from_frame(frame, images="path", label="smiles", groups={"gender": "sex"})
        >>> data.sections["groups"]
        {'gender': {'column': 'sex'}}
        """
        fields = {"image": images, "label": label, "subject": subject, "split": split, **options}
        sections = _sections(frame, fields, groups)
        folder = as_path("root", root).absolute()
        table = frame.assign(**{images: [_relative(p, folder) for p in frame[images]]})
        return cls(table, FileSource(folder), sections)

    @classmethod
    def from_dataset(
        cls,
        dataset: MapDataset,
        *,
        table: pd.DataFrame | None = None,
        key: str | None = None,
        label: str,
        groups: Groups,
        subject: str | Sequence[str] | None = None,
        split: str | None = None,
        image: str = "image",
        keys: Sequence[Any] | None = None,
        **options: Any,
    ) -> Data:
        """Take images from a map-style dataset, and labels and groups from a table or from its own columns.

        Parameters
        ----------
        dataset : MapDataset
            As ``torch.utils.data.Dataset`` or ``datasets.Dataset``. Items are PIL images, arrays (H, W, 3) of bytes or
            tensors (3, H, W), not yet normalised; or tuples that begin with one; or mappings that hold one under
            ``image`` and its key under ``key``.
        table : pandas.DataFrame, optional
            One row per image, with its key in the column ``key``. Of a ``datasets.Dataset`` its own columns, unless
            they are elsewhere; a ClassLabel counts by its names.
        key : str, optional
            Column of the table, and field of the items, that says which image is which. Of a ``datasets.Dataset``
            without one, the row.
        label, groups, subject, split, **options
            As of :meth:`from_frame`.
        image : str
            Field of the image, where items are mappings.
        keys : sequence, optional
            Keys of the items in the dataset's order, where the items carry none.

        Raises
        ------
        DataError
            If items carry no key, or the table misses images or has some twice; it lists the first few.

        Examples
        --------
        >>> import numpy as np, pandas as pd, vit_audit as va
        >>> pictures = [{"id": str(i), "image": np.zeros((8, 8, 3), np.uint8)} for i in range(2)]
        >>> rows = pd.DataFrame({"id": ["0", "1"], "smiles": ["yes", "no"], "sex": ["female", "male"]})
        >>> data = va.Data.from_dataset(pictures, table=rows, key="id", label="smiles", groups={"gender": "sex"})
        >>> data.source.open("1").size
        (8, 8)
        """
        if is_hub_dataset(dataset) and table is None:
            table, key = table_of(dataset, image, key)
            keys = list(table[key]) if keys is None else keys
        if table is None or key is None:
            missing = "table" if table is None else "key"
            raise InputError(missing, "is missing", "give a pandas.DataFrame as table=, and its column of keys as key=")
        fields = {"image": key, "label": label, "subject": subject, "split": split, **options}
        sections = _sections(table, fields, groups)
        held = dataset_keys(dataset, key, keys)
        rows = table.assign(**{key: table[key].astype(str)})
        _check_keys(rows[key], held)
        places = {name: place for place, name in enumerate(held)}
        return cls(rows, DatasetSource(dataset, places, image, key), sections)

    def open(self, card: Card, *, progress: Callable[[int], None] | None = None) -> Samples:
        """Open every image and divide them into splits, as ``card`` says.

        Examples
        --------
        ``data`` and ``plan`` are those of the example of :func:`vit_audit.audit`.

        >>> data.open(plan.card).labels
        ('no', 'yes')
        """
        return samples_from_frame(self.table, self.source, card=card, where="table", progress=progress)


def _sections(frame: pd.DataFrame, fields: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    check_kind("table", frame, pd.DataFrame, "give a pandas.DataFrame, one row per image")
    check_kind("groups", groups, Mapping, "map each attribute to its column")
    for name, column in groups.items():
        check_kind(f"groups, {name}", column, (str, Mapping), "name its column")
    for name in ("image", "label"):
        check_kind(name, fields[name], str, "name its column")
    if fields["subject"] is not None:
        check_kind("subject", fields["subject"], (str, Sequence), "name its column, or a list of columns")
    if frame.empty:
        raise DataError("table", "has no rows", "give one row per image")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError("table", f"column '{twice}' occurs twice", "rename one of them")
    if any(not isinstance(column, str) for column in frame):
        odd = next(column for column in frame if not isinstance(column, str))
        raise DataError("table", f"column {odd!r} has no name in text", "rename: frame.rename(columns=str)")
    named = {name: {"column": g} if isinstance(g, str) else dict(g) for name, g in groups.items()}
    subject = fields["subject"]
    several = [subject] if isinstance(subject, str) else list(subject or [])
    wanted = [fields["image"], fields["label"], fields["split"], *several, *(g.get("column") for g in named.values())]
    missing = [column for column in wanted if column is not None and column not in frame]
    if missing:
        raise DataError("table", f"no column '{missing[0]}'", f"its columns: {', '.join(map(str, frame.columns))}")
    data = {name: value for name, value in fields.items() if value is not None}
    if not isinstance(subject, str | None):
        data["subject"] = several
    return {"data": {"reader": "frame", **data}, "groups": named}


def _relative(path: Any, root: Path) -> Any:
    """Return a path relative to the root; a missing value stays one."""
    if not isinstance(path, str | Path) or not Path(path).is_absolute():
        return path if not isinstance(path, Path) else path.as_posix()
    try:
        return Path(path).relative_to(root).as_posix()
    except ValueError:
        raise DataError(
            str(path), f"lies outside the folder '{root}'", "name the folder of all images as root="
        ) from None


def _check_keys(rows: pd.Series, held: Sequence[str]) -> None:
    """Compare the table's keys with the dataset's."""
    known = set(held)
    faults = (
        (sorted(set(rows[rows.duplicated()])), "occur twice in the table", "keep one row per image"),
        (sorted(known - set(rows)), "of the dataset are not in the table", "give a row for each image"),
        (sorted(set(rows) - known), "of the table are not in the dataset", "remove these rows, or correct their keys"),
    )
    for names, what, fix in faults:
        if names:
            raise DataError("table", f"{len(names)} keys {what} ({', '.join(names[:SHOWN])})", fix)


def fetch(card: Card, folder: str | Path, *, callback: Callable[[str, int, int], None] | None = None) -> list[Path]:
    """Download what a card names with its hash.

    Parameters
    ----------
    card : Card
        Its ``data.download`` says what; whoever calls this accepts the set's terms.
    folder : str or pathlib.Path
        The data folder.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    list of pathlib.Path
        The files and folders.

    Raises
    ------
    InputError
        If the card names nothing that may be downloaded.
    UnfinishedError
        If a download does not arrive, or has another hash.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.fetch(va.load_card("synthetic-expressions"), "data")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: Rendered expressions, association planted: names nothing that may be downloaded; ...
    """
    import audit.data.fetch
    from audit.api.progress import as_step

    check_kind("card", card, Card, "give what load_card returned")
    if not card.data.download:
        fix = "its first lines say how its files must lie; ask the set's authors for them"
        raise InputError(card.name, "names nothing that may be downloaded", fix)
    return list(audit.data.fetch.fetch(card.data.download, as_path("folder", folder), as_step(callback)))


def rendered_faces(folder: str | Path, images: int = 600, *, association: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Write drawings of faces to try things on; they show nobody.

    Parameters
    ----------
    folder : str or pathlib.Path
        Where the PNG files go, 64 px each.
    images : int
        How many.
    association : float
        P(smiling | lighter) - P(smiling | darker) in this sample, in [-1, 1].
    seed : int

    Returns
    -------
    pandas.DataFrame
        ``path`` (relative to the folder), ``expression`` ("neutral" or "smiling"), ``skin_tone`` ("lighter" or
        "darker") and ``hair_length`` ("long" or "short"), one row per image.

    Raises
    ------
    InputError
        If a number is of another kind, or the seed is below 0.

    Examples
    --------
    >>> import tempfile, vit_audit as va
    >>> va.rendered_faces(tempfile.mkdtemp(), 16)["expression"].value_counts().to_dict()
    {'neutral': 8, 'smiling': 8}
    """
    from audit.data.synthetic import SyntheticSource, sample_faces

    check_kind("images", images, Integral, "give how many, as a whole number")
    if not isinstance(seed, Integral) or seed < 0:
        raise InputError("seed", f"is {seed!r}", "give a whole number, 0 or more")
    faces = sample_faces(images, seed, association=association, split="discovery")
    place, source = as_path("folder", folder), SyntheticSource(faces)
    place.mkdir(parents=True, exist_ok=True)
    for key in faces["image"]:
        source.open(key).save(place / f"{key}.png")
    table = faces.assign(path=[f"{key}.png" for key in faces["image"]])
    return table[["path", "expression", "skin_tone", "hair_length"]]
