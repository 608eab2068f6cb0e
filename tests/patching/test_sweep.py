"""What a sweep measures, and how it lays it out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from scipy.special import logit
from timm.models.vision_transformer import VisionTransformer

from audit.batching import batch_size_limit
from audit.errors import MemoryExhaustedError
from audit.models.readout import class_log_odds
from audit.models.transforms import as_input
from audit.patching.engine import transplant_layer
from audit.patching.hooks import donor_head_outputs, patch_with_hooks
from audit.patching.sites import Site, record
from audit.patching.sweep import (
    DonorKind,
    measure_logits,
    measure_unpatched,
    side_by_side,
    sweep,
    sweep_together,
)
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
OUTCOMES = {"happiness": 2, "anger": 0}
KEYS = ["position", "layer", "head", "donor_kind"]


def rows(*numbers: int) -> npt.NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def images_seen_by(model: VisionTransformer) -> list[int]:
    """Return a list to which each pass of the model adds the number of its images."""
    seen: list[int] = []
    model.patch_embed.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    return seen


def fail_above(part: torch.nn.Module, most: int, error: Exception) -> None:
    """Let a part of a model have no memory for more than so many images."""

    def fail(_module: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        if len(given[0]) > most:
            raise error

    part.register_forward_pre_hook(fail)


def test_log_odds_by_hand() -> None:
    """For two classes the log-odds are the difference of the logits; for three equal ones, odds of 1 to 2."""
    assert class_log_odds(torch.tensor([1.5, -0.5])).tolist() == pytest.approx([2.0, -2.0])
    assert class_log_odds(torch.zeros(3)).tolist() == pytest.approx([-np.log(2)] * 3)


def test_log_odds_against_the_formula() -> None:
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0)).double() * 3
    m = class_log_odds(logits)
    for c in range(7):
        others = [j for j in range(7) if j != c]
        assert torch.allclose(m[..., c], logits[..., c] - logits[..., others].exp().sum(-1).log())
    np.testing.assert_allclose(m.numpy(), logit(logits.softmax(-1).numpy()), rtol=1e-7)


def test_log_odds_stay_finite_where_probabilities_round_to_one() -> None:
    m = class_log_odds(torch.tensor([2000.0, 0.0, 0.0]))
    assert m.tolist() == pytest.approx([2000 - np.log(2), -2000.0, -2000.0])


def test_measures_of_known_logits() -> None:
    columns = measure_logits(torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]])), {"b": 1})
    assert columns["predicted"].tolist() == [2, 0]
    np.testing.assert_allclose(columns["p:b"], [0.3, 0.2], rtol=1e-6)
    np.testing.assert_allclose(columns["m:b"], logit([0.3, 0.2]), rtol=1e-6)
    assert set(columns) == {"predicted", "p:b", "m:b"}


def setting() -> tuple[VisionTransformer, npt.NDArray[np.uint8], npt.NDArray[np.int64], list[DonorKind]]:
    model, other = tiny(), tiny(seed=4)
    kinds = [
        DonorKind("cross", model, rows(3, 0, 5, 2, 1)),
        DonorKind("elsewhere", other, rows(5, 1, 0, 4, 3)),
    ]
    return model, noise_pixels(6), rows(4, 2, 1, 5, 0), kinds


def test_every_position_head_and_kind_stands_once() -> None:
    model, pixels, recipients, kinds = setting()
    table = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES)
    assert len(table) == 5 * 2 * 2 * 4
    assert not table.duplicated(KEYS).any()
    for column, expected in {"position": range(5), "layer": range(2), "head": range(4)}.items():
        assert sorted(table[column].unique()) == list(expected)
    assert (table["recipient"] == recipients[table["position"]]).all()
    for kind in kinds:
        own = table[table["donor_kind"] == kind.name]
        assert (own["donor"] == kind.rows[own["position"]]).all()


def test_every_row_is_what_hooks_give() -> None:
    model, pixels, recipients, kinds = setting()
    table = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES).set_index(KEYS)
    for kind in kinds:
        ours, theirs = as_input(model, pixels[recipients]), as_input(kind.model, pixels[kind.rows])
        for site in (Site(0, 0), Site(0, 3), Site(1, 1), Site(1, 2)):
            logits = patch_with_hooks(model, ours, donor_head_outputs(kind.model, theirs, [site])).double()
            p, m = logits.softmax(-1).numpy(), class_log_odds(logits).numpy()
            for position in range(5):
                row = table.loc[(position, site.layer, site.head, kind.name)]
                assert row["predicted"] == logits[position].argmax()
                for name, number in OUTCOMES.items():
                    assert row[f"p:{name}"] == pytest.approx(p[position, number], abs=1e-5)
                    assert row[f"m:{name}"] == pytest.approx(m[position, number], abs=1e-4)


def test_some_layers_only() -> None:
    model, pixels, recipients, kinds = setting()
    full = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES)
    last = sweep(model, pixels, recipients, kinds, layers=range(1, 2), outcomes=OUTCOMES)
    expected = full[full["layer"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, expected)


def test_batches_of_recipients_do_not_matter() -> None:
    model, pixels, recipients, kinds = setting()
    whole = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES)
    with batch_size_limit(2):
        parts = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES)
    pd.testing.assert_frame_equal(
        parts.sort_values(KEYS, ignore_index=True), whole.sort_values(KEYS, ignore_index=True), rtol=0, atol=1e-5
    )


def test_an_image_as_its_own_donor_is_the_unpatched_image() -> None:
    model, pixels, recipients, _ = setting()
    own = [DonorKind("self", model, recipients)]
    table = sweep(model, pixels, recipients, own, layers=range(2), outcomes=OUTCOMES)
    unpatched = measure_unpatched(model, pixels, recipients, OUTCOMES).set_index("recipient")
    assert unpatched.index.tolist() == recipients.tolist()
    expected = unpatched.loc[table["recipient"]]
    assert (table["predicted"].to_numpy() == expected["predicted"].to_numpy()).all()
    for column in ("p:happiness", "m:happiness", "p:anger", "m:anger"):
        np.testing.assert_allclose(table[column], expected[column], atol=2e-5)


def test_progress_counts_every_patch_once() -> None:
    model, pixels, recipients, kinds = setting()
    seen: list[tuple[int, int]] = []
    sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES, progress=lambda *n: seen.append(n))
    assert [total for _, total in seen] == [80] * 4
    assert [done for done, _ in seen] == [20, 40, 60, 80]


@pytest.mark.parametrize("batch", [2, 32])
def test_chosen_patches_are_those_of_the_whole_sweep(batch: int) -> None:
    """One recipient has no head chosen, one all, the others some; the rest is not computed, and progress knows."""
    model, pixels, recipients, kinds = setting()
    whole = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES)
    chosen = np.random.default_rng(0).random((5, 8)) < 0.4
    chosen[1], chosen[3] = False, True
    seen: list[tuple[int, int]] = []
    with batch_size_limit(batch):
        some = sweep(
            model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES, chosen=chosen,
            progress=lambda *n: seen.append(n),
        )  # fmt: skip
    expected = whole[chosen[whole["position"], 4 * whole["layer"] + whole["head"]]]
    assert len(some) == 2 * chosen.sum() == seen[-1][0] == seen[-1][1]
    pd.testing.assert_frame_equal(
        some.sort_values(KEYS, ignore_index=True), expected.sort_values(KEYS, ignore_index=True), rtol=0, atol=1e-5
    )


def test_units_are_taken_side_by_side_and_change_no_result() -> None:
    units = rows(1, 0, 1, 0, 2)
    assert [part.tolist() for part in side_by_side(2, 5, units)] == [[1, 3], [0, 2], [4]]
    model, pixels, recipients, kinds = setting()
    plain = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES)
    with batch_size_limit(2):
        by_unit = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES, units=units)
    pd.testing.assert_frame_equal(
        by_unit.sort_values(KEYS, ignore_index=True), plain.sort_values(KEYS, ignore_index=True), rtol=0, atol=1e-5
    )


def test_each_image_goes_through_the_model_once_a_batch() -> None:
    """Three recipients whose donors are among them: three images in all, not nine."""
    model, pixels, _, _ = setting()
    kinds = [DonorKind("cross", model, rows(1, 2, 0)), DonorKind("placebo", model, rows(2, 0, 1))]
    seen = images_seen_by(model)
    sweep(model, pixels, rows(0, 1, 2), kinds, layers=range(2), outcomes=OUTCOMES)
    assert seen == [3]


def test_a_donor_model_that_shares_the_frozen_blocks_does_not_run_them_again() -> None:
    model, pixels, recipients, _ = setting()
    other = tiny()
    with torch.no_grad():
        other.blocks[1].attn.qkv.weight.mul_(1.5)
    own, others = images_seen_by(model), images_seen_by(other)
    alike = [DonorKind("other", other, recipients)]
    shared = sweep(model, pixels, recipients, alike, layers=range(1, 2), outcomes=OUTCOMES)
    assert (own, others) == ([5], [])
    stranger = tiny(seed=4)
    strangers = images_seen_by(stranger)
    kinds = [DonorKind("stranger", stranger, recipients)]
    sweep(model, pixels, recipients, kinds, layers=range(1, 2), outcomes=OUTCOMES)
    assert strangers == [5]
    given = donor_head_outputs(other, as_input(other, pixels[recipients]), [Site(1, 3)])
    by_hooks = patch_with_hooks(model, as_input(model, pixels[recipients]), given).softmax(-1)
    found = shared[shared["head"] == 3].sort_values("position")
    np.testing.assert_allclose(found["p:happiness"], by_hooks[:, 2].numpy(), atol=1e-5)


def test_sets_of_heads_are_what_hooks_give() -> None:
    model, pixels, recipients, kinds = setting()
    sets = {"one": [Site(1, 2)], "across": [Site(0, 0), Site(1, 1), Site(1, 3)]}
    seen: list[tuple[int, int]] = []
    with batch_size_limit(2):
        table = sweep_together(
            model, pixels, recipients, kinds, sets=sets, outcomes=OUTCOMES, progress=lambda *n: seen.append(n)
        )
    assert seen[-1] == (20, 20)
    assert set(table.columns) == {
        "position", "recipient", "donor", "donor_kind", "set", "predicted",
        *(f"{k}:{name}" for k in "pm" for name in OUTCOMES),
    }  # fmt: skip
    found = table.set_index(["position", "set", "donor_kind"])
    assert found.index.is_unique
    for kind in kinds:
        ours, theirs = as_input(model, pixels[recipients]), as_input(kind.model, pixels[kind.rows])
        for name, sites in sets.items():
            logits = patch_with_hooks(model, ours, donor_head_outputs(kind.model, theirs, sites)).double()
            for position in range(5):
                row = found.loc[(position, name, kind.name)]
                assert row["p:happiness"] == pytest.approx(float(logits.softmax(-1)[position, 2]), abs=1e-5)
                assert (row["recipient"], row["donor"]) == (recipients[position], kind.rows[position])
    singly = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES).set_index(KEYS)
    one = found.xs("one", level="set")
    for (position, name), row in one.iterrows():
        assert row["p:anger"] == pytest.approx(singly.loc[(position, 1, 2, name), "p:anger"], abs=1e-5)


def test_weights_of_another_model_read_the_recipients_own_image() -> None:
    model, pixels, recipients, _ = setting()
    kinds = [DonorKind("weights", tiny(seed=4), recipients, weights_only=True)]
    table = sweep(model, pixels, recipients, kinds, layers=range(2), outcomes=OUTCOMES).set_index(KEYS)
    own = record(model, as_input(model, pixels[recipients]))
    for layer in range(2):
        p = transplant_layer(model, own, kinds[0].model, layer).double().softmax(-1)
        for head in range(4):
            for position in range(5):
                found = table.loc[(position, layer, head, "weights"), "p:happiness"]
                assert found == pytest.approx(float(p[head, position, 2]), abs=1e-5)


def test_a_sweep_that_runs_out_of_memory_goes_on_in_halves() -> None:
    """Passes of more than four images and batches of more than five patches do not fit."""
    model, pixels = tiny(), noise_pixels(9)
    recipients, donors = np.arange(6), np.arange(3, 9)
    kinds, last = [DonorKind("cross", model, donors)], range(1, 2)
    wanted = sweep(model, pixels, recipients, kinds, layers=last, outcomes={"a": 0})
    fail_above(model.patch_embed, 4, RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    fail_above(model.head, 5, MemoryError())
    told: list[tuple[int, int]] = []
    found = sweep(model, pixels, recipients, kinds, layers=last, outcomes={"a": 0},
                  progress=lambda done, total: told.append((done, total)))  # fmt: skip
    order = ["position", "donor_kind", "layer", "head"]
    ours, theirs = (t.sort_values(order, ignore_index=True) for t in (found, wanted))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5, atol=1e-6)
    assert told[-1] == (24, 24)
    fail_above(model.head, 0, MemoryError())
    with pytest.raises(MemoryExhaustedError):
        sweep(model, pixels, recipients[:2], kinds, layers=last, outcomes={"a": 0})
