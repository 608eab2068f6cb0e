"""Stage: the controls, known effects first, then the identities on the audit's own model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np

from audit.controls.colour_blur import MEASUREMENTS, channels, run_channel
from audit.controls.identities import Subject, run_identities
from audit.controls.initialisation import Pair, run_initialisation
from audit.controls.sets import load_control_set
from audit.controls.training import spoil, train_controls
from audit.models.finetune import prefix_blocks
from audit.models.transforms import as_input
from audit.pipeline.setting import Setting
from audit.pipeline.training import AuditedModels, reseed_of
from audit.records import Control, ControlReport
from audit.store import write_text

IDENTITY_IMAGES = 4
OWN = "this audit's model"


def trained_layers(setting: Setting) -> range:
    """Return the layers that fine-tuning changes."""
    depth = len(setting.backbone.build(2).blocks)
    spec = setting.card.model
    if spec.train_blocks is None:
        return range(depth)
    return range(max(0, depth - spec.train_blocks), depth)


def check_known_effects(setting: Setting) -> ControlReport:
    """Run the colour and blur controls with their nulls and the same-initialisation gate."""
    stored = setting.run / "controls.json"
    if stored.is_file():
        return ControlReport.model_validate(json.loads(stored.read_text(encoding="utf-8")))
    model = setting.backbone.build(2)
    size = int(model.patch_embed.img_size[0])
    images = load_control_set(
        setting.card, setting.samples, size, card_path=setting.card_path, data_root=setting.data_root
    )
    spec = setting.card.controls
    trained = train_controls(setting.backbone, spec, images, cache=setting.cache, step=setting.step)
    layers = range(prefix_blocks(model, setting.card.model.train_blocks), len(model.blocks))
    controls: list[Control] = []
    grids = []
    tried = channels(trained, images, layers)
    tick = _counter(setting, "controls: patching", MEASUREMENTS * len(tried))
    for channel in tried:
        base = trained.base_hash
        pairs = [
            (Pair(channel.corrupted, channel.clean, base, base, f"{channel.name} models"), channel.pixels),
            (
                Pair(channel.corrupted, channel.null, base, base, f"{channel.name} null models"),
                spoil(channel.pixels, channel.corruption),
            ),
        ]
        for pair, pixels in pairs:
            controls += run_initialisation(pair, pixels, channel.targets, layers=layers)
        result = run_channel(channel, seed=spec.seed, tick=tick)
        controls += result.controls
        grids += result.grids
    origin = "taken from the cache" if trained.from_cache else "trained in this run"
    report = ControlReport(
        valid=all(c.passed for c in controls),
        controls=controls,
        grids=grids,
        setting=(
            f"Images: {images.name}; {len(images.train)} for training, {len(images.evaluate)} for judging. "
            f"Models: {len(trained.models)} of this audit's backbone, {origin}."
        ),
    )
    write_text(stored, report.model_dump_json(indent=1))
    return report


def _counter(setting: Setting, name: str, total: int) -> Callable[[], None]:
    """Return a function that moves a step on by one."""
    update = setting.step(name)
    done = itertools.count(1)
    update(0, total)
    return lambda: update(next(done), total)


def check_own_model(setting: Setting, models: AuditedModels) -> list[Control]:
    """Run every identity on the audited model and a few of its own images."""
    rows = np.flatnonzero(setting.samples.frame["split"] != "train")
    chosen = np.random.default_rng(setting.card.audit.seed).permutation(rows)[: 2 * IDENTITY_IMAGES]
    images = as_input(models.primary, setting.pixels[chosen])
    half = len(chosen) // 2
    return run_identities(Subject(models.primary, images[:half], images[half : 2 * half], OWN))


def check_reference_models(setting: Setting, models: AuditedModels) -> list[Control]:
    """Run the same-initialisation gate on the models of Design C."""
    reseed = reseed_of(setting)
    if reseed is None:
        return []
    rows = np.flatnonzero(setting.samples.frame["split"] != "train")
    donors = {"balanced reference model": models.balanced[0], "second seed": models.by_seed[reseed]}
    controls: list[Control] = []
    for name, donor in donors.items():
        pair = Pair(models.primary, donor, models.base_hash, models.base_hash, f"Design C, {name}")
        controls += run_initialisation(
            pair, setting.pixels[rows], setting.targets[rows], layers=trained_layers(setting)
        )
    return controls
