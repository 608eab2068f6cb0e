"""Stage: the controls, known effects first, then the identities on the audit's own model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

import audit.batching
import audit.controls
import audit.models
import audit.patching
import audit.pipeline.in_blocks
import audit.records
from audit import __version__
from audit.batching import limit_of_memory
from audit.controls.added import run_added
from audit.controls.colour_blur import judge_channel
from audit.controls.control_images import ControlSet, Role, load_control_set
from audit.controls.control_models import ControlModels, corrupt, train_enough
from audit.controls.example_looks import example_looks
from audit.controls.identities import Subject, round_trip, run_identities
from audit.controls.initialisation import Pair, Task, run_initialisation
from audit.controls.looks import Found, Look, Measurement
from audit.controls.spec import Channel, channels, roles_of
from audit.controls.trials import measure_channels
from audit.controls.verdict import MeasuredControl, numbers_table
from audit.data.samples import AUDIT_SPLITS
from audit.models.adapters.registry import Model, adapter
from audit.models.checkpoint import hash_state
from audit.models.device import held_on
from audit.models.finetune import prefix_blocks
from audit.models.transforms import as_input
from audit.pipeline.context import RunContext
from audit.pipeline.in_blocks import block_size, measure_in_blocks
from audit.pipeline.train_models import AuditedModels, reseed_of
from audit.records import Control, ControlReport, ControlSetup, HeadGrid, NotRun, NotRunCode
from audit.store import source_hash, write_bytes, write_table, write_text

IDENTITY_IMAGES = 4
BARRIER_IMAGES = 600
PATCHING = "controls-patching"  # the folder of its pieces
CONTROL_EFFECTS = "effects/control-{}.npz"  # of the run; by channel
CONTROL_NUMBERS = "effects/controls.parquet"  # of the run; of the identities and the same-initialisation gates


def trained_layers(context: RunContext) -> range:
    """Return the layers that fine-tuning changes."""
    depth = adapter(context.backbone.build(2)).depth
    spec = context.card.model
    if spec.train_blocks is None:
        return range(depth)
    return range(max(0, depth - spec.train_blocks), depth)


def control_images(context: RunContext) -> ControlSet:
    """Load the images that colour and blur are tried on, at the audited model's size."""
    geometry = context.preprocessing.geometry
    return load_control_set(
        context.card, context.samples, geometry, card_path=context.card_path, data_root=context.data_root
    )


def check_known_effects(context: RunContext, images: ControlSet) -> ControlReport:
    """Run the colour and blur controls with their nulls and the same-initialisation gate.

    Models and measurements are kept with the trained control models, named by the hash of all that made them, the code
    that measures included: another audit of the same backbone on the same control images finds them there.
    """
    model = context.backbone.build(2)
    backbone = context.control_backbone
    roles = roles_of(model)
    trained, images = train_enough(
        backbone,
        context.card.controls,
        images,
        cache=context.cache,
        step=context.step,
        roles=roles,
        compute=context.compute.exact,
        work=context.work / "controls",
        workers=context.workers,
    )
    context.instruments = {"controls": [*trained.tried, trained.key], "imported": list(map(asdict, trained.imported))}
    layers = range(prefix_blocks(model, context.card.model.train_blocks), adapter(model).depth)
    seeds = context.card.controls.donor_seeds
    kept = trained.folder / f"judged-{images.judging_fingerprint[:24]}-{seeds}-{_measured_by(context)[:16]}.json"
    if kept.is_file():
        report = ControlReport.model_validate_json(kept.read_text(encoding="utf-8"))
    else:
        untrained = backbone.build_untrained(images.classes)
        every = {**trained.models, "untrained": untrained}
        look = functools.partial(_look, context, {"kept": kept.name, "models": _hashes(every)})
        with held_on(context.compute.device, *every.values()):
            tried = channels(trained, images, layers, untrained=untrained)
            report = _judge(context, trained, tried, kept, look)
            looks = example_looks(tried, report.controls) if images.drawn else []
        left_out = [] if "colour" in roles else [NotRun(code=NotRunCode.NOT_APPLICABLE, design="colour")]
        report = report.model_copy(
            update={"setup": _setup(context, images, trained), "not_run": left_out, "looks": looks}
        )
        write_text(kept, report.model_dump_json(indent=1))
    # Beside the run's other effects, so that whoever has the run can judge again.
    write_bytes(context.run / CONTROL_NUMBERS, numbers_file(kept).read_bytes())
    for role in roles:
        write_bytes(context.run / CONTROL_EFFECTS.format(role), measured_file(kept, role).read_bytes())
    setup = _setup(context, images, trained)
    if report.setup is not None:  # measured by an earlier run
        then = {"measured_on": report.setup.measured_on, "version": report.setup.version}
        setup = setup.model_copy(update=then)
    return report.model_copy(update={"setup": setup})


