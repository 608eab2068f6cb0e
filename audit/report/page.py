"""What the templates choose from a record: which rows, in which order, with which picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from audit.records import (
    AdjustedRow,
    AttentionMap,
    Audit,
    ContrastRow,
    Control,
    CountRow,
    Decision,
    Estimate,
    Finding,
    HeadGrid,
    HeadRow,
    HybridOrder,
    JointRow,
    LedgerRow,
    LedgerTotal,
    Metric,
    Outcome,
    PromptGap,
    RangeRow,
    RateRow,
    ReadMap,
    ReadRow,
    ReadWriter,
    SensitivityKind,
    TrainedRow,
    TrainedTotal,
    Verdict,
)
from audit.report import figures
from audit.report.core import Core
from audit.report.drawn import network
from audit.report.drawn.base import Picture
from audit.report.drawn.page import CorePictures
from audit.report.pointers import places
from audit.report.regions import largest_region, region_names, region_shares
from audit.report.reviewed import Reviewed
from audit.report.text import LEAST_NATS, Sentences

TOP_FINDINGS = 3
SEVERITY_ORDER = {"high": 0, "medium": 1, "low": 2}
STEPS = 5  # colour steps on each side of zero
LABELS_LISTED = 4  # beside all together; of more, the outcome's own
PARTS_LISTED = 12  # of a sum; the CSV table lists all of them
GAPS_DRAWN = 24  # with bounds by what is wrong; sentence and table have all of them
SOURCES_LISTED = 8  # of what a writer reads, likewise
FOREST_HEADS = 12  # heads drawn; the table lists all of them
FOUND = (Verdict.CONFIRMED, Verdict.CONFIRMED_NO_GAP, Verdict.NOT_CONFIRMED)
RateName = Literal["selection_rate", "standardised_rate", "true_positive_rate", "false_positive_rate"]
RATE_OF: dict[Metric, RateName] = {
    Metric.STANDARDISED_GAP: "standardised_rate",
    Metric.TPR_GAP: "true_positive_rate",
    Metric.FPR_GAP: "false_positive_rate",
}


def ordered_findings(audit: Audit) -> list[Finding]:
    """Return the findings, most severe and largest first; equal ones stay in the record's order."""
    return sorted(
        audit.findings,
        key=lambda f: (SEVERITY_ORDER[f.severity], f.kind != "disparity", -round(abs(f.estimate.value or 0.0), 4)),
    )


def top_findings(audit: Audit, decisions: Sequence[Decision] = ()) -> list[Finding]:
    """Return the two or three findings of page one: the largest of each question, one head at least.

    What reviewers reject is not among them, nor a head of a gap that they reject.
    """
    reviewed = Reviewed(audit, decisions)
    chosen: dict[tuple[str, ...], Finding] = {}
    for finding in ordered_findings(audit):
        if reviewed.counts(finding):
            chosen.setdefault((finding.kind, finding.attribute, finding.group, finding.outcome), finding)
    heads = [f for f in chosen.values() if f.kind == "head"][:1]
    disparities = [f for f in chosen.values() if f.kind == "disparity"][: TOP_FINDINGS - len(heads)]
    return disparities + heads


