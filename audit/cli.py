"""The command line: parse, show progress, exit with the right code. All work is done through ``vit_audit``."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

import vit_audit as va
from audit.errors import DISK_FIXES, AuditError, InputError, is_exhausted
from audit.exit_codes import ExitCode, as_text
from audit.resources import DATA_VARIABLE

if TYPE_CHECKING:
    from audit.api.results import Result

RUNS = Path("reports")
EXHAUSTED = (
    "memory: does not suffice, and what was finished is kept; close other programs, or take a smaller "
    "training.batch_size, image_size or model, and give the same command again"
)
STOPPING = (signal.SIGTERM, signal.SIGINT)
OUTPUT = "standard output"
STOPPED = "stopped; what was finished is kept, give the same command again to resume"
_stopping = threading.Event()  # somebody asked for the command's end


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn whatever goes wrong into one line and an exit code; ``--debug`` shows the traceback before it."""

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool, **kwargs: Any) -> None:
        _stopping.clear()
        try:
            with _stoppable():
                try:
                    command(*args, **kwargs)
                finally:
                    sys.stdout.flush()  # a reader that has gone shows now
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


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a command as an error does, for the length of a block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(_number: int, _frame: object) -> None:
    """End the command on Ctrl-C and on SIGTERM: what is held is let go."""
    _stopping.set()
    raise KeyboardInterrupt


class Commands(click.Group):
    """A group that ends as other programs do when its reader has gone."""

    def make_context(self, *args: Any, **named: Any) -> click.Context:
        """Parse the command line."""
        with _ended_by_pipe():
            return super().make_context(*args, **named)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _ended_by_pipe():
            return super().invoke(ctx)


@contextmanager
def _ended_by_pipe() -> Iterator[None]:
    """End by SIGPIPE where nobody reads any more, with no message and none of our exit codes."""
    try:
        yield
    except BrokenPipeError:
        _end_by_pipe()


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end_by_pipe() -> None:
    _drop(sys.stdout)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


def in_one_line(error: BaseException) -> tuple[str, ExitCode]:
    """Return what to tell the user about an error, and the exit code."""
    if isinstance(error, AuditError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, ExitCode.UNFINISHED
    if is_exhausted(error):  # where there is no batch to halve, as of images that are read
        return EXHAUSTED, ExitCode.UNFINISHED
    if isinstance(error, OSError) and error.errno in DISK_FIXES:
        said = f"{error.filename or f'the disk or {OUTPUT}'}: {os.strerror(error.errno)}"
        return f"{said}; {DISK_FIXES[error.errno]} or choose another --out", ExitCode.UNFINISHED
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what}; run again with --debug and report it", ExitCode.UNFINISHED


data_option = click.option(
    "--data",
    "data_root",
    type=click.Path(path_type=Path),
    envvar=DATA_VARIABLE,
    show_envvar=True,
    help="Folder that paths in the card are relative to.",
)
DEVICES = ["auto", "cpu", "cuda", "mps"]
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    show_default=True,
    help="Where the model is run and patched; auto takes an accelerator where there is one.",
)
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=RUNS, show_default=True, help="Where runs go."
)


class Devices(click.Choice[str]):
    """A kind of device, or several devices of one, which are looked at later."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what was given, if it may be a device."""
        return value if ":" in value or "," in value else super().convert(value, param, ctx)


run_argument = click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))


