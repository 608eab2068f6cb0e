"""From a raw table to samples: what is kept, what is left out and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from audit.card.faults import did_you_mean
from audit.card.load import resolve, shown_path
from audit.card.schema import Card, DataSpec
from audit.data.groups import attribute_info, disagreement_warnings, group_column, permute_attributes
from audit.data.leaks import leak_warnings
from audit.data.quality import FileSource, duplicate_warnings, fingerprint, inspect_images
from audit.data.readers import (
    READERS,
    RawTable,
    read_cifar100,
    read_croissant,
    read_folder,
    read_huggingface,
    read_image_table,
    read_published,
)
from audit.data.readers.embedded import CropSource
from audit.data.readers.raw import require_columns
from audit.data.samples import SPLITS, UNKNOWN, Samples, pair_column
from audit.data.splits import GIVEN, assign_splits, thin_training
from audit.errors import DataError
from audit.records import AttributeInfo, ExcludedRow

_EXAMPLES = 5


def read_samples(
    card: Card,
    *,
    card_path: Path,
    data_root: Path | None,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Read everything that a card's ``data`` and ``groups`` name.

    Parameters
    ----------
    card : Card
        The card.
    card_path : pathlib.Path
        Its file.
    data_root : pathlib.Path or None
        ``--data``.
    progress : callable, optional
        Called with the number of images opened so far.

    Returns
    -------
    Samples
        Every image of the data is in its frame, or in ``excluded`` or ``quarantined`` with the reason.

    Raises
    ------
    DataError
        If the data cannot serve an audit; the message names the place and the fix.
    """
    if card.data.reader == "synthetic":
        return permute_attributes(_read_rendered(card), card.groups)
    raw = _with_links(_read_raw(card.data, card_path, data_root), card.data)
    excluded: list[ExcludedRow] = []
    warnings: list[str] = []
    rows = _chosen_columns(raw, card)
    rows = _merge_duplicates(rows, raw.where, warnings)
    seen = sorted(set(rows["label"].dropna()))
    rows = _keep_usable(rows, card, excluded)
    _labels_of(rows, card, raw.where, seen)
    _attributes(rows, card)  # what is wrong with labels and groups shows before any file is opened
    inspection = inspect_images(raw.source, list(rows["image"]), raw.where, progress=progress)
    rows = rows[rows["image"].isin(inspection.digests.index)]
    labels = _labels_of(rows, card, raw.where, seen)
    attributes = _attributes(rows, card)
    frame = _finished(rows, card)
    samples = Samples(
        frame=frame,
        source=raw.source,
        labels=labels,
        attributes=attributes,
        nuisance=tuple(card.match_on),
        excluded=tuple(excluded),
        quarantined=inspection.quarantined,
        source_name=_source_name(card.data, raw.about.name),
        licence=raw.about.licence,
        citation=raw.about.citation,
        warnings=(
            *warnings,
            *disagreement_warnings(frame, attributes),
            *duplicate_warnings(frame, inspection.digests),
            *leak_warnings(frame, inspection.looks, inspection.digests, attributes, card.match_on),
        ),
    )
    samples = permute_attributes(_thinned(samples, card.data), card.groups)
    if card.training != "none":
        _check_trained(samples.frame, raw.where)
    return dataclasses.replace(samples, fingerprint=fingerprint(samples.frame, inspection.digests))


def _read_rendered(card: Card) -> Samples:
    from audit.data.synthetic import rendered_samples

    rendered = rendered_samples(card.data, card.groups, card.match_on)
    samples = _thinned(rendered, card.data)
    if len(samples.frame) == len(rendered.frame):
        return samples
    left = fingerprint(samples.frame, pd.Series(rendered.fingerprint, index=samples.frame["image"]))
    return dataclasses.replace(samples, fingerprint=left)


def _source_name(spec: DataSpec, name: str) -> str:
    return f"{spec.reader}: {shown_path(str(spec.path))}" + (f" ({name})" if name else "")


