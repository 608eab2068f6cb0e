"""What a person sees in a terminal: progress while an audit runs, and a few lines at its end."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from audit.evidence.outcome import main_gaps, question_of
from audit.progress import Step
from audit.records import (
    Audit,
    ContrastRow,
    Control,
    DataReport,
    Decision,
    ExcludedRow,
    Finding,
    HeadRow,
    LoadedWeights,
    Metric,
    PreprocessingInfo,
    RunComparison,
    SharedCopy,
)
from audit.records.repair_json import LineState, Reach
from audit.records.repair_run import Repair
from audit.report.formats import clean
from audit.report.names import names_in, names_of, names_of_both
from audit.report.reviewed import Reviewed
from audit.report.text import (
    Sentences,
    because,
    certificate_line,
    counted_findings,
    data_file,
    detection_sentences,
    finding_title,
    held_sentence,
    left_out_sentence,
    left_sentence,
    limit_sentences,
    loaded_sentence,
    method_line,
    not_opened_sentence,
    note_sentences,
    policy_sentence,
    preprocessing_sentence,
    reach_line,
    removed_words,
    repair_line,
    repair_notes,
    served_sentence,
    source_sentence,
    table_sentence,
    warning_sentence,
)
from audit.store import now

if TYPE_CHECKING:
    import pandas as pd

    from audit.card.schema import Card
    from audit.pipeline.share_controls import StoredControls

Callback = Callable[[str, int, int], None]
SECONDS_BETWEEN_LINES = 10.0
ROOM_FOR_BAR = 60  # columns; in a narrower terminal the share done is shown as a number only
WIDEST = 100  # columns that prose is wrapped at
UNWRAPPED = 10_000  # where no terminal is at the other end, lines stay whole
UNSTATED = "not stated"
RATES_IN_WHOLES = 10  # from so many a second on


@contextmanager
def progress() -> Iterator[Callback]:
    """Show what a callback receives: steps, with time left."""
    with _steps() as step:
        updates: dict[str, Callable[[int, int], None]] = {}

        def callback(name: str, done: int, total: int) -> None:
            if not (done or total) or name not in updates:
                updates[name] = step(name)
            updates[name](done, total)

        yield callback


@contextmanager
def _steps() -> Iterator[Step]:
    """Show steps with time left: one bar in a terminal, a line now and then elsewhere.

    A step's name is ``part: what``. In a terminal a part that is over collapses into one line.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    name = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    columns: list[ProgressColumn] = [name]
    if console.width >= ROOM_FOR_BAR:
        columns += [BarColumn(bar_width=20), _Rate()]
    columns += [TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn(compact=True)]
    with Progress(*columns, console=console, transient=True, expand=True) as bars:
        parts = _Parts(bars)
        yield parts.step
        parts.close()


class _Rate(ProgressColumn):
    """How much of a step is done each second, over all processes: steps of training, images patched."""

    def render(self, task: Task) -> Text:
        """Return it, once it is known."""
        return Text("" if task.speed is None else per_second(task.speed))


def per_second(number: float) -> str:
    """Return a rate, such as "12/s" or "0.3/s"."""
    return f"{number:.0f}/s" if number >= RATES_IN_WHOLES else f"{number:.1f}/s"


