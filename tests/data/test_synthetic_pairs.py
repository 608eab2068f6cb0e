"""Exact pairs, for any face: edits round-trip, commute, and touch nothing but their attribute."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.data.synthetic import Face, edit, render
from audit.data.synthetic.faces import GROUPS, HAIR_STEPS

pytestmark = pytest.mark.property

faces = st.builds(
    Face,
    intensity=st.floats(-1, 1),
    monk_tone=st.integers(1, 10),
    hair_extent=st.integers(0, HAIR_STEPS).filter(lambda step: step != HAIR_STEPS // 2).map(lambda s: s / HAIR_STEPS),
    shift_x=st.floats(-3, 3),
    tilt_deg=st.floats(-10, 10),
    light_angle_deg=st.floats(0, 360),
    light_gradient=st.floats(0, 0.25),
    brightness=st.floats(0.8, 1.2),
    glasses=st.booleans(),
    earrings=st.booleans(),
    hat=st.booleans(),
    noise_seed=st.integers(0, 2**31 - 1),
)
attributes = st.sampled_from(sorted(GROUPS))


def other_group(face: Face, attribute: str) -> str:
    first, second = GROUPS[attribute]
    return second if face.group(attribute) == first else first


@given(face=faces, attribute=attributes)
@settings(deadline=None, max_examples=60)
def test_there_and_back_is_the_same_face_and_the_same_pixels(face: Face, attribute: str) -> None:
    own = face.group(attribute)
    edited = edit(face, **{attribute: other_group(face, attribute)})
    assert edited.group(attribute) != own
    back = edit(edited, **{attribute: own})
    assert back == face
    assert render(back).tobytes() == render(face).tobytes()


@given(face=faces, attribute=attributes)
@settings(deadline=None, max_examples=100)
def test_an_edit_changes_one_parameter(face: Face, attribute: str) -> None:
    before = dataclasses.asdict(face)
    after = dataclasses.asdict(edit(face, **{attribute: other_group(face, attribute)}))
    assert sum(before[name] != after[name] for name in before) == 1
    assert edit(face, **{attribute: face.group(attribute)}) is face


@given(face=faces)
@settings(deadline=None, max_examples=50)
def test_edits_of_two_attributes_commute(face: Face) -> None:
    skin = {"skin_tone": other_group(face, "skin_tone")}
    hair = {"hair_length": other_group(face, "hair_length")}
    assert edit(edit(face, **skin), **hair) == edit(edit(face, **hair), **skin) == edit(face, **hair, **skin)


@given(face=faces)
@settings(deadline=None, max_examples=30)
def test_a_skin_edit_leaves_the_background(face: Face) -> None:
    before, after = (np.asarray(render(f)) for f in (face, edit(face, skin_tone=other_group(face, "skin_tone"))))
    assert (before[:4] == after[:4]).all()
    assert (before[:, :3] == after[:, :3]).all()
    assert (before[:, -3:] == after[:, -3:]).all()
