"""Fine-tuning with a frozen prefix, whose features are computed once.

Every fine-tuning starts from one initialisation, classifier included; the seed orders the images and nothing
else. That is what makes models comparable head by head.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

from audit.batching import batches, in_batches, in_halves
from audit.data.pixels import Pixels
from audit.errors import DivergedError
from audit.models.adapters.registry import Model, adapter
from audit.models.device import computing_in, device_of, send
from audit.models.predict import finish
from audit.models.transforms import as_input
from audit.progress import Progress
from audit.store import not_written

PREFIX_BATCH = 64
MAPPED_ABOVE = 1 << 30  # bytes; larger features of a view lie in a file
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    ``train_blocks`` None trains everything; ``freeze_classifier`` keeps norm and classifier as they are;
    ``attention_only`` trains nothing but what the heads (or slices of channels) of the trained blocks write.
    ``learn_statistics`` lets batch norms learn mean and variance, for models that start from random weights; else they
    keep those they have, so that models of one start stay comparable, and the frozen blocks are the same in all.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_share: float
    seed: int
    train_blocks: int | None = None
    freeze_classifier: bool = False
    attention_only: bool = False
    learn_statistics: bool = False


@dataclass(frozen=True)
class Views:
    """Training input: each image in one or more views, of which every epoch draws one.

    Parameters
    ----------
    data : sequence of arrays
        A view each: uint8 pixels (N, H, W, 3) where the whole model trains, else features
        (N, tokens, width) that leave the frozen prefix.
    prefix : int
        Blocks of the frozen prefix; 0 where ``data`` holds pixels.
    """

    data: Sequence[Pixels | torch.Tensor]
    prefix: int

    def __len__(self) -> int:
        return len(self.data[0])


def make_views(
    model: Model,
    pixels: Sequence[Pixels],
    train_blocks: int | None,
    *,
    dtype: torch.dtype = torch.float16,
    mapped_above: int = MAPPED_ABOVE,
) -> Views:
    """Compute what the trained blocks read, once for each view.

    Features of a frozen prefix are kept in float16 and turned into float32 batch by batch: half the memory, for a
    rounding of each value by at most 1/2048 of itself, which is less than the grey levels of the pixels were rounded
    by. Features that do not fit into float16's range (65504) stay in float32. Where a view's take more than
    ``mapped_above`` bytes they lie in a temporary file that is mapped into memory: the system reads what a batch needs
    and lets go of the rest. The file has no name, and is gone with the last view of it.

    Parameters
    ----------
    model : Model
        Its frozen prefix is run here; every later model must share it.
    pixels : sequence of uint8 arrays (N, H, W, 3)
        A view each, such as the images and their mirror images.
    train_blocks : int or None
        Blocks to be trained, counted from the end; None for everything.
    dtype : torch.dtype
        Of the features: float16, or float32 where nothing may be rounded.
    mapped_above : int
        Bytes.
    """
    prefix = prefix_blocks(model, train_blocks)
    if prefix == 0:
        return Views(list(pixels), 0)
    return Views([_prefix_features(model, view, prefix, dtype, mapped_above) for view in pixels], prefix)


def prefix_blocks(model: Model, train_blocks: int | None) -> int:
    """Return how many blocks stay frozen."""
    return 0 if train_blocks is None else max(0, adapter(model).depth - train_blocks)


def mirrored(pixels: Pixels) -> Pixels:
    """Return the images flipped left to right."""
    return np.ascontiguousarray(pixels[:, :, ::-1])


@torch.inference_mode()
def _prefix_features(model: Model, pixels: Pixels, prefix: int, dtype: torch.dtype, mapped_above: int) -> torch.Tensor:
    model.eval()
    body, features = adapter(model), torch.empty(0)

    def compute(part: slice) -> bool:
        nonlocal features
        stream = body.embed(as_input(model, pixels[part]))
        for layer in range(prefix):
            stream = body.run(layer, stream)
        if part.start == 0:
            features = _room((len(pixels), *stream.shape[1:]), dtype, mapped_above)
        kept = features[part].copy_(stream)
        return dtype == torch.float32 or bool(kept.isfinite().all()) or not stream.isfinite().all()

    whole = all(in_batches(compute, len(pixels), PREFIX_BATCH))
    return features if whole else _prefix_features(model, pixels, prefix, torch.float32, mapped_above)


def _room(shape: tuple[int, ...], dtype: torch.dtype, mapped_above: int) -> torch.Tensor:
    """Return an empty tensor, in memory, or in a file without a name where it is larger than ``mapped_above``."""
    size = math.prod(shape) * dtype.itemsize
    if size <= mapped_above:
        return torch.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:  # the mapping holds it open
            if hasattr(os, "posix_fallocate"):  # a disk that is full shows now; once mapped it would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(
                np.memmap(file, np.float16 if dtype == torch.float16 else np.float32, "w+", shape=shape)
            )
    except OSError as error:
        fix = f"make room for {size / 2**30:.1f} GB of features there, or name another folder with TMPDIR"
        raise not_written(Path(os.environ.get("TMPDIR", tempfile.gettempdir())), error, fix) from error


def finetune(
    model: Model,
    views: Views,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    recipe: Recipe,
    *,
    rows: npt.NDArray[np.int64] | None = None,
    precision: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> list[float]:
    """Train ``model`` in place, where it is, and leave it in evaluation mode.

    Parameters
    ----------
    model : Model
        Shares its frozen prefix with the model that made ``views``.
    views : Views
        Input of the trained part.
    targets : numpy.ndarray, shape (N,) or (N, classes)
        Class numbers, or shares of the classes.
    recipe : Recipe
        Epochs, rates and the seed, which orders images and draws views.
    rows : numpy.ndarray, optional
        Train on these rows only.
    precision : torch.dtype
        Of the matrix products (autocast); weights, loss and gradients stay float32.
    progress : callable, optional
        Called after each step with the steps done and the steps in all.

    Returns
    -------
    list of float
        Mean cross-entropy (nats) of each epoch.

    Raises
    ------
    DivergedError
        If the loss is not a number.
    """
    rows = np.arange(len(views)) if rows is None else rows
    _freeze(model, views.prefix, recipe)
    steps = _steps_an_epoch(len(rows), recipe)
    take = _stepper(model, recipe, steps, precision)
    order = np.random.default_rng(recipe.seed)
    _set_training(model, recipe)
    losses = []
    for epoch in range(recipe.epochs):
        drawn = rows[order.permutation(len(rows))]
        view_of = order.integers(len(views.data), size=len(rows))
        total = 0.0
        for step, part in enumerate(_parts(len(rows), recipe)):
            batch = Batch(views, targets, drawn[part], view_of[part])
            total += take(batch, epoch * steps + step) * len(batch)
            if progress is not None:
                progress(epoch * steps + step + 1, recipe.epochs * steps)
        losses.append(total / len(rows))
        if not math.isfinite(losses[-1]):
            raise DivergedError(epoch + 1, losses[-1])
    model.requires_grad_(False)
    model.eval()
    return losses


def count_steps(images: int, recipe: Recipe) -> int:
    """Return how many steps a fine-tuning on so many images takes."""
    return recipe.epochs * _steps_an_epoch(images, recipe)


def _steps_an_epoch(images: int, recipe: Recipe) -> int:
    return len(_parts(images, recipe))


def _parts(images: int, recipe: Recipe) -> list[slice]:
    """Cut an epoch into batches; norms that learn statistics get no last batch of a single image, which has none."""
    parts = list(batches(images, recipe.batch_size))
    if recipe.learn_statistics and len(parts) > 1 and images % recipe.batch_size == 1:
        parts[-2:] = [slice(parts[-2].start, images)]
    return parts


@dataclass(frozen=True)
class Batch:
    """Some rows of the training input, each in the view that was drawn for it."""

    views: Views
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    view_of: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.views, self.targets, self.rows[part], self.view_of[part])

    def halves(self, least: int) -> tuple[Batch, Batch] | None:
        """Cut in two of at least so many rows; None where that cannot be."""
        middle = len(self) // 2
        return (self[:middle], self[middle:]) if middle >= least else None


def loss_and_gradient(
    model: Model,
    batch: Batch,
    recipe: Recipe,
    *,
    precision: torch.dtype = torch.float32,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> tuple[float, list[torch.Tensor | None]]:
    """Return the mean cross-entropy of a batch and its gradient by every trained parameter.

    The gradient is that of the loss multiplied by what ``scale`` does to it. Where memory does not suffice they are
    those of its halves, weighted by their sizes and added up one by one. Norms that learn statistics take those of a
    half then, but never of a single image, which has none.
    """
    trained = _trained(model)
    total: list[torch.Tensor | None] = []

    def share(part: Batch) -> torch.Tensor:
        with _statistics_kept_on_failure(model, recipe):
            device = device_of(model)
            with computing_in(precision, device):
                logits = _forward_tail(model, part.views, part.rows, part.view_of)
            targets = send(torch.from_numpy(part.targets[part.rows]), device, pinned=True)
            loss = F.cross_entropy(logits.float(), targets) * (len(part) / len(batch))
            gradient = torch.autograd.grad(scale(loss), trained, allow_unused=True)
        if not total:
            total.extend(gradient)
        else:
            for whole, more in zip(total, gradient, strict=True):
                if whole is not None and more is not None:
                    whole.add_(more)  # in place, which takes no memory: nothing fails from here on
        return loss.detach()

    least = 2 if recipe.learn_statistics else 1
    losses = in_halves(share, batch, lambda part: part.halves(least))
    return float(sum(losses)), total


@contextmanager
def _statistics_kept_on_failure(model: Model, recipe: Recipe) -> Iterator[None]:
    """Give norms that learn statistics back those from before a pass that fails: its halves count, and it does not."""
    before = [(b, b.clone()) for b in model.buffers()] if recipe.learn_statistics else []
    try:
        yield
    except BaseException:
        for buffer, was in before:
            buffer.copy_(was)
        raise


def _trained(model: Model) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _stepper(model: Model, recipe: Recipe, steps: int, precision: torch.dtype) -> Callable[[Batch, int], float]:
    """Return the function that takes a step, at timm's cosine rate of its number, and returns the loss before it.

    In float16 the loss is scaled so that small gradients do not vanish, and a step whose gradients overflow is left
    out.
    """
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe.epochs,
        warmup_epochs=0,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    trained = _trained(model)
    scaler = torch.amp.GradScaler(device_of(model).type, enabled=precision == torch.float16)

    def take(batch: Batch, done: int) -> float:
        _set_rate(optimizer, scheduler, recipe, done, steps)
        loss, gradient = loss_and_gradient(model, batch, recipe, precision=precision, scale=scaler.scale)
        for parameter, slope in zip(trained, gradient, strict=True):
            parameter.grad = None if slope is None else _laid_out_like(parameter, slope)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)  # a gradient less to hold while the next is computed
        return loss

    return take


def _laid_out_like(parameter: nn.Parameter, slope: torch.Tensor) -> torch.Tensor:
    """Return a gradient with its numbers in memory where the parameter has its own, as fused optimizers take it."""
    return slope if slope.stride() == parameter.stride() else torch.empty_like(parameter).copy_(slope)


def _set_rate(optimizer: torch.optim.Optimizer, scheduler: object, recipe: Recipe, done: int, steps: int) -> None:
    """Follow timm's cosine schedule, with a linear start over the first share of all steps."""
    scheduler.step_update(done)  # type: ignore[attr-defined]
    warm = recipe.warmup_share * recipe.epochs * steps
    if done < warm:
        for group in optimizer.param_groups:
            group["lr"] *= (done + 1) / (warm + 1)