@click.group(cls=Commands, epilog=as_text(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vit-audit", prog_name="vit-audit")
def main() -> None:
    """Find out whether an image classifier treats groups differently, and which parts of it carry the difference."""


def entry() -> None:
    """Run the command line as a process of its own: whatever ends it, its exit code is one of the table."""
    for number in STOPPING:
        signal.signal(number, _stop)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # a shell closed it: command >&-
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    try:
        with _ended_by_pipe():
            code = _ended()
    except OSError as error:  # what is to be shown cannot be
        code = _unshown(error)
    for number in STOPPING:  # what is over ends with its own code, whatever comes while Python is taken down
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _ended() -> Any:
    """Run the command line, and return its exit code."""
    try:
        return main(standalone_mode=False) or ExitCode.DONE
    except click.ClickException as error:
        error.show()
        return ExitCode.BAD_INPUT
    except (click.Abort, KeyboardInterrupt):
        click.echo(STOPPED, err=True)
        return ExitCode.UNFINISHED
    except SystemExit as error:
        return error.code


def _unshown(error: OSError) -> ExitCode:
    """End where standard output or standard error takes nothing: say so if the latter does."""
    with suppress(OSError):
        click.echo(f"{OUTPUT}: {error.strerror}; send it where it can be written", err=True)
    for stream in (sys.stdout, sys.stderr):
        _drop(stream)
    return ExitCode.UNFINISHED


@main.command(epilog=as_text(), short_help="Run a whole audit of a card.")
@click.argument("card", type=click.Path(path_type=Path))
@data_option
@out_option
@click.option("--report/--no-report", default=True, help="Leave out HTML and PDF; 'render' makes them later.")
@click.option(
    "--device",
    type=Devices(DEVICES),
    default="cpu",
    show_default=True,
    help="Where models are trained, run and patched; auto takes an accelerator where there is one, cuda:0,cuda:1 both.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bf16", "fp16"]),
    default="float32",
    show_default=True,
    help="In what models are trained and heads searched for; findings are computed in float32.",
)
@click.option("--memory", metavar="SIZE", help="Keep the sweeps within so much memory, as 4G: fewer images at once.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that train and patch, one thread each; no result depends on it.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Keep decoded images, people's too, in this folder outside any run, for later runs; no result depends on it.",
)
@click.option("--shards", is_flag=True, help="Lay the run out for work and merge, or submit; do nothing else yet.")
@click.option("--ray", metavar="ADDRESS", help="Have a Ray cluster do tasks; 'local' starts one here.")
@reported
def run(
    card: Path, data_root: Path | None, out: Path, *, report: bool, shards: bool, ray: str | None, **options: Any
) -> None:
    """Run a whole audit of CARD: controls, models, patching, evidence, report.

    CARD is a YAML file or the name of a built-in card. Run the same command again to resume after an interruption.
    """
    from audit.terminal import progress, summary

    command = "vit-audit run " + shlex.quote(card.as_posix() if not card.is_absolute() else card.name)
    command += " --data FOLDER" if data_root is not None else ""  # where it lies here is nobody else's business
    with progress() as callback:
        plan = va.plan(card, data_root=data_root, runs=out, callback=callback, **options)
        result = va.audit(
            plan, runs=out, report=report, command=command, callback=callback, shards=shards, ray=ray, **options
        )
    click.echo(summary(result.record, result.folder, result.decisions, report=report))
    sys.exit(result.exit_code)


@main.command(epilog=as_text(), short_help="Do a share of a run's tasks.")
@run_argument
@click.option("--shard", metavar="I/N", required=True, help="Which share of the tasks: 2/8 is the second of eight.")
@click.option("--wait", is_flag=True, help="Go on with later stages until the run is over.")
@click.option("--device", type=Devices(DEVICES), default="cpu", show_default=True, help="What the tasks are done on.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, one thread each.")
@reported
def work(run_dir: Path, shard: str, **options: Any) -> None:
    """Do a share of the tasks that are posted in RUN, which was laid out by run --shards."""
    from audit.terminal import progress, share_summary

    with progress() as callback:
        done = va.work(run_dir, shard, callback=callback, **options)
    click.echo(share_summary(run_dir, done))


@main.command(epilog=as_text(), short_help="Go on with a run that several machines work on.")
@run_argument
@click.option("--wait", is_flag=True, help="Wait for those who work, rather than end where tasks are to be done.")
@click.option(
    "--patience",
    type=click.FloatRange(min=30),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="With --wait: end after so long without anybody at work.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes for what is done here.")
@reported
def merge(run_dir: Path, **options: Any) -> None:
    """Go on with RUN, which was laid out by run --shards: put together what is done, and post what comes next."""
    from audit.terminal import progress

    with progress() as callback:
        result = va.merge(run_dir, callback=callback, **options)
    _end_with(result)


