"""What is odd about the data, in sentences: the one place that words ``DataWarning``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from audit.records import DataWarning, DataWarningCode

LISTED = 4  # names in one sentence
ALWAYS = 1e6  # standard deviations: more than this is a difference between two constants
STATISTICS = {
    "brightness": "mean brightness",
    "contrast": "contrast",
    "sharpness": "sharpness",
    "pixels": "size in pixels",
}


def warning_sentence(warning: DataWarning) -> str:
    """Return a warning in words: what was found, and what follows.

    Parameters
    ----------
    warning : DataWarning

    Returns
    -------
    str
        One sentence without a full stop.
    """
    return _SENTENCES[warning.code](warning)


def _eg(names: Sequence[str], joined: str = ", ") -> str:
    return f" (e.g. {joined.join(names)})" if names else ""


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _repeated_rows(w: DataWarning) -> str:
    return f"{w.images} rows repeat another row and were merged with it: each image counts once"


def _unnamed_files(w: DataWarning) -> str:
    return (
        f"{w.images} images lie in the data's folder that no row names{_eg(w.examples)}: they are not part of the "
        f"audit ({w.numbers['looked_at']:,.0f} files looked at); add rows, or move them away"
    )


def _uneven_loss(w: DataWarning) -> str:
    lost = ", ".join(f"{g} {w.numbers[f'lost:{g}']:.0f} of {w.numbers[f'of:{g}']:.0f}" for g in w.names)
    return (
        f"{w.of}: groups lost different shares of their images ({lost}; p {w.numbers['p']:.2g}, Holm): what is left of "
        "a group may not stand for it; repair what was left out and unreadable"
    )


def _similar_names(w: DataWarning) -> str:
    names = ", ".join(f"'{name}'" for name in w.names)
    return f"{w.of}: {names} differ in case or blanks only and count as {len(w.names)}; give them one spelling"


def _several_groups(w: DataWarning) -> str:
    return (
        f"{w.of}: {w.images} of {w.total} subjects have images in more than one group{_eg(w.subjects)}: each image "
        "counts in the group that is stated for it, so such a subject stands on both sides of a comparison; correct "
        "the annotation where it is meant for a person"
    )


def _identical_images(w: DataWarning) -> str:
    splits, subjects = (int(w.numbers[f"several {column}"]) for column in ("splits", "subjects"))
    follows = "each counts as an image of its own"
    if subjects:
        follows = "each subject counts as a person of its own, and intervals are too narrow"
    if splits:
        follows = "what was trained on or found on one is no test on the other"
    return (
        f"{w.images} of {w.total} images are byte-identical to another one{_eg(w.examples[:2])}, {subjects} of them to "
        f"one of another subject, {splits} to one in another split: {follows}; give copies one subject"
    )


def _near_copies(w: DataWarning) -> str:
    return (
        f"{w.images} images look like one of another subject in another split{_eg(w.examples, ' and ')}: where these "
        "are copies, what was trained on is asked again, and intervals are too narrow; give copies one subject"
    )


def _sources_differ(w: DataWarning) -> str:
    group, reference = w.names
    apart = [f"{STATISTICS[name]} ({_apart(by)})" for name, by in w.numbers.items() if name in STATISTICS]
    if "gray" in w.numbers:
        apart.append(f"share of gray images ({100 * w.numbers['gray']:+.0f} points)")
    return (
        f"{w.of}: images of '{group}' differ from those of '{reference}' in {', '.join(apart)}: what carries how a "
        "picture was taken can look as if it carried the group; name its source under match_on"
    )


def _apart(deviations: float) -> str:
    if abs(deviations) > ALWAYS:
        return f"always {'more' if deviations > 0 else 'less'}"
    return f"{deviations:+.1f} standard deviations"


def _labels_by_column(w: DataWarning) -> str:
    low, high = w.values
    return (
        f"{w.of}: labels depend on it (Cramer's V {w.numbers['cramers_v']:.2f}): '{w.names[0]}' is "
        f"{w.numbers['lowest']:.0%} of the images of '{low}' and {w.numbers['highest']:.0%} of those of '{high}'; "
        "donors are matched on it, rates by group are not"
    )


def _metadata_ignored(w: DataWarning) -> str:
    return (
        f"{w.images} images have EXIF metadata that cannot be read{_eg(w.examples)}: their pixels count, as they are "
        "stored; turn them upright if they are not"
    )


def _depth_guessed(w: DataWarning) -> str:
    return (
        f"{w.images} images store fewer bits than the 16 of their files{_eg(w.examples)}: they are scaled by the "
        "smaller depth that holds their largest value; save them with 8 bits if they look too bright"
    )


def _small_cells(w: DataWarning) -> str:
    return (
        f"{w.of}: {w.images} of {w.total} cells under {w.numbers['least']:.0f} subjects: {_first(w.names)}; what rests "
        "on them alone is graded as too little data, and the rest sees wide gaps only"
    )


def _untrained_cells(w: DataWarning) -> str:
    return (
        f"{w.of}: no image to train on in {w.images} of {w.total} cells: {_first(w.names)}; what the model says of "
        "these it has learnt from other groups, and a gap there may be no more than that"
    )


def _without_donor(w: DataWarning) -> str:
    return f"{w.images} images of {w.of} had no matching donor: they are in the rates, but were not patched"


def _null_run(w: DataWarning) -> str:
    return (
        f"{w.of}: NULL RUN: groups assigned at random within each label (seed {w.numbers['seed']:.0f}). Whatever this "
        f"audit finds by {w.of} is chance."
    )


_SENTENCES: Mapping[DataWarningCode, Callable[[DataWarning], str]] = {
    DataWarningCode.REPEATED_ROWS: _repeated_rows,
    DataWarningCode.UNNAMED_FILES: _unnamed_files,
    DataWarningCode.UNEVEN_LOSS: _uneven_loss,
    DataWarningCode.SIMILAR_NAMES: _similar_names,
    DataWarningCode.SUBJECT_IN_SEVERAL_GROUPS: _several_groups,
    DataWarningCode.IDENTICAL_IMAGES: _identical_images,
    DataWarningCode.NEAR_COPIES: _near_copies,
    DataWarningCode.SOURCES_DIFFER: _sources_differ,
    DataWarningCode.LABELS_BY_COLUMN: _labels_by_column,
    DataWarningCode.METADATA_IGNORED: _metadata_ignored,
    DataWarningCode.DEPTH_GUESSED: _depth_guessed,
    DataWarningCode.SMALL_CELLS: _small_cells,
    DataWarningCode.UNTRAINED_CELLS: _untrained_cells,
    DataWarningCode.WITHOUT_DONOR: _without_donor,
    DataWarningCode.NULL_RUN: _null_run,
}