def _setup(context: RunContext, images: ControlSet, trained: ControlModels) -> ControlSetup:
    """Return what the known effects are measured on, as of now."""
    spec, start = context.card.controls, context.card.controls.weights
    return ControlSetup(
        images=images.name,
        train=len(images.train),
        evaluate=len(images.evaluate),
        models=len(trained.models),
        weights="" if start is None else Path(start).name,
        measured_on=context.started[:10],
        version=__version__,
        rendered=spec.train_images + spec.eval_images if images.drawn else None,
        seed=spec.seed if images.drawn else None,
    )


def measured_file(kept: Path, role: Role) -> Path:
    """Return where the measurements of a channel are kept, next to the verdict on them."""
    return kept.with_name(f"{kept.stem}-{role}.npz")


def numbers_file(kept: Path) -> Path:
    """Return where the numbers of the same-initialisation gates are kept, next to the verdict on them."""
    return kept.with_name(f"{kept.stem}-numbers.parquet")


def add_numbers(context: RunContext, controls: Sequence[Control]) -> None:
    """Put the numbers of controls on the audit's own models beside those of the control models."""
    path = context.run / CONTROL_NUMBERS
    write_table(path, pd.concat([pd.read_parquet(path), numbers_table(controls)], ignore_index=True))


@functools.cache
def instrument_hash() -> str:
    """SHA-256 over the source of all that measures, and of its records: measurements by other code are made again."""
    of_code = audit.controls, audit.patching, audit.models, audit.batching, audit.records, audit.pipeline.in_blocks
    return source_hash(of_code)