def _set_training(model: Model, recipe: Recipe) -> None:
    """Put the model into training mode; batch norms only where they shall learn statistics."""
    model.train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train(recipe.learn_statistics)


def _freeze(model: Model, prefix: int, recipe: Recipe) -> None:
    """Let the gradient reach what the recipe trains, and nothing else."""
    body = adapter(model)
    layers = range(prefix, body.depth)
    model.requires_grad_(prefix == 0 and not recipe.freeze_classifier and not recipe.attention_only)
    whole = [p for layer in layers for part in body.modules(layer) for p in part.parameters()]
    trained = [p for layer in layers for p in body.branch(layer)] if recipe.attention_only else whole
    classifier = [] if recipe.freeze_classifier else [p for n in body.last for p in model.get_submodule(n).parameters()]
    for parameter in [*trained, *classifier]:
        parameter.requires_grad_(True)


def _forward_tail(
    model: Model, views: Views, rows: npt.NDArray[np.int64], view_of: npt.NDArray[np.int64]
) -> torch.Tensor:
    drawn = _drawn(views, rows, view_of)
    if views.prefix == 0:
        stream = adapter(model).embed(as_input(model, drawn.numpy()))
    else:
        stream = send(drawn, device_of(model), pinned=True).float()
    return finish(model, stream, views.prefix)


def _drawn(views: Views, rows: npt.NDArray[np.int64], view_of: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return each row from the view that was drawn for it."""
    data = [view if isinstance(view, torch.Tensor) else torch.from_numpy(view) for view in views.data]
    chosen, drawn = torch.from_numpy(rows), torch.from_numpy(view_of)
    batch = data[0].index_select(0, chosen)
    for number, view in enumerate(data[1:], start=1):
        of_view = (drawn == number).nonzero().squeeze(1)
        batch.index_copy_(0, of_view, view.index_select(0, chosen[of_view]))
    return batch
