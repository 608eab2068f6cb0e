"""Tables of faces with a chosen association between one attribute and the label, and none with the other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audit.data.samples import SPLITS
from audit.data.synthetic.faces import GROUPS, HAIR_STEPS, TONES, suggestion
from audit.errors import DataError

LABELS = ("neutral", "smiling")
ATTRIBUTES = ("skin_tone", "hair_length")  # that an association can be planted on

# Annotators disagree near zero intensity: this is where a model has reason to lean on the group.
_ANNOTATOR_SD = 0.12
_HAIR_COLOURS = ("#17120f", "#2e2018", "#4f3423", "#7a4e2b", "#a5743c", "#c9a563", "#8f8b86", "#8a3c22")
_CELLS = list(itertools.product((0, 1), repeat=3))  # group of the planted attribute, smiling, other group


def sample_faces(
    n: int, seed: int, *, association: float = 0.0, attribute: str = "skin_tone", split: str
) -> pd.DataFrame:
    """Draw the parameters of ``n`` faces.

    Parameters
    ----------
    n : int
        How many, 0 or more. With association 0 and a multiple of 8, label x skin_tone x hair_length is
        exactly balanced.
    seed : int
        The same seed and split give the same table; different splits differ.
    association : float
        P(smiling | first group) - P(smiling | second group) in this very sample, exact up to rounding to
        whole faces, in [-1, 1]. First groups: "lighter", "long". The other attribute stays independent of
        label and group.
    attribute : {"skin_tone", "hair_length"}
        What the association is planted on.
    split : str
        One of SPLITS.
        Also begins every key.

    Returns
    -------
    pandas.DataFrame
        One row per face, sorted by key: ``image`` ("train-00012"), ``split``, ``subject`` (each face its own),
        ``expression`` ("neutral" | "smiling"), ``skin_tone``, ``hair_length``, ``annotator_noise`` (the label
        is smiling where intensity + annotator_noise > 0), and every parameter of the face.

    Raises
    ------
    DataError
        If an argument is out of range.
    """
    _check(n, association, attribute, split)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    planted, smiling, other = _stratified(n, association, rng)
    skin, hair = (planted, other) if attribute == "skin_tone" else (other, planted)
    columns = {
        "image": [f"{split}-{index:05d}" for index in range(n)],
        "split": split,
        "subject": [f"{split}-{index:05d}" for index in range(n)],
        "expression": np.array(LABELS)[smiling],
        "skin_tone": np.array(GROUPS["skin_tone"])[skin],
        "hair_length": np.array(GROUPS["hair_length"])[hair],
    }
    columns |= _expression(smiling, rng) | _appearance(skin, hair, rng) | _nuisance(n, rng)
    return pd.DataFrame(columns).sort_values("image", ignore_index=True)


def _check(n: int, association: float, attribute: str, split: str) -> None:
    if n < 0 or not -1.0 <= association <= 1.0:
        raise DataError(
            "sample_faces", f"n = {n}, association = {association}", "give n >= 0 and association in [-1, 1]"
        )
    for name, value, known in (("attribute", attribute, ATTRIBUTES), ("split", split, SPLITS)):
        if value not in known:
            raise DataError("sample_faces", f"no {name} '{value}'", suggestion(value, known))


def _stratified(n: int, association: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return group of the planted attribute, smiling and group of the other attribute; shape (3, n)."""
    counts = _cell_counts(n, association)
    cells = np.repeat(np.array(_CELLS, dtype=np.intp), counts, axis=0)
    return rng.permutation(cells).T


def _cell_counts(n: int, association: float) -> list[int]:
    counts: list[int] = []
    spare_to_first = True  # odd cells give their spare face to the two groups in turn
    for group, size in enumerate((n - n // 2, n // 2)):
        share = 0.5 + association * (0.5 if group == 0 else -0.5)
        smiles = round(size * share)
        for cell in (size - smiles, smiles):
            first = cell // 2 + (cell % 2 if spare_to_first else 0)
            spare_to_first ^= bool(cell % 2)
            counts += [first, cell - first]
    return counts


def _expression(smiling: NDArray[np.intp], rng: np.random.Generator) -> dict[str, Any]:
    """Draw intensity and annotator noise given the label.

    Both densities are symmetric about 0, so negating a pair that falls on the wrong side leaves exactly the
    distribution given the label: no face needs to be drawn twice.
    """
    # As many ambiguous faces as clear ones: the first make a model lean on the group, the second let it learn.
    intensity = rng.uniform(-1.0, 1.0, len(smiling))
    noise = rng.normal(0.0, _ANNOTATOR_SD, len(smiling))
    sign = np.where((intensity + noise > 0) == (smiling == 1), 1.0, -1.0)
    return {"intensity": sign * intensity, "annotator_noise": sign * noise}


def _appearance(skin: NDArray[np.intp], hair: NDArray[np.intp], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    n, per_group = len(skin), TONES // 2
    steps = rng.integers(0, int(0.4 * HAIR_STEPS), n, endpoint=True)  # clear of the middle: no doubtful group
    is_long = hair == GROUPS["hair_length"].index("long")
    return {
        "monk_tone": rng.integers(1, per_group, n, endpoint=True) + per_group * skin,
        "hair_extent": np.where(is_long, HAIR_STEPS - steps, steps) / HAIR_STEPS,
    }


def _nuisance(n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw what must not depend on label or group.

    Pose stays within a few pixels: a small transformer trained from scratch on some thousand faces does not
    learn to find a mouth that wanders further.
    """
    return {
        "shift_x": rng.uniform(-1.0, 1.0, n),
        "shift_y": rng.uniform(-0.8, 0.8, n),
        "tilt_deg": rng.uniform(-3.0, 3.0, n),
        "scale": rng.uniform(0.97, 1.04, n),
        "light_angle_deg": rng.uniform(0.0, 360.0, n),
        "light_gradient": rng.uniform(0.0, 0.2, n),
        "brightness": rng.uniform(0.85, 1.1, n),
        "background": _muted_colours(80, 210, n, rng),
        "hair_colour": np.array(_HAIR_COLOURS)[rng.integers(0, len(_HAIR_COLOURS), n)],
        "clothes": _muted_colours(50, 180, n, rng),
        "glasses": _yes_with(0.3, n, rng),
        "earrings": _yes_with(0.3, n, rng),
        "hat": _yes_with(0.2, n, rng),
        "face_width": rng.uniform(35.0, 41.0, n),
        "mouth_width": rng.uniform(19.0, 22.0, n),
        "noise_seed": rng.integers(0, 2**31, n),
    }


def _yes_with(share: float, n: int, rng: np.random.Generator) -> NDArray[np.str_]:
    return np.where(rng.random(n) < share, "yes", "no")


def _muted_colours(low: int, high: int, n: int, rng: np.random.Generator) -> list[str]:
    levels = rng.integers(low, high, (n, 1)) + rng.integers(-28, 28, (n, 3), endpoint=True)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in levels]
