"""Stage: where in the image the strongest confirmed heads look, by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from audit.patching.attention import can_look, mean_attention
from audit.patching.sites import Site
from audit.pipeline.context import RunContext
from audit.pipeline.train_models import AuditedModels
from audit.records import AttentionMap, Contrast, Finding
from audit.store import write_table
from audit.units import name_of, parse_name

HEADS = 12  # whose attention is shown
TABLE = "attention"  # of the effects


def look(context: RunContext, models: AuditedModels, findings: Sequence[Finding]) -> list[AttentionMap]:
    """Average the attention of the heads of the findings over the confirmation images of either group.

    Averages over many images show no image; heads of blocks that the tool does not know are left out.
    """
    path = context.run / "effects" / f"{TABLE}.parquet"
    asked = strongest(findings)
    if not path.is_file() and asked:
        parts = [_of_contrast(context, models, contrast, sites) for contrast, sites in asked.items()]
        tables = [part for part in parts if len(part)]
        if tables:
            write_table(path, pd.concat(tables, ignore_index=True))
    return maps_of(pd.read_parquet(path)) if path.is_file() else []


def strongest(findings: Sequence[Finding]) -> dict[Contrast, list[Site]]:
    """Return by contrast the heads of the largest findings, at most ``HEADS`` in all."""
    heads = sorted((f for f in findings if f.kind == "head"), key=lambda f: -abs(f.estimate.value or 0.0))[:HEADS]
    asked: dict[Contrast, list[Site]] = {}
    for finding in heads:
        site = Site(*parse_name(finding.heads[0]))
        sites = asked.setdefault(Contrast(finding.attribute, finding.group, finding.reference), [])
        if site not in sites:
            sites.append(site)
    return asked


def _of_contrast(context: RunContext, models: AuditedModels, contrast: Contrast, sites: Sequence[Site]) -> pd.DataFrame:
    frame = context.samples.of_split("confirmation")
    seen = [site for site in sites if can_look(models.primary, site)]
    if not seen:
        return pd.DataFrame()
    parts = []
    for group in (contrast.group, contrast.reference):
        rows = frame.index[frame[contrast.attribute] == group].to_numpy(dtype=np.int64)
        for site, grid in mean_attention(models.primary, context.pixels, rows, seen).items():
            row, column = (i.ravel() for i in np.indices(grid.shape))
            about = {"contrast": str(contrast), "group": group, "layer": site.layer, "head": site.head}
            parts.append(
                pd.DataFrame({**about, "images": len(rows), "row": row, "column": column, "weight": grid.ravel()})
            )
    return pd.concat(parts, ignore_index=True)


def maps_of(table: pd.DataFrame) -> list[AttentionMap]:
    """Return the stored averages as records."""
    maps = []
    for (contrast, _, _, group), rows in table.groupby(["contrast", "layer", "head", "group"], sort=False):
        grid = rows.pivot(index="row", columns="column", values="weight")
        maps.append(
            AttentionMap(
                contrast=str(contrast),
                name=name_of("head", int(rows["layer"].iloc[0]), int(rows["head"].iloc[0])),
                group=str(group),
                images=int(rows["images"].iloc[0]),
                weights=[[float(v) for v in line] for line in grid.to_numpy()],
            )
        )
    return maps
