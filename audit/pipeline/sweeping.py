"""Stage: the sweeps of Designs A and C, stored one row an image x head x donor kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.stored import StoredEffects
from audit.evidence.together import HeadSet
from audit.patching.plans import plan_group_swap
from audit.patching.sites import Site
from audit.patching.sweep import DonorKind, measure_unpatched, sweep, sweep_estimates, sweep_together
from audit.pipeline.checking import trained_layers
from audit.pipeline.setting import Setting
from audit.pipeline.training import AuditedModels, reseed_of
from audit.records import Contrast
from audit.store import write_table

AUDIT_SPLITS = ("discovery", "confirmation")
SWAP_KINDS = ("cross", "placebo")
Plans = Sequence[tuple[Contrast, str, pd.DataFrame]]  # contrast, split, who donates to whom


@dataclass(frozen=True)
class Swept:
    """Stored effects, the plans they follow, and how many recipients found no donor."""

    effects: StoredEffects
    plans: Plans
    without_donor: dict[str, int]


def sweep_all(setting: Setting, models: AuditedModels, *, design_c: bool) -> Swept:
    """Measure unpatched images, Design A for every seed, and Design C for the first. What stands is not redone."""
    unpatched = _unpatched(setting, models)
    plans, without_donor = _plans(setting)
    swaps = [_swap(setting, models, seed, plans) for seed in setting.seeds]
    recipients = (
        np.unique(np.concatenate([rows["recipient"] for _, _, rows in plans])) if plans else audit_rows(setting)
    )
    rows = recipients.astype(np.int64)
    effects = StoredEffects(
        swap=pd.concat(swaps, ignore_index=True),
        reference=_reference(setting, models, rows) if design_c else None,
        unpatched=unpatched,
        frame=setting.samples.frame,
        balanced_on=models.balanced_on,
        transplant=_reference(setting, models, rows, weights_only=True) if design_c else None,
        estimates=_estimates(setting, models, plans),
    )
    return Swept(effects, plans, without_donor)


def audit_rows(setting: Setting) -> npt.NDArray[np.int64]:
    """Return the rows of all images kept out of training."""
    return np.flatnonzero(setting.samples.frame["split"].isin(AUDIT_SPLITS)).astype(np.int64)


def with_class_names(table: pd.DataFrame, labels: tuple[str, ...]) -> pd.DataFrame:
    """Replace class numbers by class names."""
    return table.assign(predicted=np.asarray(labels)[table["predicted"].to_numpy(dtype=np.int64)])


def _unpatched(setting: Setting, models: AuditedModels) -> pd.DataFrame:
    path = setting.run / "effects" / "unpatched.parquet"
    if path.is_file():
        return pd.read_parquet(path)
    outcomes, rows = setting.outcomes, audit_rows(setting)
    parts = [
        measure_unpatched(models.by_seed[seed], setting.pixels, rows, outcomes).assign(seed=seed)
        for seed in setting.seeds
    ]
    table = with_class_names(pd.concat(parts, ignore_index=True), setting.samples.labels)
    write_table(path, table)
    return table


def _plans(setting: Setting) -> tuple[Plans, dict[str, int]]:
    """Match recipients and donors for every contrast and audit split."""
    plans, without = [], {}
    spec = setting.card.audit
    for contrast in setting.contrasts:
        for number, split in enumerate(AUDIT_SPLITS):
            plan = plan_group_swap(
                setting.samples.of_split(split),
                contrast,
                setting.samples.nuisance,
                seed=spec.seed + number,
                max_images=spec.max_images,
            )
            without[f"{contrast} {split}"] = plan.without_donor
            if len(plan.rows):
                plans.append((contrast, split, plan.rows))
    small = {str(c) for c in setting.contrasts if not _enough_subjects(setting, c)}
    return [p for p in plans if str(p[0]) not in small], without


def _enough_subjects(setting: Setting, contrast: Contrast) -> bool:
    """Tell whether both groups have enough subjects in both splits for heads to be graded at all."""
    return all(
        setting.samples.of_split(split).groupby(contrast.attribute)["subject"].nunique().get(group, 0)
        >= setting.card.audit.min_group_size
        for split in AUDIT_SPLITS
        for group in (contrast.group, contrast.reference)
    )


def swept_layers(setting: Setting) -> range:
    """Return the layers whose heads are patched."""
    trained = trained_layers(setting)
    return trained if setting.card.audit.layers == "trained" else range(trained.stop)


def _swap(setting: Setting, models: AuditedModels, seed: int, plans: Plans) -> pd.DataFrame:
    """Run Design A of one seed: both splits for the first, whose heads are searched, confirmation for the others."""
    path = setting.run / "effects" / f"swap-seed-{seed}.parquet"
    if path.is_file():
        return pd.read_parquet(path)
    model, parts = models.by_seed[seed], []
    for contrast, split, rows in plans:
        if split == "discovery" and seed != setting.seeds[0]:
            continue
        table = sweep(
            model,
            setting.pixels,
            rows["recipient"].to_numpy(dtype=np.int64),
            [DonorKind(k, model, rows[k].to_numpy(dtype=np.int64)) for k in SWAP_KINDS],
            layers=swept_layers(setting),
            outcomes=setting.outcomes,
            progress=setting.step(f"patching: {contrast}, {split}, seed {seed}"),
        )
        plan = rows[["unit", "side", "label"]]
        parts.append(table.join(plan, on="position").assign(contrast=str(contrast), split=split, seed=seed))
    table = (
        with_class_names(pd.concat(parts, ignore_index=True), setting.samples.labels) if parts else _no_swaps(setting)
    )
    keys = setting.samples.frame["image"]
    table = table.assign(image=keys.loc[table["recipient"]].to_numpy(), donor_image=keys.loc[table["donor"]].to_numpy())
    write_table(path, table)
    return table


def sweep_sets(
    setting: Setting, models: AuditedModels, plans: Plans, wanted: Mapping[str, Sequence[HeadSet]]
) -> pd.DataFrame:
    """Patch sets of heads at once, for the first seed on the confirmation split, by contrast."""
    path = setting.run / "effects" / "together.parquet"
    if path.is_file():
        stored = pd.read_parquet(path)
        if set(zip(stored["contrast"], stored["set"], strict=True)) == {
            (c, str(s)) for c, ss in wanted.items() for s in ss
        }:
            return stored
    parts = []
    for contrast, split, rows in plans:
        sets = {str(s): [Site(*head) for head in s.heads] for s in wanted.get(str(contrast), [])}
        if split != "confirmation" or not sets:
            continue
        table = sweep_together(
            models.primary,
            setting.pixels,
            rows["recipient"].to_numpy(dtype=np.int64),
            [DonorKind(k, models.primary, rows[k].to_numpy(dtype=np.int64)) for k in SWAP_KINDS],
            sets=sets,
            outcomes=setting.outcomes,
            progress=setting.step(f"patching: {contrast}, heads together"),
        )
        parts.append(table.join(rows[["unit", "side", "label"]], on="position").assign(contrast=str(contrast)))
    if not parts:
        return pd.DataFrame(columns=["contrast", "set"])
    together = with_class_names(pd.concat(parts, ignore_index=True), setting.samples.labels)
    write_table(path, together)
    return together


def _no_swaps(setting: Setting) -> pd.DataFrame:
    """Return the table of a sweep in which nobody had a donor."""
    columns = ["position", "recipient", "donor", "donor_kind", "layer", "head", "predicted", "unit", "side", "label"]
    values = [f"{kind}:{name}" for name in setting.outcomes for kind in ("p", "m")]
    return pd.DataFrame(columns=[*columns, *values, "contrast", "split", "seed"])


def _estimates(setting: Setting, models: AuditedModels, plans: Plans) -> pd.DataFrame | None:
    """Estimate Design A of the first seed by attribution patching, on the confirmation split."""
    path = setting.run / "effects" / "attribution.parquet"
    if path.is_file():
        return pd.read_parquet(path)
    parts = []
    for contrast, split, rows in plans:
        if split != "confirmation":
            continue
        table = sweep_estimates(
            models.primary,
            setting.pixels,
            rows["recipient"].to_numpy(dtype=np.int64),
            [DonorKind(k, models.primary, rows[k].to_numpy(dtype=np.int64)) for k in SWAP_KINDS],
            layers=swept_layers(setting),
            outcomes=setting.outcomes,
            progress=setting.step(f"patching: {contrast}, attribution"),
        )
        parts.append(table.join(rows[["unit", "side", "label"]], on="position").assign(contrast=str(contrast)))
    if not parts:
        return None
    estimates = pd.concat(parts, ignore_index=True)
    write_table(path, estimates)
    return estimates


def _reference(
    setting: Setting, models: AuditedModels, rows: npt.NDArray[np.int64], *, weights_only: bool = False
) -> pd.DataFrame | None:
    """Run Design C: heads of the balanced model and of a second seed into the first, each image its own donor.

    With ``weights_only`` the heads' weights are transplanted, not what they write.
    """
    reseed = reseed_of(setting)
    if reseed is None:
        return None
    path = setting.run / "effects" / ("transplant.parquet" if weights_only else "reference.parquet")
    if path.is_file():
        return pd.read_parquet(path)
    donors = {f"balanced-{k}": m for k, m in enumerate(models.balanced)} | {"reseed": models.by_seed[reseed]}
    table = sweep(
        models.primary,
        setting.pixels,
        rows,
        [DonorKind(name, m, rows, weights_only=weights_only) for name, m in donors.items()],
        layers=swept_layers(setting),
        outcomes=setting.outcomes,
        progress=setting.step("patching: " + ("weight transplant" if weights_only else "balanced reference model")),
    )
    table = with_class_names(table, setting.samples.labels)
    keys = setting.samples.frame["image"]
    table = table.assign(image=keys.loc[table["recipient"]].to_numpy())
    write_table(path, table)
    return table
