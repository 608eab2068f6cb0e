"""What can go wrong, as one tree. Each error names the place and the fix, in one line.

AuditError
├── InputError          exit 2: the card, the data or the weights must change
│   ├── CardError       ... the card; carries every fault found, each with its line
│   ├── DataError       ... the images, the table, the groups
│   │   └── ImageError  ... one image (audit/data/decode.py)
│   └── ModelError      ... the architecture or the weights
│       └── NotSummedError  ... log-odds that are no sum (audit/patching/contributions.py)
├── WaitingError        exit 9: tasks lie ready for other machines
└── UnfinishedError     exit 5: the input may be right, but the run could not finish
    ├── MemoryExhaustedError  ... for want of memory
    ├── NotWrittenError       ... for want of a disk
    └── DivergedError         ... a training whose loss is not finite
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from audit.exit_codes import ExitCode

DISK_FIXES = {  # what to do where a disk refuses, by the number of the error
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
EXHAUSTED = ("out of memory", "not enough memory", "allocate memory", "bad_alloc", "alloc_failed")  # of torch and below


class AuditError(Exception):
    """Anything that the tool itself reports; never shown as a traceback unless ``--debug`` is given.

    Parameters
    ----------
    where : str
        The place: a file, a line of a card, a column, a layer.
    what : str
        What is wrong there, with what was found.
    fix : str
        What the user can do about it.

    Examples
    --------
    >>> import vit_audit as va
    >>> try:
    ...     va.load_card("nowhere.yaml")
    ... except va.AuditError as error:
    ...     error.exit_code
    <ExitCode.BAD_INPUT: 2>
    """

    exit_code: ExitCode = ExitCode.UNFINISHED
    may_pass: bool = False  # whether the same work may succeed when it is tried again
    of_machine: bool = False  # whether all work on this machine meets it, and on another machine none may

    def __init__(self, where: str, what: str, fix: str = "") -> None:
        self.where, self.what, self.fix = where, what, fix
        super().__init__(f"{where}: {what}" + (f"; {fix}" if fix else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Come through from another process as it is."""
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(kind: type[AuditError], args: tuple[object, ...], state: dict[str, object]) -> AuditError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class InputError(AuditError):
    """The input must change before the audit can run.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.open_run("runs/none")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: runs/none: no such run directory; ...
    """

    exit_code = ExitCode.BAD_INPUT


class CardError(InputError):
    """One or more faults of a card, all reported at once.

    Parameters
    ----------
    faults : sequence of str
        One complete line each: ``dataset.yaml:14 groups.gender: unknown key 'colum'; did you mean 'column'?``

    Examples
    --------
    >>> import vit_audit as va
    >>> try:
    ...     va.Card(data={"path": "faces.csv"}, groups={"gender": {"colum": "gender"}})
    ... except va.CardError as error:
    ...     error.faults[0]
    "Card groups.gender.column: required key is missing; write 'column: ...'"
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        Exception.__init__(self, "\n".join(self.faults))


class DataError(InputError):
    """The images, the table, the groups or the splits.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.disparity(["yes", "no"], ["yes"], ["a", "b"])
    Traceback (most recent call last):
        ...
    audit.errors.DataError: ... differ in length...
    """


class ModelError(InputError):
    """The architecture or its weights.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.inspect_checkpoint("nowhere.pth")
    Traceback (most recent call last):
        ...
    audit.errors.ModelError: nowhere.pth: no such weights file; ...
    """


class UnfinishedError(AuditError):
    """The run could not finish; what was finished is kept.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.UnfinishedError("runs/smiles", "the disk is full", "make room, and run again").exit_code
    <ExitCode.UNFINISHED: 5>
    """

    may_pass = True


class WaitingError(AuditError):
    """Tasks lie ready for other machines, and nobody waits here.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.WaitingError("runs/smiles", "12 tasks are to be done").exit_code
    <ExitCode.WAITING: 9>
    """

    exit_code = ExitCode.WAITING


class MemoryExhaustedError(UnfinishedError):
    """Memory did not suffice."""


class NotWrittenError(UnfinishedError):
    """A file or folder cannot be written."""

    may_pass = False  # what took long to compute is written patiently
    of_machine = True


class DivergedError(UnfinishedError):
    """The loss of a training is not finite.

    Parameters
    ----------
    epoch : int
        Counted from 1.
    loss : float
    section : str
        Of the card, whose learning rate was used.
    """

    may_pass = False

    def __init__(self, epoch: int, loss: float, section: str = "training") -> None:
        self.epoch, self.loss = epoch, loss
        where = f"training, epoch {epoch}" if section == "training" else f"{section}, training, epoch {epoch}"
        super().__init__(where, f"the loss is {loss}", f"lower {section}.learning_rate")


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out: Python's, or torch's on a processor or an accelerator."""
    said = any(words in str(error).lower() for words in EXHAUSTED)
    return isinstance(error, MemoryError | MemoryExhaustedError) or (isinstance(error, RuntimeError) and said)


def is_refused(error: BaseException) -> bool:
    """Tell whether an error means that a disk is full, or may not be written to."""
    return isinstance(error, OSError) and error.errno in DISK_FIXES


def is_of_machine(error: BaseException) -> bool:
    """Tell whether an error is the machine's, whatever is done there: a package is missing, or a disk refuses."""
    return isinstance(error, ImportError) or is_refused(error) or (isinstance(error, AuditError) and error.of_machine)


def one_line_of(error: BaseException) -> str:
    """Return what an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def is_internal(error: Exception) -> bool:
    """Tell whether an error is a fault of the tool: none of its own, nor memory, the disk, or a reader that is gone."""
    expected = isinstance(error, AuditError | BrokenPipeError)
    return not (expected or is_exhausted(error) or is_refused(error))
