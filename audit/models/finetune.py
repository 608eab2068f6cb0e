"""Fine-tuning with a frozen prefix, whose features are computed once where they can be kept.

Every fine-tuning starts from one initialisation, classifier included; the seed orders the images and nothing
else. That is what makes models comparable head by head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

from audit.batching import batches, in_halves
from audit.data.ahead import ahead, in_image_batches
from audit.data.pixels import Images, Pixels
from audit.errors import DivergedError
from audit.models.adapters.registry import Model, adapter
from audit.models.device import computing_in, device_of, send
from audit.models.predict import finish
from audit.models.transforms import as_input
from audit.progress import Progress

PREFIX_BATCH = 64
KEPT_AT_MOST = 1 << 30  # bytes that features of frozen blocks take in memory
CLIP_NORM = 1.0
# From logits (B, classes) in float32, targets (B,) or (B, classes) and the rows of the batch to the mean loss.
Objective = Callable[[torch.Tensor, torch.Tensor, npt.NDArray[np.int64]], torch.Tensor]


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return the mean cross-entropy in nats, which does not depend on the rows."""
    del rows
    return F.cross_entropy(logits, targets)


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
    """Training input: each image in one or more views, of which every epoch draws one."""

    # a view each: images, or features (N, tokens, width) that leave the frozen prefix
    data: Sequence[Images | torch.Tensor]
    # blocks of the frozen prefix; 0 where the whole model trains. Of images it is computed whenever a batch of them
    # is trained on.
    prefix: int
    dtype: torch.dtype = torch.float16  # what features are rounded to

    def __len__(self) -> int:
        return len(self.data[0])


