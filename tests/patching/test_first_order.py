"""First-order estimates of a plan: as attribution says, and averaged as their definitions say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audit.batching import batch_size_limit
from audit.patching.first_order import average, sweep_first_order
from audit.patching.sweep import DonorKind, measure_unpatched, sweep
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
OUTCOMES = {"happiness": 2, "anger": 0}
KEYS = ["position", "layer", "head", "donor_kind"]
KINDS = ("cross", "placebo")


def plan(*, near: int = 0) -> pd.DataFrame:
    """Four recipients of two donor pairs (images 4 and 5, 6 and 7), ``near`` added to the donors' rows."""
    return pd.DataFrame(
        {
            "recipient": [0, 1, 2, 3],
            "cross": np.array([5, 4, 7, 6]) + near,
            "placebo": np.array([4, 5, 6, 7]) + near,
            "unit": [0, 0, 1, 1],
            "side": ["group", "reference"] * 2,
            "label": "smile",
            "stratum": 0,
        }
    )


def test_every_patch_of_the_plan_is_estimated_once() -> None:
    model, pixels, own = tiny(), noise_pixels(8), plan()
    table = sweep_first_order(model, pixels, own, np.arange(8), KINDS, layers=range(2), outcomes=OUTCOMES)
    donors = [DonorKind(kind, model, own[kind].to_numpy()) for kind in KINDS]
    exact = sweep(model, pixels, own["recipient"].to_numpy(), donors, layers=range(2), outcomes=OUTCOMES)
    assert set(table.set_index(KEYS).index) == set(exact.set_index(KEYS).index)
    assert len(table) == len(exact)


def test_close_donors_are_estimated_nearly_exactly() -> None:
    """Donors that are the recipients a shade brighter: probabilities move as exact patches move them."""
    model, pixels = tiny(), noise_pixels(4)
    close = np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8)
    both = np.concatenate([pixels, close])
    own = plan().assign(cross=[4, 5, 6, 7], placebo=[0, 1, 2, 3])
    found = sweep_first_order(model, both, own, np.arange(8), KINDS, layers=range(2), outcomes=OUTCOMES)
    donors = [DonorKind(kind, model, own[kind].to_numpy()) for kind in KINDS]
    exact = sweep(model, both, own["recipient"].to_numpy(), donors, layers=range(2), outcomes=OUTCOMES).set_index(KEYS)
    unpatched = measure_unpatched(model, both, np.arange(4), OUTCOMES).set_index("recipient")
    for name in OUTCOMES:
        values = found.set_index(KEYS)[f"own:{name}"]
        change = exact[f"p:{name}"] - unpatched.loc[exact["recipient"], f"p:{name}"].to_numpy()
        together = pd.concat([values, change], axis=1).xs("cross", level="donor_kind")
        assert together.corr().iloc[0, 1] > 0.9
        assert values.xs("placebo", level="donor_kind").abs().max() < 1e-6


def test_how_much_is_computed_at_once_changes_no_estimate() -> None:
    model, pixels, own, layers = tiny(), noise_pixels(8), plan(), range(2)
    subjects = np.arange(8)
    roomy = sweep_first_order(model, pixels, own, subjects, KINDS, layers=layers, outcomes=OUTCOMES)
    with batch_size_limit(1):
        tight = sweep_first_order(model, pixels, own, subjects, KINDS, layers=layers, outcomes=OUTCOMES)
    assert not np.allclose(roomy["own:anger"], roomy["both:anger"])
    pd.testing.assert_frame_equal(tight, roomy, rtol=0, atol=1e-6)


def test_an_image_costs_less_than_four_forward_passes() -> None:
    """One outcome, as many donors as recipients: each image forward, the recipients backward."""
    model, pixels, own = tiny("three layers"), noise_pixels(8), plan()
    with FlopCounterMode(display=False) as one, torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    with FlopCounterMode(display=False) as all_of_it:
        sweep_first_order(model, pixels, own, np.arange(8), KINDS, layers=range(3), outcomes={"happiness": 2})
    assert all_of_it.get_total_flops() < 4 * 8 * one.get_total_flops()


