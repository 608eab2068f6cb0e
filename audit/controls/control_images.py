"""The images on which colour and blur are tried: rendered ones, whose answer is certain, or real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.card.load import find_card, load_card, resolve
from audit.card.schema import Card, DataSpec
from audit.data.pixels import Geometry, Pixels, load_pixels
from audit.data.readers.cifar100 import is_to_be_fetched
from audit.data.readers.control import read_control_images
from audit.data.samples import AUDIT_SPLITS, ImageSource, Samples
from audit.data.sources import open_image, opening_of
from audit.data.synthetic.shapes import sample_shapes
from audit.errors import DataError

Role = Literal["colour", "blur"]
ROLES: tuple[Role, ...] = ("colour", "blur")
RENDERED_ROLES: Mapping[Role, str] = {"colour": "hue", "blur": "texture"}
RENDERED_BASE = ("brightness", "hue", "texture")


@dataclass(frozen=True)
class ControlSet:
    """Images with a label for the colour task and one for the blur task.

    On real images both are the class, which the base is trained on too. On rendered images they are hue and fine
    texture; the base learns to see all that is drawn, and the conditions then learn *names* for hue or texture that the
    base never had. A model that learns them from gray images cannot know them: the answer is certain.

    Parameters
    ----------
    base_targets : numpy.ndarray (N,) or (N, outputs)
        What the base is trained on: class numbers, or shares of its own outputs.
    base_classes : int
        Outputs of the base.
    drawn : bool
        Whether the images are rendered, so that whoever sees what is drawn knows the answer.
    """

    name: str
    train: Pixels
    evaluate: Pixels
    targets: Mapping[Role, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]  # train, evaluate
    classes: int
    base_targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    base_classes: int
    drawn: bool = False

    def trained_on(self, count: int) -> ControlSet:
        """Return the set with its first training images only."""
        targets = {role: (train[:count], evaluate) for role, (train, evaluate) in self.targets.items()}
        return replace(self, train=self.train[:count], targets=targets, base_targets=self.base_targets[:count])

    @property
    def training_fingerprint(self) -> str:
        """SHA-256 over all that is trained on: pixels and targets."""
        digest = hashlib.sha256(self.train.tobytes() + self.base_targets.tobytes())
        for role in ROLES:
            digest.update(self.targets[role][0].tobytes())
        return digest.hexdigest()

    @property
    def judging_fingerprint(self) -> str:
        """SHA-256 over all that the trained models are judged on."""
        digest = hashlib.sha256(self.evaluate.tobytes())
        for role in ROLES:
            digest.update(self.targets[role][1].tobytes())
        return digest.hexdigest()

    @property
    def one_task(self) -> bool:
        """Tell whether colour and blur are tried on the same task."""
        return np.array_equal(self.targets["colour"][0], self.targets["blur"][0])


@dataclass(frozen=True)
class Chosen:
    """Real images of the controls, found and drawn, and not opened.

    Parameters
    ----------
    name : str
    source : ImageSource
    train, evaluate : pandas.DataFrame
        Columns ``image`` and ``label``.
    """

    name: str
    source: ImageSource
    train: pd.DataFrame
    evaluate: pd.DataFrame


def load_control_set(
    card: Card, samples: Samples, geometry: Geometry, *, card_path: Path, data_root: Path | None
) -> ControlSet:
    """Load what ``controls.card`` names, as the audited model sees images; CIFAR-100 is fetched where it is not there.

    Parameters
    ----------
    card : Card
    samples : Samples
        The audit's own, for ``controls: {card: same}``.
    geometry : Geometry
        Of the audited model; rendered shapes are drawn in its size.
    card_path, data_root : pathlib.Path
        Where relative paths start.
    """
    spec = card.controls
    if spec.card == "rendered":
        return rendered_set(spec.train_images, spec.eval_images, geometry.shape[0], spec.seed)
    if spec.card == "same":
        return _real(_same(card, samples), geometry)
    return _real(_other(card, *_found(card, card_path, data_root)), geometry)


def check_control_set(card: Card, samples: Samples, *, card_path: Path, data_root: Path | None) -> bool:
    """Open all that ``load_control_set`` will, each image for itself; return False where that is still to be fetched.

    Raises
    ------
    InputError
        Whatever is wrong with the images of the controls.
    """
    if card.controls.card == "rendered":
        return True
    if card.controls.card == "same":
        _same(card, samples)  # whose images were opened as the audit's
        return True
    data, path = _found(card, card_path, data_root)
    if is_to_be_fetched(data, path):
        return False
    chosen = _other(card, data, path)
    keys = [*chosen.train["image"], *chosen.evaluate["image"]]
    with ThreadPoolExecutor() as pool:
        try:
            for _ in pool.map(lambda key: open_image(chosen.source, key, opening_of(card)).size, keys):
                pass
        except BaseException:  # the others are not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return True


def _found(card: Card, card_path: Path, data_root: Path | None) -> tuple[DataSpec, Path]:
    """Return how another set is read, and where it lies."""
    spec = card.controls
    if spec.card == "cifar100":
        data = DataSpec(reader="cifar100", path=spec.path or "cifar100", seed=spec.seed)
    else:
        beside = resolve(spec.card, card_path=card_path, data_root=data_root, missing_ok=True)
        data = load_card(beside if beside.is_file() else find_card(spec.card)).data
    may_download = data.reader == "cifar100" and spec.path is None  # a path that was named and is not there is a slip
    path = resolve(
        spec.path or data.path or ".",
        card_path=card_path,
        data_root=data_root,
        missing_ok=may_download,
        inside=spec.path is not None and not card.data.links,
    )
    return data, path


def _other(card: Card, data: DataSpec, path: Path) -> Chosen:
    """Draw images of another set."""
    spec = card.controls
    images = read_control_images(data.model_copy(update={"path": str(path.resolve())}), base=path.parent)
    frame = images.frame
    train = _take(frame[frame["split"] == "train"], spec.train_images, spec.seed)
    evaluate = _take(frame[frame["split"] == "test"], spec.eval_images, spec.seed)
    return Chosen(spec.card, images.source, train, evaluate)


def rendered_set(n_train: int, n_eval: int, size: int, seed: int) -> ControlSet:
    """Render shapes of ``size`` pixels a side, whose hue and fine texture are the two tasks."""
    frame, pixels = sample_shapes(n_train + n_eval, seed)
    if size != pixels.shape[1]:
        pixels = _resized(pixels, size)
    seen = np.hstack([pd.get_dummies(frame[c]).to_numpy(dtype=np.float32) for c in RENDERED_BASE])[:n_train]
    codes = {role: pd.factorize(frame[column], sort=True)[0] for role, column in RENDERED_ROLES.items()}
    return ControlSet(
        name="rendered shapes (label: hue for colour, fine texture for blur)",
        train=pixels[:n_train],
        evaluate=pixels[n_train:],
        targets={r: (c[:n_train].astype(np.int64), c[n_train:].astype(np.int64)) for r, c in codes.items()},
        classes=max(int(c.max()) for c in codes.values()) + 1,
        base_targets=seen / seen.sum(axis=1, keepdims=True),
        base_classes=seen.shape[1],
        drawn=True,
    )


def _resized(pixels: Pixels, size: int) -> Pixels:
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in pixels])


def _same(card: Card, samples: Samples) -> Chosen:
    """Draw images of the audit's own."""
    spec = card.controls
    train = _take(samples.of_split("train"), spec.train_images, spec.seed)
    if not len(train):
        raise DataError("controls.card", "'same' needs a training split, and this card has none", "use 'rendered'")
    evaluate = _take(samples.of_split(*AUDIT_SPLITS), spec.eval_images, spec.seed)
    return Chosen("this audit's own images", samples.source, train, evaluate)


def _take(frame: pd.DataFrame, at_most: int, seed: int) -> pd.DataFrame:
    """Draw at most so many rows, evenly over the labels."""
    shuffled = frame.sample(frac=1.0, random_state=seed)
    turn = shuffled.groupby("label").cumcount().sort_values(kind="stable")
    return frame.loc[turn.index[:at_most]]


def _real(chosen: Chosen, geometry: Geometry) -> ControlSet:
    labels = sorted(set(chosen.train["label"]))
    parts = chosen.train, chosen.evaluate
    codes = [pd.Index(labels).get_indexer(pd.Index(part["label"])).astype(np.int64) for part in parts]
    pixels = [load_pixels(chosen.source, part["image"].tolist(), geometry) for part in parts]
    return ControlSet(
        name=f"{chosen.name}, {len(labels)} classes",
        train=pixels[0],
        evaluate=pixels[1],
        targets=dict.fromkeys(ROLES, (codes[0], codes[1])),
        classes=len(labels),
        base_targets=codes[0],
        base_classes=len(labels),
    )
