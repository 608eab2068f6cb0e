"""Complete audits of every outcome, with content as a real run would leave it."""

# ruff: noqa: E501 - the sentences of a report are long

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal, get_args

from audit.evidence.outcome import decide
from audit.records import (
    AdjustedRow,
    Agreement,
    AnswerLevel,
    AttentionMap,
    AttributeInfo,
    Audit,
    CarriedKind,
    CarriedRow,
    ContrastRow,
    Control,
    ControlReport,
    ControlSetup,
    CovariateInfo,
    DataReport,
    DataSource,
    DataWarning,
    DataWarningCode,
    Design,
    Direction,
    EngineReport,
    Estimate,
    ExcludedRow,
    Finding,
    GapAnswer,
    GapLimit,
    HeadGrid,
    HeadRow,
    HybridOrder,
    IntersectionSize,
    JointRow,
    LabelShareRow,
    LedgerRow,
    LedgerTotal,
    LeftOut,
    Localisation,
    MethodReport,
    Metric,
    ModelInfo,
    NotRun,
    NotRunCode,
    PairRow,
    PartKind,
    PatchChoice,
    PreprocessingInfo,
    Provenance,
    RangeRow,
    Reading,
    ReadMap,
    ReadRow,
    ReadWriter,
    SensitivityKind,
    SensitivityRow,
    SetStep,
    SmallestSetRow,
    SourceKind,
    Stability,
    State,
    TrainedRow,
    TrainedTotal,
    TrainingRun,
    WhyNotRead,
    WhyStopped,
)
from audit.report.legal import answers
from audit.report.text import method_hash

from .counted import (
    ALPHA,
    FEWEST,
    GAP_ABOVE,
    POWER,
    RATIO_BELOW,
    Counted,
    accuracy_rows,
    contrast_rows,
    count_rows,
    counted,
    crossed,
    rate_rows,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202egnp.exe\u202c {{ 7 * 7 }} \u05e9\u05dc\u05d5\u05dd",
    '=HYPERLINK("//evil","x") 😀 $\\frac{a}{b}$',
    "x" * 10_000,
)
CARRIED = 0.7  # of the gap, by the head that carries it
PROBABILITY = 0.72  # the gap in mean probability, as a share of that in rates
ALONE = CARRIED * PROBABILITY  # what the head carries of it
WRITTEN = 0.13  # nats, by each head of the last layer
BEFORE = 0.28  # of the gap, in the reference model already
RANDOM_SETS = [0.002, -0.001, 0.004, *(0.001 * (k % 5 - 2) for k in range(16))]
HASHES = {name: f"{index:x}" * 64 for index, name in enumerate(("card", "data", "weights", "code"), start=1)}


def estimate(value: float | None, half: float = 0.02) -> Estimate:
    return Estimate(value=value) if value is None else Estimate(value=value, low=value - half, high=value + half)


def control(
    check: str, value: float, relation: Literal["==", "<=", "<", ">=", ">"], threshold: float, *,
    kind: Literal["identity", "initialisation", "effect", "null"] = "identity", passed: bool = True,
    half: float | None = None, n: int = 64, channel: Literal["colour", "blur"] | None = None, **about: object,
) -> Control:  # fmt: skip
    return Control.model_validate(
        {
            "id": "_".join([channel or "own", check]), "check": check, "kind": kind, "channel": channel,
            "estimate": Estimate(value=value) if half is None else estimate(value, half),
            "judged": "value" if half is None else "low", "relation": relation, "threshold": threshold,
            "passed": passed, "n": n, **about,
        }
    )  # fmt: skip


def null(check: str, channel: Literal["colour", "blur"], *, effect: float, carried: float) -> Control:
    """Return a control in which less than half of an effect may be carried; it is judged by half of it minus that."""
    left, half = round(effect / 2 - carried, 3), 0.03
    figures = {"null": carried, "effect": effect}
    return control(
        check, left, ">", 0.0, passed=left > half, half=half, n=150, channel=channel, kind="null", figures=figures
    )