@main.command(epilog=as_text(), short_help="Have SLURM do a run.")
@run_argument
@click.option("--slurm", is_flag=True, required=True, help="The scheduler; there is no other yet.")
@click.option("--account", help="As sbatch takes it.")
@click.option("--partition", help="As sbatch takes it.")
@click.option("--time", help="As sbatch takes it, of each job.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="Of each job.")
@click.option("--cpus", type=click.IntRange(min=1), default=1, show_default=True, help="Of each job.")
@click.option("--jobs", type=click.IntRange(min=1), default=16, show_default=True, help="Of an array, at most.")
@click.option("--sbatch", multiple=True, help="A further option of sbatch; may be given several times.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes for what the job that goes on does by itself.")
@click.option("--here", is_flag=True, help="Go on in this process, as the jobs do.")
@reported
def submit(run_dir: Path, *, slurm: bool, **options: Any) -> None:
    """Have SLURM do RUN, which was laid out by run --shards: an array for each list of tasks, and a job that goes on.

    The jobs run a copy of the source that is made now.
    """
    del slurm
    from audit.terminal import progress

    with progress() as callback:
        done = va.submit(run_dir, callback=callback, **options)
    if isinstance(done, str):
        click.echo(f"submitted job {done}; squeue shows it, and {run_dir / 'work' / 'slurm'} what it says")
    else:
        _end_with(done)


def _end_with(result: Result) -> None:
    """Show what came of a run, and end with its code."""
    from audit.terminal import summary

    click.echo(
        summary(result.record, result.folder, result.decisions, report=(result.folder / "report.html").is_file())
    )
    sys.exit(result.exit_code)


@main.command(short_help="Check a card, its model and its data without training.")
@click.argument("card", type=click.Path(path_type=Path))
@data_option
@click.option(
    "--show",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write three of the images as the model sees them to this folder, outside any run.",
)
@out_option
@device_option
@reported
def check(card: Path, data_root: Path | None, show: Path | None, out: Path, device: str) -> None:
    """Check CARD, its model and its data without training: faults, counts, and what the audit could detect."""
    from audit.terminal import (
        as_deployed,
        data_summary,
        not_opened_summary,
        progress,
        reach_summary,
        weights_summary,
        wrapped,
    )

    with progress() as callback:
        plan = va.plan(card, data_root=data_root, runs=out, device=device, callback=callback)
    click.echo(data_summary(plan.data, plan.card.name, plan.preprocessing, plan.held))
    click.echo(f"\n{wrapped(plan.outputs)}")
    if plan.weights:
        click.echo(f"\n{weights_summary(plan.weights)}")
    if plan.not_opened:
        click.echo(f"\n{not_opened_summary(plan.not_opened)}")
    if (served := plan.served(device=device)) is not None:
        click.echo(f"\n{as_deployed(served)}")
    if (reach := plan.reach) is not None:
        click.echo(f"\n{reach_summary(reach, plan.data)}")
    if show is not None:
        for file in plan.show(show):
            click.echo(f"wrote {file}")
    if served is not None and not served.passed:
        sys.exit(ExitCode.INVALID)


@main.command("check-card", short_help="Check cards alone: no image, no model.")
@click.argument("cards", metavar="CARD...", nargs=-1, required=True, type=click.Path(path_type=Path))
@reported
def check_card(cards: tuple[Path, ...]) -> None:
    """Check each CARD alone, as a pre-commit hook does: every fault with its line and the fix.

    No image, model or torch is loaded; 'vit-audit check' looks at these, too.
    """
    faults = []
    for card in cards:
        try:
            va.load_card(card)
        except InputError as error:
            faults.append(str(error))
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        sys.exit(ExitCode.BAD_INPUT)


@main.command(short_help="Write a first card for a table or class folders.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("dataset.yaml"), show_default=True, help="The card to write."
)
@reported
def init(path: Path, out: Path) -> None:
    """Write a first card for PATH, a table (CSV, Excel, Parquet or JSON lines) or a folder of class folders."""
    if out.exists():
        raise InputError(str(out), "exists already", "remove it, or name another with --out")
    va.first_card(path, out=out)
    click.echo(f"wrote {out}; read it, replace what its comments call a guess, then: vit-audit check {out}")


@main.command(short_help="List the models that can be audited.")
@click.argument("pattern", required=False)
@click.option("--markdown", is_flag=True, help="Print a table for documentation.")
@reported
def models(pattern: str | None, *, markdown: bool) -> None:
    """List the families of models that can be audited; with PATTERN, timm's models of these families by name.

    PATTERN is as a shell has it: vit_*dinov2*. Of each name it is tried whether its parts can be separated.
    """
    from audit.terminal import models_table

    found = va.supported_models(pattern)
    if pattern is None:
        click.echo(models_table(found, markdown=markdown))
        return
    for name, reason in zip(found["name"], found["refused"], strict=True):
        click.echo(f"{name}: {'no, ' + reason if reason else 'yes'}")


@main.command(short_help="Say what a checkpoint holds, and how a card names it.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@reported
def inspect(checkpoint: Path) -> None:
    """Say what CHECKPOINT, a file or folder of weights, holds: which model, classes, and lines for a card.

    Nothing that the file says is run, and no tensor is read.
    """
    click.echo(va.inspect_checkpoint(checkpoint))


@main.command(short_help="List the built-in cards.")
@click.option("--markdown", is_flag=True, help="Print a table for documentation.")
@click.option(
    "--fetch", "card", metavar="CARD", type=click.Path(path_type=Path), help="Fetch what CARD may download to --data."
)
@data_option
@reported
def datasets(card: Path | None, data_root: Path | None, *, markdown: bool) -> None:
    """List the built-in cards: whether the people shown consented, who says their groups, and what each is about.

    No images come with them: each says where they lie. Copy one, or name it: vit-audit run raf-db --data FOLDER. Of
    sets that need no agreement, --fetch downloads what the card names with its hash; whoever does so accepts the
    set's terms.
    """
    from audit.terminal import datasets_table, progress

    if card is None:
        click.echo(datasets_table({name: va.load_card(name) for name in va.built_in_cards()}, markdown=markdown))
        return
    if data_root is None:
        raise InputError("--fetch", "needs a folder to download to", f"name it with --data or {DATA_VARIABLE}")
    loaded = va.load_card(card)
    click.echo(f"licence: {loaded.data.licence or 'not stated'}")
    with progress() as callback:
        for place in va.fetch(loaded, data_root, callback=callback):
            click.echo(place)


@main.command(short_help="Write the reports of a run again.")
@run_argument
@reported
def render(run_dir: Path) -> None:
    """Write the reports of RUN again from its audit.json; needs no torch.

    RUN is a run directory, or the name of one in reports/.
    """
    from audit.terminal import law_line, wrapped

    for path in va.open_run(run_dir).render():
        click.echo(path)
    click.echo(wrapped(law_line()), err=True)


@main.command("card-section", short_help="A section on a run for the model's card.")
@run_argument
@click.option("--readme", type=click.Path(path_type=Path), help="Write it into this card, in place of an earlier one.")
@reported
def card_section(run_dir: Path, readme: Path | None) -> None:
    """Print a section on RUN in Markdown for the model's card, README.md on Hugging Face."""
    result = va.open_run(run_dir)
    if readme is None:
        click.echo(result.card_section(), nl=False)
    else:
        click.echo(f"wrote {result.update_card(readme)}")


@main.command(short_help="Add reviewers' decisions to a run.")
@run_argument
@click.argument("review_json", metavar="[REVIEW]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--from",
    "earlier",
    metavar="EARLIER",
    type=click.Path(path_type=Path),
    help="Take over what was decided of this run.",
)
@reported
def review(run_dir: Path, review_json: Path | None, earlier: Path | None) -> None:
    """Add the decisions in REVIEW, the review.json that a report's page saved, to RUN, and write its reports again.

    With --from EARLIER, take over what was decided of an earlier run about findings that RUN has, too.
    Decisions are only ever added: of a reviewer's about the same thing the last one counts, all stay on record.
    """
    from audit.terminal import left_line, reviewed_lines, wrapped

    result = va.open_run(run_dir)
    if review_json is None and earlier is None:
        raise InputError("review", "what is to be added was not said", "name a review.json, or --from EARLIER, or both")
    new, left = [], []
    if earlier is not None:
        taken = result.carry_over(earlier)
        new, left = [*taken.added], [*taken.left]
    if review_json is not None:
        new += result.review(review_json)
    click.echo(f"{len(new)} decisions added, {len(result.decisions)} in all: {result.folder / 'decisions.jsonl'}")
    for line in [*map(left_line, left), *reviewed_lines(result.record, result.decisions)]:
        click.echo(wrapped(line))
    if new:
        click.echo(f"report: {result.folder / 'report.html'}")


@main.command(short_help="Serve a run's report to this machine, to decide in it.")
@run_argument
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Which port; by default one that is free.")
@reported
def serve(run_dir: Path, port: int) -> None:
    """Serve the report of RUN to browsers on this machine, with forms that save straight to RUN, until Ctrl-C.

    Open the address that is printed: it holds a token, and whoever has it can decide.
    """
    with va.open_run(run_dir).serve(port) as served:
        click.echo(served.url)
        with suppress(KeyboardInterrupt):
            served.wait()


@main.command(epilog=as_text(), short_help="Check a run: hashes, figures, pages.")
@run_argument
@click.option("--key", type=click.Path(path_type=Path), help="Public key (Ed25519, PEM): the signature is checked too.")
@reported
def verify(run_dir: Path, key: Path | None) -> None:
    """Check RUN: hash every file, derive every figure again from the stored effects, and print every page again.

    Names whatever is not as it was written, and exits with 6 then. Needs neither images nor a GPU.
    """
    from audit.terminal import law_line, progress, shared_summary, wrapped

    with progress() as callback:
        found = va.verify(run_dir, key=key, callback=callback)
    for fault in found.faults:
        click.echo(wrapped(str(fault)))
    if found.shared is not None:
        for line in shared_summary(found.shared):
            click.echo(wrapped(line))
    if key is None and found.signed:
        click.echo("signature: there, not checked; name the public key with --key")
    click.echo(wrapped(law_line()), err=True)
    checked = f"{found.files} files, {found.figures:,} figures"
    faults = "1 fault" if len(found.faults) == 1 else f"{len(found.faults)} faults"
    click.echo(f"verified: {checked}" if found.holds else f"NOT VERIFIED: {faults} in {checked}")
    sys.exit(ExitCode.DONE if found.holds else ExitCode.NOT_VERIFIED)


@main.command(short_help="Copy a run so that it may be handed on.")
@run_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shareable", is_flag=True, help="People and images get other names; this machine and models stay out.")
@click.option("--models", is_flag=True, help="Take the models along; they may give away what they were trained on.")
@reported
def export(run_dir: Path, out: Path, *, shareable: bool, models: bool) -> None:
    """Write a copy of RUN to the folder OUT that may be handed on, and that 'vit-audit verify' can check.

    The other names are drawn for each copy, and cannot be looked up. Rows keep their order, labels and groups:
    whoever has the images can still tell whose they are.
    """
    from audit.terminal import shared_summary, wrapped

    result = va.open_run(run_dir)
    if not shareable:
        fix = "give --shareable, or copy the folder: a run is whole without this command"
        raise InputError("export", "what may be handed on was not said", fix)
    for line in shared_summary(result.share(out, models=models)):
        click.echo(wrapped(line))
    click.echo(f"copy: {out}; check it: vit-audit verify {shlex.quote(str(out))}")


@main.command(short_help="Sign the manifest of a run, or its PDF.")
@run_argument
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    help="Private key (PEM): of a manifest Ed25519, not encrypted; of a PDF any, or PKCS#12.",
)
@click.option("--pdf", is_flag=True, help="Sign the PDF: report.signed.pdf, beside report.pdf. Needs the extra 'sign'.")
@click.option("--certificate", type=click.Path(path_type=Path), help="Of the key, for a PDF (PEM).")
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path), help="Its first line opens an encrypted key, for a PDF."
)
@reported
def sign(run_dir: Path, key: Path, *, pdf: bool, certificate: Path | None, passphrase_file: Path | None) -> None:
    """Sign RUN's manifest, and with it every file of the run. A review that changes the run takes the signature off.

    With --pdf, sign the PDF itself (PAdES); the manifest then holds the signed one, too, so sign the manifest last.
    """
    result = va.open_run(run_dir)
    if not pdf:
        if certificate is not None or passphrase_file is not None:
            raise InputError(
                "sign", "--certificate and --passphrase-file are of a PDF", "give --pdf, or leave them out"
            )
        click.echo(result.sign(key))
        return
    click.echo(result.sign_pdf(key, certificate, passphrase=_first_line(passphrase_file)))


