"""Whether a run passes: for continuous integration, and for whoever decides on a release."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from urllib.parse import quote

from audit.api.results import Result, open_run
from audit.api.tables import Table
from audit.errors import InputError
from audit.exit_codes import ExitCode
from audit.given import as_path
from audit.records import GapCheck, Gate, GateVerdict
from audit.store import write_text

__all__ = ["GateResult", "gate"]


@dataclass(frozen=True)
class GateResult:
    """Whether a run passes, and what stops it.

    Parameters
    ----------
    record : Gate
        The whole of ``gate.json``.
    result : Result
        The run.

    Examples
    --------
    ``result`` is that of the example of :func:`vit_audit.audit`.

    >>> import vit_audit as va
    >>> va.gate(result).passed
    False
    """

    record: Gate
    result: Result

    @property
    def verdict(self) -> GateVerdict:
        """PASSED, or what stops the run."""
        return self.record.verdict

    @property
    def passed(self) -> bool:
        """Whether nothing stops the run."""
        return self.record.verdict is GateVerdict.PASSED

    @property
    def exit_code(self) -> ExitCode:
        """What ``vit-audit gate`` exits with: 0, or 3, 8, 1 or 4, the gravest first."""
        return ExitCode(self.record.exit_code)

    @property
    def gaps(self) -> Table[GapCheck]:
        """Every gap of the run beside the baseline's; empty without one, or where a control failed."""
        return Table(self.record.gaps, GapCheck)

    def lines(self) -> list[str]:
        """Say in a few lines whether the run passes, and what stops it.

        Examples
        --------
        >>> import vit_audit as va
        >>> print(va.gate(result).lines()[0])
        gate: ABOVE POLICY: 2 comparisons above the policy of the card
        """
        from audit.report.gate import gate_lines

        return gate_lines(self.record, self.result.record)

    def markdown(self) -> str:
        """Return a summary for the page of a job.

        Examples
        --------
        >>> import vit_audit as va
        >>> print(va.gate(result).markdown().splitlines()[0])
        ## ▲ Smiles: ABOVE POLICY
        """
        from audit.report.gate import gate_markdown

        return gate_markdown(self.record, self.result.record)

    def save(self, folder: str | Path) -> Path:
        """Write ``gate.json``, ``junit.xml``, ``gate.sarif`` and ``summary.md``.

        Parameters
        ----------
        folder : str or pathlib.Path

        Returns
        -------
        pathlib.Path
            The folder.

        Examples
        --------
        >>> import vit_audit as va
        >>> sorted(path.name for path in va.gate(result).save("gate").iterdir())
        ['gate.json', 'gate.sarif', 'junit.xml', 'summary.md']
        """
        from audit.report.gate import gate_files

        place = as_path("folder", folder)
        for name, text in gate_files(self.record, self.result.record, self._location()).items():
            write_text(place / name, text)
        return place

    def _location(self) -> str:
        """Return the run's record relative to the current folder, by its name alone where it lies elsewhere."""
        record = (self.result.folder / "audit.json").absolute()
        here = Path.cwd()
        return quote((record.relative_to(here) if record.is_relative_to(here) else Path(record.name)).as_posix())


def gate(
    run: Result | str | Path,
    baseline: Result | str | Path | None = None,
    *,
    policy: bool = True,
    tolerance: float = 0.0,
) -> GateResult:
    """Decide whether a run passes: its controls, its policy, and its gaps beside those of an earlier run.

    Parameters
    ----------
    run : Result, str or pathlib.Path
    baseline : Result, str or pathlib.Path, optional
        An earlier run of the same questions. Where both measured the same images, gaps are compared image by image,
        person by person; else by their estimates, with a note.
    policy : bool
        Whether a gap above the policy of the run's card stops it. Without, only what got worse does.
    tolerance : float
        By so much a gap may be larger than before, a fraction in [0, 1).

    Returns
    -------
    GateResult
        ``passed``, ``exit_code``, ``gaps``; ``save`` writes JUnit, SARIF, Markdown and JSON.

    Raises
    ------
    InputError
        If either is no finished run, a control of the baseline failed, or it asks nothing that the run asks.

    Examples
    --------
    ``result`` is that of the example of :func:`vit_audit.audit`. It has a disparity above policy, and is no worse than
    itself.

    >>> import vit_audit as va
    >>> va.gate(result).exit_code
    <ExitCode.DISPARITY: 1>
    >>> va.gate(result, baseline=result, policy=False).exit_code
    <ExitCode.DONE: 0>
    """
    from audit.pipeline.gate import gate_run

    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= tolerance < 1:
        raise InputError("tolerance", f"is {tolerance!r}", "give a fraction from 0 to below 1, as 0.02 for two points")
    result = run if isinstance(run, Result) else open_run(run)
    earlier = None if baseline is None else (baseline if isinstance(baseline, Result) else open_run(baseline)).folder
    return GateResult(gate_run(result.folder, earlier, with_policy=bool(policy), tolerance=float(tolerance)), result)
