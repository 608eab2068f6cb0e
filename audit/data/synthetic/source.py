"""The built-in faces as a table of samples and a source of pixels, like any other data."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from PIL import Image

from audit.card.schema import DataSpec, GroupSpec, Rendered, Shares
from audit.data.groups import check_display
from audit.data.samples import AUDIT_SPLITS, HELD_BACK, UNKNOWN, Samples
from audit.data.synthetic.drawing import RENDERER_VERSION, render
from audit.data.synthetic.faces import GROUPS, Face, edit, face_of_row, suggestion
from audit.data.synthetic.sampling import LABELS, sample_faces
from audit.errors import DataError
from audit.records import AttributeInfo, DataSource, SourceKind

CATEGORICAL = (*GROUPS, "monk_tone")  # columns that can serve as groups or for matching
_FEWEST = 8  # images per split: one in each label x skin_tone x hair_length cell
_DRAWN = "drawn by the renderer, not annotated"


def edited_key(key: str, **changes: str) -> str:
    """Return the key under which :class:`SyntheticSource` opens a face with attributes changed.

    Parameters
    ----------
    key : str
        Key of a face, edited or not.
    **changes : str
        Attribute to group, as for :func:`audit.data.synthetic.faces.edit`.

    Returns
    -------
    str
        For example "train-00012~skin_tone=darker".
    """
    return key + "".join(f"~{attribute}={group}" for attribute, group in changes.items())


class SyntheticSource:
    """Draws faces on demand from the table that describes them.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of :func:`audit.data.synthetic.sampling.sample_faces`; keys in column ``image``.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._rows: dict[Hashable, dict[Hashable, Any]] = frame.set_index("image").to_dict("index")

    def face(self, key: str) -> Face:
        """Return the face of a key, with its edits applied from left to right.

        Parameters
        ----------
        key : str
            "train-00012", or with edits "train-00012~skin_tone=darker".

        Returns
        -------
        Face
            All parameters.

        Raises
        ------
        DataError
            If there is no such face, attribute or group, or an edit cannot be read.
        """
        name, *edits = key.split("~")
        if name not in self._rows:
            raise DataError(f"image '{key}'", f"no rendered face '{name}'", "use a key of the samples' table")
        face = face_of_row({str(column): value for column, value in self._rows[name].items()})
        for change in edits:
            attribute, equals, group = change.partition("=")
            if not equals:
                raise DataError(f"image '{key}'", f"cannot read the edit '{change}'", "write attribute=group")
            face = edit(face, **{attribute: group})
        return face

    def can_edit(self, attribute: str) -> bool:
        """Tell whether faces can be drawn in another group of an attribute."""
        return attribute in GROUPS

    def edited(self, key: str, attribute: str, group: str) -> str:
        """Return the key of the same face in another group of an attribute."""
        return edited_key(key, **{attribute: group})

    def open(self, key: str) -> Image.Image:
        """Return the 64 x 64 RGB image of a key, edited or not; see :meth:`face` for what is refused."""
        return render(self.face(key))


def rendered_samples(
    spec: DataSpec,
    groups: Mapping[str, GroupSpec],
    match_on: Sequence[str],
    calipers: Mapping[str, float] | None = None,
) -> Samples:
    """Build the samples of the built-in faces.

    Parameters
    ----------
    spec : DataSpec
        ``spec.rendered`` gives sizes, association and seed; ``spec.labels`` may reorder the labels.
    groups : mapping of str to GroupSpec
        The card's attributes; columns are those of ``CATEGORICAL``.
    match_on : sequence of str
        Nuisance columns, also of ``CATEGORICAL``.
    calipers : mapping of str to float, optional
        Those that hold numbers: any of the faces' parameters that is one.

    Returns
    -------
    Samples
        The training images carry ``association``, all others ``audit_association``. Discovery and confirmation have
        half of ``audit_images`` each; beside them, splits that ``spec.shares`` holds back are as large as their share
        is to the audit splits'. The frame keeps every parameter of the faces, so that they can be edited later.

    Raises
    ------
    DataError
        If a column, group or label is not known, or a split would be too small.
    """
    labels = _ordered_labels(spec.labels)
    faces = _sampled(spec.rendered, spec.shares)
    fingerprint = _fingerprint(faces)
    frame = faces.assign(label=faces["expression"])
    for attribute, group in groups.items():
        frame = _with_attribute(frame, attribute, _categorical(faces, group.column, f"groups.{attribute}"), group)
    for column in match_on:
        if column not in groups:
            frame[column] = _categorical(faces, column, "match_on")
    for column in calipers or {}:
        frame[column] = _numeric(faces, column, "match_on")
    return Samples(
        frame=frame,
        source=SyntheticSource(faces),
        labels=labels,
        attributes={name: _attribute_info(frame, name, group) for name, group in groups.items()},
        nuisance=tuple(match_on),
        calipers=calipers or {},
        fingerprint=fingerprint,
        origin=DataSource(kind=SourceKind.RENDERED, version=RENDERER_VERSION, seed=spec.rendered.seed),
    )


