"""The race: all contenders on one case, in turns, their answers compared each time."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

from audit.batching import keep_freed_memory
from benchmarks.sweep.cases import Case, build, draw_images
from benchmarks.sweep.contenders import CONTENDERS, Contender, Sweep
from benchmarks.sweep.floor import Lap, bound_flops, floor_lap, naive_flops, sizes_of, timed
from benchmarks.sweep.summary import FLOOR, HOOKS


@dataclass
class Record:
    """What was measured of one case.

    Parameters
    ----------
    rounds : list of dict of str to Lap
        By contender, in each round; the floor is among them.
    max_abs_diff : dict of str to float
        Largest difference of a contender's logits from those of plain hooks, over all rounds.
    smallest_effect : float
        Over all heads, the smallest of the largest changes of a logit: what a head that is not patched would miss.
    bound_flops, naive_flops : int
        Of the whole case.
    failed : dict of str to str
        Why a contender could not be run.
    peak_bytes : dict of str to int
        Memory that a sweep of the first and the last layer takes beyond model and images.
    """

    case: Case
    bound_flops: int
    naive_flops: int
    rounds: list[dict[str, Lap]] = field(default_factory=list)
    max_abs_diff: dict[str, float] = field(default_factory=dict)
    smallest_effect: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)


@torch.inference_mode()
def race(case: Case, contenders: Mapping[str, Contender], seed: int) -> Record:
    """Run all contenders, plain hooks among them, ``case.repeats`` times, in an order shuffled for every round."""
    model = build(case, seed)
    images, donors = draw_images(model, case.images, seed)
    layers, sizes = range(len(model.blocks)), sizes_of(model)
    record = Record(case, bound_flops(sizes, case.images).total(), naive_flops(sizes, case.images).total())
    sweeps: dict[str, Sweep] = {}
    for name, contender in contenders.items():
        try:
            sweeps[name] = contender(copy.deepcopy(model))
            sweeps[name](images[:1], donors[:1], sorted({0, layers[-1]}))  # warms up, too
        except Exception as error:  # whatever keeps a peer from running is a result too
            sweeps.pop(name, None)
            record.failed[name] = f"{type(error).__name__}: {error}"
    order = np.random.default_rng(seed)
    for _ in range(case.repeats):
        laps, logits = {FLOOR: floor_lap(sizes, case.images)}, {}
        for name in order.permutation(list(sweeps)):
            laps[name], logits[name] = _run(sweeps[name], images, donors, layers)
        record.rounds.append({name: laps[name] for name in (*sweeps, FLOOR)})
        for name, found in logits.items():
            apart = (found - logits[HOOKS]).abs().max().item()
            record.max_abs_diff[name] = max(apart, record.max_abs_diff.get(name, 0.0))
    record.smallest_effect = (logits[HOOKS] - model(images)).abs().amax((-1, -2)).min().item()
    return record


def _run(sweep: Sweep, images: torch.Tensor, donors: torch.Tensor, layers: Sequence[int]) -> tuple[Lap, torch.Tensor]:
    found: list[torch.Tensor] = []
    lap = timed(lambda: found.append(sweep(images, donors, layers)))
    return lap, found[0]


def peak_memory(case: Case, names: Sequence[str], seed: int) -> dict[str, int]:
    """Measure each contender's peak memory, in bytes, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        return {name: pool.submit(_peak, case, name, seed).result() for name in names}


@torch.inference_mode()
def _peak(case: Case, name: str, seed: int) -> int:
    """Return by how much a sweep of the first and the last layer raises this process's peak memory."""
    keep_freed_memory()
    model = build(case, seed)
    images, donors = draw_images(model, case.images, seed)
    last = len(model.blocks) - 1
    sweep = CONTENDERS[name](model)
    before = _high_water()
    sweep(images, donors, sorted({0, last}))
    return _high_water() - before


def _high_water() -> int:
    """Return this process's peak resident memory in bytes.

    Linux's ``ru_maxrss`` is inherited from the parent process, this one is not.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib * 1024


def cost_series(
    series: Mapping[str, Sequence[Case]], contenders: Mapping[str, Contender], seed: int
) -> dict[str, dict[str, list[float]]]:
    """Measure seconds against images, heads and layers.

    Parameters
    ----------
    series : mapping of str to sequence of Case
        By the field of ``Case`` in which the cases differ.

    Returns
    -------
    dict of str to dict
        By field: its values under "at", and the seconds of each contender.
    """
    found = {}
    for quantity, cases in series.items():
        every_round = [race(case, contenders, seed).rounds for case in cases]
        found[quantity] = {"at": [float(getattr(case, quantity)) for case in cases]} | {
            name: [median(laps[name].seconds for laps in rounds) for rounds in every_round] for name in contenders
        }
    return found