def _first_line(path: Path | None) -> str | None:
    """Return the first line of a file; None where none is named."""
    if path is None:
        return None
    try:
        return next(iter(path.read_text(encoding="utf-8").splitlines()), "")
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "name a text file") from None


@main.group(cls=Commands, short_help="Control models that a team trains once.")
def controls() -> None:
    """Share trained and measured control models: a team trains those of a backbone once.

    STORE is a folder or an address that fsspec opens, as s3://BUCKET/controls.
    """


@controls.command("list", short_help="What is in a store, or in this machine's cache.")
@click.argument("store", required=False)
@reported
def list_controls(store: str | None) -> None:
    """List the control models of STORE, or of this machine's cache; no signature is checked."""
    from audit.terminal import controls_lines

    for held in va.list_controls(store):
        click.echo("\n".join(controls_lines(held)))


@controls.command("export", short_help="Copy control models to a store, signed.")
@click.argument("places", metavar="[RUN] STORE", nargs=-1, required=True)
@click.option("--all", "every", is_flag=True, help="All that are in the cache, in place of those that RUN used.")
@click.option(
    "--key", type=click.Path(path_type=Path), required=True, help="Private key (Ed25519, PEM, not encrypted)."
)
@reported
def export_controls(places: tuple[str, ...], key: Path, *, every: bool) -> None:
    """Copy the control models that RUN used from this machine's cache to STORE, with what was measured, signed.

    With --all, copy all of the cache. What the store holds already is not copied again.
    """
    from audit.terminal import controls_lines, progress

    if len(places) != (1 if every else 2):
        raise InputError(
            "controls export", "what is to be copied, and where to, was not said", "give RUN STORE, or --all STORE"
        )
    with progress() as callback:
        done = va.export_controls(places[-1], key, run=None if every else places[0], callback=callback)
    for held in done:
        click.echo("\n".join(controls_lines(held)))


