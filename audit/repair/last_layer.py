"""Repairs that change nothing but the last layer: a threshold, DFR, OxonFair with inferred groups, LEACE."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from audit.extras import needs
from audit.models.device import in_double
from audit.models.predict import Floats
from audit.repair.base import Codes, Plain, RepairInput, state_of
from audit.repair.choice import (
    balanced_rows,
    cell_of,
    cells_of,
    choose,
    choose_strength,
    halves,
    right,
)
from audit.repair.seen import LastLayer, State

Made = tuple[State, dict[str, Plain]]
Array = npt.NDArray[np.float64]
SHIFTS = 101  # thresholds that are tried
RETRAINS = 10  # averaged, as Kirichenko et al. do
PENALTIES = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # inverse strengths of L1 that they try
WEIGHTS = 21  # of the group's score that are tried, by as many shifts
FURTHEST = 2.0  # the largest of them, in spreads of the outcome's margin over spreads of the group's score
ITERATIONS = 2000
TOLERANCE = 1e-3
SVD_TOLERANCE = 1e-9  # of LEACE: covariances of a feature with a group, below which there is none
# From version 1.8 on, scikit-learn names the penalty by its share of L1.
NEW_NAMES = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8)
L1: dict[str, object] = {"l1_ratio": 1.0} if NEW_NAMES else {"penalty": "l1"}


def last_layer(given: RepairInput) -> LastLayer:
    """Return the audited model's last layer, which the registry has checked to be linear."""
    assert given.last is not None
    return given.last


def global_threshold(given: RepairInput) -> Made:
    """Raise or lower the outcome's logit for everybody, as a threshold does; folded into the bias."""
    last, state, outcome = last_layer(given), state_of(given.model), given.aim.outcome
    margins = given.readout.margins(torch.from_numpy(given.seen.logits))[:, outcome].numpy()
    tried = np.quantile(-margins, np.linspace(0.01, 0.99, SHIFTS))
    shifts = [0.0, *sorted((float(shift) for shift in tried), key=abs)]
    features, before = given.seen.features, given.seen.logits
    candidates = (
        before if shift == 0 else last.shifted(outcome, shift, given.readout).logits(features).numpy()
        for shift in shifts
    )
    choice = choose(candidates, before, given.data.repair, given)
    shift = shifts[choice.place]
    told: dict[str, Plain] = {"shift": shift, "shifts_tried": len(shifts), "chosen_on_images": len(before)}
    if shift == 0:
        return state, told | choice.told()
    return last.shifted(outcome, shift, given.readout).folded_into(state), told | choice.told()


def dfr(given: RepairInput) -> Made:
    """Retrain the last layer on exactly balanced images of the repair split, with an L1 penalty, ten times averaged.

    Deep feature reweighting, Kirichenko et al. (2023). As there, the penalty is that of the best worst cell on half of
    the subjects, after training on the other half; all are trained on then. How far to go from the audited last layer
    to this one is chosen on the same half, by the rule of all methods.
    """
    split, seen = given.data.repair, given.seen
    fit, held = halves(split, given.seed)
    some = [(_fit_dfr(given, fit, penalty, 1), penalty) for penalty in PENALTIES]

    def worst(last: LastLayer) -> float:
        logits = last.logits(seen.features[torch.from_numpy(held)])
        of_held = split.take(held)
        is_right = right(given.readout, logits.numpy(), of_held.targets)
        return min(float(is_right[cell_of(of_held, *cell)].mean()) for cell in cells_of(of_held))

    scores = [round(worst(last), 12) for last, _ in some]
    best, penalty = some[int(np.argmax(scores))]
    chosen = choose_strength(given, _between(given, best), held)
    whole = _fit_dfr(given, np.arange(len(split), dtype=np.int64), penalty, RETRAINS)
    return chosen.of(given, _between(given, whole)), chosen.told | {"inverse_penalty": penalty, "retrains": RETRAINS}


