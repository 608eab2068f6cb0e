"""How strong a repair is: one rule for all methods, on the repair split.

Of all candidates, the audited model among them, the one with the smallest absolute aimed gap of which no group x label
cell loses more accuracy than the margin; of equals the more accurate, then the weaker. Beside it is told what half of
the gap would cost: where the margin decides, whoever set it must see what it keeps out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from audit.models.predict import Floats
from audit.models.readout import Readout
from audit.records import Metric
from audit.records.repair_methods import LOSS_AT_HALF, SMALLEST_CELL
from audit.repair.base import UNKNOWN_GROUP, Aim, Codes, Plain, RepairInput, Split
from audit.repair.seen import State, last_layer_in

Flags = npt.NDArray[np.bool_]
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)  # strengths between the audited model and the whole repair
ROUNDING = 1e-9
IN_A_CELL = 5  # images at least, for a cell to be balanced with others


@dataclass(frozen=True)
class Choice:
    """A candidate, and how it does on the images on which it was chosen."""

    place: int
    gap: float  # aimed, in share of images, -1 to 1
    gap_before: float
    accuracy: float
    largest_loss: float  # of accuracy, over all cells
    allowed: int = 0  # candidates whose cells all keep their accuracy
    smallest_cell: int = 0  # images of the group and label that has fewest
    loss_at_half: float | None = None  # the least at which any of them, allowed or not, halves the gap; None: none does

    def told(self) -> dict[str, Plain]:
        """Return it as plain data."""
        told: dict[str, Plain] = {
            "gap_on_repair": self.gap,
            "gap_before": self.gap_before,
            "accuracy_on_repair": self.accuracy,
            "largest_loss": self.largest_loss,
            "candidates_allowed": self.allowed,
            SMALLEST_CELL: self.smallest_cell,
        }
        return told if self.loss_at_half is None else told | {LOSS_AT_HALF: self.loss_at_half}


def called(readout: Readout, logits: Floats, outcome: int) -> Flags:
    """Tell which rows of logits (N, classes) are called the outcome."""
    given = torch.from_numpy(logits)
    several = readout.called(given)
    found = readout.predicted(given) == outcome if several is None else several[:, outcome]
    return found.numpy()


def right(readout: Readout, logits: Floats, targets: Codes) -> Flags:
    """Tell which rows of logits (N, classes) are called their own label."""
    given = torch.from_numpy(logits)
    several = readout.called(given)
    if several is None:
        found: Flags = readout.predicted(given).numpy() == targets
        return found
    own: Flags = several.numpy()[np.arange(len(targets)), targets]
    return own


def label_weights(split: Split, aim: Aim) -> dict[int, float]:
    """Return the weight of each label in the aimed gap; they sum to 1.

    Shares of labels among images of known group, of labels that both groups have; of the outcome alone, or of all
    others, where the gap is one of true or false positive rates.
    """
    known = split.groups != UNKNOWN_GROUP
    counts = np.bincount(split.targets[known], minlength=int(split.targets.max(initial=0)) + 1)
    counted = {
        label: float(count)
        for label, count in enumerate(counts)
        if all(np.any((split.groups == g) & (split.targets == label)) for g in (aim.group, aim.reference))
        and not (aim.metric is Metric.TPR_GAP and label != aim.outcome)
        and not (aim.metric is Metric.FPR_GAP and label == aim.outcome)
    }
    total = sum(counted.values())
    return {label: count / total for label, count in counted.items()}


def gap_of(values: npt.NDArray[np.float64] | Flags, split: Split, aim: Aim) -> npt.NDArray[np.float64]:
    """Return the group's mean minus the reference's at equal labels, of decisions or of any numbers (N, ...): (...)."""
    return np.tensordot(_pulls(split, aim), values, 1)


def _pulls(split: Split, aim: Aim) -> npt.NDArray[np.float64]:
    """Return what each image (N,) counts in the aimed gap."""
    pulls = np.zeros(len(split))
    for label, weight in label_weights(split, aim).items():
        for sign, group in ((1, aim.group), (-1, aim.reference)):
            cell = cell_of(split, group, label)
            pulls[cell] = sign * weight / cell.sum()
    return pulls


def cell_of(split: Split, group: int, label: int) -> Flags:
    """Tell which images are of a group and label."""
    cell: Flags = (split.groups == group) & (split.targets == label)
    return cell


def cells_of(split: Split) -> list[tuple[int, int]]:
    """Return every group x label that has an image, of known groups."""
    known = split.groups != UNKNOWN_GROUP
    return sorted({(int(g), int(y)) for g, y in zip(split.groups[known], split.targets[known], strict=True)})


def choose(candidates: Iterable[Floats], before: Floats, split: Split, given: RepairInput) -> Choice:
    """Choose among candidates.

    Parameters
    ----------
    candidates : iterable of numpy.ndarray (N, classes)
        Logits, weakest first; the first one should be the audited model's.
    before : numpy.ndarray (N, classes)
        Of the audited model.
    split : Split
        What is known of the same N images.
    given : RepairInput
        Aim, margin, and how logits are read.

    Raises
    ------
    ValueError
        If no candidate keeps the accuracy of every cell, as the audited model does.
    """
    readout, aim = given.readout, given.aim
    cells = np.stack([cell_of(split, *cell) / cell_of(split, *cell).sum() for cell in cells_of(split)])
    pulls = _pulls(split, aim)

    had = cells @ right(readout, before, split.targets)
    gap_before = float(pulls @ called(readout, before, aim.outcome))
    tried: list[Choice] = []
    for place, logits in enumerate(candidates):
        has = right(readout, logits, split.targets)
        gap, loss = float(pulls @ called(readout, logits, aim.outcome)), float((had - cells @ has).max())
        tried.append(Choice(place, gap, gap_before, float(has.mean()), loss))
    allowed = [one for one in tried if one.largest_loss <= given.accuracy_margin + ROUNDING]
    if not allowed:
        raise ValueError("no candidate keeps the accuracy of every cell")
    best = min(allowed, key=lambda one: (round(abs(one.gap), 12), -one.accuracy, one.place))
    halved = [one.largest_loss for one in tried if abs(one.gap) <= abs(gap_before) / 2 + ROUNDING]
    smallest = min(int(cell_of(split, *cell).sum()) for cell in cells_of(split))
    return replace(best, allowed=len(allowed), smallest_cell=smallest, loss_at_half=min(halved, default=None))


@dataclass(frozen=True)
class Strength:
    """How far a repair goes, the weights there, and how it was chosen."""

    value: float
    shift: float  # of the outcome's logit, in nats
    told: dict[str, Plain]

    def of(self, given: RepairInput, made: Callable[[float], State]) -> State:
        """Return the weights of a repair at this strength, the shift folded into the bias."""
        state, outcome = made(self.value), given.aim.outcome
        last = last_layer_in(given.model, state) if self.shift else None
        return state if last is None else last.shifted(outcome, self.shift, given.readout).folded_into(state)


def choose_strength(
    given: RepairInput, made: Callable[[float], State], rows: Codes, grid: Sequence[float] = GRID
) -> Strength:
    """Choose how far to go from the audited model (0) to a whole repair (1).

    Each strength is a candidate as it is, and with the outcome's logit shifted so that as many of the images are called
    the outcome as before: what closes a gap may move everybody.

    Parameters
    ----------
    given : RepairInput
    made : callable
        Weights at a strength; at 0 those of the audited model.
    rows : numpy.ndarray
        Of the repair split: images on which nothing of the repair was fitted.
    grid : sequence of float
        From 0 on.
    """
    before, outcome, readout = given.seen.logits[rows], given.aim.outcome, given.readout
    shifts = given.last is not None
    tried = [(strength, kept) for strength in grid for kept in ((False, True) if shifts and strength else (False,))]
    moved: list[float] = []

    def candidates() -> Iterator[Floats]:
        wanted = int(called(readout, before, outcome).sum())
        for strength in grid:
            logits = given.seen.answer(made(strength), rows)
            moved.append(0.0)
            yield logits
            if shifts and strength:
                moved.append(_shift_to(readout.margins(torch.from_numpy(logits))[:, outcome].numpy(), wanted))
                shifted = logits.copy()
                shifted[:, outcome] += np.float32(moved[-1])
                yield shifted

    choice = choose(candidates(), before, given.data.repair.take(rows), given)
    strength, shift = tried[choice.place][0], moved[choice.place]
    told: dict[str, Plain] = {
        "strength": strength,
        "shift": shift,
        "strengths_tried": list(grid),
        "chosen_on_images": len(rows),
    }
    return Strength(strength, shift, told | choice.told())


def _shift_to(margins: Floats, wanted: int) -> float:
    """Return what is added to margins (N,) so that so many are above 0: the middle of the two next to it."""
    falling = np.sort(margins)[::-1].astype(np.float64)
    ends = [falling[max(wanted - 1, 0)], falling[min(wanted, len(falling) - 1)]]
    return -float(np.mean(ends)) if 0 < wanted < len(falling) else 0.0


def halves(split: Split, seed: int) -> tuple[Codes, Codes]:
    """Return rows to fit on and rows to choose on: half of the subjects each, alike in cells of group x label."""
    order = np.random.default_rng([seed, 0]).permutation(len(split))
    first = order[np.unique(split.subjects[order], return_index=True)[1]]  # one image of each subject, drawn
    cells = split.groups[first] * (int(split.targets.max(initial=0)) + 1) + split.targets[first]
    mixed = np.random.default_rng([seed, 1]).permutation(len(first))
    by_cell = mixed[np.argsort(cells[mixed], kind="stable")]
    fit = np.isin(split.subjects, split.subjects[first[by_cell[::2]]])
    return np.flatnonzero(fit).astype(np.int64), np.flatnonzero(~fit).astype(np.int64)


def balanced_rows(split: Split, rows: Codes, draw: np.random.Generator) -> Codes:
    """Return rows of which every group x label cell has as many, drawn without replacement.

    Images of unknown group are left out, and cells of fewer than ``IN_A_CELL`` images, where others have more.
    """
    some = split.take(rows)
    cells = [np.flatnonzero(cell_of(some, *cell)) for cell in cells_of(some)]
    counted = [cell for cell in cells if len(cell) >= IN_A_CELL] or cells
    size = min(map(len, counted))
    drawn: Codes = rows[np.sort(np.concatenate([draw.choice(cell, size, replace=False) for cell in counted]))]
    return drawn
