"""From what was read to samples, step by step; every row is kept, or left out with its reason."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.batching import freed_memory_returned
from audit.card.faults import did_you_mean
from audit.card.load import locate, resolve, shown_path
from audit.card.read_table import plain_text, stripped
from audit.card.schema import Card
from audit.data.covariates import covariate_column, missing_warnings
from audit.data.detected import NOT_DETECTED, mark_listed, part_undetected
from audit.data.groups import (
    attribute_info,
    disagreement_warnings,
    empty_group_warnings,
    group_column,
    permute_attributes,
    unknown_warnings,
)
from audit.data.leaks import leak_warnings, thumbnail
from audit.data.names import settled
from audit.data.quality import duplicate_warnings, fingerprint, inspect_images, same_content
from audit.data.readers import RawTable, read_raw
from audit.data.readers.raw import DETAIL, KIND, require_columns
from audit.data.readers.table import read_keys
from audit.data.rows import Rows, loss_warnings
from audit.data.samples import EXAMPLES, SPLITS, UNKNOWN, ImageSource, Samples, pair_column
from audit.data.sources import open_image, opening_of
from audit.data.splits import GIVEN, assign_splits, thin_training
from audit.errors import DataError
from audit.filenames import printable
from audit.records import DataSource, DataWarning, DataWarningCode, LeftOut, SourceKind

Progress = Callable[[int], None]


def read_samples(
    card: Card,
    *,
    card_path: Path,
    data_root: Path | None,
    progress: Progress | None = None,
    unread_before: frozenset[str] | None = None,
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
    unread_before : frozenset of str, optional
        Printable names of the images that a finished run could not read. Of all others the bytes are hashed; images are
        not decoded, and not warned of, once more.

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
        return _read_rendered(card)
    with freed_memory_returned():
        return _assembled(_read_rows(card, card_path, data_root), card, progress, unread_before)


def _read_rows(card: Card, card_path: Path, data_root: Path | None) -> Rows:
    """Read what the card names, and choose its columns."""
    if card.data.reader == "table" and card.data.path is not None and not card.model.sees_images:
        raw = read_keys(card.data, locate(card.data.path, card_path=card_path, data_root=data_root))
    else:
        raw = read_raw(card.data, card_path, data_root)
    if card.data.not_detected_list is not None:
        path = resolve(card.data.not_detected_list, card_path=card_path, data_root=data_root)
        raw = mark_listed(raw, card.data.image, path)
    return chosen_columns(raw, card)


def samples_from_frame(
    frame: pd.DataFrame,
    source: ImageSource,
    *,
    card: Card,
    where: str = "the table",
    progress: Progress | None = None,
) -> Samples:
    """Make samples of a table in memory and a source of images.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per image. The columns are those that the card names: ``data.image`` (keys for ``source``),
        ``data.label``, ``data.subject``, ``groups.*.column``, ``match_on``, ``data.split``. Values are taken as text,
        missing ones as missing.
    source : ImageSource
        Opens a key. Where it also has ``__contains__``, keys that it lacks are an error; else they are set aside like
        unreadable images.
    card : Card
        ``data.reader`` and ``data.path`` are not looked at.
    where : str
        What to call the table in messages.
    progress : callable, optional
        Called with the number of images opened so far.

    Returns
    -------
    Samples
        As ``read_samples`` gives for a file of the same content.

    Raises
    ------
    DataError
        If a key occurs twice or is missing, the source lacks one, a label has no output of the model, or the data
        cannot
        serve an audit; the first few are named.
    """
    spec = card.data
    require_columns(frame, [(spec.image, "data.image"), (spec.label, "data.label")], where)
    texts = as_texts(frame)
    keys = texts[spec.image]
    if keys.isna().any():
        raise DataError(where, f"{int(keys.isna().sum())} rows have no key in '{spec.image}'", "name each row's image")
    twice = list(keys[keys.duplicated()].unique())
    if twice:
        raise DataError(where, f"{len(twice)} keys occur twice ({_few(twice)})", "keep one row per image")
    if isinstance(source, Container):
        lacking = [key for key in keys if key not in source]
        if lacking:
            raise DataError(where, f"the source lacks {len(lacking)} keys ({_few(lacking)})", "leave these rows out")
    if card.training == "none" and card.model.classes is not None and spec.labels is None:
        strange = sorted(set(texts[spec.label].dropna()) - set(card.model.classes))
        if strange:
            fix = "name its class in model.classes, or the labels to keep in data.labels"
            raise DataError(where, f"the model has no output for {len(strange)} labels ({_few(strange)})", fix)
    with freed_memory_returned():
        return _assembled(chosen_columns(RawTable(texts, source, where), card), card, progress)


def as_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table in memory as a file would hold it."""
    return pd.DataFrame({str(name): list(map(plain_text, frame[name].array)) for name in frame.columns}, dtype=object)