def make_views(
    model: Model,
    pixels: Sequence[Images],
    train_blocks: int | None,
    *,
    dtype: torch.dtype = torch.float16,
    kept_at_most: int = KEPT_AT_MOST,
) -> Views:
    """Compute what the trained blocks read, once for each view, where that can be kept.

    Features of a frozen prefix are kept in float16 and turned into float32 batch by batch: half the memory, for a
    rounding of each value by at most 1/2048 of itself, which is less than the grey levels of the pixels were rounded
    by. Features that do not fit into float16's range (65504) stay in float32. They are written nowhere, for images
    could be rebuilt from them: where all views together take more than ``kept_at_most`` bytes, they are computed from
    the images whenever a batch is trained on, and rounded likewise, image by image. The limit does not depend on what
    memory is free, for features of other batches round otherwise, and a run shall repeat itself.

    Parameters
    ----------
    model : Model
        Its frozen prefix is run here; every later model must share it.
    pixels : sequence of Images
        A view each, such as the images and their mirror images.
    train_blocks : int or None
        Blocks to be trained, counted from the end; None for everything.
    dtype : torch.dtype
        Of the features: float16, or float32 where nothing may be rounded.
    kept_at_most : int
        Bytes.
    """
    prefix = prefix_blocks(model, train_blocks)
    from_images = Views(list(pixels), prefix, dtype)
    if prefix == 0:
        return from_images
    views = []
    for images in pixels:
        features = _prefix_features(model, images, prefix, dtype, kept_at_most // len(pixels))
        if features is None:
            return from_images
        views.append(features)
    return Views(views, prefix, dtype)


def prefix_blocks(model: Model, train_blocks: int | None) -> int:
    """Return how many blocks stay frozen."""
    return 0 if train_blocks is None else max(0, adapter(model).depth - train_blocks)


@torch.inference_mode()
def _prefix_features(
    model: Model, images: Images, prefix: int, dtype: torch.dtype, kept_at_most: int
) -> torch.Tensor | None:
    """Return the features of a view; None where they take more than so many bytes."""
    model.eval()
    one = in_image_batches(lambda pixels: _run_prefix(model, pixels, prefix).shape[1:], images, np.arange(1), size=1)
    shape = (len(images), *one[0])
    if math.prod(shape) * dtype.itemsize > kept_at_most:
        return None
    features, done = torch.empty(shape, dtype=dtype), 0

    def compute(pixels: Pixels) -> bool:
        nonlocal done
        stream = _run_prefix(model, pixels, prefix)
        kept = features[done : done + len(pixels)].copy_(stream)
        done += len(pixels)
        return dtype == torch.float32 or bool(kept.isfinite().all()) or not stream.isfinite().all()

    whole = all(in_image_batches(compute, images, size=PREFIX_BATCH))
    return features if whole else _prefix_features(model, images, prefix, torch.float32, kept_at_most)


def _run_prefix(model: Model, pixels: Pixels, prefix: int) -> torch.Tensor:
    """Return what leaves the frozen blocks (B, tokens, width), where the model is."""
    body = adapter(model)
    stream = body.embed(as_input(model, pixels))
    for layer in range(prefix):
        stream = body.run(layer, stream)
    return stream


def finetune(
    model: Model,
    views: Views,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    recipe: Recipe,
    *,
    rows: npt.NDArray[np.int64] | None = None,
    precision: torch.dtype = torch.float32,
    objective: Objective = cross_entropy,
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
    objective : callable, optional
        What is made small.
    progress : callable, optional
        Called after each step with the steps done and the steps in all.

    Returns
    -------
    list of float
        Mean loss of each epoch (of cross-entropy, nats).

    Raises
    ------
    DivergedError
        If the loss is not a number.
    """
    rows = np.arange(len(views)) if rows is None else rows
    _freeze(model, views.prefix, recipe)
    steps = _steps_an_epoch(len(rows), recipe)
    take = _stepper(model, recipe, steps, precision, objective)
    order = np.random.default_rng(recipe.seed)
    _set_training(model, recipe)
    losses = []
    for epoch in range(recipe.epochs):
        drawn = rows[order.permutation(len(rows))]
        view_of = order.integers(len(views.data), size=len(rows))
        total = 0.0
        every = [Batch(views, targets, drawn[part], view_of[part]) for part in _parts(len(rows), recipe)]
        for step, batch in enumerate(_decoded_ahead(every)):
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

    def of_view(self, number: int) -> npt.NDArray[np.int64]:
        """Return the places of the rows that are drawn from a view."""
        return np.flatnonzero(self.view_of == number)

    def halves(self, least: int) -> tuple[Batch, Batch] | None:
        """Cut in two of at least so many rows; None where that cannot be."""
        middle = len(self) // 2
        return (self[:middle], self[middle:]) if middle >= least else None


def _decoded_ahead(every: Sequence[Batch]) -> Iterator[Batch]:
    """Yield batches, of images that are not held those of the next ones being decoded meanwhile."""
    data = every[0].views.data
    images = [view for view in data if not isinstance(view, torch.Tensor)]
    needed = [[batch.rows[batch.of_view(number)] for number in range(len(images))] for batch in every]
    for batch, seen in zip(every, ahead(images, needed), strict=True):
        yield replace(batch, views=replace(batch.views, data=list(seen))) if images else batch


def loss_and_gradient(
    model: Model,
    batch: Batch,
    recipe: Recipe,
    *,
    precision: torch.dtype = torch.float32,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    objective: Objective = cross_entropy,
) -> tuple[float, list[torch.Tensor | None]]:
    """Return the mean loss of a batch and its gradient by every trained parameter.

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
                logits = finish(model, _stream(model, part), part.views.prefix)
            targets = send(torch.from_numpy(part.targets[part.rows]), device, pinned=True)
            loss = objective(logits.float(), targets, part.rows) * (len(part) / len(batch))
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


def _stepper(
    model: Model, recipe: Recipe, steps: int, precision: torch.dtype, objective: Objective
) -> Callable[[Batch, int], float]:
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
        loss, gradient = loss_and_gradient(
            model, batch, recipe, precision=precision, scale=scaler.scale, objective=objective
        )
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


def _stream(model: Model, batch: Batch) -> torch.Tensor:
    """Return what enters the first trained block, each row from the view that was drawn for it.

    Of a model that trains whole, that is what its embedding gives.
    """
    prefix, dtype = batch.views.prefix, batch.views.dtype
    drawn = _drawn(batch)
    if isinstance(drawn, torch.Tensor):
        return send(drawn, device_of(model), pinned=True).float()
    if prefix == 0:
        return adapter(model).embed(as_input(model, drawn))
    exact = torch.autocast(device_of(model).type, enabled=False)
    with _evaluating(model), torch.no_grad(), exact:
        stream = _run_prefix(model, drawn, prefix)
        rounded = stream.to(dtype).float()
        fits = _finite(rounded) | ~_finite(stream)
        return torch.where(fits, rounded, stream)


def _finite(stream: torch.Tensor) -> torch.Tensor:
    """Tell of each image whether all its features are finite, in a shape that masks them."""
    every = stream.isfinite().flatten(1).all(dim=1)
    return every.view(-1, *(1 for _ in stream.shape[1:]))


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Put a model into evaluation mode for the length of a block: what is frozen neither drops nor learns."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _drawn(batch: Batch) -> torch.Tensor | Pixels:
    """Return the rows of a batch, features or pixels, each from the view that was drawn for it."""
    data = batch.views.data
    parts = [batch.of_view(number) for number in range(len(data))]
    first = data[0]
    if isinstance(first, torch.Tensor):
        drawn = first.index_select(0, torch.from_numpy(batch.rows))
        for view, part in zip(data[1:], parts[1:], strict=True):
            assert isinstance(view, torch.Tensor)
            chosen = torch.from_numpy(part)
            drawn.index_copy_(0, chosen, view.index_select(0, torch.from_numpy(batch.rows)[chosen]))
        return drawn
    pixels: Pixels = np.empty((len(batch), *first.shape[1:]), dtype=first.dtype)
    for view, part in zip(data, parts, strict=True):
        pixels[part] = view[batch.rows[part]]
    return pixels
