"""Stage: what the largest writers of the gaps read, over all images kept out of training, in the first seed's model.

First the mean of what is written at each token, over the images of each label; then, block by block of images of one
label, what each writer reads of what differs from it. Of where it is read, only means over the images of a group stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.batching import limit_of_memory
from audit.data.pixels import Images
from audit.evidence.disparity import label_shares
from audit.evidence.read_back import PREFIX, Asked, group_weights
from audit.evidence.stored_rows import Rows, StoredRows, read
from audit.models.adapters.registry import Model, adapter
from audit.models.checkpoint import hash_state
from audit.models.transforms import as_input
from audit.patching.contributions import Component
from audit.patching.read_back import PASSES, Read, can_read, last_layer, read_back, sum_of_writes
from audit.pipeline.context import RunContext
from audit.pipeline.flat_numbers import Shapes, flattened, numbers_in, restored
from audit.pipeline.in_blocks import block_size, memory_of_block
from audit.pipeline.run_sweeps import audit_rows, with_image_keys
from audit.pipeline.run_written import NOWHERE
from audit.pipeline.train_models import AuditedModels
from audit.pipeline.write_rows import write_sorted
from audit.progress import Progress
from audit.records import PartKind, WhyNotRead
from audit.store import write_table
from audit.work.pool import run_tasks
from audit.work.tasks import Task, read_results, result_files

READ, READ_MAPS = "effects/read.parquet", "effects/read_maps.parquet"
MEANS, STAGE = "read-means", "read"
SOURCE_OF_IMAGE = ["position", "place"]

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Cell = tuple[str, str]  # attribute and group
Sums = dict[int, npt.NDArray[np.float64]]  # by label


@dataclass(frozen=True)
class _Plan:
    """What is read of which images; what is known of one image stands for the shapes of all."""

    model: Model
    outcomes: Mapping[str, int]
    writers: tuple[Component, ...]
    rows: Numbers  # images
    targets: Numbers  # their labels
    members: Mapping[Cell, Mask]  # which of them are of a group
    probe: Sequence[Read]

    def shapes(self, images: int) -> Shapes:
        """Return the shapes of what is kept of a block."""
        entries = sum(len(one.sources) for one in self.probe)
        outcomes, tokens = self.probe[0].places.shape[1:]
        of_writers = (images, len(self.writers), outcomes)
        places = (len(self.members), len(self.writers), outcomes, tokens)
        return {"values": (images, entries, outcomes), "reference": of_writers, "own": of_writers, "places": places}

    def block(self, images: Images, positions: Numbers, means: Path, *, progress: Progress) -> pd.DataFrame:
        """Return all that is kept of a block of images of one label; of places, sums over the images of a group."""
        mean = pd.read_parquet(means)["value"].to_numpy()
        seen = as_input(self.model, images[self.rows[positions]])
        found = read_back(self.model, seen, self.outcomes, self.writers, mean)
        places = np.stack([one.places for one in found], axis=1).astype(np.float64)
        progress(len(positions), len(positions))
        return flattened(
            {
                "values": np.concatenate([one.values for one in found], axis=1),
                "reference": np.stack([one.reference for one in found], axis=1),
                "own": np.stack([one.own for one in found], axis=1),
                "places": np.stack([places[mask[positions]].sum(axis=0) for mask in self.members.values()]),
            }
        )


def measure_read(
    context: RunContext, models: AuditedModels, asked: Sequence[Asked], frame: pd.DataFrame, written: Rows
) -> Rows | WhyNotRead:
    """Return what the writers read, counted from the mean over images of the same label; store where in the image.

    Parameters
    ----------
    context : RunContext
    models : AuditedModels
    asked : sequence of Asked
    frame : pandas.DataFrame
        Images kept out of training: ``label`` and the columns of the attributes.
    written : Rows
        What every part writes into each image's log-odds, as ``measure_written`` returns it.

    Returns
    -------
    Rows or WhyNotRead
        ``recipient``, ``image``, ``place`` (in the order of writers and sources), ``part``, ``layer``, ``head`` (of the
        writer; -1: none), ``read_part``, ``read_layer``, ``read_head``, and ``m:<outcome>`` in nats; or why there is
        nothing to say.
    """
    path, maps = context.run / READ, context.run / READ_MAPS
    if path.is_file() and maps.is_file():
        return StoredRows([path])
    model = models.primary
    wanted = {writer for one in asked for writer in one.writers if can_read(model, writer)}
    if not wanted:
        return WhyNotRead.NOT_PLAIN
    plan = _plan(context, model, sorted(wanted, key=_in_order), asked, frame)
    means = _plan_means(context, plan)
    run_tasks(
        list(means.values()), context.work / MEANS, context.workers, context.step("ledger: what is written on average")
    )
    blocks = _plan_blocks(context, plan, means)
    tasks = [task for _, task in blocks]
    run_tasks(tasks, context.work / STAGE, context.workers, context.step("ledger: what the largest writers read"))
    sums: Sums = {}
    write_sorted(path, [_tables(context, plan, blocks, written, sums)], SOURCE_OF_IMAGE)
    found = [_map_of(plan, one, frame, sums, context) for one in asked if wanted.intersection(one.writers)]
    write_table(maps, pd.concat(found, ignore_index=True))
    return StoredRows([path])


def _in_order(part: Component) -> tuple[int, bool, int]:
    return part.layer or 0, part.kind == PartKind.MLP, part.index or 0


def _plan(
    context: RunContext, model: Model, writers: Sequence[Component], asked: Sequence[Asked], frame: pd.DataFrame
) -> _Plan:
    rows = audit_rows(context)
    outcomes = {name: code for name, code in context.outcomes.items() if any(one.gap.outcome == name for one in asked)}
    cells = dict.fromkeys(
        (one.question.attribute, group)
        for one in asked
        if one.writers
        for group in (one.contrast.group, one.question.reference)
    )
    members = {(name, group): (frame.loc[rows, name] == group).to_numpy() for name, group in cells}
    probe = read_back(model, as_input(model, context.pixels[rows[:1]]), outcomes, writers)
    return _Plan(model, outcomes, tuple(writers), rows, context.targets[rows], members, probe)


def _made_of(context: RunContext, plan: _Plan, positions: Numbers) -> dict[str, object]:
    return {
        "question": context.question,
        "model": hash_state(plan.model.state_dict()),
        "images": hashlib.sha256(plan.rows[positions].tobytes()).hexdigest(),
        "computed": context.compute.exact.name,
        "memory": limit_of_memory(),
    }


def _plan_means(context: RunContext, plan: _Plan) -> dict[int, Task]:
    """Return a task for each label."""
    size, layer = block_size(context), last_layer(plan.writers)
    memory, smaller = memory_of_block(size, plan.model, PASSES)
    one = sum_of_writes(plan.model, as_input(plan.model, context.pixels[plan.rows[:1]]), layer).flat().size
    tasks = {}
    for label in np.unique(plan.targets):
        positions = np.flatnonzero(plan.targets == label)
        made_of = _made_of(context, plan, positions) | {"stage": MEANS, "layer": layer, "block": size}
        perform = partial(_mean_of_writes, context.pixels, plan.model, plan.rows[positions], layer, size)
        name = f"{MEANS}, label {context.samples.labels[label]}"
        tasks[int(label)] = Task(name, made_of, len(positions), one, perform, memory, smaller, portable=True)
    return tasks


def _mean_of_writes(
    images: Images, model: Model, rows: Numbers, layer: int, size: int, *, progress: Progress
) -> pd.DataFrame:
    """Return the mean over images of one label, a number for each row."""
    total = np.zeros(0)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        found = sum_of_writes(model, as_input(model, images[part]), layer).flat()
        total = total + found if len(total) else found
        progress(start + len(part), len(rows))
    return pd.DataFrame({"value": (total / len(rows)).astype(np.float32)})


def _plan_blocks(context: RunContext, plan: _Plan, means: Mapping[int, Task]) -> list[tuple[Numbers, Task]]:
    """Return the positions of images of one label, and their task, block by block."""
    size, blocks = block_size(context), []
    memory, smaller = memory_of_block(size, plan.model, PASSES)
    asked = {"outcomes": dict(plan.outcomes), "writers": [str(writer) for writer in plan.writers], "stage": STAGE}
    for label, of_label in means.items():
        every = np.flatnonzero(plan.targets == label)
        for start in range(0, len(every), size):
            positions = every[start : start + size]
            groups = np.stack([mask[positions] for mask in plan.members.values()])
            own = {"means": of_label.key, "groups": hashlib.sha256(groups.tobytes()).hexdigest()}
            table, _ = result_files(context.work / MEANS, of_label.key)
            perform = partial(plan.block, context.pixels, positions, table)
            name = f"{STAGE}, label {context.samples.labels[label]}, block {1 + start // size}"
            made_of = _made_of(context, plan, positions) | asked | own
            numbers = numbers_in(plan.shapes(len(positions)))
            task = Task(name, made_of, len(positions), numbers, perform, memory, smaller, portable=True)
            blocks.append((positions, task))
    return blocks


def _tables(
    context: RunContext, plan: _Plan, blocks: Sequence[tuple[Numbers, Task]], written: Rows, sums: Sums
) -> Iterator[pd.DataFrame]:
    """Yield the rows of the stored table, block by block; ``sums`` gathers where in the image it was read."""
    centred = _centred(plan, written)
    for (positions, _), table in zip(
        blocks, read_results([task for _, task in blocks], context.work / STAGE), strict=True
    ):
        block = restored(table, plan.shapes(len(positions)))
        label = int(plan.targets[positions[0]])
        sums[label] = sums.get(label, np.zeros(())) + block["places"]
        held = block["reference"] - (block["own"] - centred[positions])
        yield with_image_keys(context, _rows_of(plan, positions, block["values"], held))


def _centred(plan: _Plan, written: Rows) -> npt.NDArray[np.float64]:
    """Return the writers' own rows of the first sum, (N, writers, O)."""
    found = np.full((len(plan.rows), len(plan.writers), len(plan.outcomes)), np.nan)
    columns = [f"m:{name}" for name in plan.outcomes]
    of_row = pd.Series(np.arange(len(plan.rows)), index=plan.rows)
    for part in read(written, ["recipient", "part", "layer", "head", *columns]):
        for place, writer in enumerate(plan.writers):
            index = NOWHERE if writer.index is None else writer.index
            own = (part["part"] == str(writer.kind)) & (part["layer"] == writer.layer) & (part["head"] == index)
            found[of_row[part.loc[own, "recipient"]].to_numpy(), place] = part.loc[own, columns].to_numpy()
    return found