def _measured_by(context: RunContext) -> str:
    """Return the SHA-256 of what measurements depend on beside models and images: code, and the sizes of batches."""
    what = [instrument_hash(), block_size(context), limit_of_memory()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _hashes(models: Mapping[str, Model]) -> dict[str, str]:
    return {name: hash_state(model.state_dict()) for name, model in models.items()}


def _look(
    context: RunContext, made_of: Mapping[str, object], at: str, asked: Sequence[Measurement]
) -> dict[str, Found]:
    """Measure in tasks, which several processes share."""
    progress = context.step(f"controls: patching, {at}")
    return measure_in_blocks(context, PATCHING, asked, made_of=made_of, progress=progress)


def _judge(
    context: RunContext, trained: ControlModels, tried: Sequence[Channel], kept: Path, look: Look
) -> ControlReport:
    """Measure and judge every channel."""
    controls: list[Control] = []
    grids: list[HeadGrid] = []
    context.step("controls: same initialisation")(0, 1)
    gates = [_gates(trained, channel) for channel in tried]
    every = measure_channels(tried, seed=context.card.controls.seed, look=look)
    for channel, gate, measured in zip(tried, gates, every, strict=True):
        measured.save(measured_file(kept, channel.spec.name))
        result = judge_channel(measured)
        controls += [*gate, *result.controls]
        grids += result.grids
    write_table(numbers_file(kept), numbers_table(controls))
    return ControlReport(valid=all(c.passed for c in controls), controls=controls, grids=grids)


def _gates(trained: ControlModels, channel: Channel) -> list[MeasuredControl]:
    """Run the same-initialisation gate on the models of a channel."""
    some, every = slice(BARRIER_IMAGES), (channel.corrupted, *channel.clean, *channel.null)
    clean_images = Task(channel.pixels[some], channel.targets[some])
    clean_images = clean_images.after_frozen_blocks(every, channel.spec.layers.start)
    corrupted_images = Task(corrupt(clean_images.pixels, channel.spec.corruption), clean_images.targets)
    role, corruption = channel.spec.name, channel.spec.corruption
    clean, null = trained.donors(role, "clean"), trained.donors(role, corruption)
    controls: list[MeasuredControl] = []
    for recipient, donors, task, words in (
        (corruption, clean, clean_images, "models"),
        (corruption, null, corrupted_images, "null models"),
        (clean[0], (*clean[1:], *null[1:]), clean_images, "donors"),
    ):
        pairs = [_pair(trained, recipient, donor) for donor in donors]
        controls += run_initialisation(pairs, task, words, layers=channel.spec.layers, channel=role)
    return controls


def _pair(trained: ControlModels, recipient: str, donor: str) -> Pair:
    models, starts = trained.models, trained.started_from
    return Pair(models[recipient], models[donor], starts[recipient], starts[donor])


def check_own_model(context: RunContext, models: AuditedModels) -> list[MeasuredControl]:
    """Run every identity, and controls of other packages, on the audited model and a few of its own images."""
    rows = np.flatnonzero(context.samples.frame["split"].isin(AUDIT_SPLITS))
    chosen = np.random.default_rng(context.card.audit.seed).permutation(rows)[: 2 * IDENTITY_IMAGES]
    images = as_input(models.primary, context.pixels[chosen])
    half = len(chosen) // 2
    subject = Subject(models.primary, images[:half], images[half : 2 * half])
    return [*run_identities(subject, precision=context.compute.precision), *run_added(subject)]


def check_reference_models(context: RunContext, models: AuditedModels) -> list[MeasuredControl]:
    """Run the same-initialisation gate on the models of Design C."""
    reseed = reseed_of(context)
    if reseed is None:
        return []
    audited = np.flatnonzero(context.samples.frame["split"].isin(AUDIT_SPLITS))
    rows = np.sort(np.random.default_rng(context.card.audit.seed).permutation(audited)[:BARRIER_IMAGES])
    donors = {
        "balanced reference model": {f"balanced-{k}": model for k, model in enumerate(models.balanced)},
        "second seed": {f"seed-{reseed}": models.by_seed[reseed]},
    }
    controls: list[MeasuredControl] = []
    start = models.started_from
    own, layers = start[f"seed-{context.seeds[0]}"], trained_layers(context)
    every = [models.primary, *(model for files in donors.values() for model in files.values())]
    task = Task(context.pixels[rows], context.targets[rows]).after_frozen_blocks(every, layers.start)
    for name, files in donors.items():
        pairs = [Pair(models.primary, donor, own, start[file]) for file, donor in files.items()]
        controls += run_initialisation(pairs, task, name, layers=layers)
    return controls


def check_round_trips(pairs: pd.DataFrame | None) -> list[Control]:
    """Check for each contrast with edited pictures that editing them there and back changes nothing."""
    if pairs is None:
        return []
    edited = pairs[pairs["version"].isin(["back", "self"])]
    return [round_trip(table, str(contrast)) for contrast, table in edited.groupby("contrast")]


def pairs_as_given(pairs: pd.DataFrame | None) -> list[str]:
    """Return the contrasts whose exact pairs the data name; no picture is edited, so no edit can be undone."""
    if pairs is None:
        return []
    edited = set(pairs.loc[pairs["version"] == "back", "contrast"])
    return sorted(set(pairs["contrast"].map(str)) - edited)
