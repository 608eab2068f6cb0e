"""The models behind the colour and blur controls: one base, then conditions that differ in their images alone.

The base is trained on clean, gray and blurred images together. Each condition then fine-tunes the base's blocks on
one kind of image. Last norm and classifier are common to all conditions and stay as they are, so that a complete
patch gives exactly the donor's logits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file

from audit.card.schema import ControlsSpec
from audit.controls.control_images import ROLES, ControlSet, Role
from audit.controls.imported import MADE_OF, Imported, check_imported
from audit.data.pixels import Pixels
from audit.errors import DivergedError
from audit.models.adapters.registry import Model, adapter
from audit.models.build import Backbone
from audit.models.checkpoint import save_weights, started_from
from audit.models.device import ON_CPU, Compute, held_on
from audit.models.finetune import Recipe, Views, finetune, make_views, prefix_blocks
from audit.models.predict import predict_logits
from audit.models.readout import READING
from audit.models.side_by_side import Training, train_side_by_side
from audit.models.transforms import Corruption, blur, corrupt_pixels, gray
from audit.progress import Step
from audit.store import WORK, write_text
from audit.work.pool import Workers

RECIPE_VERSION = 5  # raise when the training below changes: cached models are then made again
BASE = "base.safetensors"
TRAINED = "recipe.json"  # what was trained last; written once all of it is there
WEIGHT_DECAY = 0.05
WARMUP_SHARE = 0.1
CORRUPTIONS: Mapping[str, Corruption] = {"gray": gray, "blur": blur}
SEEN = ("clean", "gray", "blur")  # by the base
FEW = 400  # training images that are tried first
ASKED = 200  # further ones, on which it is found out whether those were enough
ENOUGH = 0.95  # of these a clean donor must know


@dataclass(frozen=True)
class Condition:
    """One fine-tuning of the base: on which task, on which images, with which seed."""

    name: str
    role: Role
    corruption: str  # "clean" | "gray" | "blur"
    seed: int


def conditions(one_task: bool, donor_seeds: int, roles: Sequence[Role] = ROLES) -> list[Condition]:
    """Return what is trained: for gray and for blur a recipient, and donors of other seeds, clean and corrupted.

    Of a model that reads gray images, for blur alone: ``roles`` says so.

    A clean donor and its corrupted twin share a seed: the order of the images. On one task, colour and blur share the
    clean donors.
    """
    every: Sequence[tuple[Role, str]] = (("colour", "gray"), ("blur", "blur"))
    tasks = [(role, corruption) for role, corruption in every if role in roles]
    wanted: list[Condition] = []
    for role, corruption in tasks:
        wanted.append(Condition(corruption, role, corruption, 1))
        for seed in range(2, 2 + donor_seeds):
            shared = one_task and role != tasks[0][0]
            wanted += [] if shared else [Condition(_donor_name(role, "clean", seed), role, "clean", seed)]
            wanted.append(Condition(_donor_name(role, corruption, seed), role, corruption, seed))
    return wanted


def _donor_name(role: Role, corruption: str, seed: int) -> str:
    return f"{role}_{corruption}_donor_{seed}"


@dataclass(frozen=True)
class ControlModels:
    """The models by condition, the hash of the weights each was trained from, their folder, whether they lay there."""

    models: Mapping[str, Model]
    started_from: Mapping[str, str]
    folder: Path
    from_cache: bool
    key: str
    imported: Sequence[Imported] = ()  # what of them came from a store
    tried: Sequence[str] = ()  # keys of those that were trained before on too few images

    def donors(self, role: Role, corruption: str) -> tuple[str, ...]:
        """Name the donors of a channel that were trained on ``corruption`` ("clean", "gray", "blur"), by seed."""
        found = [n for n in self.models if n.startswith(f"{role}_{corruption}_donor_")]
        return tuple(found or [n for n in self.models if f"_{corruption}_donor_" in n])


def corrupt(pixels: Pixels, corruption: str) -> Pixels:
    """Return pixels as the named condition sees them."""
    return pixels if corruption == "clean" else corrupt_pixels(pixels, CORRUPTIONS[corruption])


def folder_of(cache: Path, key: str) -> Path:
    """Return the folder of control models in a cache, by the key of ``cache_key``."""
    return cache / f"controls-{key[:24]}"


def cache_key(backbone: Backbone, spec: ControlsSpec, images: ControlSet, compute: Compute = ON_CPU) -> str:
    """Return the hash of all that makes the control models what they are."""
    return key_of(all_that_makes(backbone, spec, images, compute))


def key_of(made_of: Mapping[str, object]) -> str:
    """Return the hash of what ``all_that_makes`` gives."""
    return hashlib.sha256(_as_text(made_of).encode()).hexdigest()


def _as_text(made_of: Mapping[str, object]) -> str:
    return json.dumps(made_of, sort_keys=True)


def all_that_makes(
    backbone: Backbone, spec: ControlsSpec, images: ControlSet, compute: Compute = ON_CPU
) -> dict[str, object]:
    """Return all that makes the control models what they are."""
    made_of = {
        "version": RECIPE_VERSION,
        "model": backbone.spec.model_dump(exclude={"weights", "state", "classes", "display", *READING}),
        "body": backbone.body_hash(),
        "controls": spec.model_dump(exclude={"card", "path", "weights", "state", "eval_images", "donor_seeds"}),
        "images": images.training_fingerprint,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "threads": torch.get_num_threads(),
        "computed": compute.name,
    }
    if _is_whole(backbone):
        made_of["base"] = "trained whole"
    return made_of


def train_controls(
    backbone: Backbone,
    spec: ControlsSpec,
    images: ControlSet,
    *,
    cache: Path,
    step: Step,
    roles: Sequence[Role] = ROLES,
    compute: Compute = ON_CPU,
    work: Path | None = None,
    workers: Workers | None = None,
) -> ControlModels:
    """Train the control models, or load them where the same have been trained before.

    Parameters
    ----------
    backbone : Backbone
        The audited model's.
    spec : ControlsSpec
    images : ControlSet
    cache : pathlib.Path
        Folder of trained control models.
    step : callable
        Given a name, returns a progress callback.
    roles : sequence of {"colour", "blur"}
        What is tried.
    compute : Compute
        Where they are trained, and how exactly.
    work : pathlib.Path, optional
        Where results of tasks are kept; beside the models where not given.
    workers : Workers, optional
        How many models are trained at once; one by one where not given.
    """
    made_of = all_that_makes(backbone, spec, images, compute)
    key = key_of(made_of)
    folder = folder_of(cache, key)
    imported = check_imported(folder)
    wanted = conditions(images.one_task, spec.donor_seeds, roles)
    files = {c: folder / f"{c.name}.safetensors" for c in wanted}
    fresh = not all(path.is_file() for path in (folder / BASE, *files.values()))
    if fresh:
        with _naming_controls():
            base, views = _base(backbone, spec, images, folder, step, compute)
            models = _train_conditions(
                backbone,
                spec,
                images,
                base,
                views,
                files,
                step,
                compute,
                made_of=key,
                work=work or folder / WORK,
                workers=workers,
            )
    else:
        models = {c.name: _stored(backbone, images.classes, path) for c, path in files.items()}
    write_text(folder / MADE_OF, _as_text(made_of))
    write_text(folder / TRAINED, json.dumps([asdict(c) for c in wanted], indent=1))
    starts = {c.name: started_from(path) for c, path in files.items()}
    return ControlModels(models, starts, folder, not fresh, key, imported)


def train_enough(
    backbone: Backbone,
    spec: ControlsSpec,
    images: ControlSet,
    *,
    cache: Path,
    step: Step,
    roles: Sequence[Role] = ROLES,
    compute: Compute = ON_CPU,
    work: Path | None = None,
    workers: Workers | None = None,
    few: int = FEW,
) -> tuple[ControlModels, ControlSet]:
    """Train on few images where that is enough, else on all; return the models, and the set that they were trained on.

    It is enough where every clean donor knows other images of the training set. That is asked of a pretrained backbone
    and rendered images alone: what is drawn there is told apart after few images, and nothing else is to be learnt.
    Parameters are those of ``train_controls``; ``few`` is a number of images.
    """
    train = partial(
        train_controls, backbone, spec, cache=cache, step=step, roles=roles, compute=compute, work=work, workers=workers
    )
    if images.drawn and not _is_whole(backbone) and len(images.train) >= 2 * few:
        trained = train(images.trained_on(few))
        if _least_known(trained, images, few, roles) >= ENOUGH:
            return trained, images.trained_on(few)
        return replace(train(images), tried=[trained.key]), images
    return train(images), images


def _least_known(trained: ControlModels, images: ControlSet, start: int, roles: Sequence[Role]) -> float:
    """Return the share of other training images that the worst clean donor is right on; it is kept with the models."""
    rows, path = slice(start, start + ASKED), trained.folder / f"known-{images.training_fingerprint[:24]}.json"
    if not path.is_file():
        found = {
            name: float(np.mean(predict_logits(trained.models[name], images.train[rows]).argmax(1) == targets[rows]))
            for role, (targets, _) in images.targets.items()
            if role in roles
            for name in trained.donors(role, "clean")
        }
        write_text(path, json.dumps(found, indent=1))
    return float(min(json.loads(path.read_text(encoding="utf-8")).values()))


@contextmanager
def _naming_controls() -> Iterator[None]:
    """Name the card's section of the control models where their training diverges."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(error.epoch, error.loss, "controls") from error