def _between(given: RepairInput, other: LastLayer) -> Callable[[float], State]:
    """Return what makes weights whose last layer lies between the audited one (0) and another (1)."""
    own, state = last_layer(given), state_of(given.model)

    def made(strength: float) -> State:
        if strength == 0:
            return state
        weight, bias = own.weight.lerp(other.weight, strength), own.bias.lerp(other.bias, strength)
        return LastLayer(own.names, weight, bias).as_read(given.readout).folded_into(state)

    return made


def _fit_dfr(given: RepairInput, rows: Codes, penalty: float, retrains: int) -> LastLayer:
    """Return the mean of last layers, each trained on another balanced draw of some rows."""
    split = given.data.repair
    features = in_double(given.seen.features).numpy()
    scaler = StandardScaler().fit(features[rows])
    weights, biases = list[Array](), list[Array]()
    for number in range(retrains):
        draw = np.random.default_rng([given.seed, 2, number])
        balanced = balanced_rows(split, rows, draw)
        weight, bias = _logistic(
            scaler.transform(features[balanced]), split.targets[balanced], penalty, given, given.seed + number
        )
        weight = weight / scaler.scale_
        weights.append(weight)
        biases.append(bias - weight @ scaler.mean_)
    means = [torch.from_numpy(np.mean(found, axis=0)).float() for found in (weights, biases)]
    return LastLayer(last_layer(given).names, means[0], means[1])


def _logistic(x: Array, targets: Codes, penalty: float, given: RepairInput, seed: int) -> tuple[Array, Array]:
    """Return weights (classes, D) and biases of an L1-penalised logistic regression, read as the model's logits are.

    Two classes that exclude each other share one score, half of it each; classes that do not are fitted one by one.
    """
    classes = given.seen.logits.shape[1]
    kept = {**L1, "C": penalty, "tol": TOLERANCE, "max_iter": ITERATIONS, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the penalty is chosen by what it does, not by its optimum
        if given.readout.exclusive and classes > 2:
            model = LogisticRegression(solver="saga", **kept).fit(x, targets)
            weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, float(model.intercept_.min()) - 10.0)
            weight[model.classes_], bias[model.classes_] = _per_class(model)
            return weight, bias
        outcomes = [1] if given.readout.exclusive else range(classes)
        found = [LogisticRegression(solver="liblinear", **kept).fit(x, targets == outcome) for outcome in outcomes]
    weight = np.concatenate([model.coef_ for model in found])
    bias = np.concatenate([model.intercept_ for model in found])
    if given.readout.exclusive:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _per_class(model: LogisticRegression) -> tuple[Array, Array]:
    """Return a row for each class that was seen; of two, one score is halved between them."""
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight, bias = (np.concatenate([-one, one]) / 2 for one in (weight, bias))
    return weight, bias


def oxonfair(given: RepairInput) -> Made:
    """Give each group a threshold of its own, by a group that is inferred from the same features.

    Delaney et al. (2024, OxonFair): a linear head learns the group, and its score times a weight, with a shift, is
    added to the outcome's logit, all folded into the last layer. The head is trained on half of the subjects; weight
    and shift are chosen on the other, by the rule of all methods. The sum is that of their package; its search is not
    used, since it makes one accuracy large under one measure of fairness, of two classes.
    """
    split, aim, readout = given.data.repair, given.aim, given.readout
    last, state = last_layer(given), state_of(given.model)
    fit, held = halves(split, given.seed)
    head_weight, head_bias = _group_head(given, fit)
    before = given.seen.logits[held]
    scores = (given.seen.features[torch.from_numpy(held)] @ head_weight + head_bias).numpy()
    margins = readout.margins(torch.from_numpy(before))[:, aim.outcome].numpy()
    spread = max(float(margins.std()), 1e-12)
    scale = spread / max(float(scores.std()), 1e-12)
    amounts = np.linspace(-FURTHEST, FURTHEST, WEIGHTS) * scale
    tried = [
        (float(amount), float(shift))
        for amount in amounts
        for shift in np.quantile(-(margins + amount * scores), np.linspace(0.02, 0.98, WEIGHTS))
    ]
    tried = [(0.0, 0.0), *sorted(tried, key=lambda pair: (abs(pair[0]) / scale + abs(pair[1]) / spread, pair))]

    def moved(amount: float, shift: float) -> Floats:
        logits = before.copy()
        logits[:, aim.outcome] += (amount * scores + shift).astype(np.float32)
        return logits

    candidates = (moved(*pair) for pair in tried)
    choice = choose(candidates, before, split.take(held), given)
    amount, shift = tried[choice.place]
    known = np.isin(split.groups[held], (aim.group, aim.reference))
    right = (scores > 0) == (split.groups[held] == aim.group)
    told: dict[str, Plain] = {
        "group_weight": amount,
        "shift": shift,
        "group_accuracy": float(right[known].mean()),
        "candidates_tried": len(tried),
        "chosen_on_images": len(held),
    }
    if choice.place == 0:
        return state, told | choice.told()
    weight, bias = last.weight.clone(), last.bias.clone()
    weight[aim.outcome] += amount * head_weight
    bias[aim.outcome] += amount * head_bias + shift
    return LastLayer(last.names, weight, bias).as_read(readout).folded_into(state), told | choice.told()


