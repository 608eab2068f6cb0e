"""Every page of a run printed again from its record and compared, in other processes while figures are derived."""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pikepdf

from audit.progress import Progress
from audit.report.exports import PRINTED_WITH, printed_with
from audit.report.formats import clean
from audit.report.manifest import PDF
from audit.report.render import Source, printed

SHOWN = 40  # characters of a difference, to either side
GIVEN_WAY = 10  # of niceness
Wait = Callable[[Progress], list["Fault"]]


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: where, and what."""

    place: str
    what: str

    def __str__(self) -> str:
        return clean(" ".join(f"{self.place}: {self.what}".split()))


@dataclass(frozen=True)
class Part:
    """Pages that are printed again together, and are of ``name`` where they cannot be."""

    name: str
    run: Path
    printed: Callable[[], Mapping[str, bytes]]
    gives_way: bool = False  # to other processes, where there are few processors

    def check(self) -> list[Fault]:
        """Print them here, and say where a file is not what comes out; one that is missing its hash has named."""
        try:
            return [
                fault for name, again in self.printed().items() for fault in _differing(self.run / name, name, again)
            ]
        except Exception as error:  # a library that prints is missing, say
            return [Fault(self.name, f"cannot be printed again ({error})")]


def _parts(run: Path, source: Source) -> list[Part]:
    """Return the pages and, of a run that has one, the PDF, which takes longer than all else together."""
    pages = Part("report", run, lambda: printed(source, pdf=False), gives_way=True)
    pdf = Part(PDF, run, lambda: printed(source, pages=False))
    return [pages, pdf] if (run / PDF).is_file() else [pages]


@contextmanager
def printing_again(run: Path, source: Source) -> Iterator[Wait]:
    """Print every page again in other processes, and yield what waits for them and returns where a page differs.

    Where no process can be started, or one is ended by something else, its pages are printed here when they are waited
    for. Where pages were printed with other versions than are here, this is said once, instead of where they differ.
    """
    other = _other_versions(run / "exports" / PRINTED_WITH)
    if other:
        what = f"cannot be compared: printed with {other}; install these versions, or render it again"
        yield lambda _tick: [Fault("report", what)]
        return
    with ExitStack() as started:
        # The longest begins first, and is waited for last.
        waits = [started.enter_context(_elsewhere(part)) for part in reversed(_parts(run, source))][::-1]

        def wait(tick: Progress) -> list[Fault]:
            faults = []
            for done, wait_for in enumerate(waits):
                tick(done, len(waits))
                faults += wait_for()
            return faults

        yield wait


@contextmanager
def _elsewhere(part: Part) -> Iterator[Callable[[], list[Fault]]]:
    """Check a part in another process, and yield what waits for its faults."""
    if "fork" not in multiprocessing.get_all_start_methods() or multiprocessing.current_process().daemon:
        yield part.check
        return
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_check_there, args=(part, theirs), daemon=True)
    try:
        with warnings.catch_warnings():
            # Threads of libraries hold nothing that is needed to print.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            process.start()
    except OSError:  # no memory, or too many processes
        ours.close()
        yield part.check
        return
    finally:
        theirs.close()

    def there() -> list[Fault]:
        try:
            faults: list[Fault] = ours.recv()
        except EOFError:
            return part.check()
        return faults

    try:
        yield there
    finally:
        process.terminate()
        process.join()
        ours.close()


def _check_there(part: Part, pipe: Connection) -> None:
    """Send the faults of a part."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a keyboard it reaches all; the first process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # this process ends before there is much to collect
    if part.gives_way:
        os.nice(GIVEN_WAY)
    try:
        pipe.send(part.check())
    except BrokenPipeError:  # nobody waits any more
        return


def _differing(path: Path, name: str, again: bytes) -> Iterator[Fault]:
    if path.is_file() and path.read_bytes() != again:
        differ = _first_page if name.endswith(".pdf") else _first_line
        yield Fault(name, differ(path.read_bytes(), again))


def _other_versions(path: Path) -> str:
    """Say with which versions pages were printed, and what is here instead; "" where these are the same."""
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(printed_with())
        return ", ".join(f"{name} {then[name]} (here: {now[name]})" for name in now if then[name] != now[name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # the comparison of this file, or its hash, says what is wrong with it


def _first_line(found: bytes, again: bytes) -> str:
    """Say where two texts begin to differ, and how."""
    lines = [text.decode("utf-8", "replace").splitlines() for text in (found, again)]
    number = _first_difference(*lines)
    ours, theirs = (text[number] if number < len(text) else "nothing" for text in lines)
    at = _first_difference(ours, theirs)
    a, b = (text[max(0, at - SHOWN) : at + SHOWN].strip() for text in (ours, theirs))
    return f"line {number + 1} says …{a}…, audit.json prints …{b}…"


def _first_difference(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the first place where two sequences differ, or the length of the one that the other begins with."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _first_page(found: bytes, again: bytes) -> str:
    """Say on which page two documents begin to differ."""
    try:
        with pikepdf.open(io.BytesIO(found)) as ours, pikepdf.open(io.BytesIO(again)) as theirs:
            for number, (a, b) in enumerate(zip(ours.pages, theirs.pages, strict=False), start=1):
                if _content(a) != _content(b):
                    return f"page {number} is not what audit.json prints"
    except pikepdf.PdfError as error:
        return f"is no whole PDF ({error})"
    return "is not what audit.json prints (another version of Pango or of the fonts differs so, too)"


def _content(page: pikepdf.Page) -> bytes:
    return bytes(pikepdf.unparse_content_stream(pikepdf.parse_content_stream(page)))