class _Parts:
    """The bar of the step at work, and a line for each part that is over."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._part = ""
        self._begun = time.monotonic()
        self._task: TaskID | None = None

    def step(self, name: str) -> Callable[[int, int], None]:
        """Begin a step; the one before it is over."""
        part = name.split(":", 1)[0]
        if part != self._part:
            self.close()
            self._part, self._begun = part, time.monotonic()
        if self._task is not None:
            self._bars.remove_task(self._task)
        task = self._task = self._bars.add_task(name, total=None)

        def update(done: int, total: int) -> None:
            if task == self._task:  # a step that is over has no bar any more
                self._bars.update(task, completed=done, total=total or None)

        return update

    def close(self) -> None:
        """Write the line of the part that is over."""
        if self._part:
            self._bars.console.print(f"{self._part}: {time.monotonic() - self._begun:.0f} s", highlight=False)
        self._part = ""


def _lines() -> Step:
    """Return a step that prints a line when it begins and then every ten seconds."""

    def step(name: str) -> Callable[[int, int], None]:
        print(name, file=sys.stderr, flush=True)  # noqa: T201 - this is the command line
        begun = last = time.monotonic()
        before: int | None = None  # done by an earlier run

        def update(done: int, total: int) -> None:
            nonlocal last, before
            now = time.monotonic()
            before = done if before is None else before
            if done > before and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                rate = (done - before) / (now - begun)
                state = (
                    f"{100 * done // total}%, {per_second(rate)}, {(total - done) / rate:.0f} s left" if total else done
                )
                print(f"{name}: {state}", file=sys.stderr, flush=True)  # noqa: T201

        return update

    return step


def summary(audit: Audit, folder: Path, decisions: Sequence[Decision] = (), *, report: bool = True) -> str:
    """Return what page one of the report says, in a dozen lines, and the report's path.

    Parameters
    ----------
    audit : Audit
    folder : pathlib.Path
        The run directory.
    decisions : sequence of Decision, optional
        Of its reviewers.
    report : bool
        Whether the report was rendered.

    Returns
    -------
    str
        Wrapped to the terminal; without one, one line per fact.
    """
    from audit.report.page import top_findings  # draws pictures, too: slow to import

    text, reviewed = Sentences(audit), Reviewed(audit, decisions)
    asked = dict.fromkeys((r.attribute, r.outcome) for r in audit.rates if text.attribute_of(r.attribute) is not None)
    gap, top = (None, []) if audit.is_invalid else (_largest_gap(audit, reviewed), top_findings(audit, decisions))
    lines = text.summary(
        list(asked), gap, _heads(audit, gap), top, reasons=reviewed.reasons, reviewed=reviewed.headline(text)
    )
    where = f"report: {folder / 'report.html'}" if report else f"run: {folder}"
    return "\n".join([*map(wrapped, [*lines, *([law_line()] if law_is_old() else [])]), where])


def law_line() -> str:
    """Say how old the table of law is today; pages count to the day of their audit instead."""
    from audit.report.legal import age_sentence

    return age_sentence(now().date())


def law_is_old() -> bool:
    """Tell whether that is longer ago than it should be."""
    from audit.report.legal import is_stale

    return is_stale(now().date())


def reviewed_lines(audit: Audit, decisions: Sequence[Decision]) -> list[str]:
    """Say what page one says of the review."""
    return Reviewed(audit, decisions).headline(Sentences(audit))


def left_line(decision: Decision) -> str:
    """Say what of an earlier run was not taken over."""
    return left_sentence(decision)


def reach_summary(reach: Reach, data: DataReport) -> str:
    """Return whether a repair could be certified with the sealed images; what groups are called is with the data."""
    return wrapped(reach_line(reach, names_in(data)))


def share_summary(run: Path, done: int) -> str:
    """Say how many tasks of a run were done here, and whether the run is finished."""
    from audit.work.shards import is_finished  # which needs torch, as no other summary does

    return f"{done} tasks done" + ("; the run is finished" if is_finished(run) else "")


def repair_summary(record: Repair, audit: Audit, folder: Path, *, report: bool = True) -> str:
    """Return what came of a repair: its state, a line for each method, and what the certificate does not show.

    Parameters
    ----------
    record : Repair
    audit : Audit
        Of the run that was repaired: its card names groups and labels.
    folder : pathlib.Path
    report : bool
        Whether pages were printed.
    """
    names = names_of(audit)
    lines = [repair_line(record), *repair_notes(record, names)]
    if record.plan is not None:
        lines += [method_line(row, record.plan.aim.attribute, names) for row in record.rows]
    if record.certificate is not None:
        lines += [certificate_line(line, names) for line in record.certificate.lines if line.state != LineState.SHOWN]
    where = f"report: {folder / 'repair.html'}" if report else f"repair: {folder}"
    return "\n".join([*map(wrapped, lines), where])


def _largest_gap(audit: Audit, reviewed: Reviewed) -> ContrastRow | None:
    """Return the largest gap of a single attribute in its question's main metric, whose heads were looked at.

    Gaps that reviewers reject are left out.
    """
    rows = [c for c in audit.contrasts if reviewed.counts_gap(c)]
    found = [c for c in main_gaps(rows).values() if question_of(c) in audit.localisation]
    standardised = [c for c in rows if c.metric == Metric.STANDARDISED_GAP and c.estimate.value is not None]
    examined = [c for c in standardised if question_of(c) in audit.localisation]
    return max(found or examined or standardised, key=lambda c: abs(c.estimate.value or 0.0), default=None)


def _heads(audit: Audit, gap: ContrastRow | None) -> list[HeadRow]:
    """Return the heads that were tested for a gap, largest first."""
    heads = [h for h in audit.heads if gap is not None and f"{h.contrast}:{h.outcome}" == question_of(gap)]
    return sorted(heads, key=lambda h: -abs(h.confirmation.value or 0.0))


def data_summary(
    report: DataReport,
    name: str,
    preprocessing: PreprocessingInfo | None = None,
    held: tuple[int, bool] | None = None,
) -> str:
    """Return what the data hold, as counts, lists and sentences.

    Parameters
    ----------
    report : DataReport
    name : str
        The audit's.
    preprocessing : PreprocessingInfo, optional
        What is done to images before the model sees them.
    held : (int, bool), optional
        Bytes that the decoded images take, and whether they are held in memory.
    """
    about = f"{name}: {report.images} images of {report.subjects} subjects; {source_sentence(report.source)}"
    tables = [wrapped(f"table: {table_sentence(form)}") for form in report.tables]
    blocks = ["\n".join([wrapped(about), *tables]), _counts(report)]
    if preprocessing is not None:
        kept = [] if held is None else [wrapped(held_sentence(*held))]
        blocks.insert(1, "\n".join([wrapped(f"the model sees: {preprocessing_sentence(preprocessing)}"), *kept]))
    if not report.images_opened:
        blocks.append(wrapped(data_file("words.yaml")["fixed"]["no_images"]))
    for title, rows in (("left out", report.excluded), ("unreadable", report.quarantined)):
        blocks.append("\n".join([f"{title}: {sum(r.images for r in rows)} images", *map(_left_out, rows)]))
    lists = {
        "never reached the classifier": detection_sentences(report),
        "what this audit can detect": limit_sentences(report),
        "warnings": [warning_sentence(warning) for warning in report.warnings],
    }
    for title, lines in lists.items():
        if lines:
            blocks.append("\n".join([f"{title}:", *(wrapped(f"  {line}") for line in lines)]))
    return "\n\n".join(blocks)


def as_deployed(control: Control) -> str:
    """Return whether the model answers as the deployed one does, wrapped to the terminal."""
    return wrapped(served_sentence(control))


def weights_summary(opened: Mapping[str, LoadedWeights]) -> str:
    """Say how each file of weights was read, a line for each field of the card."""
    return "\n".join(wrapped(f"{field}: {loaded_sentence(weights)}") for field, weights in opened.items())


def not_opened_summary(not_opened: Mapping[str, str]) -> str:
    """Say what only a run can open, a line for each field of the card."""
    return "\n".join(wrapped(not_opened_sentence(field, named)) for field, named in not_opened.items())


def _left_out(row: ExcludedRow) -> str:
    examples = f" (e.g. {', '.join(row.examples[:2])})" if row.examples else ""
    groups = [f"{name}: {', '.join(f'{g} {n}' for g, n in counts.items())}" for name, counts in row.by_group.items()]
    return wrapped(f"  {row.images}  {left_out_sentence(row)}{examples}{''.join(f'; {each}' for each in groups)}")


def _counts(report: DataReport) -> str:
    """Return the table of images by group, label and split; what repeats from row to row is left blank."""
    splits = list(dict.fromkeys(row.split for row in report.counts))
    table = Table(box=None, pad_edge=False)
    for title in ("attribute", "group", "label"):
        table.add_column(title, overflow="fold")
    for split in splits:
        table.add_column(split, justify="right", overflow="fold")
    cells: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in report.counts:
        cells.setdefault((row.attribute, row.group, row.label), {})[row.split] = row.images
    before: Sequence[str] = ("", "")
    for (attribute, group, label), images in cells.items():
        first = attribute if attribute != before[0] else ""
        second = group if (attribute, group) != tuple(before) else ""
        values = (first, second, label, *(str(images.get(split, 0)) for split in splits))
        table.add_row(*map(Text, values))  # not markup, whatever brackets a group's name holds
        before = (attribute, group)
    page = io.StringIO()
    Console(file=page, width=terminal_width() or UNWRAPPED, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout goes to, or None where it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(line: str) -> str:
    """Wrap a line at words, its continuation indented, where a terminal is at the other end.

    What could move the cursor or turn the direction of writing, in a label say, is made visible.
    """
    line = clean(line)
    width = terminal_width()
    if width is None:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, min(width, WIDEST), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def shared_summary(copy: SharedCopy) -> list[str]:
    """Say what a shareable copy of a run has lost on purpose."""
    named = ", ".join(f"{count:,} {kind}s" for kind, count in copy.other_names.items()) or "nobody"
    lines = [f"shareable copy: under other names: {named}"]
    if copy.removed:
        lines.append(f"  taken out: {'; '.join(removed_words(copy))}")
    if copy.left_out:
        lines.append(f"  left out, so that nothing derives from them: {', '.join(copy.left_out)}")
    return lines


def models_table(families: pd.DataFrame, *, markdown: bool = False) -> str:
    """Lay out the families of models: for a terminal one paragraph each, or as a Markdown table."""
    rows = families.to_dict("records")
    if markdown:
        lines = ["| library | family | `model.name` | patched | notes |", "|---|---|---|---|---|"]
        lines += [f"| {r['library']} | {r['family']} | `{r['name']}` | {r['unit']} | {r['notes']} |" for r in rows]
        return "\n".join(lines)
    return "\n".join(
        f"{r['library']}: {r['family']}\n"
        + "\n".join(wrapped(f"  {text}") for text in (r["name"], f"{r['unit']}; {r['notes']}"))
        for r in rows
    )


def datasets_table(cards: Mapping[str, Card], *, markdown: bool = False) -> str:
    """Lay out cards by name: for a terminal who consented, who says the groups, and a paragraph each; or Markdown."""
    assigned = {
        name: "; ".join(
            f"{group}: {spec.assigned_by}" + (f" ({spec.provenance})" if spec.provenance != UNSTATED else "")
            for group, spec in card.groups.items()
        )
        for name, card in cards.items()
    }
    if markdown:
        titles = ("card", "what", "consent", "groups, and who assigned them", "licence", "layout tried on", "source")
        rows = [
            (
                f"`{n}`",
                c.description or c.name,
                _consent(c),
                assigned[n],
                c.data.licence,
                c.data.layout,
                c.data.citation,
            )
            for n, c in cards.items()
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))
    lines = [f"{'card':<24}{'task':<9}{'consent':<12}groups"]
    lines += [f"{n:<24}{c.task:<9}{c.data.consent:<12}{_provenances(c)}" for n, c in cards.items()]
    paragraphs = [
        f"\n{name}: {card.name} ({card.task})\n"
        + "\n".join(
            wrapped(f"  {text}")
            for text in (
                card.description,
                f"consent: {_consent(card)}",
                assigned[name],
                f"licence: {card.data.licence or UNSTATED}",
                "" if card.data.layout == UNSTATED else f"layout tried on: {card.data.layout}",
            )
            if text
        )
        for name, card in cards.items()
    ]
    return "\n".join([*lines, *paragraphs])


def _consent(card: Card) -> str:
    """Say whether the people shown consented, and by what that is known."""
    return card.data.consent + (f": {card.data.consent_source}" if card.data.consent_source else "")


def _provenances(card: Card) -> str:
    """Name, once each, by whom the groups are."""
    return ", ".join(dict.fromkeys(spec.provenance for spec in card.groups.values()))


def controls_lines(held: StoredControls) -> list[str]:
    """Say what control models are, for whom, and under which hash a store has them."""
    made, size = held.made_of, held.made_of["model"].get("image_size")
    days = [f"{day} by vit-audit {version}" for day, version in held.measured]
    parts = [
        f"{held.models} models, {held.size / 1e6:,.1f} MB",
        f"on {made.get('computed')}, {made.get('threads')} threads, torch {made.get('torch')}, timm {made.get('timm')}",
        f"measured on {', '.join(days)}" if days else "not measured",
        f"signed by {', '.join(keyid[:12] for keyid in held.signed_by)}" if held.signed_by else "not signed",
    ]
    first = f"{held.model}{f' at {size} px' if size else ''}: {'; '.join(parts)}"
    left = [f"  left, since it {held.left}"] if held.left else []
    return [first, f"  {held.sha256}", *left]


def diff_summary(comparison: RunComparison) -> list[str]:
    """Say in a few lines what became of the findings, and where both runs stand against their policy."""
    unit, runs = comparison.unit, (comparison.before, comparison.after)
    names = names_of_both(comparison)
    first = f"{comparison.before.outcome} -> {comparison.after.outcome}; {counted_findings(comparison)}"
    below = [row for row in comparison.findings if row.below is not None]
    return [
        first,
        "policy: " + " -> ".join(policy_sentence(run, unit) for run in runs),
        *(
            f"{clean(finding_title(row.finding, unit, names))}: {row.state}: {clean(because(row, unit))}"
            for row in below
        ),
        *map(clean, note_sentences(comparison)),
    ]


def finding_line(audit: Audit, finding: Finding) -> str:
    """Return the title of a finding of an audit."""
    return clean(Sentences(audit).finding("title", finding))