@controls.command("import", short_help="Copy control models from a store, once they are checked.")
@click.argument("store")
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Public key (Ed25519, PEM) of who exported them; may be given several times.",
)
@click.option(
    "--hash", "hashes", multiple=True, help="Take these alone, by their hash or its first 12 digits at least."
)
@reported
def import_controls(store: str, trust: tuple[Path, ...], hashes: tuple[str, ...]) -> None:
    """Copy control models from STORE into this machine's cache, where audits of the same backbone find them.

    Nothing is copied unless every signature is of a trusted key and every file is what its hash says.
    """
    from audit.terminal import controls_lines, progress

    with progress() as callback:
        done = va.import_controls(store, trust, hashes=hashes, callback=callback)
    for held in done:
        click.echo("\n".join(controls_lines(held)))


@main.command(short_help="Compare the findings of two runs.")
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for diff.html and diff.json; default: diff-NAME-HASHES."
)
@reported
def diff(before: Path, after: Path, out: Path | None) -> None:
    """Say which findings of run B are new, still there, below the threshold now, or no longer testable.

    Gaps against the policy, rates and heads are set side by side as well.
    """
    from audit.terminal import diff_summary

    change = va.diff(before, after)
    folder = change.save(out)
    for line in diff_summary(change.record):
        click.echo(line)
    click.echo(f"report: {folder / 'diff.html'}")


