"""The command line: parse, show progress, exit with the audit's code."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from audit.batching import is_exhausted
from audit.errors import EXIT_UNFINISHED, AuditError, InputError

DATA_VARIABLE = "VIT_AUDIT_DATA"
RUNS = Path("reports")
EPILOG = (
    "Exit codes: 0 passed, 1 disparity above policy (reproduce, verify: not confirmed), 2 bad input, "
    "3 invalid (a control failed), 4 inconclusive (too little data), 5 could not finish."
)
_stopping = threading.Event()  # somebody asked for the command's end
EXHAUSTED = (
    "memory: does not suffice, and what was finished is kept; close other programs, or take a smaller "
    "training.batch_size, image_size or model, and give the same command again"
)
STOPPING = (signal.SIGTERM, signal.SIGINT)
STOPPED = "stopped; what was finished is kept, give the same command again to go on"


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn whatever goes wrong into one line and an exit code; ``--debug`` shows the traceback before it."""

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool, **kwargs: Any) -> None:
        _stopping.clear()
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                signal.signal(number, _stop)
            _end_undisturbed()
        try:
            command(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            # A library may turn an interruption into an error of its own.
            line, code = in_one_line(KeyboardInterrupt() if _stopping.is_set() else error)
            click.echo(line, err=True)
            sys.exit(code)

    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(wrapped)


@functools.cache
def _end_undisturbed() -> None:
    """Let what is over end with its own exit code: a signal while Python is taken down would end it with another."""
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in STOPPING])


def _stop(_number: int, _frame: object) -> None:
    """End the command on Ctrl-C and on SIGTERM: what is held is let go."""
    _stopping.set()
    raise KeyboardInterrupt


def in_one_line(error: BaseException) -> tuple[str, int]:
    """Return what to tell the user about an error, and the exit code."""
    if isinstance(error, AuditError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, EXIT_UNFINISHED
    if is_exhausted(error):  # where there is no batch to halve, as of images that are read
        return EXHAUSTED, EXIT_UNFINISHED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
        place = error.filename or "the disk"
        return f"{place}: {os.strerror(error.errno)}; make room or choose another --out", EXIT_UNFINISHED
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what}; run again with --debug and report it", EXIT_UNFINISHED


data_option = click.option(
    "--data",
    "data_root",
    type=click.Path(path_type=Path),
    envvar=DATA_VARIABLE,
    show_envvar=True,
    help="Folder that paths in the card are relative to.",
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vit-audit", prog_name="vit-audit")
def main() -> None:
    """Find out whether an image classifier treats groups differently, and which parts of it carry the difference."""


@main.command(epilog=EPILOG, short_help="Run a whole audit of a card.")
@click.argument("card", type=click.Path(path_type=Path))
@data_option
@click.option("--out", type=click.Path(path_type=Path), default=RUNS, show_default=True, help="Where runs go.")
@click.option("--report/--no-report", default=True, help="Leave out HTML and PDF; 'render' makes them later.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where the model is patched."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="In what the search is made; findings are computed in float32.",
)
@click.option("--memory", metavar="SIZE", help="Keep the sweeps within so much memory, as 4G: fewer images at once.")
@reported
def run(
    card: Path, data_root: Path | None, out: Path, *, report: bool, device: str, precision: str, memory: str | None
) -> None:
    """Run a whole audit of CARD: controls, models, patching, evidence, report.

    CARD is a YAML file or the name of a built-in card. Run the same command again to go on after an interruption.
    """
    from audit.batching import failing_in_time, limit_memory, parse_size
    from audit.card.load import find_card
    from audit.pipeline import Request, run_audit
    from audit.terminal import progress, summary

    command = "vit-audit run " + shlex.quote(card.as_posix() if not card.is_absolute() else card.name)
    command += " --data FOLDER" if data_root is not None else ""  # where it lies here is nobody else's business
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "is a file, and runs go to a folder", "name a folder with --out")
    limit_memory(None if memory is None else parse_size(memory))
    request = Request(
        find_card(card), _existing(data_root), out, command, report=report, device=device, precision=precision
    )
    with progress() as step, nullcontext() if device == "cuda" else failing_in_time():
        audit, folder = run_audit(request, step)
    click.echo(summary(audit, folder, report=report))
    sys.exit(audit.exit_code)


