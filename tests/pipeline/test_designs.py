"""Design A on rendered faces, against its own oracle and against exact pairs (Design B)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audit.card.schema import DataSpec, GroupSpec, ModelSpec, Rendered
from audit.data.pixels import centred_square, load_pixels, mirrored
from audit.data.samples import Samples
from audit.data.synthetic import edited_key, rendered_samples
from audit.evidence.bootstrap import draw_bootstrap, weighted_estimates
from audit.evidence.effects import SwapEffects, lay_out
from audit.evidence.stats import Array
from audit.models.build import Backbone
from audit.models.finetune import Recipe, finetune, make_views
from audit.models.predict import predict_logits
from audit.models.rendered_base import rendered_base
from audit.patching.plans import plan_group_swap
from audit.patching.sweep import DonorKind, measure_unpatched, sweep
from audit.records import Contrast, Estimate

pytestmark = [pytest.mark.end_to_end, pytest.mark.long]

CONTRAST = Contrast("skin_tone", "darker", "lighter")
SWAPPED = Contrast("skin_tone", "lighter", "darker")
OUTCOME = {"smiling": 1}
SPEC = ModelSpec(
    name="vit_tiny_patch16_224",
    weights="rendered",
    image_size=64,
    train_blocks=3,
    overrides={"patch_size": 16, "depth": 4, "embed_dim": 128, "num_heads": 4},
)
RECIPE = Recipe(
    epochs=3, batch_size=32, learning_rate=3e-4, weight_decay=0.05, warmup_share=0.1, seed=0, train_blocks=3
)


@dataclass(frozen=True)
class Swept:
    """One sweep of all donor kinds over the recipients of Design A."""

    plan: pd.DataFrame
    frame: pd.DataFrame
    table: pd.DataFrame
    unpatched: pd.DataFrame
    accuracy: float

    def design(self, cross: str, placebo: str, contrast: Contrast = CONTRAST) -> SwapEffects:
        """Lay out two of the donor kinds as Design A's cross-group donor and placebo."""
        kinds = {cross: "cross", placebo: "placebo"}
        rows = self.table[self.table["donor_kind"].isin(kinds)].replace({"donor_kind": kinds})
        plan = self.plan[["unit", "label"]].assign(
            side=np.where(self.plan["attribute"] == contrast.group, "group", "reference")
        )
        return lay_out(rows.join(plan, on="position"), self.unpatched, self.frame["subject"], "smiling")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    samples = rendered_samples(
        DataSpec(reader="synthetic", rendered=Rendered(association=0.85, train_images=2400, audit_images=1200)),
        {"skin_tone": GroupSpec(column="skin_tone", reference="lighter")},
        ["hair_length"],
    )
    frame = samples.frame
    pixels = load_pixels(samples.source, frame["image"].tolist(), centred_square(64))
    model = Backbone(SPEC, rendered_base(SPEC, cache=tmp_path_factory.mktemp("cache"))).build(2)
    train = np.flatnonzero(frame["split"] == "train")
    targets = (frame["label"] == "smiling").to_numpy().astype(np.int64)
    views = make_views(model, [pixels[train], mirrored(pixels[train])], RECIPE.train_blocks)
    finetune(model, views, targets[train], RECIPE)
    audited = samples.of_split("discovery")
    accuracy = (predict_logits(model, pixels[audited.index]).argmax(1) == targets[audited.index]).mean()

    plan = plan_group_swap(audited, CONTRAST, samples.nuisance, seed=0).rows
    plan = plan.assign(attribute=frame.loc[plan["recipient"], "skin_tone"].to_numpy())
    rows, more = edited_rows(samples, plan["placebo"]), edited_rows(samples, plan["recipient"])
    images = np.concatenate([pixels, rows, more])
    first = len(pixels)
    donors = {
        "cross": plan["cross"].to_numpy(),
        "placebo": plan["placebo"].to_numpy(),
        "placebo edited": first + np.arange(len(plan)),
        "own edited": first + len(plan) + np.arange(len(plan)),
    }
    recipients = plan["recipient"].to_numpy()
    table = sweep(
        model,
        images,
        recipients,
        [DonorKind(name, model, numbers) for name, numbers in donors.items()],
        layers=range(4),
        outcomes=OUTCOME,
    )
    return Swept(plan, frame, table, measure_unpatched(model, images, recipients, OUTCOME), float(accuracy))