def controls(valid: bool, layers: int, heads: int) -> ControlReport:
    effect: dict[str, Any] = {
        "kind": "effect",
        "form": "models",
        "figures": {"seeds": 2, "joint": 0.91},
        "head": "L2H1",
    }
    rows = [
        control("self_patch", 0.0, "==", 0.0),
        control("writes_sum", 3.1e-7, "<=", 1e-5),
        control("everything_patched", 8.6e-6, "<=", 1e-4),
        control("rotation", 4.4e-6, "<=", 1e-4),
        control("live_sites", 0.0021, ">", 0.0),
        control("engine", 2.3e-6, "<=", 1e-4),
        control("same_base", 1.0, "==", 1.0, kind="initialisation", channel="colour", form="models"),
        control("heads_match", 0.97, ">=", 0.95, kind="initialisation", channel="colour", form="models"),
        control("gap", 1.42, ">", 0.0, half=0.21, n=300, channel="colour", **effect),
        control("head", 0.31, ">", 0.0, half=0.06, n=150, channel="colour", **effect),
        null("null_nothing_to_carry", "colour", effect=1.42, carried=0.11),
        control("gap", 0.94, ">", 0.0, half=0.18, n=300, channel="blur", **effect),
        control("head", 0.22, ">", 0.0, half=0.05, n=150, channel="blur", **effect),
        null("null_other_seed", "colour", effect=1.42, carried=0.42 if valid else 0.69),
        null("null_shuffled", "blur", effect=0.94, carried=0.33),
    ]  # fmt: skip
    draw = random.Random(7)
    grids = [
        grid(f"{name}{'_null' if kind == 'null' else ''}", kind, layers, heads, draw, 0.03 if kind == "null" else 0.3,
             channel=name, unit="log-odds", images=150)
        for name in ("colour", "blur")
        for kind in ("effect", "null")
    ]  # fmt: skip
    return ControlReport(
        valid=valid,
        controls=rows,
        grids=grids,
        setup=ControlSetup(
            images="rendered patterns",
            train=600,
            evaluate=300,
            models=5,
            weights="",
            measured_on="2026-03-01",
            version="0.2.0",
        ),
        not_run=[NotRun(code=NotRunCode.PAIRS_AS_GIVEN, design="Design B", contrast="gender:female-male")],
    )


