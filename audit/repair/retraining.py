"""Repairs that train the model on: as before with augmented images, or on the group that does worst."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from audit.data.pixels import Images, Pixels, Rows, mirrored
from audit.models.device import device_of, in_double
from audit.models.finetune import Objective, Recipe, finetune, make_views
from audit.repair.base import UNKNOWN_GROUP, Plain, RepairInput, Split, state_of
from audit.repair.choice import cells_of, choose_strength
from audit.repair.seen import State

Made = tuple[State, dict[str, Plain]]
HALFWAY = (0.0, 0.5, 1.0)  # strengths: each is a pass over the repair split
STEP = 0.01  # of the cells' weights, in Group DRO


@dataclass(frozen=True)
class Augmented:
    """Images under RandAugment, and flips; each is drawn from the seed and its row, whatever is asked with it.

    Parameters
    ----------
    images : Images
        Bytes.
    seed : int
    flip : bool
    """

    images: Images
    seed: int
    flip: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, height, width, channels."""
        return self.images.shape

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Of the pixels."""
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Rows) -> Pixels:
        """Return some of them, augmented."""
        augment = v2.Compose([v2.RandAugment(), *([v2.RandomHorizontalFlip()] if self.flip else [])])
        plain = self.images[rows]
        out = np.empty_like(plain)
        with torch.random.fork_rng(devices=[]):
            for place, row in enumerate(np.arange(len(self))[rows]):
                torch.manual_seed(_seed_of(self.seed, int(row)))
                image = torch.from_numpy(np.ascontiguousarray(plain[place])).permute(2, 0, 1)
                out[place] = augment(image).permute(1, 2, 0).numpy()
        return out


def _seed_of(seed: int, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{row}".encode()).digest()[:4], "little")


def continued(given: RepairInput) -> Made:
    """Train the audited model for as long again, on the same images under RandAugment.

    A repair that uses no group: what more training alone does. Between the audited weights and these, the place is
    chosen by the rule of all methods.
    """
    training, recipe = _training(given)
    seeds = [given.seed * 1000 + epoch for epoch in range(recipe.epochs)]
    images = [Augmented(training.images, seed, given.flip) for seed in seeds]
    model = copy.deepcopy(given.model)
    views = make_views(model, images, recipe.train_blocks)
    losses = finetune(
        model, views, training.targets, replace(recipe, seed=given.seed), precision=given.compute.precision
    )
    return _between(given, state_of(model), {"epochs": recipe.epochs, "losses": losses})


def group_dro(given: RepairInput) -> Made:
    """Train on the group x label cells that do worst: Group DRO, Sagawa et al. (2020), algorithm 1.

    Cells are drawn equally often; the weight of each rises with the exponential of its loss. It begins where the
    audited model's training began, where that is known. The place between the audited weights and these is chosen by
    the rule of all methods.
    """
    training, recipe = _training(given)
    cells = cells_of(training)
    draw = np.random.default_rng([given.seed, 5])
    places = [np.flatnonzero((training.groups == g) & (training.targets == y)) for g, y in cells]
    size = int((training.groups != UNKNOWN_GROUP).sum()) // len(cells)
    rows = np.sort(np.concatenate([draw.choice(of_cell, max(1, size)) for of_cell in places]))
    begun = given.model if given.start is None else given.start
    model = copy.deepcopy(begun).to(device_of(given.model))
    views = make_views(
        model, [training.images, mirrored(training.images)] if given.flip else [training.images], recipe.train_blocks
    )
    cell = np.full(len(training), -1)
    for number, of_cell in enumerate(places):
        cell[of_cell] = number
    losses = finetune(
        model,
        views,
        training.targets,
        replace(recipe, seed=given.seed),
        rows=rows,
        objective=worst_cells(cell, len(cells)),
        precision=given.compute.precision,
    )
    return _between(given, state_of(model), {"epochs": recipe.epochs, "losses": losses, "cells": len(cells)})


def worst_cells(cell: Rows, cells: int, *, step: float = STEP) -> Objective:
    """Return the loss of Group DRO, which remembers the weight of each cell from one batch to the next."""
    weights = torch.full((cells,), 1 / cells, dtype=torch.float64)

    def loss(logits: torch.Tensor, targets: torch.Tensor, rows: Rows) -> torch.Tensor:
        each = F.cross_entropy(logits, targets, reduction="none")
        of_row = torch.from_numpy(cell[rows]).to(each.device)
        there = of_row.unique()
        means = torch.stack([each[of_row == number].mean() for number in there])
        weights[there.cpu()] *= torch.exp(step * in_double(means.detach()))
        weights.div_(weights.sum())
        return (weights[there.cpu()].to(means) * means).sum()

    return loss


def _training(given: RepairInput) -> tuple[Split, Recipe]:
    training, recipe = given.data.training, given.recipe
    assert training is not None  # which the registry has checked
    assert recipe is not None
    return training, recipe


def _between(given: RepairInput, whole: State, told: dict[str, Plain]) -> Made:
    """Choose a place between the audited weights and others."""
    own = state_of(given.model)

    def made(strength: float) -> State:
        if strength in (0, 1):
            return own if strength == 0 else whole
        return {
            name: tensor.lerp(whole[name], strength) if tensor.is_floating_point() else tensor
            for name, tensor in own.items()
        }

    chosen = choose_strength(given, made, np.arange(len(given.data.repair), dtype=np.int64), HALFWAY)
    return chosen.of(given, made), chosen.told | told