@main.command(short_help="Check a card, its model and its data without training.")
@click.argument("card", type=click.Path(path_type=Path))
@data_option
@reported
def check(card: Path, data_root: Path | None) -> None:
    """Check CARD, its model and its data without training: faults, counts, and what the audit could detect."""
    from audit.card.load import find_card, load_card
    from audit.data import describe_data, read_samples
    from audit.evidence.power import detectable_head_effects
    from audit.models.build import check_model, unit_of, with_class_names
    from audit.terminal import data_summary, progress

    path = find_card(card)
    loaded = with_class_names(load_card(path), card_path=path, data_root=_existing(data_root))
    check_model(loaded, card_path=path, data_root=_existing(data_root))
    with progress() as step:
        tick = step("data: opening every image")
        samples = read_samples(
            loaded, card_path=path, data_root=_existing(data_root), progress=lambda done: tick(done, 0)
        )
    report = describe_data(samples, loaded)
    limits = [*report.limits, *detectable_head_effects(samples, loaded.audit, unit_of(loaded.model.name))]
    click.echo(data_summary(report.model_copy(update={"limits": limits}), loaded.name))


@main.command(short_help="Write a first card for a table or class folders.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("dataset.yaml"), show_default=True, help="The card to write."
)
@reported
def init(path: Path, out: Path) -> None:
    """Write a first card for PATH, a CSV or Parquet table or a folder of class folders."""
    from audit.card.first import first_card
    from audit.store import write_text

    if out.exists():
        raise InputError(str(out), "exists already", "remove it, or name another with --out")
    write_text(out, first_card(path, card_folder=out.absolute().parent))
    click.echo(f"wrote {out}; read it, replace what its comments call a guess, then: vit-audit check {out}")


@main.command(short_help="List the models that can be audited.")
@click.argument("pattern", required=False)
@click.option("--markdown", is_flag=True, help="Print a table for documentation.")
@reported
def models(pattern: str | None, *, markdown: bool) -> None:
    """List the families of models that can be audited; with PATTERN, timm's models of these families by name.

    PATTERN is as a shell has it: vit_*dinov2*. Of each name it is tried whether its parts can be told apart.
    """
    from audit.models.supported import families, refusals
    from audit.terminal import models_table

    if pattern is None:
        click.echo(models_table(families(), markdown=markdown))
        return
    found = list(refusals(pattern))
    if not found:
        raise InputError(pattern, "no model of a supported family has such a name", "'vit-audit models' lists them")
    for name, reason in found:
        click.echo(f"{name}: {'no, ' + reason if reason else 'yes'}")


@main.command(short_help="List the built-in cards.")
@click.option("--markdown", is_flag=True, help="Print a table for documentation.")
@click.option(
    "--fetch", "card", metavar="CARD", type=click.Path(path_type=Path), help="Fetch what CARD may download to --data."
)
@data_option
@reported
def datasets(card: Path | None, data_root: Path | None, *, markdown: bool) -> None:
    """List the built-in cards: what each is about, who assigned its groups, its licence.

    No images come with them: each says where they lie. Copy one, or name it: vit-audit run raf-db --data FOLDER. Of
    sets that need no agreement, --fetch downloads what the card names with its hash; whoever does so accepts the
    set's terms.
    """
    from audit.card.load import built_in_cards, load_card
    from audit.terminal import datasets_table

    if card is not None:
        _fetch(card, _existing(data_root))
        return
    click.echo(datasets_table({name: load_card(path) for name, path in built_in_cards().items()}, markdown=markdown))


