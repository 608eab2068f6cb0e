"""ThresholdOptimizer: what could be had if the group of each image were known when it is classified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin

from audit.models.device import in_double
from audit.models.predict import Floats
from audit.models.readout import Readout
from audit.repair.base import Codes, Plain, RepairInput
from audit.repair.choice import called, choose

CONSTRAINTS = {
    "missed": "true_positive_rate_parity",
    "false_alarm": "false_positive_rate_parity",
    "both": "equalized_odds",
}  # fairlearn's, by which error does harm
BESIDE = 1e-3  # nats beyond the decision, of an image that is exactly at it


class _Scores(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Hands on the scores that it is given, as a fitted classifier."""

    def __init__(self) -> None:
        self.classes_ = np.array([0, 1])

    def fit(self, x: Any, y: Any) -> _Scores:
        """Learn nothing."""
        del x, y
        return self

    def predict(self, x: Any) -> Any:
        """Return the scores."""
        return np.asarray(x)[:, 0]


@dataclass(frozen=True)
class ByGroup:
    """Calls images the outcome by thresholds of their group, some of them at random."""

    optimizer: Any
    known: tuple[int, ...]  # groups that have thresholds; other images are answered as they were
    outcome: int
    readout: Readout
    seed: int

    def __call__(self, logits: Floats, groups: Codes) -> Floats:
        """Return logits (N, classes) that are read as the optimizer decides."""
        some = np.flatnonzero(np.isin(groups, self.known))
        if not len(some):
            return logits
        margins = self.readout.margins(torch.from_numpy(logits))[:, self.outcome].numpy()
        is_called = called(self.readout, logits, self.outcome)
        wanted = is_called.copy()
        wanted[some] = (
            self.optimizer.predict(
                _scores(self.readout, logits[some], self.outcome),
                sensitive_features=groups[some],
                random_state=self.seed,
            )
            == 1
        )
        moved = logits.copy()
        turned = wanted != is_called
        moved[turned, self.outcome] -= 2 * margins[turned]
        moved[turned, self.outcome] += np.where(wanted[turned], BESIDE, -BESIDE).astype(np.float32)
        return moved


def _scores(readout: Readout, logits: Floats, outcome: int) -> npt.NDArray[np.float64]:
    scores: npt.NDArray[np.float64] = in_double(readout.margins(torch.from_numpy(logits))[:, [outcome]]).numpy()
    return scores


def threshold_optimizer(given: RepairInput) -> tuple[ByGroup, dict[str, Plain]]:
    """Fit fairlearn's ThresholdOptimizer (Hardt et al. 2016) to the two groups of the aim, on the repair split.

    Every image of a known group is called the outcome by its group's thresholds, between which some are drawn at
    random. It is no candidate among others: it is the ceiling that methods without the group are held against.
    """
    split, aim = given.data.repair, given.aim
    pair = np.flatnonzero(np.isin(split.groups, (aim.group, aim.reference)))
    optimizer = ThresholdOptimizer(
        estimator=_Scores(),
        constraints=CONSTRAINTS[aim.harmful_error],
        objective="accuracy_score",
        prefit=True,
        predict_method="predict",
    )
    optimizer.fit(
        _scores(given.readout, given.seen.logits[pair], aim.outcome),
        (split.targets[pair] == aim.outcome).astype(int),
        sensitive_features=split.groups[pair],
    )
    rule = ByGroup(optimizer, (aim.group, aim.reference), aim.outcome, given.readout, given.seed)
    before = given.seen.logits
    wide = RepairInput(given.model, given.data, aim, 1.0, given.seed)  # a ceiling is not refused for a cell
    choice = choose([rule(before, split.groups)], before, split, wide)
    told: dict[str, Plain] = {"constraints": CONSTRAINTS[aim.harmful_error], "chosen_on_images": len(pair)}
    return rule, told | choice.told()
