"""Several models trained at once, a task each.

A step of a small model is over in milliseconds, and threads that share one wait for each other longer than they work.
Models that do not depend on each other are better trained side by side, one thread each.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file

from audit.data.pixels import can_be_sent
from audit.models.adapters.registry import Model
from audit.models.checkpoint import hash_state, save_weights
from audit.models.device import ON_CPU, Compute, held_on
from audit.models.finetune import Recipe, Views, count_steps, finetune
from audit.progress import Progress
from audit.store import patiently
from audit.work.pool import THREADS, Workers, run_tasks
from audit.work.tasks import Task

AT_ONCE = 4  # models; bounds memory on machines of many cores


@dataclass(frozen=True)
class Training:
    """A model, what it is trained on, and where its weights go."""

    name: str  # for messages
    model: Model  # as training begins; afterwards it is trained
    views: Views | None  # shared by all; None where the weights are there
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]  # as of ``finetune``
    recipe: Recipe
    path: Path  # of the weights: a model whose weights are there is not trained again
    rows: npt.NDArray[np.int64] | None = None  # train on these rows only
    carried: str | None = None  # how images are made for the model, kept with its weights

    @property
    def steps(self) -> int:
        """How many the training takes."""
        return count_steps(len(self.targets if self.rows is None else self.rows), self.recipe)


def train_side_by_side(
    trainings: Sequence[Training],
    folder: Path,
    *,
    made_of: Mapping[str, object],
    progress: Progress,
    workers: Workers | None = None,
    compute: Compute = ON_CPU,
    smaller: str = "lower training.batch_size",
) -> None:
    """Train models that share nothing but what they read, or load those whose weights are there.

    Several models take a thread each, one takes all that there are, whichever of them are there already: so a model
    does not depend, to the bit, on what was stored before, nor on how many are trained at once. What is random in
    training (dropout) is drawn by each for itself.

    Parameters
    ----------
    trainings : sequence of Training
    folder : pathlib.Path
        Of the tasks' results, as of ``run_tasks``.
    made_of : mapping
        What all models depend on, beside what is said of each.
    progress : callable
        Called with the steps done and in all, over all models.
    workers : Workers, optional
        At most ``AT_ONCE`` work at once; one, where not given.
    compute : Compute
        Where the models are trained, and how exactly.
    smaller : str
        What to change where memory does not suffice.
    """
    threads = THREADS if len(trainings) > 1 else torch.get_num_threads()
    tasks = []
    for training in trainings:
        if training.path.is_file():
            continue
        about = {
            "training": dict(made_of),
            "name": training.name,
            "start": hash_state(training.model.state_dict()),
            "recipe": asdict(training.recipe),
            "rows": None if training.rows is None else hashlib.sha256(training.rows.tobytes()).hexdigest(),
            "computed": compute.name,
            "threads": threads,
        }
        perform = partial(_train, training, compute)
        name = f"training of {training.name}"
        rows = training.recipe.epochs
        opens = training.views is not None and all(can_be_sent(images) for images in training.views.data)
        opens = opens and threads == THREADS  # as many as this machine has are no other's
        task = Task(name, about, training.steps, rows, perform, smaller=smaller, leaves=training.path, portable=opens)
        tasks.append(task)
    some = workers or Workers()
    run_tasks(tasks, folder, replace(some, number=min(some.number, AT_ONCE)), progress, threads=threads)
    for training in trainings:
        training.model.load_state_dict(load_file(training.path))


def _train(training: Training, compute: Compute, *, progress: Progress) -> pd.DataFrame:
    """Train a copy, so that whoever tries again begins as this did; return the mean loss of each epoch (nats)."""
    model, start = copy.deepcopy(training.model), hash_state(training.model.state_dict())
    assert training.views is not None
    with held_on(compute.device, model):
        losses = finetune(
            model,
            training.views,
            training.targets,
            training.recipe,
            rows=training.rows,
            precision=compute.precision,
            progress=progress,
        )
    save = partial(save_weights, model.state_dict(), training.path, started_from=start, preprocessing=training.carried)
    patiently(save)
    return pd.DataFrame({"epoch": np.arange(1, len(losses) + 1), "loss": losses})