@main.command(short_help="Write the reports of a run again.")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@reported
def render(run_dir: Path) -> None:
    """Write the reports of RUN again from its audit.json; needs no torch.

    RUN is a run directory, or the name of one in reports/.
    """
    from audit.report import render_run
    from audit.report.manifest import check_kept, write_manifest
    from audit.store import locked

    folder = _find_run(run_dir)
    with locked(folder):
        check_kept(folder)
        written = render_run(folder)
        for path in written:
            click.echo(path)
        write_manifest(folder, only=[path.relative_to(folder).as_posix() for path in written])


@main.command(short_help="Add a reviewer's decisions to a run.")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("review_json", metavar="REVIEW", type=click.Path(path_type=Path))
@reported
def review(run_dir: Path, review_json: Path) -> None:
    """Add the decisions in REVIEW, the review.json that a report's page saved, to RUN, and write its reports again.

    Decisions are only ever added: a later one about the same finding stands, the earlier one stays on record.
    """
    from audit.report.manifest import check_kept, holds, write_manifest
    from audit.report.render import Source, printed, read_run, write_files
    from audit.report.reviews import DECISIONS, merge, read_review
    from audit.store import locked

    folder = _find_run(run_dir)
    with locked(folder):
        source = read_run(folder)
        check_kept(folder)
        text, new = merge(folder, read_review(review_json), source.audit, source.digest)
        if new or (source.decisions and not holds(folder, DECISIONS)):  # or an earlier review was cut short
            pages = printed(Source(source.audit, source.content, [*source.decisions, *new]))
            write_files(folder, {DECISIONS: text.encode(), **pages})
            write_manifest(folder, only=[DECISIONS, *pages])
    click.echo(f"{len(new)} decisions added, {len(source.decisions) + len(new)} in all: {folder / DECISIONS}")
    if new:
        click.echo(f"report: {folder / 'report.html'}")


@main.command(short_help="Check a run: hashes, figures, pages.")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="Public key (Ed25519, PEM): the signature is checked too.")
@reported
def verify(run_dir: Path, key: Path | None) -> None:
    """Check RUN: hash every file, derive every figure again from the stored effects, and print every page again.

    Names whatever is not as it was written, and exits with 1 then. Needs neither images nor a GPU.
    """
    from audit.pipeline.verify import verify_run
    from audit.terminal import progress, shared_summary, wrapped

    with progress() as step:
        found = verify_run(_find_run(run_dir), step, key=key)
    for fault in found.faults:
        click.echo(wrapped(str(fault)))
    if found.shared is not None:
        for line in shared_summary(found.shared):
            click.echo(wrapped(line))
    if key is None and found.signed:
        click.echo("signature: there, not checked; name the public key with --key")
    checked = f"{found.files} files, {found.figures:,} figures"
    faults = "1 fault" if len(found.faults) == 1 else f"{len(found.faults)} faults"
    click.echo(f"NOT VERIFIED: {faults} in {checked}" if found.faults else f"verified: {checked}")
    sys.exit(1 if found.faults else 0)


@main.command(short_help="Copy a run so that it may be handed on.")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shareable", is_flag=True, help="People and images get other names; this machine and models stay out.")
@click.option("--models", is_flag=True, help="Take the models along; they may give away what they were trained on.")
@reported
def export(run_dir: Path, out: Path, *, shareable: bool, models: bool) -> None:
    """Write a copy of RUN to the folder OUT that may be handed on, and that 'vit-audit verify' can check.

    The other names are drawn again for each copy, and cannot be looked up. Rows keep their order, labels and groups:
    whoever has the images can still tell whose they are.
    """
    from audit.report.shareable import share_run
    from audit.terminal import shared_summary, wrapped

    folder = _find_run(run_dir)
    if not shareable:
        fix = "give --shareable, or copy the folder: a run is whole without this command"
        raise InputError("export", "what may be handed on was not said", fix)
    for line in shared_summary(share_run(folder, out, models=models)):
        click.echo(wrapped(line))
    click.echo(f"copy: {out}; check it: vit-audit verify {shlex.quote(str(out))}")


