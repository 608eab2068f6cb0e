"""The built-in faces as samples: splits, references, edited keys, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from audit.card.schema import DataSpec, GroupSpec, Rendered
from audit.data.samples import Samples
from audit.data.synthetic import SyntheticSource, edited_key, rendered_samples, sample_faces
from audit.errors import DataError

pytestmark = pytest.mark.unit

GROUPS = {"skin_tone": GroupSpec(column="skin_tone"), "hair_length": GroupSpec(column="hair_length")}


def spec(**rendered: object) -> DataSpec:
    sizes = {"train_images": 80, "audit_images": 64, "association": 0.8} | rendered
    return DataSpec(reader="synthetic", rendered=Rendered.model_validate(sizes))


def samples(groups: dict[str, GroupSpec] = GROUPS, match_on: tuple[str, ...] = ("glasses",)) -> Samples:
    return rendered_samples(spec(), groups, match_on)


def test_the_table_has_what_samples_promise() -> None:
    built = samples()
    assert built.frame["split"].value_counts().to_dict() == {"train": 80, "discovery": 32, "confirmation": 32}
    assert built.frame.index.tolist() == list(range(144))
    assert built.frame["image"].is_monotonic_increasing
    assert built.frame["subject"].is_unique
    assert built.labels == ("neutral", "smiling")
    assert built.nuisance == ("glasses",)
    assert set(built.frame["label"]) == set(built.labels)


def test_only_the_training_images_carry_the_association() -> None:
    frame = samples().frame
    smiling = frame.assign(smiling=frame["label"] == "smiling").groupby(["split", "skin_tone"])["smiling"].mean()
    assert smiling["train"]["lighter"] - smiling["train"]["darker"] == pytest.approx(0.8)
    for split in ("discovery", "confirmation"):
        assert smiling[split]["lighter"] == smiling[split]["darker"] == 0.5


def test_attributes_say_who_assigned_them_and_whom_they_are_compared_with() -> None:
    groups = {
        "skin_tone": GroupSpec(column="skin_tone", reference="lighter"),
        "hair": GroupSpec(column="hair_length", assigned_by="me"),
    }
    built = samples(groups)
    assert built.attributes["skin_tone"].reference == "lighter"
    assert built.attributes["skin_tone"].assigned_by == "drawn by the renderer, not annotated"
    assert built.attributes["hair"].reference == "long"  # equally many: the first in order
    assert built.attributes["hair"].assigned_by == "me"
    assert (built.frame["hair"] == built.frame["hair_length"]).all()


def test_groups_that_are_not_kept_become_unknown_and_are_counted() -> None:
    tones = {"tone": GroupSpec(column="monk_tone", values=["1", "10"])}
    built = samples(tones)
    kept = built.frame["monk_tone"].isin([1, 10])
    assert (built.frame.loc[~kept, "tone"] == "unknown").all()
    assert built.attributes["tone"].unknown_images == int((~kept).sum())
    assert built.attributes["tone"].groups == ["1", "10"]


def test_labels_can_be_reordered() -> None:
    reordered = spec().model_copy(update={"labels": ["smiling", "neutral"]})
    assert rendered_samples(reordered, GROUPS, ()).labels == ("smiling", "neutral")


def test_the_fingerprint_follows_the_faces() -> None:
    assert samples().fingerprint == samples().fingerprint
    other = rendered_samples(spec(seed=1), GROUPS, ())
    assert other.fingerprint != samples().fingerprint


def test_edited_keys_open_the_edited_face() -> None:
    built = samples()
    key = built.frame.loc[built.frame["skin_tone"] == "lighter", "image"].iloc[0]
    there = edited_key(key, skin_tone="darker")
    assert there == f"{key}~skin_tone=darker"
    plain, edited, back = (
        np.asarray(built.source.open(name)) for name in (key, there, edited_key(there, skin_tone="lighter"))
    )
    assert (plain != edited).any()
    assert (plain == back).all()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train-99999", "no rendered face 'train-99999'"),
        ("train-00001~skin_tone", "cannot read the edit"),
        ("train-00001~skin_tone=dark", "did you mean 'darker'"),
        ("train-00001~skintone=darker", "did you mean 'skin_tone'"),
        ("train-00001~", "cannot read the edit"),
    ],
)
def test_keys_that_cannot_be_opened_are_refused(key: str, message: str) -> None:
    source = SyntheticSource(sample_faces(8, 0, split="train"))
    with pytest.raises(DataError, match=message):
        source.open(key)


@pytest.mark.parametrize(
    ("groups", "match_on", "message"),
    [
        ({"skin": GroupSpec(column="skin_tones")}, (), "did you mean 'skin_tone'"),
        ({"skin": GroupSpec(column="tilt_deg")}, (), "groups.skin"),
        (GROUPS, ("glases",), "match_on: .*did you mean 'glasses'"),
        ({"skin_tone": GroupSpec(column="skin_tone", reference="light")}, (), "did you mean 'lighter'"),
        ({"skin_tone": GroupSpec(column="skin_tone", error={"light": 0.1})}, (), "error: .*did you mean 'lighter'"),
        ({"skin_tone": GroupSpec(column="skin_tone", values=["lihgter"])}, (), "did you mean 'lighter'"),
        ({"hair_length": GroupSpec(column="skin_tone")}, (), "the name is taken"),
    ],
)
def test_unknown_names_are_refused(groups: dict[str, GroupSpec], match_on: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        samples(groups, match_on)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["neutral", "smilling"]}, "did you mean 'smiling'"),
        ({"labels": ["neutral"]}, "needs two labels"),
        ({"rendered": Rendered(audit_images=10)}, "data.rendered.audit_images"),
        ({"rendered": Rendered(train_images=4)}, "data.rendered.train_images"),
    ],
)
def test_a_spec_that_cannot_be_audited_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rendered_samples(spec().model_copy(update=change), GROUPS, ())


def test_audited_faces_may_differ_in_base_rates() -> None:
    frame = rendered_samples(spec(audit_association=0.5), GROUPS, ()).frame
    audited = frame[frame["split"] != "train"]
    shares = (audited["label"] == "smiling").groupby(audited["skin_tone"]).mean()
    assert shares["lighter"] - shares["darker"] == pytest.approx(0.5)
