"""Models whose inside is not given: what is known of them is how they answer images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from audit.card.faults import did_you_mean
from audit.card.read_table import read_table
from audit.card.schema import ModelSpec
from audit.data.samples import AUDIT_SPLITS, EXAMPLES, Samples
from audit.data.scores import ROUNDING, look_like_logits, misses_one, outside, score_table
from audit.errors import ModelError
from audit.filenames import printable
from audit.models.preprocessing import Preprocessing
from audit.models.readout import Readout, readout_of_card
from audit.progress import Progress
from audit.records import Access, DataWarning, DataWarningCode, TableForm
from audit.store import file_hash

Floats = npt.NDArray[np.float64]
PREDICTED = "predicted"  # column of a table of predictions: the answer itself
IMAGE = "image"  # column of the image's key, where the table has none that is called as in the data
IN_MEMORY = "in memory"  # model.path of predictions that were given in Python


@dataclass(frozen=True)
class Answers:
    """What a model says of N images."""

    predicted: npt.NDArray[np.int64]  # (N,), class numbers
    probabilities: Floats | None  # (N, classes), None where only the answers are known
    # (N, classes), where an image may be called several classes or none: which
    called: npt.NDArray[np.bool_] | None = None


class BlackBox(ABC):
    """A model that is known by its answers.

    Attributes
    ----------
    spec : ModelSpec
    classes : tuple of str
        In the order of its outputs.
    sha256 : str
        Of the file that it is.
    access : Access
    side : int or None
        Of its images in pixels; None where it needs none.
    preprocessing : Preprocessing or None
        What is done to images before it sees them; likewise.
    """

    spec: ModelSpec
    classes: tuple[str, ...]
    sha256: str
    access: Access
    side: int | None
    preprocessing: Preprocessing | None

    @property
    def readout(self) -> Readout:
        """How its outputs are read."""
        return readout_of_card(self.spec)

    @abstractmethod
    def check(self, samples: Samples) -> Samples:
        """Raise ``ModelError`` where it cannot answer these images; return them with what is odd as warnings."""

    @abstractmethod
    def answer(self, samples: Samples, rows: npt.NDArray[np.int64], progress: Progress) -> Answers:
        """Return its answers to rows of the samples."""


@dataclass(frozen=True)
class PredictionTable(BlackBox):
    """Predictions that were made elsewhere, one row for each image."""

    spec: ModelSpec
    classes: tuple[str, ...]
    sha256: str  # of the table's file
    where: str  # the table, for messages
    # by image: ``predicted`` as class number, and a column for each class with its probability, if these are known
    answers: pd.DataFrame
    form: TableForm | None = None  # how the file was read; None where the table was given in Python
    access: Access = Access.PREDICTIONS
    side: int | None = None
    preprocessing: Preprocessing | None = None

    def check(self, samples: Samples) -> Samples:
        """Raise where an audited image has no prediction, or a column may be no class; add how the table was read."""
        if self.spec.classes is None:
            strange = [name for name in self.classes if name not in set(samples.frame["label"])]
            if strange:
                what = f"column '{strange[0]}' is no label of the data"
                fix = "name the columns that are classes: model.classes: [...]"
                raise ModelError(self.where, what, fix)
        audited = samples.frame.loc[samples.frame["split"].isin(AUDIT_SPLITS), "image"]
        missing = audited[~audited.isin(self.answers.index)]
        if len(missing):
            what = f"no prediction for {len(missing)} of {len(audited)} images ({_few(missing.tolist())})"
            fix = "add them, or name those that never reached the classifier with data.not_detected"
            raise ModelError(self.where, what, fix)
        if self.form is not None:
            samples = replace(samples, tables=(*samples.tables, self.form))
        others = sorted(set(self.answers.index) - set(samples.frame["image"]))
        if not others:
            return samples
        unused = DataWarning(
            code=DataWarningCode.UNUSED_PREDICTIONS,
            images=len(others),
            total=len(self.answers),
            examples=[printable(name) for name in others[:EXAMPLES]],
        )
        return replace(samples, warnings=(*samples.warnings, unused))

    def answer(self, samples: Samples, rows: npt.NDArray[np.int64], progress: Progress) -> Answers:
        """Look the images up."""
        found = self.answers.loc[samples.frame["image"].iloc[rows]]
        progress(len(rows), len(rows))
        has_scores = set(self.classes) <= set(found.columns)
        predicted = found[PREDICTED].to_numpy(dtype=np.int64)
        if not has_scores:
            return Answers(predicted, None)
        likely = found[list(self.classes)].to_numpy(dtype=np.float64)
        return replace(answers_of(likely, likely, self.readout), predicted=predicted)


def read_predictions(spec: ModelSpec, path: Path, image: str) -> PredictionTable:
    """Read a table of predictions.

    Parameters
    ----------
    spec : ModelSpec
        Its ``classes`` and ``scores``, where given.
    path : pathlib.Path
        A table of any form that data may have: the image's key, and a column for each class, or ``predicted``, or
        both.
    image : str
        Column of the key; where it is not there, ``image`` is.

    Raises
    ------
    DataError
        If the table cannot be read.
    ModelError
        If an image occurs twice, a class is unknown, or a value is no number, or no probability.
    """
    table = read_table(path)
    return replace(predictions_of(spec, table.frame, file_hash(path), image, str(path)), form=table.form)


def predictions_of(spec: ModelSpec, frame: pd.DataFrame, sha256: str, image: str, where: str) -> PredictionTable:
    """Take predictions from a table of text, as :func:`read_predictions` has it."""
    key = image if image in frame else IMAGE
    if key not in frame:
        what = f"no column '{image}' of the images' keys"
        raise ModelError(where, what, did_you_mean(image, [str(name) for name in frame.columns]))
    keys = frame[key]
    if keys.isna().any():
        raise ModelError(where, f"{int(keys.isna().sum())} rows name no image in '{key}'", "name each row's image")
    twice = sorted(set(keys[keys.duplicated()]))
    if twice:
        what = f"{len(twice)} images occur twice ({_few(twice)})"
        raise ModelError(where, what, "give each image one row")
    table = frame.drop(columns=key).set_index(pd.Index(keys, name=IMAGE))
    columns = [str(name) for name in table.columns if name != PREDICTED]
    classes, scored = _classes(spec, columns, where, has_predicted=PREDICTED in table)
    if PREDICTED in table and readout_of_card(spec).decision == "threshold":
        what = f"has '{PREDICTED}', and the card calls images by a threshold"
        raise ModelError(where, what, "remove that column, or write model.decision: argmax")
    answers = pd.DataFrame(index=table.index)
    if scored:
        scores = _numbers(table[list(classes)], where)
        likely = probabilities(scores, spec, table.index, where)
        answers = pd.DataFrame(likely, index=table.index, columns=list(classes))
    if PREDICTED in table:
        numbers = _class_numbers(table[PREDICTED], classes, where)
    else:
        numbers = answers_of(scores, likely, readout_of_card(spec)).predicted
    return PredictionTable(spec, classes, sha256, where, answers.assign(**{PREDICTED: numbers}))


def _classes(
    spec: ModelSpec, columns: Sequence[str], where: str, *, has_predicted: bool
) -> tuple[tuple[str, ...], bool]:
    """Return the classes, and whether each has a column."""
    if spec.classes is None:
        if not columns and has_predicted:
            what = f"has '{PREDICTED}' and no column for each class, so nothing says which classes there are"
            raise ModelError(where, what, "name them: model.classes: [...]")
        if len(columns) < 2:
            what = f"has {len(columns)} columns beside the image"
            raise ModelError(where, what, f"give a column for each class, two or more, or '{PREDICTED}'")
        return tuple(columns), True
    absent = [name for name in spec.classes if name not in columns]
    if not absent:
        return tuple(spec.classes), True
    if has_predicted and len(absent) == len(spec.classes):
        return tuple(spec.classes), False
    what = f"no column '{absent[0]}' (model.classes)"
    raise ModelError(where, what, did_you_mean(absent[0], columns) if columns else f"add it, or a column '{PREDICTED}'")


def _numbers(texts: pd.DataFrame, where: str) -> Floats:
    """Return a table of numbers, or say where one is none, or not finite."""
    numbers: Floats = score_table(texts, where).to_numpy()
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        given = texts.iloc[row].tolist()[column]
        said = "nothing" if given is None or pd.isna(given) else f"'{printable(str(given))}'"
        what = f"'{printable(str(texts.index[row]))}' has {said} for class '{texts.columns[column]}'"
        more = f" ({int(wrong.any(axis=1).sum())} such images)"
        raise ModelError(where, what + more, "write a finite number for every image and class")
    return numbers


def _class_numbers(names: pd.Series, classes: Sequence[str], where: str) -> npt.NDArray[np.int64]:
    numbers = pd.Index(classes).get_indexer(pd.Index(names)).astype(np.int64)
    wrong = np.flatnonzero(numbers < 0)
    if len(wrong):
        image, given = printable(str(names.index[wrong[0]])), names.iloc[wrong[0]]
        if pd.isna(given):
            what, fix = f"'{image}' has nothing as '{PREDICTED}' ({len(wrong)} such images)", "name a class"
        else:
            what = f"'{image}' is predicted as '{printable(str(given))}', no class ({len(wrong)} such images)"
            fix = did_you_mean(str(given), classes)
        raise ModelError(where, what, fix)
    return numbers


def probabilities(
    scores: Floats, spec: ModelSpec, images: Sequence[str] | pd.Index, where: str, readout: Readout | None = None
) -> Floats:
    """Return scores (N, classes) as probabilities: as they are, or of logits as the card's ``output`` says.

    Parameters
    ----------
    scores : numpy.ndarray (N, classes)
    spec : ModelSpec
        ``scores`` says what they are; where it does not, they are logits if one is below 0 or above 1, unless classes
        exclude each other and most images' sum to 1.
    images : sequence of str
        Their N names.
    where : str
        For messages.
    readout : Readout, optional
        How they are read; default: as the card says.

    Raises
    ------
    ModelError
        If probabilities are outside of 0 and 1, or those of classes that exclude each other do not sum to 1; it names
        the first image.
    """
    readout = readout or readout_of_card(spec)
    beyond, sums = outside(scores), scores.sum(axis=1)
    guessed = spec.scores is None and len(scores) > 0
    if guessed and readout.exclusive and beyond.any() and (scores >= 0).all() and (total := _common(sums)) is not None:
        what = f"scores of every image sum to {total:.4g}: shares of a whole, and no logits"
        raise ModelError(where, what, f"divide them by {total:.4g}, or write model.scores: logit")
    if guessed and readout.output == "sigmoid" and beyond.any() and (scores >= 0).all():
        what = f"scores from {scores.min():.4g} to {scores.max():.4g} may be logits or percentages"
        raise ModelError(where, what, "write model.scores: logit, or divide them by 100")
    if spec.scores == "logit" or (guessed and look_like_logits(scores, exclusive=readout.exclusive)):
        likely: Floats = readout.probabilities(torch.tensor(scores)).numpy()
        return likely
    wrong = beyond.any(axis=1) | (readout.exclusive & misses_one(scores))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        shown = ", ".join(f"{value:.4g}" for value in scores[row][:EXAMPLES])
        summed = f", which sum to {sums[row]:.4g}" if readout.exclusive else ""
        what = f"'{printable(str(images[row]))}' has {shown}{summed}: no probabilities"
        more = f" ({int(wrong.sum())} such images)"
        raise ModelError(where, what + more, "correct them, or write model.scores: logit where they are logits")
    return np.clip(scores, 0.0, 1.0)


def _common(sums: Floats) -> float | None:
    """Return what all of two or more sums are, within rounding; None where they differ."""
    middle = float(np.median(sums))
    same = len(sums) > 1 and bool((np.abs(sums - middle) <= ROUNDING * abs(middle)).all())
    return float(f"{middle:.3g}") if same and abs(middle - 1) > ROUNDING else None


def answers_of(scores: Floats, likely: Floats, readout: Readout) -> Answers:
    """Return what images are called by their probabilities (N, classes); ``scores`` are in the order of these."""
    raw, shares = torch.tensor(scores), torch.tensor(likely)
    called = readout.called(raw, shares)
    return Answers(readout.predicted(raw, shares).numpy(), likely, None if called is None else called.numpy())


def hash_table(frame: pd.DataFrame) -> str:
    """SHA-256 of a table that was given in Python."""
    return hashlib.sha256(frame.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def _few(names: Sequence[str]) -> str:
    return ", ".join(printable(str(name)) for name in names[:3]) + (", ..." if len(names) > 3 else "")