@main.command(epilog=as_text(), short_help="Decide whether a run passes, for continuous integration.")
@run_argument
@click.option("--baseline", metavar="RUN0", type=click.Path(path_type=Path), help="An earlier run to compare with.")
@click.option("--policy/--no-policy", default=True, help="Whether a gap above the card's policy stops the run.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="By so much a gap may be larger than in the baseline, as 0.02 for two points.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for gate.json, junit.xml, gate.sarif and summary.md."
)
@reported
def gate(run_dir: Path, baseline: Path | None, tolerance: float, out: Path | None, *, policy: bool) -> None:
    """Decide whether RUN passes: its controls, its policy, and its gaps beside those of an earlier run.

    A gap that is larger than in the baseline beyond noise stops the run. Where both runs measured the same images
    they are compared person by person.
    """
    from audit.terminal import wrapped

    found = va.gate(run_dir, baseline, policy=policy, tolerance=tolerance)
    if out is not None:
        found.save(out)
    for line in found.lines():
        click.echo(wrapped(line))
    if out is not None:
        click.echo(f"summary: {out / 'summary.md'}")
    sys.exit(found.exit_code)


@main.command(epilog=as_text(), short_help="Repair the model of a run, and certify it.")
@run_argument
@click.option("--method", "methods", multiple=True, help="A method that competes; may be given several times.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the repair; default: RUN-repair.")
@click.option("--card", type=click.Path(path_type=Path), help="A card whose section 'repair' counts.")
@click.option(
    "--sealed", type=click.Path(path_type=Path), help="A table of other people's images, for the certificate."
)
@click.option("--reaudit/--no-reaudit", default=True, help="Leave out the audit of a model whose certificate is shown.")
@click.option("--report/--no-report", default=True, help="Leave out HTML and PDF, and the chapter in RUN's report.")
@data_option
@device_option
@reported
def repair(
    run_dir: Path,
    methods: tuple[str, ...],
    out: Path | None,
    card: Path | None,
    sealed: Path | None,
    data_root: Path | None,
    *,
    reaudit: bool,
    report: bool,
    device: str,
) -> None:
    """Repair the model of RUN: try methods, choose one, and say what sealed images show of it.

    RUN is a run directory, or the name of one in reports/. The run's own weights stay as they are. Give the same
    command again to resume after an interruption.
    """
    from audit.terminal import progress, repair_summary

    with progress() as callback:
        result = va.repair(
            run_dir,
            out,
            methods=list(methods) or None,
            card=card,
            sealed=sealed,
            data_root=data_root,
            reaudit=reaudit,
            device=device,
            report=report,
            command=f"vit-audit repair {shlex.quote(run_dir.name)}{_given(methods, card, sealed, reaudit=reaudit)}",
            callback=callback,
        )
    click.echo(repair_summary(result.record, va.open_run(run_dir).record, result.folder, report=report))
    sys.exit(result.exit_code)