def _read_raw(spec: DataSpec, card_path: Path, data_root: Path | None) -> RawTable:
    assert spec.path is not None  # the schema asks for it
    downloads = spec.reader == "cifar100"
    path = resolve(spec.path, card_path=card_path, data_root=data_root, missing_ok=downloads)
    if spec.reader == "table":
        return read_image_table(spec, path)
    if spec.reader == "huggingface":
        return read_huggingface(spec, path)
    if spec.reader == "croissant":
        return read_croissant(spec, path)
    if spec.reader in READERS:
        return read_published(spec, path)
    return read_cifar100(spec, path) if downloads else read_folder(spec, path)


def _with_links(raw: RawTable, spec: DataSpec) -> RawTable:
    """Let links lead out of the data's folder where the card says so."""
    source = raw.source
    if spec.links and isinstance(source, FileSource):
        return dataclasses.replace(raw, source=dataclasses.replace(source, links=True))
    if spec.links and isinstance(source, CropSource):
        files = dataclasses.replace(source.files, links=True)
        return dataclasses.replace(raw, source=dataclasses.replace(source, files=files))
    return raw


def _chosen_columns(raw: RawTable, card: Card) -> pd.DataFrame:
    """Return image, label, subject, given split, the raw groups and the nuisance columns."""
    spec = card.data
    subject = [spec.subject] if isinstance(spec.subject, str) else (spec.subject or [spec.image])
    needed = [(spec.label, "data.label"), *((column, "data.subject") for column in subject)]
    needed += [(group.column, f"groups.{name}.column") for name, group in card.groups.items()]
    needed += [(column, f"groups.{name}.pair") for name, group in card.groups.items() for column in group.pair or []]
    needed += [(column, "match_on") for column in card.match_on]
    if spec.split is not None:
        needed.append((spec.split, "data.split"))
    require_columns(raw.frame, needed, raw.where)
    chosen = {"image": raw.frame[spec.image], "label": raw.frame[spec.label]}
    chosen["subject"] = _joined(raw.frame[subject])
    if spec.split is not None:
        chosen[GIVEN] = raw.frame[spec.split]
    elif GIVEN in raw.frame:
        chosen[GIVEN] = raw.frame[GIVEN]
    for name, group in card.groups.items():
        chosen[name] = raw.frame[group.column]
        if group.pair:
            chosen[pair_column(name)] = _joined(raw.frame[group.pair]).fillna("")
    for column in card.match_on:
        chosen[column] = raw.frame[column].fillna(UNKNOWN)
    return pd.DataFrame(chosen)


def _joined(parts: pd.DataFrame) -> pd.Series:
    """Join the values of each row; None where one is missing."""
    joined = parts.fillna("").agg("/".join, axis=1)
    return joined.where(parts.notna().all(axis=1), None)


def _merge_duplicates(rows: pd.DataFrame, where: str, warnings: list[str]) -> pd.DataFrame:
    merged = rows.drop_duplicates()
    named = merged[merged["image"].notna()]
    twice = named[named["image"].duplicated(keep=False)]
    if len(twice):
        image = twice["image"].iloc[0]
        both = twice[twice["image"] == image].drop(columns="image").astype(object).fillna("")
        column = next(name for name in both if both[name].nunique() > 1)
        values = " and ".join(f"'{value}'" for value in both[column].unique()[:2])
        what = f"image '{image}' stands twice, with {column} {values} ({twice['image'].nunique()} such images)"
        raise DataError(where, what, "keep one row per image")
    dropped = int(rows["image"].notna().sum()) - len(named)
    if dropped:
        warnings.append(f"{dropped} rows repeat another row and were merged with it: each image counts once")
    return pd.concat([named, rows[rows["image"].isna()]])