@main.command(short_help="Sign the manifest of a run.")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--key", type=click.Path(path_type=Path), required=True, help="Private key (Ed25519, PEM, not encrypted)."
)
@reported
def sign(run_dir: Path, key: Path) -> None:
    """Sign RUN's manifest, and with it every file of the run. A review that changes the run takes the signature off."""
    from audit.report.manifest import sign as sign_manifest
    from audit.store import locked

    folder = _find_run(run_dir)
    with locked(folder):
        click.echo(sign_manifest(folder, key))


@main.command(short_help="Compare the findings of two runs.")
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for diff.html and diff.json; default: diff-NAME-HASHES."
)
@reported
def diff(before: Path, after: Path, out: Path | None) -> None:
    """Say which findings of run B are new, which of run A are gone, still there, or can no longer be tested."""
    from audit.pipeline.diff import compare_runs
    from audit.report.formats import clean
    from audit.report.html import counted, render_diff
    from audit.store import slug, write_text

    first, second = _find_run(before), _find_run(after)
    comparison = compare_runs(first, second)
    hashes = "-".join(run.audit_sha256[:8] for run in (comparison.before, comparison.after))
    folder = out or Path(f"diff-{slug(comparison.after.name)}-{hashes}")
    write_text(folder / "diff.json", comparison.model_dump_json(indent=1) + "\n")
    write_text(folder / "diff.html", render_diff(comparison))
    click.echo(f"{comparison.before.outcome} -> {comparison.after.outcome}; {counted(comparison)}")
    for note in comparison.notes:
        click.echo(clean(note))
    click.echo(f"report: {folder / 'diff.html'}")


@main.command(short_help="Measure one finding of a run again.")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("finding")
@data_option
@reported
def reproduce(run_dir: Path, finding: str, data_root: Path | None) -> None:
    """Measure one FINDING of RUN again, from images and stored weights, and compare it with the report.

    RUN is a run directory, or the name of one in reports/. Exits with 1 where the number does not come out again.
    """
    from audit.pipeline.reproduce import reproduce_finding
    from audit.report.text import finding_title

    result = reproduce_finding(_find_run(run_dir), finding, _existing(data_root))
    click.echo(finding_title(result.finding, result.unit))
    click.echo(f"expected  {result.expected:+.6f}\nobtained  {result.obtained:+.6f}")
    click.echo(f"tolerance {result.tolerance:.0e}\n{'reproduced' if result.holds else 'NOT REPRODUCED'}")
    sys.exit(0 if result.holds else 1)


def _fetch(card: Path, data_root: Path | None) -> None:
    """Download what a card names, and say under which terms."""
    from audit.card.load import find_card, load_card
    from audit.data.fetch import fetch
    from audit.terminal import progress

    path = find_card(card)
    data = load_card(path).data
    if not data.download:
        fix = "its first lines say how its files must lie; ask the set's authors for them"
        raise InputError(str(path), "names nothing that may be downloaded", fix)
    if data_root is None:
        raise InputError("--fetch", "needs a folder to download to", f"name it with --data or {DATA_VARIABLE}")
    click.echo(f"licence: {data.licence or 'not stated'}")
    with progress() as step:
        for place in fetch(data.download, data_root, step):
            click.echo(place)


def _existing(data_root: Path | None) -> Path | None:
    """Return the data folder, once it is known to be one."""
    if data_root is not None and not data_root.is_dir():
        raise InputError(str(data_root), "no such data folder", f"correct --data or {DATA_VARIABLE}")
    return data_root


def _find_run(run_dir: Path) -> Path:
    """Return a run directory, given its path or its name in ``reports/``."""
    fix = f"name one that 'vit-audit run' finished, as in {RUNS}/NAME"
    for folder in (run_dir, RUNS / run_dir):
        if any((folder / name).is_file() for name in ("audit.json", "manifest.json")):
            return folder
        if folder.is_dir():
            raise InputError(str(folder), "is no finished run: it holds no audit.json", fix)
    raise InputError(str(run_dir), "no such run directory", fix)