def _stored(backbone: Backbone, classes: int, path: Path) -> Model:
    """Load a model that was trained here."""
    model = backbone.build(classes)
    model.load_state_dict(load_file(path))
    return model


def _is_whole(backbone: Backbone) -> bool:
    """Tell whether the base is trained whole, because its weights were not pretrained for much."""
    return backbone.spec.weights in ("none", "rendered")


def _base(
    backbone: Backbone, spec: ControlsSpec, images: ControlSet, folder: Path, step: Step, compute: Compute
) -> tuple[Model, Mapping[str, Views]]:
    """Train the base, or load it; return with it what its frozen blocks make of the images, if that is known by now."""
    path = folder / BASE
    if path.is_file():
        return _stored(backbone, images.base_classes, path), {}
    base = backbone.build(images.base_classes)
    blocks = None if _is_whole(backbone) else backbone.spec.train_blocks
    recipe = _recipe(spec, spec.base_epochs, spec.seed, blocks)
    recipe = replace(recipe, learn_statistics=backbone.spec.weights == "none")
    with held_on(compute.device, base):
        views = _views(base, images, blocks, SEEN)
        mixed = Views([v.data[0] for v in views.values()], prefix_blocks(base, blocks))
        progress = step("controls: base")
        finetune(base, mixed, images.base_targets, recipe, precision=compute.precision, progress=progress)
    save_weights(base.state_dict(), path)
    return base, {} if _is_whole(backbone) else views