def _given(methods: Sequence[str], card: Path | None, sealed: Path | None, *, reaudit: bool) -> str:
    """Return the options of a repair that its result depends on; where files lie here is nobody else's business."""
    named = [f"--method {shlex.quote(method)}" for method in methods]
    files = [f"--{name} {shlex.quote(path.name)}" for name, path in (("card", card), ("sealed", sealed)) if path]
    return "".join(f" {option}" for option in [*named, *files, *([] if reaudit else ["--no-reaudit"])])


@main.command(epilog=as_text(), short_help="Measure one finding of a run again.")
@run_argument
@click.argument("finding")
@data_option
@device_option
@reported
def reproduce(run_dir: Path, finding: str, data_root: Path | None, device: str) -> None:
    """Measure one FINDING of RUN again, from images and stored weights, and compare it with the report.

    RUN is a run directory, or the name of one in reports/. Exits with 6 where the number does not come out again.
    """
    from audit.terminal import finding_line

    run = va.open_run(run_dir)
    result = run.reproduce(finding, data_root=data_root, device=device)
    click.echo(finding_line(run.record, result.finding))
    click.echo(f"expected  {result.expected:+.6f}\nobtained  {result.obtained:+.6f}")
    click.echo(f"tolerance {result.tolerance:.0e}\n{'reproduced' if result.holds else 'NOT REPRODUCED'}")
    sys.exit(ExitCode.DONE if result.holds else ExitCode.NOT_VERIFIED)
