"""Complete audits of every outcome, with content as a real run would leave it."""

# ruff: noqa: E501 - the sentences of a report are long

from __future__ import annotations

import random
from typing import Any, Literal, get_args

from audit.records import (
    AccuracyRow,
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
    CountRow,
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
    RateRow,
    Reading,
    ReadMap,
    ReadRow,
    ReadWriter,
    Reason,
    SensitivityKind,
    SensitivityRow,
    SetStep,
    Shortfall,
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

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202egnp.exe\u202c {{ 7 * 7 }} \u05e9\u05dc\u05d5\u05dd",
    '=HYPERLINK("//evil","x") 😀 $\\frac{a}{b}$',
    "x" * 10_000,
)
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


def controls(valid: bool, layers: int, heads: int) -> ControlReport:
    effect: dict[str, Any] = {
        "kind": "effect",
        "form": "models",
        "figures": {"seeds": 2, "joint": 0.91},
        "head": "L2H1",
    }
    null: dict[str, Any] = {"kind": "null", "figures": {"null": 0.012, "effect": 0.31}, "head": "L2H1"}
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
        control("null_nothing_to_carry", 0.012, ">", 0.0, half=0.003, n=150, channel="colour", **null),
        control("gap", 0.94, ">", 0.0, half=0.18, n=300, channel="blur", **effect),
        control("head", 0.22, ">", 0.0, half=0.05, n=150, channel="blur", **effect),
        control("null_other_seed", 0.29 if valid else 0.02, ">", 0.0, passed=valid, half=0.03, n=150,
                channel="colour", **null),
        control("null_shuffled", 0.14, ">", 0.0, half=0.03, n=150, channel="blur", **null),
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