class Page(CorePictures):
    """One audit, as the templates ask for it; where it is invalid there are no findings, heads or comparisons."""

    def __init__(self, audit: Audit, digest: str, decisions: Sequence[Decision] = ()) -> None:
        self.audit, self.digest = audit, digest
        self.text = Sentences(audit)
        self.is_invalid = audit.is_invalid
        self.outcome = Outcome.INVALID if audit.is_invalid else audit.outcome
        self.findings = [] if self.is_invalid else ordered_findings(audit)
        self.reviewed = Reviewed(audit, decisions)
        self.core = Core(audit, self.findings, self.reviewed)
        data, controls = audit.data, audit.controls
        self.place = places(
            {
                "/rates": audit.rates, "/contrasts": audit.contrasts, "/ranges": audit.ranges, "/heads": audit.heads,
                "/adjusted": audit.adjusted,
                "/prompt_sensitivity/gaps": audit.prompt_sensitivity.gaps if audit.prompt_sensitivity else [],
                "/grids": audit.grids, "/pairs": audit.pairs, "/joint": audit.joint, "/findings": audit.findings,
                "/ledgers": audit.ledgers, "/ledger": audit.ledger,
                "/sensitivity": audit.sensitivity,
                "/trained": audit.trained, "/trained_parts": audit.trained_parts,
                "/carried": audit.carried, "/smallest": audit.smallest, "/answers": audit.answers,
                "/read_writers": audit.read_writers, "/read": audit.read, "/read_maps": audit.read_maps,
                "/attention": audit.attention, "/agreement": audit.agreement, "/stability": audit.stability,
                "/accuracy": audit.accuracy, "/controls/controls": controls.controls,
                "/controls/grids": controls.grids, "/controls/looks": controls.looks,
                "/data/attributes": data.attributes, "/data/counts": data.counts,
                "/data/label_shares": data.label_shares, "/data/excluded": data.excluded,
                "/data/detection": data.detection, "/data/covariates": data.covariates,
                "/data/quarantined": data.quarantined, "/legal": audit.legal, "/method/effort": audit.method.effort,
            }
        )  # fmt: skip
        self._every_grid = [*controls.grids, *audit.grids]

    def rate_blocks(self) -> list[tuple[str, str]]:
        """Return each attribute (or intersection) and outcome."""
        blocks = dict.fromkeys((r.attribute, r.outcome) for r in self.audit.rates)
        return list(blocks | dict.fromkeys((r.attribute, r.outcome) for r in self.audit.contrasts))

    def rates(self, attribute: str, outcome: str) -> list[RateRow]:
        """Return the rates of one block, images of unknown group included."""
        return [r for r in self.audit.rates if (r.attribute, r.outcome) == (attribute, outcome)]

    def error_rates(self) -> list[RateRow]:
        """Return the rates of page one: of the attributes themselves, groups that are known."""
        named = {a.attribute: a.groups for a in self.audit.data.attributes}
        return [r for r in self.audit.rates if r.group in named.get(r.attribute, ())]

    def contrasts(self, attribute: str, outcome: str) -> list[ContrastRow]:
        """Return the comparisons of one block."""
        rows = [] if self.is_invalid else self.audit.contrasts
        return [r for r in rows if (r.attribute, r.outcome) == (attribute, outcome)]

    def ranges(self, attribute: str, outcome: str) -> list[RangeRow]:
        """Return the widest difference, where there are more than two groups to choose from."""
        rows = [] if self.is_invalid else self.audit.ranges
        return [r for r in rows if (r.attribute, r.outcome) == (attribute, outcome) and r.groups > 2]

    def adjusted(self, attribute: str, outcome: str) -> list[AdjustedRow]:
        """Return the gaps before and after groups are made alike in covariates: of all labels, and of few each."""
        rows = [] if self.is_invalid else self.audit.adjusted
        own = [r for r in rows if (r.attribute, r.outcome) == (attribute, outcome)]
        few = len({r.label for r in own}) - 1 <= LABELS_LISTED
        return [r for r in own if few or r.label in ("", outcome)]

    def prompt_gaps(self, attribute: str, outcome: str) -> list[PromptGap]:
        """Return a zero-shot model's gaps with each text alone, of one block."""
        found = None if self.is_invalid else self.audit.prompt_sensitivity
        return [r for r in found.gaps if (r.attribute, r.outcome) == (attribute, outcome)] if found else []

    def head_blocks(self) -> list[tuple[str, str]]:
        """Return each contrast and outcome of which heads were tested."""
        return [] if self.is_invalid else list(dict.fromkeys((r.contrast, r.outcome) for r in self.audit.heads))

    def heads(self, contrast: str, outcome: str) -> list[HeadRow]:
        """Return the heads of one block."""
        return [r for r in self.audit.heads if (r.contrast, r.outcome) == (contrast, outcome)]

    def strongest(self, rows: Sequence[HeadRow]) -> list[HeadRow]:
        """Return heads, confirmed ones first and larger before smaller."""
        return sorted(rows, key=lambda r: (r.verdict != Verdict.CONFIRMED, -abs(_headline(r).value or 0.0)))

    def printed(self, rows: Sequence[HeadRow], most: int) -> list[HeadRow]:
        """Return the heads of the PDF: what was found, and the largest of the others."""
        order = self.strongest(rows)
        found = [r for r in order if r.verdict in FOUND]
        return found + [r for r in order if r.verdict not in FOUND][: max(0, most - len(found))]

    def joint(self, contrast: str, outcome: str) -> list[JointRow]:
        """Return the sets of heads of one block, larger before smaller."""
        rows = [r for r in self.audit.joint if (r.contrast, r.outcome) == (contrast, outcome)]
        return sorted(rows, key=lambda r: (-len(r.heads), r.heads))

    def ledgers(self) -> list[LedgerTotal]:
        """Return the gaps that are given as a sum, or why they are not; over all images."""
        return [] if self.is_invalid else [t for t in self.audit.ledgers if t.among == "all"]

    def near(self, total: LedgerTotal) -> LedgerTotal | None:
        """Return the same of log-odds near the decision."""
        own = (total.contrast, total.outcome)
        return next((t for t in self.audit.ledgers if (t.contrast, t.outcome) == own and t.among != "all"), None)

    def writers(self, total: LedgerTotal) -> list[tuple[LedgerRow, LedgerRow | None]]:
        """Return the largest parts, each with what it is near the decision."""
        near, most = self.near(total), PARTS_LISTED
        beside = {(r.part, r.layer, r.head): r for r in self.audit.parts_of(near, "part")} if near else {}
        shown = (r for r in self.audit.parts_of(total, "part") if abs(r.gap.value or 0.0) >= LEAST_NATS)
        rows = sorted(shown, key=lambda r: -abs(r.gap.value or 0.0))[:most]
        return [(r, beside.get((r.part, r.layer, r.head))) for r in rows]

    def readers(self, total: LedgerTotal) -> list[tuple[ReadWriter, list[ReadRow]]]:
        """Return the writers whose reading was asked, with what they read, largest first.

        Near the decision, where that differs from all images.
        """
        near = self.near(total)
        among = near.among if near is not None and near.kept is not None and near.kept < 1 else total.among
        own = (total.contrast, total.outcome)
        found = [w for w in self.audit.read_writers if (w.contrast, w.outcome) == own]
        shown = [w for w in found if w.among == among or w.part is None]
        return [(w, sorted(self.audit.read_by(w), key=lambda r: -abs(r.gap.value or 0.0))) for w in shown]

    def sources(self, writer: ReadWriter) -> list[tuple[ReadRow, ReadRow | None]]:
        """Return the largest of what a writer reads over all images, each with what it is near the decision."""
        every = self.audit.read_by(writer.model_copy(update={"among": "all"}))
        near = self.audit.read_by(writer.model_copy(update={"among": "near the decision"}))
        beside = {(r.source, r.source_layer, r.source_head): r for r in near}
        rows = sorted(every, key=lambda r: -abs(r.gap.value or 0.0))[:SOURCES_LISTED]
        return [(r, beside.get((r.source, r.source_layer, r.source_head))) for r in rows]

    def read_map(self, writer: ReadWriter) -> ReadMap | None:
        """Return where in the image a writer reads what differs between the groups, over all images."""
        own = (writer.contrast, writer.outcome, writer.part, writer.layer, writer.head)
        maps = (m for m in self.audit.read_maps if (m.contrast, m.outcome, m.part, m.layer, m.head) == own)
        return next(maps, None)

    def read_picture(self, writer: ReadWriter, seen: ReadMap) -> Picture | None:
        """Draw it; None where nothing is read at any patch."""
        largest = max(abs(v) for row in seen.values for v in row)
        if largest == 0:
            return None
        about = (writer, seen, largest_region(seen.values), largest)
        title, alt = (self.text.ledger(part, *about) for part in ("read_title", "read_map"))
        return figures.difference_picture(seen.values, largest, title, alt)

    def trained(self, contrast: str, outcome: str) -> list[TrainedTotal]:
        """Return in which orders a gap was shared out between reference and training."""
        own = (contrast, outcome)
        return [] if self.is_invalid else [t for t in self.audit.trained if (t.contrast, t.outcome) == own]

    def trained_blocks(self) -> list[tuple[str, str]]:
        """Return each contrast and outcome whose gap was shared out so."""
        return [] if self.is_invalid else list(dict.fromkeys((t.contrast, t.outcome) for t in self.audit.trained))

    def on_paths(self, contrast: str, outcome: str) -> list[tuple[TrainedRow, TrainedRow | None]]:
        """Return the rows of the path from input to output, each beside its row on the way back."""
        both = {t.order: self.audit.trained_of(t) for t in self.trained(contrast, outcome)}
        back = {r.player: r for r in both.get(HybridOrder.OUTPUT_FIRST, [])}
        return [(r, back.get(r.player)) for r in both.get(HybridOrder.INPUT_FIRST, [])]

    def trained_heads(self, contrast: str, outcome: str) -> list[TrainedRow]:
        """Return the heads that were exchanged one by one, and what is left of their layer's attention."""
        whole = {r.player for r in self.audit.trained_parts if r.order == HybridOrder.INPUT_FIRST}
        totals = [t for t in self.trained(contrast, outcome) if t.order == HybridOrder.HEADS]
        return [r for total in totals for r in self.audit.trained_of(total) if r.player not in whole]

    def gap_blocks(self) -> list[tuple[str, str]]:
        """Return each contrast and outcome of which a ledger is known."""
        audit = self.audit
        known = [(a.contrast, a.outcome) for a in audit.answers]
        known += [(total.contrast, total.outcome) for total in audit.ledgers]
        known += [(total.contrast, total.outcome) for total in audit.trained]
        return [] if self.is_invalid else list(dict.fromkeys(known))

    def network_picture(self, contrast: str, outcome: str, title: str) -> Picture | None:
        """Draw what each ledger has of a gap, from input to output."""
        return network.picture(self.audit, self.text, contrast, outcome, title)

    def sensitivity_picture(self, gap: ContrastRow) -> Picture | None:
        """Draw the bounds on a gap by how many labels, and annotations of its groups, are wrong."""
        largest = sorted(dict.fromkeys(-abs(r.gap.value or 0.0) for r in self.audit.sensitivity))[:GAPS_DRAWN]
        if -abs(gap.estimate.value or 0.0) not in largest:
            return None
        annotated = f"annotations of {self.text.names.attribute(gap.attribute)}"
        names = {SensitivityKind.LABELS: "labels", SensitivityKind.GROUPS: annotated}
        lines = tuple(
            figures.ErrorLine(
                names[r.kind],
                tuple(r.amounts),
                tuple(r.low),
                tuple(r.high),
                r.tipping,
                r.tipping_of_interval,
                r.declared,
            )
            for r in self.audit.sensitivity_of(gap)
            if r.kind in names
        )
        return figures.bounds_picture(gap.estimate, lines, self.text.sensitivity("title", gap)) if lines else None

    def grids_of(self, contrast: str, outcome: str) -> list[HeadGrid]:
        """Return the grids of one block."""
        return [g for g in self.audit.grids if (g.contrast, g.outcome) == (contrast, outcome)]

    def other_grids(self) -> list[HeadGrid]:
        """Return grids that belong to no block of heads."""
        blocks = set(self.head_blocks())
        return [] if self.is_invalid else [g for g in self.audit.grids if (g.contrast, g.outcome) not in blocks]

    def limit(self, unit: str) -> float:
        """Return the largest absolute value over all grids of one unit, which share a scale; 0 where there is none."""
        values = (v for g in self._every_grid if g.unit == unit for row in g.values for v in row if v is not None)
        return max((abs(value) for value in values), default=0.0)

    def step(self, value: float, limit: float) -> str:
        """Return the colour step of a grid value."""
        step = round(STEPS * value / limit) if limit else 0
        return f"{'neg' if step < 0 else 'pos'}{abs(step)}" if step else "zero"

    def control_lines(self) -> dict[tuple[str, str], list[Control]]:
        """Return the controls by kind and channel."""
        kinds: dict[tuple[str, str], list[Control]] = {}
        for control in self.audit.controls.controls:
            tells = control.kind in ("effect", "null") and control.channel
            kinds.setdefault((control.kind, str(tells or "")), []).append(control)
        return kinds

    def counts(self, attribute: str) -> dict[tuple[str, str], dict[str, CountRow]]:
        """Return an attribute's counts by group and label, then split."""
        cells: dict[tuple[str, str], dict[str, CountRow]] = {}
        for row in self.audit.data.counts:
            if row.attribute == attribute:
                cells.setdefault((row.group, row.label), {})[row.split] = row
        return cells

    def decisions_of(self, subject: str) -> Sequence[Decision]:
        """Return what reviewers said of a finding, by its id, or of a section, by its name; oldest first."""
        return self.reviewed.said.get(subject, ())

    def rates_picture(self, attribute: str, outcome: str, rate: RateName, compact: bool = False) -> Picture | None:
        """Draw one kind of rate of an attribute's groups for one outcome; None where nothing can be drawn."""
        bars = tuple(
            figures.Bar(self.text.group(attribute, r.group), getattr(r, rate), r.is_reference)
            for r in self.rates(attribute, outcome)
        )
        title = self.text.picture("rates", self.text.words["rates"][rate], outcome, attribute)
        return figures.rates_picture(bars, title, compact)

    def rate_of(self, finding: Finding) -> RateName:
        """Return the rate that a finding's gap is of."""
        return RATE_OF[finding.metric]

    def finding_picture(self, finding: Finding, compact: bool = False) -> Picture | None:
        """Draw what a finding is about: the rate of its metric by group, or its head with the placebo."""
        if finding.kind == "disparity":
            return self.rates_picture(finding.attribute, finding.outcome, self.rate_of(finding), compact)
        contrast = f"{finding.attribute}:{finding.group}-{finding.reference}"
        rows = [r for r in self.heads(contrast, finding.outcome) if r.name in finding.heads]
        return self.forest(rows, self.text.picture("effects", finding.heads), compact)

    def forest(self, rows: Sequence[HeadRow], title: str, compact: bool = False) -> Picture | None:
        """Draw heads with their placebo and what chance does; nothing where there are none."""
        symbols = self.text.words["verdicts"]
        heads = tuple(
            figures.HeadEffect(r.name, symbols[r.verdict]["symbol"], _headline(r), r.placebo, r.design_c, r.null_bound)
            for r in rows[:FOREST_HEADS]
        )
        return figures.forest_picture(heads, title, compact)

    def shares_picture(self, contrast: str, outcome: str, title: str) -> Picture | None:
        """Draw what share of the gap confirmed heads carry singly and sets jointly; nothing where none does."""
        rows = [r for r in self.strongest(self.heads(contrast, outcome)) if r.verdict == Verdict.CONFIRMED]
        singly = [figures.Bar(r.name, r.share_of_gap, is_reference=False) for r in rows[:FOREST_HEADS]]
        sets = [r for r in self.audit.joint if (r.contrast, r.outcome) == (contrast, outcome)]
        jointly = [figures.Bar(self.text.picture("set_name", r), r.share_of_gap, is_reference=True) for r in sets]
        return figures.shares_picture((*singly, *jointly), title) if singly else None

    def maps(self, finding: Finding) -> list[AttentionMap]:
        """Return where the finding's head looks, a map for each group."""
        contrast = f"{finding.attribute}:{finding.group}-{finding.reference}"
        return [m for m in self.audit.attention if (m.contrast, [m.name]) == (contrast, finding.heads)]

    def looks(self, maps: Sequence[AttentionMap]) -> list[Picture]:
        """Draw maps of attention on one scale."""
        largest = max((v for seen in maps for row in seen.weights for v in row), default=0.0)
        return [
            figures.attention_picture(
                seen.weights,
                largest,
                self.text.picture("attention_title", seen),
                self.text.picture("attention", seen, largest_region(seen.weights)),
            )
            for seen in maps
        ]

    def regions(self, maps: Sequence[AttentionMap]) -> tuple[Sequence[str], Sequence[str], list[list[list[float]]]]:
        """Return names of rows and columns of regions, and the shares of each map on them."""
        down, across = region_names(maps[0].weights)
        return down, across, [region_shares(seen.weights) for seen in maps]


def _headline(row: HeadRow) -> Estimate:
    """Return the estimate to show: on the confirmation split where there is one."""
    return row.confirmation if row.confirmation.value is not None else row.discovery