def _rows_of(
    plan: _Plan, positions: Numbers, values: npt.NDArray[np.float64], held: npt.NDArray[np.float64]
) -> pd.DataFrame:
    """Return one row for each image, writer and source; what is held comes last of each writer."""
    entries: list[tuple[Component, Component]] = []
    parts, start = [], 0
    for place, one in enumerate(plan.probe):
        entries += [(one.writer, source) for source in (*one.sources, Component(PartKind.HELD))]
        parts += [values[:, start : start + len(one.sources)], held[:, place : place + 1]]
        start += len(one.sources)
    numbers = np.concatenate(parts, axis=1)
    images, count = numbers.shape[:2]
    told: dict[str, list[str | int]] = {}
    for prefix, which in (("", 0), ("read_", 1)):
        told[f"{prefix}part"] = [str(entry[which].kind) for entry in entries]
        told[f"{prefix}layer"] = [_number(entry[which].layer) for entry in entries]
        told[f"{prefix}head"] = [_number(entry[which].index) for entry in entries]
    return pd.DataFrame(
        {
            "position": np.repeat(positions, count),
            "recipient": np.repeat(plan.rows[positions], count),
            "place": np.tile(np.arange(count), images),
            **{name: np.tile(np.array(column), images) for name, column in told.items()},
            **{f"m:{name}": numbers[..., k].reshape(-1).astype(np.float32) for k, name in enumerate(plan.outcomes)},
        }
    )


