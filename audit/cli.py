"""The command line: parse, show progress, exit with the audit's code."""

from __future__ import annotations

import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit.errors import EXIT_UNFINISHED, AuditError

if TYPE_CHECKING:
    from audit.records import Audit

DATA_VARIABLE = "VIT_AUDIT_DATA"
SECONDS_BETWEEN_LINES = 10.0
EPILOG = (
    "Exit codes: 0 passed, 1 disparity above policy, 2 bad input, 3 invalid (a control failed), "
    "4 inconclusive (too little data), 5 could not finish."
)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the tool's own errors into one line and an exit code; ``--debug`` lets the traceback through."""

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except AuditError as error:
            if debug:
                raise
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            if debug:
                raise
            click.echo("stopped; what was finished is kept, run the same command again to go on", err=True)
            sys.exit(EXIT_UNFINISHED)

    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(wrapped)


data_option = click.option(
    "--data",
    "data_root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar=DATA_VARIABLE,
    show_envvar=True,
    help="Folder that paths in the card are relative to.",
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vit-audit")
def main() -> None:
    """Find out whether a vision transformer treats groups differently, and which attention heads carry it."""


@main.command(epilog=EPILOG)
@click.argument("card", type=click.Path(path_type=Path))
@data_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports"), show_default=True, help="Where runs go."
)
@reported
def run(card: Path, data_root: Path | None, out: Path) -> None:
    """Run a whole audit of CARD: controls, models, patching, evidence, report.

    CARD is a YAML file or the name of a built-in card. Run the same command again to go on after an interruption.
    """
    from audit.card.load import find_card
    from audit.pipeline import Request, run_audit

    command = "vit-audit run " + shlex.quote(card.as_posix() if not card.is_absolute() else card.name)
    request = Request(find_card(card), data_root, out, command)
    with progress() as step:
        audit, folder = run_audit(request, step)
    summarise(audit, folder)
    sys.exit(audit.exit_code)


@main.command()
@click.argument("card", type=click.Path(path_type=Path))
@data_option
@reported
def check(card: Path, data_root: Path | None) -> None:
    """Check CARD and its data without training: faults, counts, and what the audit could detect."""
    from audit.card.load import find_card, load_card
    from audit.data import counts_table, describe_data, read_samples

    path = find_card(card)
    loaded = load_card(path)
    with progress() as step:
        tick = step("data: opening every image")
        samples = read_samples(loaded, card_path=path, data_root=data_root, progress=lambda n: tick(n, 0))
    report = describe_data(samples, loaded)
    click.echo(f"{loaded.name}: {report.images} images of {report.subjects} subjects; {report.source}\n")
    click.echo(counts_table(report).to_string())
    for title, rows in (("left out", report.excluded), ("unreadable", report.quarantined)):
        click.echo(f"\n{title}: {sum(r.images for r in rows)} images")
        for row in rows:
            click.echo(f"  {row.images}  {row.reason}")
    for title, lines in (("what this audit can detect", report.limits), ("warnings", report.warnings)):
        if lines:
            click.echo(f"\n{title}:")
            for line in lines:
                click.echo(f"  {line}")


@main.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path("dataset.yaml"), show_default=True)
@reported
def init(path: Path, out: Path) -> None:
    """Write a first card for PATH, a CSV or Parquet table or a folder of class folders."""
    from audit.card.first import first_card
    from audit.errors import InputError
    from audit.store import write_text

    if out.exists():
        raise InputError(str(out), "exists already", "remove it, or name another with --out")
    write_text(out, first_card(path, card_folder=out.absolute().parent))
    click.echo(f"wrote {out}; read it, fill in assigned_by, then: vit-audit check {out}")


@main.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path, exists=True, file_okay=False))
@reported
def render(run_dir: Path) -> None:
    """Write the reports of RUN anew from its audit.json; needs no torch."""
    from audit.report import render_run
    from audit.store import locked, write_manifest

    with locked(run_dir):
        for path in render_run(run_dir):
            click.echo(path)
        write_manifest(run_dir)


@main.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("finding")
@data_option
@reported
def reproduce(run_dir: Path, finding: str, data_root: Path | None) -> None:
    """Measure one FINDING of RUN again, from images and stored weights, and compare it with the report."""
    from audit.pipeline.reproducing import reproduce_finding

    result = reproduce_finding(run_dir, finding, data_root)
    click.echo(f"{result.title}\nexpected  {result.expected:+.6f}\nobtained  {result.obtained:+.6f}")
    click.echo(f"tolerance {result.tolerance:.0e}\n{'reproduced' if result.holds else 'NOT REPRODUCED'}")
    sys.exit(0 if result.holds else 1)


def summarise(audit: Audit, folder: Path) -> None:
    """Print outcome, three figures and the report's path."""
    click.echo(f"outcome: {audit.outcome}")
    for reason in audit.reasons[:3]:
        click.echo(f"  {reason}")
    passed = sum(c.passed for c in audit.controls.controls)
    click.echo(f"controls: {passed} of {len(audit.controls.controls)} passed")
    gaps = [c for c in audit.contrasts if c.metric == "standardised_gap" and c.estimate.value is not None]
    if gaps:
        gap = max(gaps, key=lambda c: abs(c.estimate.value or 0.0))
        e = gap.estimate
        click.echo(
            f"largest gap at equal labels: {100 * (e.value or 0):+.1f} points "
            f"[{100 * (e.low or 0):+.1f}, {100 * (e.high or 0):+.1f}], '{gap.outcome}', "
            f"{gap.attribute} {gap.group} against {gap.reference}"
        )
    for where, answer in audit.localisation.items():
        click.echo(f"where, {where}: {answer}")
    click.echo(f"report: {folder / 'report.html'}")


@contextmanager
def progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Show steps with time left: bars in a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:

        def step(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total or None)

        yield step


def _lines() -> Callable[[str], Callable[[int, int], None]]:
    """Return a step that prints a line when it begins and then every ten seconds."""

    def step(name: str) -> Callable[[int, int], None]:
        click.echo(name, err=True)
        begun = last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if total and done and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                left = (now - begun) * (total - done) / done
                click.echo(f"{name}: {100 * done // total}%, {left:.0f} s left", err=True)

        return update

    return step