def _sampled(rendered: Rendered, shares: Shares) -> pd.DataFrame:
    discovery = rendered.audit_images // 2
    sizes = {"discovery": discovery, "confirmation": rendered.audit_images - discovery}
    audited = shares.discovery + shares.confirmation
    for split in HELD_BACK:
        if getattr(shares, split) > 0:
            sizes[split] = round(rendered.audit_images * getattr(shares, split) / audited)
    for name, images in (("train_images", rendered.train_images), ("audit_images", discovery)):
        if images < _FEWEST:
            raise DataError(
                f"data.rendered.{name}",
                f"{images} images per split are too few to fill every cell",
                f"give at least {_FEWEST if name == 'train_images' else 2 * _FEWEST}",
            )
    asked = [("train", rendered.train_images, rendered.association)]
    asked += [(split, images, rendered.audit_association) for split, images in sizes.items()]
    drawn = [
        sample_faces(images, rendered.seed, association=association, attribute=rendered.attribute, split=split)
        for split, images, association in asked
    ]
    return pd.concat(drawn).sort_values("image", ignore_index=True)


def _fingerprint(faces: pd.DataFrame) -> str:
    """Hash the parameters and the renderer's version, which together decide every pixel."""
    table = faces.to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(f"{RENDERER_VERSION}\n{table}".encode()).hexdigest()


def _ordered_labels(wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None:
        return LABELS
    for label in wanted:
        if label not in LABELS:
            raise DataError("data.labels", f"no label '{label}'", suggestion(label, LABELS))
    if len(wanted) < len(LABELS):
        raise DataError("data.labels", "an audit needs two labels", f"name both: {', '.join(LABELS)}")
    return tuple(wanted)


def _categorical(faces: pd.DataFrame, column: str, where: str) -> pd.Series[str]:
    if column not in CATEGORICAL:
        raise DataError(where, f"the rendered faces have no groups '{column}'", suggestion(column, CATEGORICAL))
    return faces[column].astype(str)


def _numeric(faces: pd.DataFrame, column: str, where: str) -> pd.Series[float]:
    known = list(faces.select_dtypes("number").columns)
    if column not in known:
        raise DataError(where, f"the rendered faces have no number '{column}'", suggestion(column, known))
    return faces[column].astype(float)


def _with_attribute(frame: pd.DataFrame, attribute: str, values: pd.Series[str], group: GroupSpec) -> pd.DataFrame:
    if attribute != group.column and attribute in frame.columns:
        raise DataError(
            f"groups.{attribute}",
            f"the name is taken by a column of the rendered faces, but column is '{group.column}'",
            "give the attribute another name",
        )
    for value in group.values or ():
        _check_group(value, sorted(set(values)), f"groups.{attribute}.values")
    if group.values is not None:
        values = values.where(values.isin(group.values), UNKNOWN)
    return frame.assign(**{attribute: values})


def _check_group(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise DataError(where, f"no group '{value}'", suggestion(value, known))


def _attribute_info(frame: pd.DataFrame, attribute: str, group: GroupSpec) -> AttributeInfo:
    known = frame.loc[frame[attribute] != UNKNOWN, attribute]
    names = sorted(known.unique())
    if group.reference is not None:
        _check_group(group.reference, names, f"groups.{attribute}.reference")
    for named in group.error if isinstance(group.error, Mapping) else ():
        _check_group(named, names, f"groups.{attribute}.error")
    check_display(f"groups.{attribute}.display", group.display, names)
    audited = known[frame.loc[known.index, "split"].isin(AUDIT_SPLITS)].value_counts()
    largest = min(names, key=lambda name: (-int(audited.get(name, 0)), name))
    stated = group.assigned_by != GroupSpec.model_fields["assigned_by"].default
    return AttributeInfo(
        attribute=attribute,
        assigned_by=group.assigned_by if stated else _DRAWN,
        reference=group.reference or largest,
        groups=names,
        display=dict(group.display),
        unknown_images=int((frame[attribute] == UNKNOWN).sum()),
        note=group.note,
    )