def data(attribute: str, groups: list[str], labels: list[str], labels_note: str = "") -> DataReport:
    draw = random.Random(3)
    counts = [
        CountRow(
            attribute=attribute, group=group, label=label, split=split,
            images=(images := draw.randint(80, 400) if group != "unknown" else draw.randint(2, 30)),
            subjects=images * 2 // 3,
        )
        for group in [*groups, "unknown"]
        for label in labels
        for split in ("train", "discovery", "confirmation")
    ]  # fmt: skip
    return DataReport(
        source=DataSource(kind=SourceKind.FILES, reader="table", path="faces.csv"),
        images=4346,
        subjects=3121,
        labels=labels,
        fingerprint="d" * 64,
        attributes=[
            AttributeInfo(
                attribute=attribute, assigned_by="manual annotation of perceived " + attribute[:40],
                reference=groups[-1], groups=groups, unknown_images=87, note=labels_note,
            )
        ],
        counts=counts,
        covariates=[CovariateInfo(column="age", caliper=5, images=1130, missing=12, lowest=18.0, highest=90.5)],
        label_shares=[
            LabelShareRow(column="annotator", value=value, images=images, shares=dict.fromkeys(labels, 1 / len(labels)))
            for value, images in (("A.", 1204), ("B.", 871))
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
        splits={"train": 2173, "discovery": 1086, "confirmation": 1087},
        licence="research use only",
        citation="Example et al., 2020",
        limits=[
            GapLimit(
                attribute=attribute, group=groups[0], reference=groups[-1], subjects_group=412, subjects_reference=433,
                subjects_needed=30, in_both=3, detectable=dict.fromkeys(labels[1:], 0.0612), power=0.8, tests=6,
            )
        ],
        intersections=[IntersectionSize(attributes=[attribute, "race"], groups=6, enough=5, subjects_needed=30)],
        warnings=[DataWarning(code=DataWarningCode.REPEATED_ROWS, images=87)],
    )  # fmt: skip


def rate_rows(attribute: str, groups: list[str], outcome: str) -> list[RateRow]:
    rows = []
    for index, group in enumerate(groups):
        value = 0.5123 - 0.0817 * index
        positives, negatives = 540 - 60 * index, 664 + 43 * index
        found, called = round((0.902 - 0.01 * index) * positives), round((0.153 - 0.05 * index) * negatives)
        rows.append(
            RateRow(
                attribute=attribute, group=group, outcome=outcome, is_reference=index == len(groups) - 1,
                images=1204 - 17 * index, subjects=871 - 9 * index, positives=positives,
                negatives=negatives, true_positives=found, false_positives=called, false_negatives=positives - found,
                false_negative_rate=estimate(0.098 + 0.01 * index),
                selection_rate=estimate(value, 0.031), true_positive_rate=estimate(0.902 - 0.01 * index),
                false_positive_rate=estimate(0.153 - 0.05 * index), mean_probability=estimate(value + 0.011),
                standardised_rate=estimate(value - 0.02), accuracy=estimate(0.891, 0.014),
                impact_ratio=1.1897 - 0.1897 * index, impact_ratio_highest=None if index == 2 else 1 - 0.159 * index,
            )
        )  # fmt: skip
    return rows


def contrast(attribute: str, group: str, reference: str, outcome: str, metric: Metric, state: State) -> ContrastRow:
    value = (
        None if state == "not estimable" else {"standardised_gap": 0.0572, "tpr_gap": 0.0104, "fpr_gap": 0.0883}[metric]
    )
    return ContrastRow(
        id=f"{attribute}:{group}-{reference}:{outcome}:{metric}", attribute=attribute, group=group,
        reference=reference, outcome=outcome, metric=metric, estimate=estimate(value, 0.019),
        ratio=1.183 if metric == "standardised_gap" else None, p_raw=0.00021 if state == "disparity" else 0.41,
        p_adjusted=0.0013 if state == "disparity" else 0.97, family_size=6,
        smallest_detectable=None if state == "not estimable" else 0.0412, state=state,
        above_policy=state == "disparity", by_seed=[0.0561, 0.0583], n_group=412, n_reference=433,
        shortfall={"too little data": Shortfall.SUBJECTS, "not estimable": Shortfall.LABELS}.get(state),
        **({"fewest_subjects": 12, "subjects_needed": 30} if state == "too little data" else {}),
    )  # fmt: skip


def head_rows(contrast_id: str, outcome: str, layers: int, heads: int, planted: bool, design_c: bool) -> list[HeadRow]:
    draw = random.Random(11)
    rows = []
    for layer in range(layers):
        for head in range(heads):
            is_planted = planted and (layer, head) == (layers - 1, heads // 2)
            value = 0.0285 if is_planted else draw.gauss(0, 0.0018)
            rows.append(
                HeadRow(
                    contrast=contrast_id, outcome=outcome, layer=layer, head=head, name=f"L{layer}H{head}",
                    discovery=estimate(value * 1.1, 0.006), discovery_p=0.0002 if is_planted else 0.4,
                    discovery_p_adjusted=0.004 if is_planted else 0.98, confirmation=estimate(value, 0.007),
                    confirmation_p=0.0004 if is_planted else None,
                    confirmation_p_adjusted=0.0004 if is_planted else None,
                    iie_forward=estimate(value / 2, 0.005), iie_backward=estimate(-value / 2, 0.005),
                    placebo=estimate(0.0011, 0.004), share_of_gap=estimate(0.44, 0.1) if is_planted else estimate(None),
                    percentile_in_layer=100.0 if is_planted else draw.random() * 99,
                    accuracy_change=-0.0012, design_c=estimate(value * 0.9, 0.008) if design_c else None,
                    transplant=estimate(value * 0.4, 0.007) if design_c else None, attribution=value * 0.8,
                    natural_indirect=estimate(value * 0.7, 0.003), natural_direct=estimate(0.0433, 0.01),
                    confirmation_rate=estimate(value * 1.4, 0.011), confirmation_log_odds=estimate(value * 9, 0.1),
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


def joint_rows(contrast_id: str, outcome: str, layers: int, heads: int) -> list[JointRow]:
    sets = [[f"L{i}H{h}" for i in range(layers) for h in range(heads)], ["L0H0", f"L{layers - 1}H{heads // 2}"]]
    return [
        JointRow(
            contrast=contrast_id, outcome=outcome, heads=names, all_heads=len(names) == layers * heads,
            together_rate=estimate(0.0523, 0.011), together=estimate(0.0411, 0.008), sum_of_singles=estimate(0.1234, 0.021), beyond_sum=estimate(-0.0823, 0.015),
            share_of_gap=estimate(0.72, 0.1), sum_share_of_gap=estimate(2.16, 0.3),
        )
        for names in sets
    ]  # fmt: skip


def sensitivity_rows(contrast_id: str, outcome: str) -> list[SensitivityRow]:
    """Return how wrong annotations may be before a gap of 5.7 points vanishes; those of groups are estimated by the card."""
    value = 0.0572
    at: dict[SensitivityKind, Any] = {
        SensitivityKind.LABELS: {"tipping": 0.0613, "tipping_of_interval": 0.0409},
        SensitivityKind.LABELS_AT_RANDOM: {"tipping": None, "tipping_of_interval": None},
        SensitivityKind.GROUPS: {
            "tipping": 0.0314, "tipping_of_interval": 0.0211, "declared": 0.02, "declared_reference": 0.01,
            "low_at_declared": 0.0304, "high_at_declared": 0.0841, "survives": False,
        },
        SensitivityKind.GROUPS_AT_RANDOM: {
            "tipping": None, "tipping_of_interval": None, "declared": 0.02, "declared_reference": 0.01,
            "low_at_declared": 0.0588, "high_at_declared": 0.0588, "survives": True,
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
                gap=estimate(value, 0.019), amounts=[1 + a for a in amounts] if kind == "sampling" else amounts,
                low=[value - spread * a for a in amounts], high=[value + spread * a for a in amounts], **found,
            )
        )  # fmt: skip
    return rows


def ledgers(contrast_id: str, outcome: str, layers: int, heads: int) -> tuple[list[LedgerTotal], list[LedgerRow]]:
    """Return a sum over a network whose last layer's attention writes most."""
    named: dict[str, Any] = {"contrast": contrast_id, "outcome": outcome}
    totals = [
        LedgerTotal(
            **named, metric=Metric.STANDARDISED_GAP, among="all", gap=estimate(0.93, 0.21),
            adjusted=estimate(1.21, 0.24), closure=2e-8, closure_of_images=4e-7,
        ),
        LedgerTotal(
            **named, metric=Metric.STANDARDISED_GAP, among="near the decision", gap=estimate(0.41, 0.1),
            adjusted=estimate(0.52, 0.1), clip=4.0, kept=0.83, closure=2e-8, closure_of_images=4e-7,
        ),
    ]  # fmt: skip
    rows = []
    for images, scale in (("all", 1.0), ("near the decision", 0.44)):
        about: dict[str, Any] = named | {"among": images}

        def row(level: str, value: float, about: Any = about, scale: float = scale, **what: Any) -> LedgerRow:
            share = estimate(value / 0.93, 0.05)
            gap, adjusted = estimate(scale * value, 0.04), estimate(1.3 * scale * value, 0.05)
            return LedgerRow(**about, level=level, gap=gap, adjusted=adjusted, share=share, **what)

        last = layers - 1
        rows += [
            *(row("part", 0.13, family="attention", part="head", layer=last, head=h) for h in range(heads)),
            *(row("part", 0.01, family="MLP", part="MLP", layer=i) for i in range(layers)),
            row("part", 0.02, family="embedding", part="patches"),
            row("part", -0.05, family="what is held", part="what is held"),
            row("family in layer", 0.02, family="embedding"),
            *(row("family in layer", 0.52, family="attention", layer=i) for i in (last,)),
            *(row("family in layer", 0.01, family="MLP", layer=i) for i in range(layers)),
            row("family in layer", -0.05, family="what is held"),
            row("family", 0.02, family="embedding"),
            row("family", 0.52, family="attention"),
            row("family", 0.04, family="MLP"),
            row("family", -0.05, family="what is held"),
        ]
    return totals, rows


def trained(contrast_id: str, outcome: str) -> tuple[list[TrainedTotal], list[TrainedRow]]:
    """Return a gap that the classifier's training made, in two orders and on average."""
    named: dict[str, Any] = {"contrast": contrast_id, "outcome": outcome}
    totals = [
        TrainedTotal(
            **named, metric=Metric.STANDARDISED_GAP, order=order, images=420, references=2, rate=estimate(0.0572, 0.019),
            probability=estimate(0.0411, 0.01), log_odds=estimate(0.93, 0.2), by_training=estimate(0.0412, 0.02),
            adjusted=estimate(0.0722, 0.02), closure=0.0,
        )
        for order in HybridOrder
    ]  # fmt: skip
    rows = [
        TrainedRow(
            **named, order=order, player=player, same_weights=player == "embedding", rate=estimate(value, 0.01), adjusted=estimate(1.3 * value, 0.01),
            probability=estimate(0.7 * value, 0.01), log_odds=estimate(16 * value, 0.1), between=0.004,
            null=0.006 if order != HybridOrder.SHAPLEY else None,
            order_error=0.001 if order == HybridOrder.SHAPLEY else None,
            accuracy=None if order == HybridOrder.SHAPLEY else estimate(0.88, 0.02),
        )
        for order in HybridOrder
        for player, value in (("", 0.016), ("embedding", 0.0), ("L2", 0.0012), ("classifier", 0.04))
    ]  # fmt: skip
    return totals, rows


def carried(contrast_id: str, outcome: str, layers: int) -> list[CarriedRow]:
    """Return what whole parts carry: attention, and the last layer."""

    def row(part: str, value: float, layer: int | None = None) -> CarriedRow:
        return CarriedRow(
            contrast=contrast_id, outcome=outcome, metric=Metric.STANDARDISED_GAP, part=CarriedKind(part), layer=layer,
            recipients=200, denoised=estimate(0.7 * value, 0.008), denoised_rate=estimate(value, 0.01),
            share_of_gap=estimate(value / 0.0572, 0.1), noised=estimate(0.5 * value, 0.008),
            apart=estimate(0.2 * value, 0.008), beyond_noise=value > 0.02,
        )  # fmt: skip

    whole = [row("attention", 0.05), row("MLP", 0.004)]
    return [
        *whole,
        *(row("layer", 0.04 if i == layers - 1 else 0.002, i) for i in range(layers)),
        row("class token", 0.03, 2),
    ]


def smallest(contrast_id: str, outcome: str, head: str) -> SmallestSetRow:
    """Return a set of one head that is confirmed beyond random sets."""
    return SmallestSetRow(
        contrast=contrast_id, outcome=outcome, metric=Metric.STANDARDISED_GAP, heads=[head],
        steps=[SetStep(head=head, gain=0.031, error=0.004, joint=0.031)], stopped=WhyStopped.NOISE, limit=3.4, tried=8,
        patched=7, recipients=200, together=estimate(0.0285, 0.007), together_rate=estimate(0.0399, 0.011),
        share_of_gap=estimate(0.7, 0.12), sum_of_singles=estimate(0.0285, 0.007), redundancy=estimate(0.0, 0.0),
        random=[0.002, -0.001, 0.004], beyond_random=estimate(0.0268, 0.007), p_random=0.25, confirmed=True,
    )  # fmt: skip


def gap_answer(contrast_id: str, outcome: str, head: str) -> GapAnswer:
    """Return where a gap runs: through one head, which another layer's training feeds."""
    return GapAnswer(
        contrast=contrast_id, outcome=outcome, metric=Metric.STANDARDISED_GAP, level=AnswerLevel.HEADS, heads=[head],
        jointly=True, layers=[int(head[1])], share=estimate(0.7, 0.12), not_attributed=estimate(0.3, 0.12),
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


def disparity_finding(number: int, attribute: str, group: str, reference: str, outcome: str) -> Finding:
    return Finding(
        id=f"F-{number:08x}", kind="disparity",
        severity="high" if number < 3 else "medium", confidence="high",
        attribute=attribute, group=group, reference=reference, outcome=outcome, metric="standardised_gap",
        n_group=412, n_reference=433, unknown=87, estimate=estimate(0.0572 + number / 1000, 0.019), p_raw=0.00021, p_adjusted=0.0013,
        family_size=6, heads=["L0H1"], alternatives=["label quality", "correlates", "audit images"],
        hashes={"audit data": "d" * 64, "weights": "a" * 64}, reproduce="vit-audit run dataset.yaml --data faces",
        expected=0.0572, tolerance=0.0005, by_seed=[0.0561, 0.0583], ratio=1.183, above_policy=True,
        worst_metric="standardised_gap", worst=0.0572 + number / 1000, localisation="localised",
    )  # fmt: skip


def head_finding(attribute: str, group: str, reference: str, outcome: str, head: str) -> Finding:
    base = disparity_finding(99, attribute, group, reference, outcome)
    return base.model_copy(
        update={
            "id": "F-3fa9c1d2", "kind": "head", "severity": "high", "estimate": estimate(0.0399, 0.011),
            "heads": [head], "expected": 0.0285, "probability": estimate(0.0285, 0.007),
            "discovery": estimate(0.0314, 0.006), "discovery_p_adjusted": 0.004, "placebo": estimate(0.0011, 0.004),
            "share_of_gap": 0.44, "direction": Direction.WIDENS, "percentile_in_layer": 100.0,
            "accuracy_change": -0.0012, "by_seed": [0.0285, 0.0265], "localisation": None,
            "alternatives": ["redundant heads", "passed on", "label quality"],
        }
    )  # fmt: skip


def adjusted(attribute: str, group: str, reference: str, outcome: str) -> list[AdjustedRow]:
    about = {
        "attribute": attribute, "group": group, "reference": reference, "outcome": outcome, "covariates": ["age"],
        "without_covariate": 12, "mean_group": {"age": 61.74}, "mean_reference": {"age": 58.03},
    }  # fmt: skip
    nothing = Estimate(value=None)
    return [
        AdjustedRow(
            **about, label="", n_group=251, n_reference=262, without_counterpart=3, before=estimate(0.0712, 0.018),
            after=estimate(0.0934, 0.019), part=estimate(-0.0222, 0.006),
        ),
        AdjustedRow(
            **about, label=outcome, n_group=21, n_reference=142, without_counterpart=1, before=nothing, after=nothing,
            part=nothing, shortfall="subjects", fewest_subjects=21, subjects_needed=30,
        ),
    ]  # fmt: skip


def base(
    *, attribute: str = "gender", groups: tuple[str, ...] = ("female", "male"), outcome: str = "happiness",
    layers: int = 4, heads: int = 4, planted: bool = True, design_c: bool = True, state: State = State.DISPARITY,
    findings: int = 1, valid: bool = True, name: str = "Expressions in news photographs",
) -> Audit:  # fmt: skip
    group, reference = groups[0], groups[-1]
    contrast_id = f"{attribute}:{group}-{reference}"
    metrics = tuple(Metric)
    states = (state, State.NOT_DETECTED, State.NOT_ESTIMABLE)
    head_name = f"L{layers - 1}H{heads // 2}"
    cards = [disparity_finding(n, attribute, group, reference, outcome) for n in range(1, findings + 1)]
    if planted and findings:
        cards.append(head_finding(attribute, group, reference, outcome, head_name))
    return Audit(
        audit_id="expressions-20260301-9f8e7d6c",
        name=name,
        task="emotion",
        outcome="DISPARITY FOUND",
        exit_code=1,
        reasons=[Reason(code="gap above policy", contrast=f"{contrast_id}:{outcome}:standardised_gap")],
        next_steps=["review findings", "balance training"],
        intended_use="Sorting a press archive by facial expression.",
        out_of_scope="Decisions about people at work or in education.",
        model=ModelInfo(
            name="vit_small_patch14_dinov2", weights="vit_small.safetensors",
            weights_sha256="a" * 64, parameters=21_600_000, layers=layers, heads=heads, image_size=98,
            preprocessing=PreprocessingInfo(
                source="library default", library="timm 1.0.31", steps=["Resize(size=98)", "CenterCrop(size=(98, 98))"],
                input_size=[3, 98, 98], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
            ),
            classes=["neutral", outcome], training=TrainingRun(blocks=6, images=2173, epochs=3, batch_size=64, learning_rate=5e-4, weight_decay=0.05), seeds=[0, 1],
            accuracy_by_seed=[0.8914, 0.8876], balanced_accuracy_by_seed=[0.8871, 0.8832],
        ),
        legal=answers({"gdpr-9": "Public research collections; no link to identities is kept."}, "emotion"),
        controls=controls(valid, layers, heads),
        data=data(attribute, list(groups), ["neutral", outcome]),
        rates=rate_rows(attribute, list(groups), outcome)
        + rate_rows("gender x race", ["female, asian", "female, caucasian", "male, caucasian"], outcome),
        contrasts=[contrast(attribute, group, reference, outcome, m, s) for m, s in zip(metrics, states, strict=True)]
        + [contrast("gender x race", "female, asian", "male, caucasian", outcome, Metric.STANDARDISED_GAP, State.TOO_LITTLE_DATA)],
        ranges=[
            RangeRow(
                attribute=attribute, outcome=outcome, highest=group, lowest=reference, groups=len(groups),
                widest=0.0712, by_chance=0.0223, corrected=0.0489, p=0.004,
            )
        ],
        adjusted=adjusted(attribute, group, reference, outcome),
        findings=cards,
        heads=head_rows(contrast_id, outcome, layers, heads, planted, design_c),
        agreement=[
            Agreement(
                contrast=contrast_id, outcome=outcome, design=design, rank_correlation=0.83, sign_agreement=0.9,
                top10_recall=0.7,
            )
            for design in get_args(Design)
        ] if planted else [],
        pairs=[
            PairRow(
                contrast=contrast_id, outcome=outcome, pairs=400, subjects=380, total=estimate(0.0611, 0.012),
            )
        ] if planted else [],
        attention=attention_maps(contrast_id, groups, head_name) if planted else [],
        joint=joint_rows(contrast_id, outcome, layers, heads) if planted else [],
        ledgers=ledgers(contrast_id, outcome, layers, heads)[0] if planted else [],
        ledger=ledgers(contrast_id, outcome, layers, heads)[1] if planted else [],
        sensitivity=sensitivity_rows(contrast_id, outcome) if state == State.DISPARITY else [],
        trained=trained(contrast_id, outcome)[0] if planted else [],
        trained_parts=trained(contrast_id, outcome)[1] if planted else [],
        carried=carried(contrast_id, outcome, layers) if planted else [],
        smallest=[smallest(contrast_id, outcome, head_name)] if planted else [],
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
        accuracy=[
            AccuracyRow(images=2173, subjects=1560, accuracy=estimate(0.8914, 0.013), balanced_accuracy=estimate(0.8871, 0.014)),
            *(
                AccuracyRow(
                    attribute=attribute, group=g, images=1080 - k, subjects=780 - k, accuracy=estimate(0.902 - k / 50, 0.013),
                    balanced_accuracy=estimate(0.897 - k / 50, 0.014),
                )
                for k, g in enumerate(groups)
            ),
        ],
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
                "alpha": 0.05, "policy.gap_above": 0.1, "policy.impact_ratio_below": 0.8, "policy.head_share_above": 0.05,
                "min_group_size": 30,
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
    rates = [
        disparity_finding(k, "gender", f"group {k % contrasts}", "male", "happiness") for k in range(findings // 4)
    ]
    found = [
        head_finding("gender", f"group {k % contrasts}", "male", "happiness", f"L{k % layers}H{k % heads}").model_copy(
            update={"id": f"F-{k:08x}"}
        )
        for k in range(len(rates), findings)
    ]
    return changed(
        one, heads=rows, grids=grids, findings=[*rates, *found],
        localisation={
            f"{name}:happiness": Localisation(status="localised", heads=[f"L{layers - 1}H{heads // 2}"]) for name in names
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
        "passed": changed(quiet, outcome="PASSED", exit_code=0, reasons=[Reason(code="no gap above policy")], next_steps=["repeat"]),
        "invalid": changed(
            base(valid=False), outcome="INVALID", exit_code=3,
            reasons=[Reason(code="control failed", control="colour_null_other_seed")], next_steps=["fix controls"],
        ),
        "inconclusive": changed(
            base(planted=False, state=State.TOO_LITTLE_DATA, findings=0), outcome="INCONCLUSIVE", exit_code=4,
            reasons=[
                Reason(
                    code="gap not excluded", contrast="gender:female-male:happiness:standardised_gap",
                    smallest_detectable=0.132, missing={"female": 306, "male": 322},
                )
            ], next_steps=["add images"],
        ),
        "not_localisable": base(planted=False),
        "no_heads": changed(quiet, outcome="PASSED", exit_code=0, heads=[], joint=[], ledgers=[], ledger=[], trained=[], trained_parts=[], carried=[], smallest=[], answers=[], read_writers=[], read=[], read_maps=[], agreement=[], grids=[], stability=[], localisation={}),
        "no_design_c": base(design_c=False),
        "single_layer": base(layers=1, heads=3),
        "hostile": base(
            attribute=HOSTILE[0], groups=(HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[4]), outcome=HOSTILE[2],
            name=HOSTILE[0],
        ),
    }  # fmt: skip