def _few(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def _read_rendered(card: Card) -> Samples:
    from audit.data.synthetic import rendered_samples

    rendered = rendered_samples(card.data, card.groups, card.categories, card.calipers)
    samples = _thinned(rendered, card)
    if len(samples.frame) < len(rendered.frame):
        whole = np.frombuffer(bytes.fromhex(rendered.fingerprint), dtype=np.uint8)
        digests = np.broadcast_to(whole, (len(samples.frame), len(whole)))
        samples = replace(samples, fingerprint=fingerprint(samples.frame, digests))
    return permute_attributes(samples, card.groups)


def _assembled(
    rows: Rows, card: Card, progress: Progress | None, unread_before: frozenset[str] | None = None
) -> Samples:
    rows = settle_names(rows)
    rows = merge_repeats(rows)
    seen = sorted(rows.frame["label"].dropna().unique())
    rows = leave_out_unusable(rows)
    check_labels(rows, seen)  # what is wrong with labels and groups shows before any file is opened
    tell_groups(rows)
    rows = leave_out_unknown(rows)
    rows = replace(rows, raw=replace(rows.raw, frame=pd.DataFrame()))  # nothing asks for the whole table again
    rows = part_undetected(rows)
    if card.model.sees_images:
        rows = open_images(rows, progress, unread_before)
    rows = check_labels(rows, seen)
    rows = tell_groups(rows)
    rows = as_columns_of_text(rows)
    rows = assign_rows(rows)
    rows = warn_of_rows(rows) if unread_before is None else replace(rows, looks=pd.DataFrame())
    samples = _thinned(_samples_of(rows), card)
    digests = rows.digests
    if len(digests) and len(samples.frame) < len(digests):
        digests = digests[rows.frame["image"].isin(samples.frame["image"]).to_numpy()]
    samples = permute_attributes(samples, card.groups)
    if card.training != "none":
        _check_trained(samples.frame, rows.raw.where)
    return replace(samples, fingerprint=fingerprint(samples.frame, digests))


def chosen_columns(raw: RawTable, card: Card) -> Rows:
    """Choose image, label, subject, given split, the raw groups and the nuisance columns of a raw table."""
    spec = card.data
    subject = [spec.subject] if isinstance(spec.subject, str) else (spec.subject or [spec.image])
    needed = [(spec.label, "data.label"), *((column, "data.subject") for column in subject)]
    needed += [(group.column, f"groups.{name}.column") for name, group in card.groups.items()]
    needed += [(column, f"groups.{name}.pair") for name, group in card.groups.items() for column in group.pair or []]
    needed += [(column, "match_on") for column in [*card.categories, *card.calipers]]
    if spec.split is not None:
        needed.append((spec.split, "data.split"))
    if spec.not_detected is not None:
        needed.append((spec.not_detected, "data.not_detected"))
    require_columns(raw.frame, needed, raw.where)
    chosen = {"image": raw.frame[spec.image], "label": raw.frame[spec.label]}
    chosen["subject"] = _joined(raw.frame[subject])
    if spec.split is not None:
        chosen[GIVEN] = _bare(raw.frame[spec.split])
    elif GIVEN in raw.frame:
        chosen[GIVEN] = raw.frame[GIVEN]
    if NOT_DETECTED in raw.frame or spec.not_detected is not None:
        chosen[NOT_DETECTED] = _bare(raw.frame[spec.not_detected or NOT_DETECTED])
    for name, group in card.groups.items():
        chosen[name] = raw.frame[group.column]
        if group.pair:
            chosen[pair_column(name)] = _joined(raw.frame[group.pair]).fillna("")
    for column in card.categories:
        chosen[column] = _bare(raw.frame[column])
    for column in card.calipers:
        chosen[column] = _bare(raw.frame[column])
    return Rows(pd.DataFrame(chosen), replace(raw, frame=raw.frame[[spec.image]]), card, warnings=raw.warnings)


def _bare(values: pd.Series) -> pd.Series:
    """Return what is no label and no group without outer blanks: a subject has one name."""
    return pd.Series(stripped(values), index=values.index, dtype=object)


def _joined(parts: pd.DataFrame) -> pd.Series:
    """Join the values of each row; None where one is missing."""
    parts = parts.apply(_bare)
    if parts.shape[1] == 1:
        return parts.iloc[:, 0]
    joined = parts.fillna("").agg("/".join, axis=1)
    return joined.where(parts.notna().all(axis=1), None)


def settle_names(rows: Rows) -> Rows:
    """Merge names, put numbers into bins and read covariates; count the files that a reader found and did not read.

    From here on the card of the rows names the groups that bins make.
    """
    card, left_out = rows.card, rows.raw.left_out
    unread = pd.DataFrame() if left_out is None else pd.DataFrame({"image": left_out[card.data.image]})
    kept = kept_labels(card)
    frame = rows.frame
    names = settled(frame["label"], "label", card.data.merge_labels, kept, "data.merge_labels")
    frame, warnings = frame.assign(label=names.of(frame["label"])), list(names.warnings)
    specs = {}
    for name, spec in card.groups.items():
        also = left_out[spec.column] if left_out is not None and spec.column in left_out else None
        values = frame[name] if also is None else pd.concat([frame[name], also])
        names = settled(values, name, spec.merge, spec.values, f"groups.{name}.merge", spec.bins)
        frame, warnings = frame.assign(**{name: names.of(frame[name])}), [*warnings, *names.warnings]
        if also is not None:
            unread[name] = names.of(also)
        specs[name] = spec.model_copy(update={"values": names.bins or spec.values})
    for column in card.calipers:
        read, told = covariate_column(frame[column], column)
        frame, warnings = frame.assign(**{column: read}), [*warnings, *told]
    rows = replace(rows, frame=frame, card=card.model_copy(update={"groups": specs})).warned(*warnings)
    if left_out is None:
        return rows
    found = rows.excluded_rows(unread, left_out[KIND], left_out[DETAIL])
    return replace(rows, excluded=found, lost=found)


def merge_repeats(rows: Rows) -> Rows:
    """Merge rows that repeat another; raise ``DataError`` where two differ on one image."""
    named = rows.frame["image"].notna()
    repeated = named & rows.frame["image"].duplicated(keep=False)
    if not repeated.any():
        return rows
    again = rows.frame[repeated].duplicated()
    merged = rows.frame[repeated][~again]
    twice = merged[merged["image"].duplicated(keep=False)]
    if len(twice):
        image = twice["image"].iloc[0]
        both = twice[twice["image"] == image].drop(columns="image").astype(object).fillna("")
        column = next(name for name in both if both[name].nunique() > 1)
        values = " and ".join(f"'{value}'" for value in both[column].unique()[:2])
        what = (
            f"image '{printable(image)}' occurs twice, with {column} {values} ({twice['image'].nunique()} such images)"
        )
        raise DataError(rows.raw.where, what, "keep one row per image")
    kept = np.ones(len(rows.frame), dtype=bool)
    kept[np.flatnonzero(repeated)[again]] = False
    told = DataWarning(code=DataWarningCode.REPEATED_ROWS, images=int(again.sum()))
    return replace(rows, frame=rows.frame[kept]).warned(told)


def leave_out_unusable(rows: Rows) -> Rows:
    """Leave out rows without an image, a label that is kept, or a subject; sort the rest by image."""
    card = rows.card
    rows = rows.without(rows.frame["image"].isna(), LeftOut.NO_VALUE, of=card.data.image)
    rows = rows.without(rows.frame["label"].isna(), LeftOut.NO_VALUE, of=card.data.label)
    kept = kept_labels(card)
    key = "model.classes" if card.data.labels is None else "data.labels"
    for label in sorted(set(rows.frame["label"].unique()) - set(kept)) if kept is not None else []:
        which = rows.frame["label"] == label
        rows = rows.without(which, LeftOut.LABEL_NOT_KEPT, of=key, names=[label], chosen=True)
    rows = rows.without(rows.frame["subject"].isna(), LeftOut.NO_SUBJECT)
    images = rows.frame["image"].to_numpy(dtype=object)
    if (images[1:] < images[:-1]).any():
        return replace(rows, frame=rows.frame.sort_values("image", ignore_index=True))
    return replace(rows, frame=rows.frame.reset_index(drop=True))


def kept_labels(card: Card) -> list[str] | None:
    """Return the labels that a card keeps, None for all."""
    return card.model.classes if card.data.labels is None and card.training == "none" else card.data.labels


def leave_out_unknown(rows: Rows) -> Rows:
    """Leave out images whose group is unknown, or refuse them, where the card asks for that."""
    for name, spec in rows.card.groups.items():
        is_unknown = group_column(rows.frame[name], spec) == UNKNOWN
        if spec.missing == "exclude":
            rows = rows.without(is_unknown, LeftOut.NO_GROUP, of=name, chosen=True)
        elif spec.missing == "error" and is_unknown.any():
            first = rows.frame[is_unknown].iloc[0]
            row = 1 + int((rows.raw.frame[rows.card.data.image] == first["image"]).to_numpy().argmax())
            holds = "nothing" if pd.isna(first[name]) else f"'{printable(first[name])}'"
            what = (
                f"{int(is_unknown.sum())} images have no group: row {row}, '{printable(first['image'])}', has {holds}"
            )
            raise DataError(f"groups.{name} (column '{spec.column}')", what, "fill it in, or change 'missing'")
    return rows


def check_labels(rows: Rows, seen: Sequence[str]) -> Rows:
    """Set the class names in the order of the model's outputs; ``seen`` are the labels before any was left out."""
    card, where = rows.card, rows.raw.where
    present = sorted(rows.frame["label"].unique())
    for label in card.data.labels or []:
        if label not in present:
            what = f"no image has the label '{label}'"
            raise DataError(f"{where} (data.labels)", what, did_you_mean(label, seen))
    if not present:
        wanted = "data.labels" if card.data.labels is not None or card.model.classes is None else "model.classes"
        found = f" (found: {', '.join(seen[:EXAMPLES])})" if seen else ""
        raise DataError(where, f"no image has a label that is kept{found}", f"check data.label and {wanted}")
    if len(present) == 1:
        fix = "an audit needs two labels; check data.label and data.labels"
        raise DataError(where, f"one class only ('{present[0]}', {len(rows.frame)} images)", fix)
    if card.training != "none" or card.model.classes is None:
        return replace(rows, labels=tuple(card.data.labels or present))
    strange = [label for label in present if label not in card.model.classes]
    if strange:
        hint = did_you_mean(strange[0], card.model.classes)
        raise DataError(f"{where} (data.labels)", f"'{strange[0]}' is not in model.classes", hint)
    return replace(rows, labels=tuple(card.model.classes))


def tell_groups(rows: Rows) -> Rows:
    """Fill in "unknown", and describe each attribute."""
    groups, categories = rows.card.groups, rows.card.categories
    known = {name: group_column(rows.frame[name], group) for name, group in groups.items()}
    attributes = {name: attribute_info(name, groups[name], rows.frame[name], column) for name, column in known.items()}
    kept = [name for name, group in groups.items() if group.values is None or UNKNOWN in group.values]
    told = unknown_warnings(rows.frame, [*kept, *categories])
    filled = {name: rows.frame[name].fillna(UNKNOWN) for name in categories}
    return replace(rows.warned(*told), frame=rows.frame.assign(**known, **filled), attributes=attributes)


def open_images(rows: Rows, progress: Progress | None = None, unread_before: frozenset[str] | None = None) -> Rows:
    """Open every image once, and set aside what cannot be read."""
    found = inspect_images(
        rows.raw.source,
        list(rows.frame["image"]),
        rows.raw.where,
        opening=opening_of(rows.card),
        progress=progress,
        unread_before=unread_before,
    )
    left_out = rows.frame[~found.readable]
    errors = [found.unreadable[key] for key in left_out["image"]]
    bad = rows.excluded_rows(left_out, [e.kind for e in errors], [e.detail for e in errors], None)
    rows = replace(
        rows,
        frame=rows.frame if found.readable.all() else rows.frame[found.readable],
        quarantined=bad,
        lost=(*rows.lost, *bad),
        digests=found.digests,
        looks=found.looks,
    )
    return rows.warned(*found.warnings, *loss_warnings(rows))


def as_columns_of_text(rows: Rows) -> Rows:
    """Hold the texts of a column side by side, a third of what Python's own texts take.

    Not before images are opened: a name that no file can have is a text of Python's, and no other.
    """
    return replace(rows, frame=rows.frame.astype({name: str for name in rows.frame if name != GIVEN}))


def assign_rows(rows: Rows) -> Rows:
    """Assign each row to a split."""
    card, frame = rows.card, rows.frame
    frame = frame.assign(split=assign_splits(frame, card.data, card.groups, trains=card.training != "none"))
    pairs = [pair_column(name) for name, group in card.groups.items() if group.pair]
    columns: Sequence[str] = [
        "image",
        "label",
        "subject",
        "split",
        *card.groups,
        *card.categories,
        *card.calipers,
        *pairs,
    ]
    return replace(rows, frame=frame[columns].astype(str).reset_index(drop=True))


def warn_of_rows(rows: Rows) -> Rows:
    """Warn of groups, of covariates, and of what the images give away; what these look like is forgotten then."""
    rows = rows.warned(
        *empty_group_warnings(rows.frame, rows.attributes),
        *disagreement_warnings(rows.frame, rows.attributes),
        *missing_warnings(rows.frame, rows.card.calipers),
    )
    if not len(rows.digests):  # no image was opened
        return rows

    def thumb(key: str) -> npt.NDArray[np.float64]:
        return thumbnail(open_image(rows.raw.source, key, opening_of(rows.card)))

    content = same_content(rows.digests)
    told = [
        *duplicate_warnings(rows.frame, content),
        *leak_warnings(rows.frame, rows.looks, content, rows.attributes, rows.card.categories, thumb),
    ]
    return replace(rows, looks=pd.DataFrame()).warned(*told)


def _samples_of(rows: Rows) -> Samples:
    spec, about = rows.card.data, rows.raw.about
    if spec.path is None:
        origin = DataSource(kind=SourceKind.MEMORY, name=rows.raw.where)
    else:
        origin = DataSource(kind=SourceKind.FILES, reader=spec.reader, path=shown_path(spec.path), name=about.name)
    return Samples(
        frame=rows.frame,
        source=rows.raw.source,
        labels=rows.labels,
        attributes=rows.attributes,
        nuisance=tuple(rows.card.categories),
        calipers=rows.card.calipers,
        excluded=rows.excluded,
        quarantined=rows.quarantined,
        origin=origin,
        licence=about.licence,
        citation=about.citation,
        warnings=rows.warnings,
        tables=rows.raw.tables,
        undetected=rows.undetected,
        opened=rows.card.model.sees_images,
    )


def _thinned(samples: Samples, card: Card) -> Samples:
    groups = {name: info.groups for name, info in samples.attributes.items()}
    frame, dropped = thin_training(samples.frame, card.data, groups)
    if not dropped:
        return samples
    frame = frame.reset_index(drop=True)
    infos = {
        name: info.model_copy(update={"unknown_images": int((frame[name] == UNKNOWN).sum())})
        for name, info in samples.attributes.items()
    }
    return replace(samples, frame=frame, attributes=infos, excluded=(*samples.excluded, *dropped))


def _check_trained(frame: pd.DataFrame, where: str) -> None:
    """Refuse a label that some split holds and the training split does not."""
    trained = set(frame["label"][frame["split"] == "train"].unique())
    for split in SPLITS[1:]:
        unseen = sorted(set(frame["label"][frame["split"] == split].unique()) - trained)
        if unseen:
            what = f"label '{unseen[0]}' is in '{split}' but in no training image"
            raise DataError(where, what, "add training images of it, or leave it out of data.labels")