def _views(model: Model, images: ControlSet, train_blocks: int | None, corruptions: Sequence[str]) -> dict[str, Views]:
    """Return the training images by corruption, as the trained blocks of ``model`` read them."""
    every = make_views(model, [corrupt(images.train, name) for name in corruptions], train_blocks)
    return {name: replace(every, data=[view]) for name, view in zip(corruptions, every.data, strict=True)}


def _train_conditions(
    backbone: Backbone,
    spec: ControlsSpec,
    images: ControlSet,
    base: Model,
    views: Mapping[str, Views],
    files: Mapping[Condition, Path],
    step: Step,
    compute: Compute,
    *,
    made_of: str,
    work: Path,
    workers: Workers | None,
) -> dict[str, Model]:
    """Train the conditions that are not stored yet from the base, storing each as soon as it is done; return all."""
    absent = [c for c, path in files.items() if not path.is_file()]
    blocks = backbone.spec.train_blocks
    if not views:
        with held_on(compute.device, base):
            views = _views(base, images, blocks, sorted({c.corruption for c in absent}))
    models = {c: backbone.build(images.classes) for c in files}

    def recipe_of(condition: Condition) -> Recipe:
        recipe = _recipe(spec, spec.condition_epochs, spec.seed + condition.seed, blocks)
        return replace(recipe, freeze_classifier=True, attention_only=not images.one_task)

    for condition in absent:
        start_from(base, models[condition])
    trainings = [
        Training(c.name, models[c], views.get(c.corruption), images.targets[c.role][0], recipe_of(c), path)
        for c, path in files.items()
    ]
    train_side_by_side(
        trainings,
        work,
        made_of={"controls": made_of},
        progress=step(f"controls: {len(absent)} models side by side"),
        workers=workers,
        compute=compute,
        smaller="lower controls.batch_size",
    )
    return {c.name: model for c, model in models.items()}


def start_from(base: Model, model: Model) -> None:
    """Give ``model`` the base's weights; a classifier for other classes is set to fixed, distinct directions."""
    state = base.state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, classifier in adapter(model).classifiers().items():
        if classifier.weight.shape == state[f"{name}.weight"].shape:
            continue
        torch.nn.init.orthogonal_(classifier.weight, generator=generator)
        torch.nn.init.zeros_(classifier.bias)
        state |= {f"{name}.weight": classifier.weight, f"{name}.bias": classifier.bias}
    model.load_state_dict(state)


def _recipe(spec: ControlsSpec, epochs: int, seed: int, train_blocks: int | None) -> Recipe:
    return Recipe(
        epochs=epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        weight_decay=WEIGHT_DECAY,
        warmup_share=WARMUP_SHARE,
        seed=seed,
        train_blocks=train_blocks,
    )