def _number(place: int | None) -> int:
    return NOWHERE if place is None else place


def _map_of(plan: _Plan, asked: Asked, frame: pd.DataFrame, sums: Sums, context: RunContext) -> pd.DataFrame:
    """Return where the writers of a gap read, on average over the images of either group that count in it."""
    labels, attribute = [context.samples.labels[label] for label in sums], asked.question.attribute
    shares, outcome = label_shares(frame.loc[plan.rows], asked.question), list(plan.outcomes).index(asked.gap.outcome)
    cells, parts = list(plan.members), []
    for side, group in (("group", asked.contrast.group), ("reference", asked.question.reference)):
        member, cell = plan.members[attribute, group], cells.index((attribute, group))
        counts = np.array([int((member & (plan.targets == label)).sum()) for label in sums])
        weights = group_weights(counts, labels, asked, shares)
        mean = np.tensordot(weights, np.stack([of_label[cell] for of_label in sums.values()]), axes=1)
        images = int(counts[weights > 0].sum())
        for place, writer in enumerate(plan.writers):
            if writer in asked.writers:
                about: dict[str, str | int] = {
                    "contrast": str(asked.contrast),
                    "asked": asked.gap.outcome,
                    "part": str(writer.kind),
                }
                about |= {"layer": _number(writer.layer), "head": _number(writer.index), "side": side, "images": images}
                parts.append(_laid_out(plan.model, mean[place, outcome]).assign(**about))
    return pd.concat(parts, ignore_index=True)


def _laid_out(model: Model, by_token: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Return numbers by token with the row and column of their patch."""
    rows, columns = (int(n) for n in model.patch_embed.grid_size)
    prefix = adapter(model).prefix_tokens
    of_patch = np.indices((rows, columns)).reshape(2, -1)
    row, column = np.pad(of_patch, ((0, 0), (prefix, 0)), constant_values=PREFIX)
    return pd.DataFrame({"row": row, "column": column, "value": by_token})
