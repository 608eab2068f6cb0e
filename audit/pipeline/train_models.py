"""Stage: the audited models, trained or taken as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from audit.card.schema import Card, ModelSpec, TrainingSpec
from audit.data.pixels import mirrored, select
from audit.data.samples import Samples
from audit.data.splits import balanced_training
from audit.models.adapters.registry import Model
from audit.models.checkpoint import hash_state, save_weights, started_from
from audit.models.converters import keeps_configuration, kept_configuration
from audit.models.device import held_on
from audit.models.finetune import Recipe, Views, make_views
from audit.models.readout import with_readout
from audit.models.side_by_side import Training, train_side_by_side
from audit.pipeline.context import RunContext
from audit.store import write_bytes

ARCHITECTURE = "models/huggingface"  # of a run: what the models are, where timm has no name for it
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AuditedModels:
    """The audited models by seed, the balanced reference models, and what each was trained from."""

    by_seed: Mapping[int, Model]
    balanced: list[Model]
    balanced_on: str  # the attribute on which the references' sample is balanced
    # SHA-256 of the weights before training, by the name of the file ("seed-0", "balanced-0", "audited")
    started_from: Mapping[str, str]

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Hold all models on a device for the length of a block."""
        with held_on(device, *self.by_seed.values(), *self.balanced):
            yield

    @property
    def primary(self) -> Model:
        """The model whose numbers the report quotes: the first seed's."""
        return next(iter(self.by_seed.values()))

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each audited model's weights."""
        return {weights_name(seed): hash_state(m.state_dict()) for seed, m in self.by_seed.items()}


def weights_name(seed: int) -> str:
    """Return the name under which a record holds the hash of an audited model's weights."""
    return f"model seed {seed}"


def train_audited(context: RunContext) -> AuditedModels:
    """Train a model for each seed and the balanced references, or load the user's own, or what is stored of them."""
    classes = len(context.samples.labels)
    training, seen = context.training, context.preprocessing.carried
    carried = None if seen is None else seen.text
    named = context.card.model.name
    if keeps_configuration(named) and context.backbone.weights is not None:
        for name, content in kept_configuration(named, context.backbone.weights).items():
            write_bytes(context.run / ARCHITECTURE / name, content)
    if training is None:
        model = context.backbone.build_as_is(classes)
        start = hash_state(model.state_dict())
        path = context.run / "models" / "audited.safetensors"
        save_weights(model.state_dict(), path, started_from=start, preprocessing=carried)
        return AuditedModels({0: model}, [], "", {"audited": start})
    train = np.flatnonzero(context.samples.frame["split"] == "train")
    jobs = training_jobs(context.card, context.samples)
    files = {name: context.run / "models" / f"{name}.safetensors" for name, _, _ in jobs}
    models = {name: with_readout(context.backbone.build(classes), context.readout) for name in files}
    absent = [name for name, path in files.items() if not path.is_file()]
    views = _views(models[jobs[0][0]], context, training, train) if absent else None
    trainings = [
        Training(
            name,
            models[name],
            views,
            context.targets[train],
            recipe_of(training, seed, context.card.model),
            files[name],
            rows=np.searchsorted(train, rows),
            carried=carried,
        )
        for name, seed, rows in jobs
    ]
    train_side_by_side(
        trainings,
        context.work / "models",
        made_of={"question": context.question},
        progress=context.step(f"training: {len(absent)} models side by side"),
        workers=context.workers,
        compute=context.compute,
    )
    by_seed = {seed: models[name] for name, seed, _ in jobs if name.startswith("seed")}
    balanced = [models[name] for name in models if not name.startswith("seed")]
    starts = {name: started_from(path) for name, path in files.items()}
    return AuditedModels(by_seed, balanced, next(iter(context.samples.attributes)), starts)


def training_jobs(card: Card, samples: Samples) -> list[tuple[str, int, Rows]]:
    """Return what is to be trained: name, seed, rows; nothing where the user's own model is audited.

    Raises
    ------
    DataError
        If a balanced sample is asked for and some group has no training image of some label.
    """
    if card.training == "none":
        return []
    training = card.training
    train = np.flatnonzero(samples.frame["split"] == "train")
    jobs = [(f"seed-{seed}", seed, train) for seed in training.seeds]
    if training.balanced_seeds:
        attribute, info = next(iter(samples.attributes.items()))
        groups = list(info.groups)
        chosen = balanced_training(samples.frame, attribute, groups, card.audit.seed)
        rows = np.asarray(chosen, dtype=np.int64)
        jobs += [(f"balanced-{k}", 1000 + k, rows) for k in range(training.balanced_seeds)]
        # Design C compares with a second seed; where the card gives one only, another is trained for that alone.
        if len(training.seeds) == 1:
            jobs.append((f"seed-{_reseed(training)}", _reseed(training), train))
    return jobs


def _reseed(training: TrainingSpec) -> int:
    """Return the seed whose model is Design C's null donor."""
    return training.seeds[1] if len(training.seeds) > 1 else training.seeds[0] + 1


def reseed_of(context: RunContext) -> int | None:
    """Return the seed of Design C's null donor, or None where Design C does not run."""
    training = context.training
    return None if training is None or not training.balanced_seeds else _reseed(training)


def _views(base: Model, context: RunContext, training: TrainingSpec, train: Rows) -> Views:
    pixels = select(context.pixels, train)
    both = [pixels, mirrored(pixels)] if training.flip else [pixels]
    context.step("training: features of the frozen blocks")(0, 1)
    with held_on(context.compute.device, base):
        return make_views(base, both, context.card.model.train_blocks)


def recipe_of(training: TrainingSpec, seed: int, model: ModelSpec) -> Recipe:
    """Return how a model is fine-tuned that a card asks for."""
    return Recipe(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_share=training.warmup_share,
        seed=seed,
        train_blocks=model.train_blocks,
        learn_statistics=model.weights == "none",
    )
