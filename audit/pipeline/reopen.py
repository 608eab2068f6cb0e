"""A finished run's data and models, opened again from its card."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from audit.card.load import load_card
from audit.data.samples import Samples
from audit.errors import InputError
from audit.models.adapters.registry import Model
from audit.models.black_box import BlackBox
from audit.models.build import Backbone
from audit.models.readout import with_readout
from audit.pipeline.context import RunContext
from audit.pipeline.load_run import readout_of_record
from audit.pipeline.prepare import Inputs, open_inputs
from audit.progress import Step
from audit.records import Audit, PreprocessingSource
from audit.report.shareable import MARK
from audit.report.text import source_sentence


def reopen(
    run: Path,
    audit: Audit,
    data_root: Path | None,
    *,
    step: Step,
    samples: Samples | None = None,
    backbone: Backbone | None = None,
    box: BlackBox | None = None,
    again: str,
) -> Inputs:
    """Open a finished run's card and data; ``samples``, ``backbone`` and ``box`` are what was given in Python.

    Parameters
    ----------
    run : Path
    audit : Audit
        Its record.
    data_root : Path or None
        Where the data lie, where not by the card.
    step : callable
    samples, backbone, box : optional
    again : str
        What gives the same model again, in Python.

    Raises
    ------
    InputError
        If the data have changed, or a function given in Python made the images.
    """
    seen = audit.model.preprocessing
    if seen is not None and seen.source == PreprocessingSource.CALLABLE and backbone is None:
        fix = f"give the same model again, in Python: {again}"
        raise InputError(str(run), "images were preprocessed by a function that was given in Python", fix)
    path = run / "card.yaml"
    inputs = open_inputs(
        load_card(path),
        path.read_bytes(),
        card_path=path,
        data_root=data_root,
        step=step,
        samples=samples,
        backbone=backbone,
        box=box,
        finished=run,
        readout=readout_of_record(audit.model),
        unread_before=_unread(run, audit),
    )
    if inputs.samples.fingerprint != audit.data.fingerprint:
        raise InputError(
            source_sentence(audit.data.source), "the data have changed since the run", "restore them, or audit again"
        )
    return inputs


def _unread(run: Path, audit: Audit) -> frozenset[str] | None:
    """Return the names of the images that a run could not read; None where its record does not name all of them."""
    rows = audit.data.quarantined
    if (run / MARK).is_file() or any(len(row.examples) < row.images for row in rows):
        return None
    return frozenset(name for row in rows for name in row.examples)


def weights_of(run: Path, name: str) -> Path:
    """Return a run's file of weights, such as that of "seed-0".

    Raises
    ------
    InputError
        If it is missing.
    """
    path = run / "models" / f"{name}.safetensors"
    if not path.is_file():
        fix = "restore it; a shareable copy has its models only where it was made with --models"
        raise InputError(str(path), "missing", fix)
    return path


def stored_model(context: RunContext, run: Path, name: str) -> Model:
    """Load one of a run's models, in evaluation mode, where the context computes."""
    model = context.backbone.build_stored(load_file(weights_of(run, name)), len(context.samples.labels))
    return with_readout(model.eval(), context.readout).to(context.compute.device)


def audited_name(context: RunContext, seed: int) -> str:
    """Return the name of the file of an audited model's weights."""
    return "audited" if context.training is None else f"seed-{seed}"
