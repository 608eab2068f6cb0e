"""Exit codes, the same for every command."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code says; docs/exit-codes.md is written from this table.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.ExitCode(3).meaning
    'INVALID: a control failed, nothing is said about groups'
    """

    DONE = 0
    DISPARITY = 1
    BAD_INPUT = 2
    INVALID = 3
    TOO_LITTLE_DATA = 4
    UNFINISHED = 5
    NOT_VERIFIED = 6
    REPAIR_FAILED = 7
    WORSE_THAN_BASELINE = 8
    WAITING = 9

    @property
    def meaning(self) -> str:
        """One line in plain words."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done, and nothing above policy",
    ExitCode.DISPARITY: "a disparity above policy (run, gate)",
    ExitCode.BAD_INPUT: "bad input: one line per fault names the place and the fix; nothing is left behind",
    ExitCode.INVALID: "INVALID: a control failed, nothing is said about groups",
    ExitCode.TOO_LITTLE_DATA: "too little data: INCONCLUSIVE, or a repair NOT SHOWN, NOT CERTIFIABLE or "
    "NO METHOD HELPS",
    ExitCode.UNFINISHED: "could not finish; what is done is kept. The traceback of an internal error is in "
    "log.jsonl once a run has its folder; before that, and of other commands, --debug shows it",
    ExitCode.NOT_VERIFIED: "a record that does not verify or reproduce",
    ExitCode.REPAIR_FAILED: "a repair that failed its certificate",
    ExitCode.WORSE_THAN_BASELINE: "worse than the baseline (gate)",
    ExitCode.WAITING: "tasks lie ready for other machines: work and merge (run --shards, merge, submit)",
}


def as_markdown() -> str:
    """Return the table of docs/exit-codes.md."""
    rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    return "\n".join(["| exit code | meaning |", "|---|---|", *rows])


def as_text() -> str:
    """Return the table in one paragraph, as the help of every command ends."""
    return "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."