def batch(units: list[int], sides: str) -> pd.DataFrame:
    names = {"g": "group", "r": "reference"}
    return pd.DataFrame({"unit": units, "side": [names[s] for s in sides], "stratum": 0})


def averaged(
    moved: npt.NDArray[np.float64], place: list[int], rows: pd.DataFrame, alike: npt.NDArray[np.bool_] | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    none = np.zeros(moved.shape[:2], dtype=bool)
    return average(moved, none if alike is None else alike, np.array(place), rows)


def test_averages_by_hand() -> None:
    """Three recipients of one side, two of the first pair: rows 1 and 3 from donor 0, row 2 from donor 1."""
    moved = np.array([[[1.0], [5.0]], [[2.0], [8.0]], [[6.0], [2.0]]])
    found = averaged(moved, [0, 1, 0], batch([0, 1, 0], "ggg"))
    by_pair = np.array([3.0, 5.0, 3.0])
    by_recipient = (2 * moved[:, 0, 0] + moved[:, 1, 0]) / 3
    assert found["own"].ravel().tolist() == [1.0, 8.0, 6.0]
    np.testing.assert_allclose(found["pair"].ravel(), by_pair)
    np.testing.assert_allclose(found["both"].ravel(), by_recipient + by_pair - by_recipient.mean())


def test_averages_keep_to_a_side_and_a_stratum() -> None:
    moved = np.random.default_rng(0).normal(size=(4, 2, 3))
    rows = batch([0, 1, 0, 1], "ggrr")
    found = averaged(moved, [0, 1, 0, 1], rows)
    alone = averaged(moved[:2], [0, 1], rows.iloc[:2])
    for name in ("pair", "both"):
        np.testing.assert_allclose(found[name][:2], alone[name])
    apart = averaged(moved, [0, 1, 0, 1], rows.assign(stratum=[0, 1, 0, 1]))
    np.testing.assert_allclose(apart["both"], apart["own"])


def test_sums_over_a_side_agree_and_nobody_receives_from_a_pair_of_his_own() -> None:
    rng = np.random.default_rng(1)
    moved, alike = rng.normal(size=(6, 3, 2)), np.zeros((6, 3), dtype=bool)
    alike[0, 1] = alike[4, 2] = True
    rows, place = batch([0, 0, 1, 1, 1, 2], "gggggg"), [0, 0, 1, 1, 1, 2]
    found = averaged(moved, place, rows, alike)
    np.testing.assert_allclose(found["pair"].sum(axis=0), found["both"].sum(axis=0))
    damaged = moved.copy()
    damaged[alike] = 1e6
    for name, values in averaged(damaged, place, rows, alike).items():
        np.testing.assert_allclose(values, found[name])


def test_swapping_a_pairs_labels_changes_the_sign_of_its_pair_average_only() -> None:
    """Cross and placebo of pair 1 change places: its difference changes sign, other pairs' stay as they are."""
    rng = np.random.default_rng(2)
    moved, rows = rng.normal(size=(6, 6, 2)), batch([0, 0, 1, 1, 2, 2], "grgrgr")
    unit = rows["unit"].to_numpy()
    cross = np.where(rows["side"] == "group", 2 * unit + 1, 2 * unit)
    placebo = np.where(rows["side"] == "group", 2 * unit, 2 * unit + 1)

    def difference(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return averaged(moved, a.tolist(), rows)["pair"] - averaged(moved, b.tolist(), rows)["pair"]

    plain, swapped = (
        difference(cross, placebo),
        difference(np.where(unit == 1, placebo, cross), np.where(unit == 1, cross, placebo)),
    )
    np.testing.assert_allclose(swapped, np.where((unit == 1)[:, None], -plain, plain))