def grid(
    grid_id: str, kind: str, layers: int, heads: int, draw: random.Random, size: float, **about: object
) -> HeadGrid:
    values = [[round(draw.gauss(0, size / 8), 5) for _ in range(heads)] for _ in range(layers)]
    marks = [[""] * heads for _ in range(layers)]
    values[-1][heads // 2] = size
    if kind != "null":
        marks[-1][heads // 2] = "confirmed" if kind == "gap" else "above zero"
    return HeadGrid.model_validate(
        {
            "unit": "probability", **about, "id": grid_id, "kind": kind, "values": values, "marks": marks,
            "layers": list(range(layers)),
        }
    )  # fmt: skip


def data(attribute: str, cells: Sequence[Counted], labels: list[str], labels_note: str = "") -> DataReport:
    counts, groups = count_rows(attribute, cells, labels), [c.group for c in cells]
    splits = {name: sum(r.images for r in counts if r.split == name) for name in ("train", "discovery", "confirmation")}
    images, audited = sum(splits.values()), splits["discovery"] + splits["confirmation"]
    shares = {name: sum(r.images for r in counts if r.label == name) / images for name in labels}
    repeated = 87
    return DataReport(
        source=DataSource(kind=SourceKind.FILES, reader="table", path="faces.csv"),
        images=images,
        subjects=sum(r.subjects for r in counts),
        labels=labels,
        fingerprint="d" * 64,
        attributes=[
            AttributeInfo(
                attribute=attribute, assigned_by="manual annotation of perceived " + attribute[:40],
                reference=groups[-1], groups=groups,
                unknown_images=sum(r.images for r in counts if r.group == "unknown"), note=labels_note,
            )
        ],
        counts=counts,
        covariates=[
            CovariateInfo(column="age", caliper=5, images=audited - 12, missing=12, lowest=18.0, highest=90.5)
        ],
        label_shares=[
            LabelShareRow(column="annotator", value=value, images=part, shares=shares)
            for value, part in (("A.", images // 2), ("B.", images - images // 2))
        ],
        excluded=[ExcludedRow(
                kind=LeftOut.LABEL_NOT_KEPT,
                of="data.labels",
                names=["surprise"],
                images=112,
                examples=["a/1.jpg", "b/2.jpg"],
                by_group={attribute: {groups[0]: 100, groups[-1]: 12}},
            )],
        quarantined=[ExcludedRow(kind=LeftOut.DAMAGED, images=2, examples=["broken/3.jpg"])],
        splits=splits,
        licence="research use only",
        citation="Example et al., 2020",
        limits=[
            GapLimit(
                attribute=attribute, group=groups[0], reference=groups[-1], subjects_group=cells[0].subjects,
                subjects_reference=cells[-1].subjects, subjects_needed=FEWEST,
                detectable=dict.fromkeys(labels[1:], 0.0612), power=POWER, tests=len(Metric),
            )
        ],
        intersections=[IntersectionSize(attributes=[attribute, "race"], groups=4, enough=3, subjects_needed=FEWEST)],
        warnings=[DataWarning(code=DataWarningCode.REPEATED_ROWS, images=repeated)],
    )  # fmt: skip


def head_rows(
    contrast_id: str, outcome: str, layers: int, heads: int, planted: bool, design_c: bool, gap: float = 0.1
) -> list[HeadRow]:
    draw = random.Random(11)
    rows = []
    for layer in range(layers):
        for head in range(heads):
            is_planted = planted and (layer, head) == (layers - 1, heads // 2)
            value = ALONE * gap if is_planted else draw.gauss(0, 0.0018)
            rows.append(
                HeadRow(
                    contrast=contrast_id, outcome=outcome, layer=layer, head=head, name=f"L{layer}H{head}",
                    discovery=estimate(value * 1.1, 0.006), discovery_p=0.0002 if is_planted else 0.4,
                    discovery_p_adjusted=0.004 if is_planted else 0.98, confirmation=estimate(value, 0.007),
                    confirmation_p=0.0004 if is_planted else None,
                    confirmation_p_adjusted=0.0004 if is_planted else None,
                    iie_forward=estimate(value / 2, 0.005), iie_backward=estimate(-value / 2, 0.005),
                    placebo=estimate(0.0011, 0.004), share_of_gap=estimate(CARRIED, 0.12) if is_planted else estimate(None),
                    percentile_in_layer=100.0 if is_planted else draw.random() * 99,
                    accuracy_change=-0.0012, design_c=estimate(value * 0.9, 0.008) if design_c else None,
                    transplant=estimate(value * 0.4, 0.007) if design_c else None, attribution=value * 0.8,
                    natural_indirect=estimate(value * 0.7, 0.003), natural_direct=estimate(PROBABILITY * gap - value * 0.7, 0.01),
                    confirmation_rate=estimate(value * CARRIED / ALONE, 0.011), confirmation_log_odds=estimate(value * 9, 0.1),
                    direction="widens" if is_planted else "not determined", by_seed=[value, value * 0.93], verdict="confirmed" if is_planted else "no effect found",
                    smallest_detectable=0.0091,
                )
            )  # fmt: skip
    return rows


def attention_maps(contrast_id: str, groups: tuple[str, ...], head: str) -> list[AttentionMap]:
    draw = random.Random(13)
    return [
        AttentionMap(
            contrast=contrast_id, name=head, group=group, images=412,
            weights=[[draw.random() / 64 for _ in range(8)] for _ in range(8)],
        )
        for group in (groups[0], groups[-1])
    ]  # fmt: skip


def joint_rows(contrast_id: str, outcome: str, layers: int, heads: int, gap: float) -> list[JointRow]:
    sets = [[f"L{i}H{h}" for i in range(layers) for h in range(heads)], ["L0H0", f"L{layers - 1}H{heads // 2}"]]
    return [
        JointRow(
            contrast=contrast_id, outcome=outcome, heads=names, all_heads=len(names) == layers * heads,
            together_rate=estimate(0.9 * gap, 0.011), together=estimate(0.9 * PROBABILITY * gap, 0.008),
            sum_of_singles=estimate(1.2 * PROBABILITY * gap, 0.021), beyond_sum=estimate(-0.3 * PROBABILITY * gap, 0.015),
            share_of_gap=estimate(0.9, 0.1), sum_share_of_gap=estimate(1.2, 0.3),
        )
        for names in sets
    ]  # fmt: skip


def sensitivity_rows(contrast_id: str, outcome: str, gap: ContrastRow) -> list[SensitivityRow]:
    """Return how wrong annotations may be before a gap vanishes; those of groups are estimated by the card."""
    value = gap.estimate.value or 0.0
    lost = value * 0.03 / 0.0314  # of the gap, where as many annotations are wrong as the card says
    at: dict[SensitivityKind, Any] = {
        SensitivityKind.LABELS: {"tipping": 0.0613, "tipping_of_interval": 0.0409},
        SensitivityKind.LABELS_AT_RANDOM: {"tipping": None, "tipping_of_interval": None},
        SensitivityKind.GROUPS: {
            "tipping": 0.0314, "tipping_of_interval": 0.0211, "declared": 0.04, "declared_reference": 0.02,
            "low_at_declared": value - lost, "high_at_declared": value + lost, "survives": False,
        },
        SensitivityKind.GROUPS_AT_RANDOM: {
            "tipping": None, "tipping_of_interval": None, "declared": 0.04, "declared_reference": 0.02,
            "low_at_declared": 1.06 * value, "high_at_declared": 1.06 * value, "survives": True,
        },
        SensitivityKind.SAMPLING: {"tipping": 1.31, "tipping_of_interval": 1.19},
    }  # fmt: skip
    amounts = [0.0765 * k / 20 for k in range(21)]
    rows = []
    for kind, found in at.items():
        spread = 0.0 if "random" in kind else value / found["tipping"]
        rows.append(
            SensitivityRow(
                contrast=contrast_id, outcome=outcome, metric=Metric.STANDARDISED_GAP, kind=kind,
                gap=gap.estimate, amounts=[1 + a for a in amounts] if kind == "sampling" else amounts,
                low=[value - spread * a for a in amounts], high=[value + spread * a for a in amounts], **found,
            )
        )  # fmt: skip
    return rows


def ledgers(contrast_id: str, outcome: str, layers: int, heads: int) -> tuple[list[LedgerTotal], list[LedgerRow]]:
    """Return a sum over a network whose last layer's attention writes most."""
    named: dict[str, Any] = {"contrast": contrast_id, "outcome": outcome}
    attention, mlp = WRITTEN * heads, 0.01 * layers
    whole = attention + mlp + 0.02 - 0.05
    totals = [
        LedgerTotal(
            **named, metric=Metric.STANDARDISED_GAP, among="all", gap=estimate(whole, 0.21),
            adjusted=estimate(1.3 * whole, 0.24), closure=2e-8, closure_of_images=4e-7,
        ),
        LedgerTotal(
            **named, metric=Metric.STANDARDISED_GAP, among="near the decision", gap=estimate(0.44 * whole, 0.1),
            adjusted=estimate(1.3 * 0.44 * whole, 0.1), clip=4.0, kept=0.83, closure=2e-8, closure_of_images=4e-7,
        ),
    ]  # fmt: skip
    rows = []
    for images, scale in (("all", 1.0), ("near the decision", 0.44)):
        about: dict[str, Any] = named | {"among": images}

        def row(level: str, value: float, about: Any = about, scale: float = scale, **what: Any) -> LedgerRow:
            share = estimate(value / whole, 0.05)
            gap, adjusted = estimate(scale * value, 0.04), estimate(1.3 * scale * value, 0.05)
            return LedgerRow(**about, level=level, gap=gap, adjusted=adjusted, share=share, **what)

        last = layers - 1
        rows += [
            *(row("part", WRITTEN, family="attention", part="head", layer=last, head=h) for h in range(heads)),
            *(row("part", 0.01, family="MLP", part="MLP", layer=i) for i in range(layers)),
            row("part", 0.02, family="embedding", part="patches"),
            row("part", -0.05, family="what is held", part="what is held"),
            row("family in layer", 0.02, family="embedding"),
            *(row("family in layer", attention, family="attention", layer=i) for i in (last,)),
            *(row("family in layer", 0.01, family="MLP", layer=i) for i in range(layers)),
            row("family in layer", -0.05, family="what is held"),
            row("family", 0.02, family="embedding"),
            row("family", attention, family="attention"),
            row("family", mlp, family="MLP"),
            row("family", -0.05, family="what is held"),
        ]
    return totals, rows


def trained(
    contrast_id: str, outcome: str, images: int, gap: float, log_odds: float
) -> tuple[list[TrainedTotal], list[TrainedRow]]:
    """Return a gap that the classifier's training made, in two orders and on average."""
    named: dict[str, Any] = {"contrast": contrast_id, "outcome": outcome}
    totals = [
        TrainedTotal(
            **named, metric=Metric.STANDARDISED_GAP, order=order, images=images, references=2, rate=estimate(gap, 0.019),
            probability=estimate(PROBABILITY * gap, 0.01), log_odds=estimate(log_odds, 0.2),
            by_training=estimate((1 - BEFORE) * gap, 0.02), adjusted=estimate(1.3 * gap, 0.02), closure=0.0,
        )
        for order in HybridOrder
    ]  # fmt: skip
    rows = [
        TrainedRow(
            **named, order=order, player=player, same_weights=player == "embedding", rate=estimate(value, 0.01), adjusted=estimate(1.3 * value, 0.01),
            probability=estimate(PROBABILITY * value, 0.01), log_odds=estimate(log_odds / gap * value, 0.1), between=0.004,
            null=0.006 if order != HybridOrder.SHAPLEY else None,
            order_error=0.001 if order == HybridOrder.SHAPLEY else None,
            accuracy=None if order == HybridOrder.SHAPLEY else estimate(0.88, 0.02),
        )
        for order in HybridOrder
        for player, value in (
            ("", BEFORE * gap), ("embedding", 0.0), ("L2", 0.02 * gap), ("classifier", (0.98 - BEFORE) * gap),
        )
    ]  # fmt: skip
    return totals, rows


def carried(contrast_id: str, outcome: str, layers: int, gap: float) -> list[CarriedRow]:
    """Return what whole parts carry: attention, and the last layer."""

    def row(part: str, of_gap: float, layer: int | None = None) -> CarriedRow:
        value = of_gap * gap
        return CarriedRow(
            contrast=contrast_id, outcome=outcome, metric=Metric.STANDARDISED_GAP, part=CarriedKind(part), layer=layer,
            recipients=200, denoised=estimate(PROBABILITY * value, 0.008), denoised_rate=estimate(value, 0.01),
            share_of_gap=estimate(of_gap, 0.1), noised=estimate(0.5 * value, 0.008),
            apart=estimate(0.2 * value, 0.008), beyond_noise=of_gap > 0.4,
        )  # fmt: skip

    whole = [row("attention", 0.88), row("MLP", 0.07)]
    return [
        *whole,
        *(row("layer", CARRIED if i == layers - 1 else 0.03, i) for i in range(layers)),
        row("class token", 0.52, 2),
    ]


def smallest(contrast_id: str, outcome: str, head: str, gap: float) -> SmallestSetRow:
    """Return a set of one head that is confirmed beyond random sets."""
    return SmallestSetRow(
        contrast=contrast_id, outcome=outcome, metric=Metric.STANDARDISED_GAP, heads=[head],
        steps=[SetStep(head=head, gain=1.1 * ALONE * gap, error=0.004, joint=1.1 * ALONE * gap)], stopped=WhyStopped.NOISE, limit=3.4, tried=8,
        patched=7, recipients=200, together=estimate(ALONE * gap, 0.007), together_rate=estimate(CARRIED * gap, 0.011),
        share_of_gap=estimate(CARRIED, 0.12), sum_of_singles=estimate(ALONE * gap, 0.007), redundancy=estimate(0.0, 0.0),
        random=RANDOM_SETS, beyond_random=estimate(ALONE * gap - sum(RANDOM_SETS) / len(RANDOM_SETS), 0.007),
        p_random=1 / (1 + len(RANDOM_SETS)), confirmed=True,
    )  # fmt: skip


def gap_answer(contrast_id: str, outcome: str, head: str) -> GapAnswer:
    """Return where a gap runs: through one head, which another layer's training feeds."""
    return GapAnswer(
        contrast=contrast_id, outcome=outcome, metric=Metric.STANDARDISED_GAP, level=AnswerLevel.HEADS, heads=[head],
        jointly=True, layers=[int(head[1])], share=estimate(CARRIED, 0.12), not_attributed=estimate(1 - CARRIED, 0.12),
        written_in=int(head[1]), trained_in="classifier", reading=Reading.SAME,
    )  # fmt: skip


def reading(
    contrast_id: str, outcome: str, layers: int, heads: int
) -> tuple[list[ReadWriter], list[ReadRow], list[ReadMap]]:
    """Return what a head and an MLP of the last layer read, and a writer of which that is not known."""
    named: dict[str, Any] = {"contrast": contrast_id, "outcome": outcome}
    last = layers - 1
    parts: list[dict[str, Any]] = [
        {"part": PartKind.HEAD, "layer": last, "head": heads - 1},
        {"part": PartKind.MLP, "layer": last},
    ]
    writers, rows = [], []
    for among, scale in (("all", 1.0), ("near the decision", 0.5)):
        about: dict[str, Any] = named | {"among": among}
        whole = estimate(scale * 0.13, 0.04)
        for part in parts:
            writers.append(
                ReadWriter(
                    **about, **part, metric=Metric.STANDARDISED_GAP, gap=whole, closure=3e-9, closure_of_images=2e-7
                )
            )
            sources: list[tuple[dict[str, Any], float]] = [
                ({"source": PartKind.TOKENS}, 0.001),
                ({"source": PartKind.PATCHES}, 0.07),
                *(({"source": PartKind.HEAD, "source_layer": 0, "source_head": h}, 0.01) for h in range(heads)),
                ({"source": PartKind.MLP, "source_layer": 0}, 0.03),
                ({"source": PartKind.HELD}, -0.011),
            ]
            rows += [
                ReadRow(**about, **part, **source, gap=estimate(scale * value, 0.02), share=estimate(value / 0.13, 0.1))
                for source, value in sources
            ]
        unknown = {"part": PartKind.HEAD, "layer": 1, "head": 0, "why_not": WhyNotRead.NOT_PLAIN}
        writers.append(ReadWriter(**about, **unknown, metric=Metric.STANDARDISED_GAP, gap=whole))
    values = [[0.001 * (row - column) for column in range(7)] for row in range(7)]
    nowhere = [[0.0] * 7] * 7
    maps = [
        ReadMap(**named, **part, images_group=611, images_reference=589, prefix=0.0021, values=shown)
        for part, shown in zip(parts, (values, nowhere), strict=True)
    ]
    return writers, rows, maps


def disparity_finding(number: int, row: ContrastRow, worst: ContrastRow) -> Finding:
    value = (row.estimate.value or 0.0) + (number - 1) / 1000
    assert row.estimate.high is not None and row.p_raw is not None and row.p_adjusted is not None
    return Finding(
        id=f"F-{number:08x}", kind="disparity",
        severity="high" if number < 3 else "medium", confidence="high",
        attribute=row.attribute, group=row.group, reference=row.reference, outcome=row.outcome, metric=row.metric,
        n_group=row.n_group, n_reference=row.n_reference, unknown=62,
        estimate=estimate(value, row.estimate.high - (row.estimate.value or 0.0)), p_raw=row.p_raw,
        p_adjusted=row.p_adjusted, family_size=row.family_size, heads=["L0H1"], alternatives=["label quality", "correlates", "audit images"],
        hashes={"audit data": "d" * 64, "weights": "a" * 64}, reproduce="vit-audit run dataset.yaml --data faces",
        expected=value, tolerance=0.0005, by_seed=row.by_seed, ratio=row.ratio, above_policy=True,
        worst_metric=worst.metric, worst=worst.estimate.value, localisation="localised",
    )  # fmt: skip


def head_finding(gap: Finding, row: HeadRow) -> Finding:
    base = gap
    return base.model_copy(
        update={
            "id": "F-3fa9c1d2", "kind": "head", "severity": "high", "estimate": row.confirmation_rate,
            "heads": [row.name], "expected": row.confirmation.value, "probability": row.confirmation,
            "discovery": row.discovery, "p_raw": row.confirmation_p, "p_adjusted": row.confirmation_p_adjusted,
            "discovery_p_adjusted": row.discovery_p_adjusted, "placebo": row.placebo,
            "share_of_gap": row.share_of_gap.value, "direction": Direction.WIDENS,
            "percentile_in_layer": row.percentile_in_layer, "accuracy_change": row.accuracy_change,
            "by_seed": row.by_seed, "localisation": None, "ratio": None, "worst_metric": None, "worst": None,
            "alternatives": ["redundant heads", "passed on", "label quality"],
        }
    )  # fmt: skip


def adjusted(attribute: str, group: str, reference: str, outcome: str, gap: float) -> list[AdjustedRow]:
    about = {
        "attribute": attribute, "group": group, "reference": reference, "outcome": outcome, "covariates": ["age"],
        "without_covariate": 12, "mean_group": {"age": 61.74}, "mean_reference": {"age": 58.03},
    }  # fmt: skip
    nothing = Estimate(value=None)
    return [
        AdjustedRow(
            **about, label="", n_group=251, n_reference=262, without_counterpart=3, before=estimate(gap, 0.018),
            after=estimate(1.2 * gap, 0.019), part=estimate(-0.2 * gap, 0.006),
        ),
        AdjustedRow(
            **about, label=outcome, n_group=21, n_reference=142, without_counterpart=1, before=nothing, after=nothing,
            part=nothing, shortfall="subjects", fewest_subjects=21, subjects_needed=30,
        ),
    ]  # fmt: skip


def base(
    *, attribute: str = "gender", groups: tuple[str, ...] = ("female", "male"), outcome: str = "happiness",
    layers: int = 4, heads: int = 4, planted: bool = True, design_c: bool = True, state: State = State.DISPARITY,
    findings: int = 1, valid: bool = True, name: str = "Expressions in news photographs", scale: float = 1.0,
) -> Audit:  # fmt: skip
    group, reference = groups[0], groups[-1]
    contrast_id = f"{attribute}:{group}-{reference}"
    head_name = f"L{layers - 1}H{heads // 2}"
    cells = counted(groups, state, scale)
    both = crossed(cells)
    contrasts = contrast_rows(attribute, cells, outcome, tuple(Metric))
    contrasts += contrast_rows("gender x race", both, outcome, [Metric.STANDARDISED_GAP])
    contrasts += contrast_rows("gender x race", both, outcome, [Metric.TPR_GAP], number=2)
    standardised, worst = contrasts[0], max(contrasts[:3], key=lambda c: (c.above_policy, abs(c.estimate.value or 0.0)))
    gap = standardised.estimate.value or 0.0
    accuracy = accuracy_rows(attribute, cells)
    right, balanced = (accuracy[0].accuracy.value or 0.0, accuracy[0].balanced_accuracy.value or 0.0)
    rows = head_rows(contrast_id, outcome, layers, heads, planted, design_c, gap)
    cards = [disparity_finding(n, standardised, worst) for n in range(1, findings + 1)]
    if planted and findings:
        cards.append(head_finding(cards[0], next(r for r in rows if r.name == head_name)))
    report = controls(valid, layers, heads)
    verdict = decide(report, contrasts, gap_above=GAP_ABOVE)
    written, parts = ledgers(contrast_id, outcome, layers, heads)
    shared, shares = trained(contrast_id, outcome, cells[0].images, gap, written[0].gap.value or 0.0)
    counts = data(attribute, cells, ["neutral", outcome])
    return Audit(
        audit_id="expressions-20260301-9f8e7d6c",
        name=name,
        task="emotion",
        outcome=verdict.outcome,
        exit_code=verdict.exit_code,
        reasons=verdict.reasons,
        next_steps=verdict.next_steps,
        intended_use="Sorting a press archive by facial expression.",
        out_of_scope="Decisions about people at work or in education.",
        model=ModelInfo(
            name="vit_small_patch14_dinov2", display="Press archive sorter 3", weights="vit_small.safetensors",
            weights_sha256="a" * 64, parameters=3_300_000, layers=layers, heads=heads, image_size=98,
            preprocessing=PreprocessingInfo(
                source="library default", library="timm 1.0.31", steps=["Resize(size=98)", "CenterCrop(size=(98, 98))"],
                input_size=[3, 98, 98], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
            ),
            classes=["neutral", outcome], training=TrainingRun(blocks=min(2, layers), images=counts.splits["train"], epochs=3, batch_size=64, learning_rate=5e-4, weight_decay=0.05), seeds=[0, 1],
            accuracy_by_seed=[right, right - 0.0038], balanced_accuracy_by_seed=[balanced, balanced - 0.0039],
        ),
        legal=answers({"gdpr-9": "Public research collections; no link to identities is kept."}, "emotion"),
        controls=report,
        data=counts,
        rates=rate_rows(attribute, cells, outcome) + rate_rows("gender x race", both, outcome),
        contrasts=contrasts,
        ranges=[
            RangeRow(
                attribute=attribute, outcome=outcome, highest=group, lowest=reference, groups=len(groups),
                widest=abs(gap) + 0.01, by_chance=0.0223, corrected=abs(gap) - 0.0123, p=0.004,
            )
        ],
        adjusted=adjusted(attribute, group, reference, outcome, gap),
        findings=cards,
        heads=rows,
        agreement=[
            Agreement(
                contrast=contrast_id, outcome=outcome, design=design, rank_correlation=0.83, sign_agreement=0.9,
                top10_recall=0.7,
            )
            for design in get_args(Design)
        ] if planted else [],
        pairs=[
            PairRow(
                contrast=contrast_id, outcome=outcome, pairs=400, subjects=380, total=estimate(PROBABILITY * gap, 0.012),
            )
        ] if planted else [],
        attention=attention_maps(contrast_id, groups, head_name) if planted else [],
        joint=joint_rows(contrast_id, outcome, layers, heads, gap) if planted else [],
        ledgers=written if planted else [],
        ledger=parts if planted else [],
        sensitivity=sensitivity_rows(contrast_id, outcome, standardised) if state == State.DISPARITY else [],
        trained=shared if planted else [],
        trained_parts=shares if planted else [],
        carried=carried(contrast_id, outcome, layers, gap) if planted else [],
        smallest=[smallest(contrast_id, outcome, head_name, gap)] if planted else [],
        answers=[gap_answer(contrast_id, outcome, head_name)] if planted else [],
        read_writers=reading(contrast_id, outcome, layers, heads)[0] if planted else [],
        read=reading(contrast_id, outcome, layers, heads)[1] if planted else [],
        read_maps=reading(contrast_id, outcome, layers, heads)[2] if planted else [],
        grids=[grid(f"bias:{contrast_id}:{outcome}", "gap", layers, heads, random.Random(5), 0.0285, contrast=contrast_id, outcome=outcome)],
        stability=[
            Stability(
                contrast=contrast_id, outcome=outcome, split_half_rank_correlation=0.71, top10_overlap=0.6,
                seeds_rank_correlation=0.83, heads=layers * heads, seeds=2,
            )
        ],
        accuracy=accuracy,
        localisation={
            f"{contrast_id}:{outcome}": Localisation(
                status="localised" if planted else "not localisable", metric="standardised_gap",
                heads=[head_name] if planted else [],
            )
        },
        method=MethodReport(
            preregistration_sha256="c" * 64,
            words_sha256=method_hash(), layers=layers,
            thresholds={
                "alpha": ALPHA, "policy.gap_above": GAP_ABOVE, "policy.impact_ratio_below": RATIO_BELOW, "policy.head_share_above": 0.05,
                "min_group_size": FEWEST,
            },
            permutations=5000, bootstrap=2000,
            engine=EngineReport(device="CPU", largest_difference=2.3e-6),
            patches=PatchChoice(sampled=False, asked="auto", every=41_234.5, sample=9_876.0, affordable=60_000.0),
        ),
        provenance=Provenance(
            command="vit-audit run dataset.yaml --data /data/expressions", started="2026-03-01T09:30:00+00:00",
            run_by="A. Auditor", hardware="2 cores, 8 GB", versions={"vit-audit": "0.1.0", "fairlearn": "0.12.0", "torch": "2.13.0"},
            seeds=[0, 1], hashes=HASHES,
        ),
        synthetic=False,
    )  # fmt: skip


def large(layers: int = 24, heads: int = 16, contrasts: int = 12, findings: int = 200) -> Audit:
    """Return an audit of the largest size that the report is made for."""
    one = base(layers=layers, heads=heads)
    names = [f"gender:group {k}-male" for k in range(contrasts)]
    rows = [row.model_copy(update={"contrast": name}) for name in names for row in one.heads]
    grids = [
        grid(
            f"bias:{name}:happiness", "gap", layers, heads, random.Random(5), 0.0285, contrast=name, outcome="happiness"
        )
        for name in names
    ]
    gap, head = one.findings[0], one.findings[-1]
    rates = [
        gap.model_copy(update={"id": f"F-{k:08x}", "group": f"group {k % contrasts}"}) for k in range(findings // 4)
    ]
    found = [
        head.model_copy(
            update={"id": f"F-{k:08x}", "group": f"group {k % contrasts}", "heads": [f"L{k % layers}H{k % heads}"]}
        )
        for k in range(len(rates), findings)
    ]
    return changed(
        one, heads=rows, grids=grids, findings=[*rates, *found],
        localisation={
            f"{name}:happiness": Localisation(status="localised", heads=[f"L{layers - 1}H{heads // 2}"]) for name in names
        },
    )  # fmt: skip


def many_pairs(layers: int = 12, heads: int = 12, pairs: int = 6) -> Audit:
    """Return an audit of a common model and as many groups, each compared with one reference: 144 heads x 6 pairs."""
    names = [f"group {k}" for k in range(pairs)]
    one = base(layers=layers, heads=heads, groups=(names[0], "male"))
    own, others = ([r for r in one.rates if (r.group == names[0]) == is_own] for is_own in (True, False))
    ids = {name: f"gender:{name}-male" for name in names}
    (attribute,) = one.data.attributes
    return changed(
        one,
        rates=[row.model_copy(update={"group": name}) for name in names for row in own] + others,
        contrasts=[
            row.model_copy(update={"id": row.id.replace(names[0], name), "group": name})
            for name in names
            for row in one.contrasts
            if row.group == names[0]
        ],
        heads=[row.model_copy(update={"contrast": key}) for key in ids.values() for row in one.heads],
        grids=[
            grid(f"bias:{key}:happiness", "gap", layers, heads, random.Random(5), 0.0285, contrast=key, outcome="happiness")
            for key in ids.values()
        ],
        data=one.data.model_copy(update={"attributes": [attribute.model_copy(update={"groups": [*names, "male"]})]}),
        localisation={
            f"{key}:happiness": Localisation(status="localised", heads=[f"L{layers - 1}H{heads // 2}"]) for key in ids.values()
        },
    )  # fmt: skip


def changed(audit: Audit, **update: object) -> Audit:
    return Audit.model_validate(audit.model_dump() | update)


def examples() -> dict[str, Audit]:
    """Every example by name."""
    quiet = base(planted=False, state=State.NOT_DETECTED, findings=0)
    return {
        "disparity": base(),
        "many": base(findings=12, layers=12, heads=6, groups=("female", "other", "male")),
        "passed": quiet,
        "invalid": base(valid=False),
        "inconclusive": base(planted=False, state=State.NOT_DETECTED, findings=0, scale=1 / 9),
        "too_few": base(planted=False, state=State.TOO_LITTLE_DATA, findings=0),
        "not_localisable": base(planted=False),
        "no_heads": changed(quiet, heads=[], joint=[], ledgers=[], ledger=[], trained=[], trained_parts=[], carried=[], smallest=[], answers=[], read_writers=[], read=[], read_maps=[], agreement=[], grids=[], stability=[], localisation={}),
        "no_design_c": base(design_c=False),
        "single_layer": base(layers=1, heads=3),
        "hostile": base(
            attribute=HOSTILE[0], groups=(HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[4]), outcome=HOSTILE[2],
            name=HOSTILE[0],
        ),
    }  # fmt: skip
