"""Repairing the model of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from audit.api.cards import Card, load_card
from audit.api.options import check_options
from audit.api.progress import Callback, as_step
from audit.api.results import Result, open_run
from audit.api.tables import Table
from audit.card.repair_spec import RepairSpec
from audit.errors import InputError
from audit.exit_codes import ExitCode
from audit.given import as_path
from audit.models.device import CPU
from audit.pipeline.repair_setup import RepairOptions
from audit.pipeline.run_repair import RECORD, repair_run
from audit.records.repair_json import Certificate, CertificateLine
from audit.records.repair_run import Repair, RepairRow, RepairState

if TYPE_CHECKING:
    from audit.api.data import Data
    from audit.api.models import Net

__all__ = ["RepairResult", "open_repair", "repair"]


@dataclass(frozen=True)
class RepairResult:
    """The result of a repair, read from its folder.

    Parameters
    ----------
    folder : pathlib.Path
        That of the repair.

    Examples
    --------
    Made by :func:`vit_audit.repair`, or by :func:`vit_audit.open_repair` of a finished one.

    >>> import vit_audit as va
    >>> va.RepairResult(result.folder.with_name("smiles-repair")).folder.name
    'smiles-repair'
    """

    folder: Path

    @cached_property
    def record(self) -> Repair:
        """The whole of ``repair.json``."""
        return Repair.model_validate_json((self.folder / RECORD).read_text(encoding="utf-8"))

    @property
    def state(self) -> RepairState:
        """The answer."""
        return self.record.state

    @property
    def exit_code(self) -> ExitCode:
        """What ``vit-audit repair`` exits with."""
        return ExitCode(self.record.exit_code)

    @property
    def methods(self) -> Table[RepairRow]:
        """What each method leaves of the gap, and what it costs."""
        return Table(self.record.rows, RepairRow)

    @property
    def certificate(self) -> Certificate | None:
        """What sealed images show of the recommended model; None where none were opened."""
        return self.record.certificate

    @property
    def lines(self) -> Table[CertificateLine]:
        """The lines of the certificate; empty where there is none."""
        return Table([] if self.certificate is None else self.certificate.lines, CertificateLine)

    @property
    def weights(self) -> Path | None:
        """The file of the recommended model's weights; None where no method is recommended."""
        row = next((row for row in self.record.rows if row.method == self.record.recommended), None)
        return None if row is None or row.weights is None else self.folder / row.weights


def open_repair(folder: str | Path) -> RepairResult:
    """Open a finished repair.

    Parameters
    ----------
    folder : str or pathlib.Path

    Returns
    -------
    RepairResult
        The same type, with the same numbers, as :func:`vit_audit.repair` returned.

    Raises
    ------
    InputError
        If there is none, or its record is damaged.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.open_repair("runs/none")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: runs/none/repair.json: missing; name the folder of a finished repair
    """
    path = as_path("folder", folder) / RECORD
    if not path.is_file():
        raise InputError(path.as_posix(), "missing", "name the folder of a finished repair")
    found = RepairResult(path.parent)
    try:
        _ = found.record
    except ValidationError as error:
        raise InputError(str(path), f"is damaged ({error.error_count()} faults)", "repair again") from error
    return found


def repair(
    run: Result | str | Path,
    out: str | Path | None = None,
    *,
    methods: Sequence[str] | None = None,
    card: Card | str | Path | None = None,
    sealed: str | Path | None = None,
    net: Net | None = None,
    data: Data | None = None,
    data_root: str | Path | None = None,
    reaudit: bool = True,
    device: str = CPU,
    report: bool = True,
    command: str = "vit_audit.repair(run)",
    callback: Callback | None = None,
) -> RepairResult:
    """Repair the model of a finished run, and certify it on sealed images; an interrupted repair resumes.

    Parameters
    ----------
    run : Result, str or pathlib.Path
        The run. It is not changed, but for the count of how often its sealed images were opened and, where there is a
        report, the chapter about the repair.
    out : str or pathlib.Path, optional
        The repair's own folder; by default one beside the run.
    methods : sequence of str, optional
        Which methods compete, in place of the card's ``repair.methods``.
    card : Card, str or pathlib.Path, optional
        Whose section ``repair`` counts, in place of that of the run's card.
    sealed : str or pathlib.Path, optional
        A table of other people's images, with the card's columns, for the certificate.
    net, data : optional
        What was given in Python to :func:`vit_audit.plan`, given again.
    data_root : str or pathlib.Path, optional
        Where the data lie, where not by the card.
    reaudit : bool
        Whether a model whose certificate shows every line is audited again; without that it is not certified.
    device : {"auto", "cpu", "cuda", "mps"}
    report : bool
        Whether HTML and PDF are made, and a chapter in the report of the run.
    command : str
        What repeats the repair, for the record.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    RepairResult

    Raises
    ------
    InputError
        If there is no valid audit of a model whose inside is given, its weights or data have changed since, or the
        folder holds another repair.
    UnfinishedError
        If it cannot finish; methods that are done are kept.

    Examples
    --------
    >>> import vit_audit as va
    >>> try:
    ...     va.repair(result)  # an audit of predictions
    ... except va.InputError as error:
    ...     print(error.what)
    audits predictions, not a model
    """
    folder = run.folder if isinstance(run, Result) else open_run(run).folder
    chosen, _ = check_options(device, "float32", None, None)
    root = None if data_root is None else as_path("data_root", data_root)
    options = RepairOptions(
        out=folder.parent / f"{folder.name}-repair" if out is None else as_path("out", out),
        command=command,
        spec=_spec(folder, card, methods),
        data_root=root,
        sealed=None if sealed is None else as_path("sealed", sealed),
        reaudit=reaudit,
        device=chosen,
        report=report,
    )
    step, samples = as_step(callback), None
    if data is not None:
        tick = step("data: opening every image")
        samples = data.open(load_card(folder / "card.yaml"), progress=lambda done: tick(done, len(data.table)))
    backbone = None if net is None else net.backbone
    return RepairResult(repair_run(folder, options, step, samples=samples, backbone=backbone))


def _spec(folder: Path, card: Card | str | Path | None, methods: Sequence[str] | None) -> RepairSpec:
    """Return how is repaired: as a card says, with the methods that are named."""
    given = card if isinstance(card, Card) else load_card(folder / "card.yaml" if card is None else card)
    spec = given.to_repair
    if methods is None:
        return spec
    try:
        return RepairSpec(**{**spec.model_dump(), "methods": list(methods)})
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError("methods", f"{fault.get('input')!r}: {fault['msg']}", "see docs/repair.md") from error