def edited_rows(samples: Samples, rows: pd.Series) -> np.ndarray:
    """Render images again in the other group, everything else equal."""
    other = {"darker": "lighter", "lighter": "darker"}
    faces = samples.frame.loc[rows, ["image", "skin_tone"]].itertuples(index=False)
    return load_pixels(samples.source, [edited_key(i, skin_tone=other[tone]) for i, tone in faces], centred_square(64))


def mediated(effects: SwapEffects) -> Array:
    return effects.mediated_weights() @ effects.difference


def estimates(values: Array, weights: Array, effects: SwapEffects) -> list[Estimate]:
    return weighted_estimates(values, weights, effects, draw_bootstrap(effects, resamples=1000, seed=0))


def holds(estimate: Estimate, value: float) -> bool:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low <= value <= estimate.high


def share_held(found: list[Estimate], values: Array) -> float:
    return float(np.mean([holds(e, v) for e, v in zip(found, values, strict=True)]))


def test_the_model_learned_the_label_and_leans_on_the_group(swept: Swept) -> None:
    assert swept.accuracy > 0.8
    effects = swept.design("cross", "placebo")
    (gap,) = estimates(effects.unpatched[:, None], effects.gap_weights(), effects)
    assert gap.high is not None and gap.high < 0  # darker faces smiled less often in the training sample


def test_design_a_agrees_with_its_oracle(swept: Swept) -> None:
    """The oracle's cross-group donor is the placebo donor drawn again in the other group, everything else equal.

    Rule: Design A's 95% intervals hold the oracle's values for at least nine in ten of the heads, both for the
    mediated gap and for the effects in the two directions, and hold the oracle's mean over heads.
    """
    a, oracle = swept.design("cross", "placebo"), swept.design("placebo edited", "placebo")
    gap = a.mediated_weights()
    found = estimates(a.difference, gap, a)
    assert share_held(found, gap @ oracle.difference) >= 0.9
    assert sum(not holds(e, 0.0) for e in found) >= 3  # intervals narrow enough to have missed
    sides = [a.side_weights(group=group) for group in (True, False)]
    shares = [share_held(estimates(a.difference, w, a), w @ oracle.difference) for w in sides]
    assert np.mean(shares) >= 0.9
    (mean,) = estimates(a.difference.mean(axis=1, keepdims=True), gap, a)
    assert holds(mean, float((gap @ oracle.difference).mean()))
    largest = found[int(np.abs(mediated(oracle)).argmax())]
    assert not holds(largest, 0.0)
    assert stats.spearmanr(mediated(a), mediated(oracle)).statistic > 0.8


def test_design_a_agrees_with_exact_pairs_in_sign_and_rank(swept: Swept) -> None:
    """Design B: the donor is the recipient itself, drawn again in the other group; the placebo is doing nothing."""
    a, b = swept.design("cross", "placebo"), swept.design("own edited", "placebo")
    b = dataclasses.replace(b, placebo=np.repeat(b.unpatched[:, None], len(b.heads), axis=1))
    found = estimates(b.difference, b.mediated_weights(), b)
    largest = np.abs(mediated(b)).max()
    clear = [k for k, e in enumerate(found) if not holds(e, 0.0) and abs(mediated(b)[k]) > 0.25 * largest]
    assert len(clear) >= 3
    assert (np.sign(mediated(a)[clear]) == np.sign(mediated(b)[clear])).all()
    assert stats.spearmanr(mediated(a), mediated(b)).statistic > 0.6


def test_relabelling_the_groups_turns_every_sign(swept: Swept) -> None:
    there, back = swept.design("cross", "placebo"), swept.design("cross", "placebo", SWAPPED)
    assert (back.is_group == ~there.is_group).all()
    np.testing.assert_allclose(mediated(back), -mediated(there), atol=1e-12)
    np.testing.assert_allclose(back.gap_weights() @ back.unpatched, -there.gap_weights() @ there.unpatched)
