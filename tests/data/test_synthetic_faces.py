"""Faces: exact pairs, determinism, what follows the intensity, and what may not depend on the group."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest

from audit.data.synthetic import Face, edit, face_of_row, render, sample_faces
from audit.data.synthetic.drawing import SIZE
from audit.errors import DataError

pytestmark = pytest.mark.unit

FACE = Face(intensity=0.4, monk_tone=3, hair_extent=0.25, glasses=True, noise_seed=7)


def pixels(face: Face) -> np.ndarray:
    return np.asarray(render(face)).astype(int)


def test_a_face_is_rgb_and_64_pixels_wide() -> None:
    image = render(FACE)
    assert image.mode == "RGB"
    assert image.size == (SIZE, SIZE)


def test_the_same_face_has_the_same_pixels_in_another_process() -> None:
    code = (
        "import hashlib; from audit.data.synthetic import Face, render;"
        f"face = {FACE!r}; print(hashlib.sha256(render(face).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(render(FACE).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("attribute", "there", "back"),
    [("skin_tone", "darker", "lighter"), ("hair_length", "long", "short"), ("glasses", "no", "yes")],
)
def test_editing_there_and_back_is_the_identity(attribute: str, there: str, back: str) -> None:
    edited = edit(FACE, **{attribute: there})
    assert edited.group(attribute) == there
    assert (pixels(edited) != pixels(FACE)).any()
    again = edit(edited, **{attribute: back})
    assert again == FACE
    assert (pixels(again) == pixels(FACE)).all()


def test_editing_to_the_own_group_changes_nothing() -> None:
    assert edit(FACE, skin_tone="lighter", hair_length="short", glasses="yes") is FACE


def test_skin_tone_is_mirrored_on_the_monk_scale() -> None:
    tones = [edit(Face(0.0, tone, 0.0), skin_tone="darker").monk_tone for tone in (1, 2, 3, 4, 5)]
    assert tones == [10, 9, 8, 7, 6]


def test_editing_skin_tone_moves_no_pixel_off_the_skin() -> None:
    before, after = pixels(FACE), pixels(edit(FACE, skin_tone="darker"))
    changed = (before != after).any(axis=2)
    assert 0.15 < changed.mean() < 0.5
    assert not changed[:, :8].any()  # background left and right of the head
    assert not changed[:, -8:].any()
    assert not changed[:12].any()  # hair above the forehead


def test_editing_hair_length_leaves_the_middle_of_the_face() -> None:
    changed = (pixels(FACE) != pixels(edit(FACE, hair_length="long"))).any(axis=2)
    assert changed.any()
    assert not changed[24:54, 24:40].any()


@pytest.mark.parametrize("tone", [1, 4, 6, 8, 10])
def test_the_mouth_follows_the_intensity(tone: int) -> None:
    """The mouth is redder than the skin: its corners rise against its middle as the intensity grows."""
    heights = []
    for intensity in np.linspace(-1, 1, 9):
        image = pixels(Face(float(intensity), tone, 0.25))[40:60]
        redness = (image[:, :, 0] - image[:, :, 1]).astype(float)
        redness = np.clip(redness - np.median(redness[:, 24:40]) - 12, 0, None)
        rows = np.arange(len(image))[:, None]
        corners, middle = redness[:, [23, 24, 25, 38, 39, 40]], redness[:, 30:34]
        heights.append((rows * middle).sum() / middle.sum() - (rows * corners).sum() / corners.sum())
    assert np.corrcoef(heights, np.linspace(-1, 1, 9))[0, 1] > 0.95


def test_a_small_change_of_intensity_is_a_small_change_of_pixels() -> None:
    steps = np.linspace(-1, 1, 81)
    images = np.stack([pixels(Face(float(i), 4, 0.25)) for i in steps])
    jumps = np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3))
    assert jumps.max() < 2.5 * np.median(jumps)


def test_a_change_of_expression_is_about_as_large_on_every_tone() -> None:
    sizes = []
    for tone in range(1, 11):
        low, high = (pixels(Face(i, tone, 0.25)) for i in (-0.2, 0.2))
        sizes.append(np.sqrt(((high - low) ** 2).mean()))
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize(
    "parameters",
    [
        {"intensity": 1.5, "monk_tone": 3, "hair_extent": 0.25},
        {"intensity": float("nan"), "monk_tone": 3, "hair_extent": 0.25},
        {"intensity": 0.0, "monk_tone": 0, "hair_extent": 0.25},
        {"intensity": 0.0, "monk_tone": 3, "hair_extent": 0.5},
        {"intensity": 0.0, "monk_tone": 3, "hair_extent": 0.3},
    ],
)
def test_a_face_out_of_range_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(DataError, match="is out of range"):
        Face(**parameters)  # type: ignore[arg-type]


def test_an_unknown_edit_is_refused_with_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean 'skin_tone'"):
        edit(FACE, skin_tones="darker")
    with pytest.raises(DataError, match="did you mean 'darker'"):
        edit(FACE, skin_tone="dark")


def test_rendering_is_fast_enough() -> None:
    faces = [face_of_row(row) for row in sample_faces(200, 3, split="train").to_dict("records")]
    render(faces[0])
    start = time.process_time()  # CPU time: other work on the machine does not count
    for face in faces:
        render(face)
    assert len(faces) / (time.process_time() - start) > 200
