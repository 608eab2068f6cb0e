"""Every page of a run printed again from its record and compared, in another process while figures are derived."""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pikepdf

from audit.progress import Progress
from audit.report.exports import PRINTED_WITH, printed_with
from audit.report.formats import clean
from audit.report.render import Source, printed

SHOWN = 40  # characters of a difference, to either side
Wait = Callable[[Progress], list["Fault"]]


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: where, and what."""

    place: str
    what: str

    def __str__(self) -> str:
        return clean(" ".join(f"{self.place}: {self.what}".split()))


@contextmanager
def printing_again(run: Path, source: Source) -> Iterator[Wait]:
    """Print every page again in another process, and yield what waits for it and returns where a page differs.

    Where no process can be started, or it is ended by something else, pages are printed here when they are waited for.
    """

    def here(tick: Progress) -> list[Fault]:
        return check_pages(run, source, tick)

    if "fork" not in multiprocessing.get_all_start_methods() or multiprocessing.current_process().daemon:
        yield here
        return
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_check_there, args=(run, source, theirs), daemon=True)
    try:
        with warnings.catch_warnings():
            # Threads of libraries hold nothing that is needed to print.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            process.start()
    except OSError:  # no memory, or too many processes
        yield here
        return
    finally:
        theirs.close()

    def there(tick: Progress) -> list[Fault]:
        try:
            while True:
                told = ours.recv()
                if isinstance(told, list):
                    return told
                tick(*told)
        except EOFError:
            return here(tick)

    try:
        yield there
    finally:
        process.terminate()
        process.join()
        ours.close()


def _check_there(run: Path, source: Source, pipe: Connection) -> None:
    """Send the progress of printing, then the faults."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a keyboard it reaches both; the other process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # this process ends before there is much to collect
    try:
        pipe.send(check_pages(run, source, lambda done, total: pipe.send((done, total))))
    except BrokenPipeError:  # nobody waits any more
        return


def check_pages(run: Path, source: Source, tick: Progress) -> list[Fault]:
    """Print every page again here, and return where a page differs; a page that cannot be printed is a fault, too."""
    try:
        return list(_pages(run, source, tick))
    except Exception as error:  # a library that prints is missing, say
        return [Fault("report", f"cannot be printed again ({error})")]


def _pages(run: Path, source: Source, tick: Progress) -> Iterator[Fault]:
    """Print everything again, and say where a file is not what comes out; one that is missing its hash has named.

    A run without a PDF has none printed. Where pages were printed with other versions than are here, this is said once,
    instead of where they differ.
    """
    other = _other_versions(run / "exports" / PRINTED_WITH)
    if other:
        yield Fault("report", f"cannot be compared: printed with {other}; install these versions, or render it again")
        return
    for name, again in printed(source, progress=tick, pdf=(run / "report.pdf").is_file()).items():
        path = run / name
        if not path.is_file():
            continue
        if path.read_bytes() != again:
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
