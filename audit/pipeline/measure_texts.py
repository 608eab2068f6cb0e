"""Stage: what a zero-shot model answers with each text of its prompts alone, from one pass over the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from audit.data.ahead import in_image_batches
from audit.evidence.prompts import why_not_alone
from audit.models.transforms import as_input
from audit.models.zero_shot import comparing_with
from audit.patching.sweep import measure_logits
from audit.pipeline.context import RunContext
from audit.pipeline.run_sweeps import audit_rows, with_class_names
from audit.pipeline.train_models import AuditedModels
from audit.store import write_table

EACH_TEXT = "effects/texts.parquet"  # of a run: as the unpatched predictions, by ``text``


def measure_each_text(context: RunContext, models: AuditedModels) -> pd.DataFrame | None:
    """Predict all images kept out of training with each text alone; None where there is nothing to compare.

    The embeddings of the images are computed once; what is stored is not done again.
    """
    prompts: Mapping[str, Sequence[str]] | None = context.card.model.prompts
    if prompts is None or why_not_alone(prompts) is not None:
        return None
    path = context.run / EACH_TEXT
    if path.is_file():
        return pd.read_parquet(path)
    model, rows = models.primary, audit_rows(context)
    texts = torch.stack(context.backbone.texts(), dim=1)  # (texts, classes, width)
    with torch.inference_mode(), comparing_with(model, texts.flatten(0, 1)):
        parts = in_image_batches(lambda pixels: model(as_input(model, pixels)), context.pixels, rows, size=64)
    logits = torch.cat(parts).unflatten(1, texts.shape[:2])
    tables = [
        pd.DataFrame(
            {"recipient": rows, "text": np.int16(i), **measure_logits(logits[:, i], context.outcomes, context.readout)}
        )
        for i in range(len(texts))
    ]
    table = with_class_names(pd.concat(tables, ignore_index=True).assign(seed=context.seeds[0]), context.samples.labels)
    write_table(path, table)
    return table