def _keep_usable(rows: pd.DataFrame, card: Card, excluded: list[ExcludedRow]) -> pd.DataFrame:
    rows = _leave_out(rows, rows["image"].isna(), f"no value in column '{card.data.image}'", excluded)
    rows = _leave_out(rows, rows["label"].isna(), f"no value in column '{card.data.label}'", excluded)
    kept = card.data.labels
    if kept is None and card.training == "none":
        kept = card.model.classes
    key = "model.classes" if card.data.labels is None else "data.labels"
    for label in sorted(set(rows["label"]) - set(kept)) if kept is not None else []:
        rows = _leave_out(rows, rows["label"] == label, f"label '{label}' is not in {key}", excluded)
    rows = _leave_out(rows, rows["subject"].isna(), "no value in data.subject", excluded)
    return rows.sort_values("image", ignore_index=True)


def _leave_out(rows: pd.DataFrame, which: pd.Series, reason: str, excluded: list[ExcludedRow]) -> pd.DataFrame:
    if which.any():
        examples = sorted(rows.loc[which, "image"].dropna())[:_EXAMPLES]
        excluded.append(ExcludedRow(reason=reason, images=int(which.sum()), examples=examples))
    return rows[~which]


def _labels_of(rows: pd.DataFrame, card: Card, where: str, seen: Sequence[str]) -> tuple[str, ...]:
    """Return the class names in the order of the model's outputs, once they have been checked."""
    present = sorted(set(rows["label"]))
    for label in card.data.labels or []:
        if label not in present:
            what = f"no image has the label '{label}'"
            raise DataError(f"{where} (data.labels)", what, did_you_mean(label, seen))
    if not present:
        wanted = "data.labels" if card.data.labels is not None or card.model.classes is None else "model.classes"
        found = f" (found: {', '.join(map(str, seen[:_EXAMPLES]))})" if len(seen) else ""
        raise DataError(where, f"no image has a label that is kept{found}", f"check data.label and {wanted}")
    if len(present) == 1:
        fix = "an audit needs two labels; check data.label and data.labels"
        raise DataError(where, f"one class only ('{present[0]}', {len(rows)} images)", fix)
    if card.training == "none" and card.model.classes is not None:
        strange = [label for label in present if label not in card.model.classes]
        if strange:
            hint = did_you_mean(strange[0], card.model.classes)
            raise DataError(f"{where} (data.labels)", f"'{strange[0]}' is not in model.classes", hint)
        return tuple(card.model.classes)
    return tuple(card.data.labels or present)


def _attributes(rows: pd.DataFrame, card: Card) -> dict[str, AttributeInfo]:
    return {
        name: attribute_info(name, group, rows[name], group_column(rows[name], group))
        for name, group in card.groups.items()
    }


def _finished(rows: pd.DataFrame, card: Card) -> pd.DataFrame:
    """Return the frame of Samples: groups filled in, splits assigned, columns in order."""
    groups = {name: group_column(rows[name], group) for name, group in card.groups.items()}
    frame = rows.assign(**groups)
    frame["split"] = assign_splits(frame, card.data, card.groups, trains=card.training != "none")
    pairs = [pair_column(name) for name, group in card.groups.items() if group.pair]
    columns: Sequence[str] = ["image", "label", "subject", "split", *card.groups, *card.match_on, *pairs]
    return frame[columns].astype(str).reset_index(drop=True)


def _thinned(samples: Samples, spec: DataSpec) -> Samples:
    groups = {name: info.groups for name, info in samples.attributes.items()}
    frame, dropped = thin_training(samples.frame, spec, groups)
    if not dropped:
        return samples
    frame = frame.reset_index(drop=True)
    infos = {
        name: info.model_copy(update={"unknown_images": int((frame[name] == UNKNOWN).sum())})
        for name, info in samples.attributes.items()
    }
    return dataclasses.replace(samples, frame=frame, attributes=infos, excluded=(*samples.excluded, *dropped))


def _check_trained(frame: pd.DataFrame, where: str) -> None:
    trained = set(frame.loc[frame["split"] == "train", "label"])
    for split in SPLITS[1:]:
        unseen = sorted(set(frame.loc[frame["split"] == split, "label"]) - trained)
        if unseen:
            what = f"label '{unseen[0]}' stands in '{split}' but in no training image"
            raise DataError(where, what, "add training images of it, or leave it out of data.labels")