def _group_head(given: RepairInput, rows: Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (D,) and bias of a linear score that is above 0 for the group, learned on balanced cells."""
    split, aim = given.data.repair, given.aim
    pair = rows[np.isin(split.groups[rows], (aim.group, aim.reference))]
    some = balanced_rows(split, pair, np.random.default_rng([given.seed, 3]))
    features = in_double(given.seen.features).numpy()[some]
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=0.1, max_iter=ITERATIONS).fit(
        scaler.transform(features), split.groups[some] == aim.group
    )
    weight = model.coef_[0] / scaler.scale_
    bias = float(model.intercept_[0]) - float(weight @ scaler.mean_)
    return torch.from_numpy(weight).float(), torch.tensor(bias, dtype=torch.float32)


def leace(given: RepairInput) -> Made:
    """Erase the group from what the last layer reads, by LEACE, folded into its weights.

    Belrose et al. (2023), on images that are balanced over group and label, so that the label is not erased where it
    goes with the group. Fitted on half of the subjects; how much is chosen on the other, and all are fitted on then.
    """
    split = given.data.repair
    fit, held = halves(split, given.seed)
    chosen = choose_strength(given, _between(given, erased(given, fit)), held)
    whole = erased(given, np.arange(len(split), dtype=np.int64))
    return chosen.of(given, _between(given, whole)), chosen.told


def erased(given: RepairInput, rows: Codes) -> LastLayer:
    """Return the last layer of the audited model, reading features without the group, as some rows show it.

    On the balanced draw of these rows (:func:`balanced_for_erasure`) every group has the same mean logits.
    """
    split, last = given.data.repair, last_layer(given)
    some = balanced_for_erasure(given, rows)
    features = in_double(given.seen.features[torch.from_numpy(some)])
    names = np.unique(split.groups[some])
    concept = torch.from_numpy((split.groups[some][:, None] == names[None, :]).astype(np.float64))
    eraser = _eraser(features, concept)
    removed = eraser.proj_left @ eraser.proj_right
    weight = in_double(last.weight)
    kept = weight - weight @ removed
    bias = in_double(last.bias) + weight @ removed @ features.mean(0)
    return LastLayer(last.names, kept.float(), bias.float())


def balanced_for_erasure(given: RepairInput, rows: Codes) -> Codes:
    """Return the rows that erasing is fitted on: as many of every group x label."""
    return balanced_rows(given.data.repair, rows, np.random.default_rng([given.seed, 4]))


def _eraser(features: torch.Tensor, concept: torch.Tensor) -> Any:
    """Return LEACE's eraser of concepts (N, groups) from features (N, D)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of what the package does when it is imported
        package = needs("concept_erasure", "repair.methods: leace", otherwise="leave leace out of repair.methods")
    # The trace is not constrained, for where it is, something of the group stays.
    return package.LeaceEraser.fit(features, concept, svd_tol=SVD_TOLERANCE, constrain_cov_trace=False)
