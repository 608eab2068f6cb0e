"""Complete audits of every outcome, with content as a real run would leave it."""

# ruff: noqa: E501 - the sentences of a report are long

from __future__ import annotations

import random
from typing import Literal, get_args

from audit.records import (
    Agreement,
    AttentionMap,
    AttributeInfo,
    Audit,
    ContrastRow,
    Control,
    ControlReport,
    CountRow,
    DataReport,
    DataWarning,
    DataWarningCode,
    Design,
    Estimate,
    ExcludedRow,
    Finding,
    HeadGrid,
    HeadRow,
    JointRow,
    LabelShareRow,
    MethodReport,
    Metric,
    ModelInfo,
    PairRow,
    Provenance,
    RangeRow,
    RateRow,
    Stability,
    State,
)
from audit.report.legal import answers

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
    title: str, setting: str, value: float, relation: Literal["==", "<=", "<", ">=", ">"], threshold: float,
    kind: Literal["identity", "initialisation", "effect", "null"] = "identity", passed: bool = True,
    half: float | None = None, statistic: str = "largest change of a logit", n: int = 64,
) -> Control:  # fmt: skip
    return Control(
        id=f"{setting}:{title}".replace(" ", "-"),
        title=title,
        kind=kind,
        setting=setting,
        statistic=statistic,
        estimate=Estimate(value=value) if half is None else estimate(value, half),
        relation=relation,
        threshold=threshold,
        passed=passed,
        n=n,
        meaning="The instrument adds nothing of its own."
        if passed
        else "The instrument sees an effect where there is none.",
        fix="Use a backbone whose donor shares its initialisation, or raise controls.train_images in the card.",
    )


def controls(valid: bool, layers: int, heads: int) -> ControlReport:
    own, colour, blur = "this audit's model", "colour control", "blur control"
    gap, recovery = "total gap in class log-odds", "best head's recovery beyond the null, log-odds"
    rows = [
        control("Patching a head with itself changes nothing", own, 0.0, "==", 0.0),
        control("The heads add up to the attention output", own, 3.1e-7, "<=", 1e-5, statistic="relative error"),
        control("Patching every part reproduces the donor", own, 8.6e-6, "<=", 1e-4),
        control("Rotating values and output weights changes nothing", own, 4.4e-6, "<=", 1e-4),
        control("Every head is live", own, 0.0021, ">", 0.0, statistic="smallest change of a logit when a head is zeroed"),
        control("The fast engine agrees with plain hooks", own, 2.3e-6, "<=", 1e-4),
        control("Donor and recipient share one initialisation", colour, 1.0, ">=", 0.95, "initialisation", statistic="share of heads that match themselves"),
        control("A model from another initialisation is refused", colour, 0.17, "<", 0.95, "initialisation", statistic="share of heads that match themselves"),
        control("Colour: the trained difference is real", colour, 1.42, ">", 0.0, "effect", half=0.21, statistic=gap, n=300),
        control("Colour: at least one head restores it", colour, 0.31, ">", 0.0, "effect", half=0.06, statistic=recovery, n=150),
        control("Colour: nothing is restored on gray images", colour, 0.012, "<=", 0.05, "null", half=0.03, statistic=recovery, n=150),
        control("Blur: the trained difference is real", blur, 0.94, ">", 0.0, "effect", half=0.18, statistic=gap, n=300),
        control("Blur: at least one head restores it", blur, 0.22, ">", 0.0, "effect", half=0.05, statistic=recovery, n=150),
        control("Null: another seed of the same condition stays quiet", colour, 0.04 if valid else 0.29, "<=", 0.1, "null", valid, 0.03, recovery, 150),
        control("Null: shuffled images stay quiet", blur, 0.02, "<=", 0.1, "null", half=0.03, statistic=recovery, n=150),
    ]  # fmt: skip
    draw = random.Random(7)
    grids = [
        grid(f"{name}{null}", title, "class log-odds", layers, heads, draw, 0.3 if not null else 0.03)
        for name, null, title in (
            ("colour", "", "Colour: what each head restores"),
            ("colour", "_null", "Colour, null: donor of another seed"),
            ("blur", "", "Blur: what each head restores"),
            ("blur", "_null", "Blur, null: shuffled images"),
        )
    ]
    return ControlReport(
        valid=valid,
        controls=rows,
        grids=grids,
        setting="Controls ran on 300 rendered patterns with the audit's own backbone; the control models were trained now.",
        not_run=["Pairs of edited images: the data holds none."],
    )


def grid(grid_id: str, title: str, unit: str, layers: int, heads: int, draw: random.Random, size: float) -> HeadGrid:
    values = [[round(draw.gauss(0, size / 8), 5) for _ in range(heads)] for _ in range(layers)]
    marks = [[""] * heads for _ in range(layers)]
    values[-1][heads // 2] = size
    if "null" not in grid_id:
        marks[-1][heads // 2] = "confirmed" if grid_id.startswith("bias") else "above zero"
    return HeadGrid(
        id=grid_id, title=title, unit=unit, values=values, marks=marks, layers=list(range(layers)),
        caption="Mean over images not used to choose a head.",
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
        source="table faces.csv",
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
        label_shares=[
            LabelShareRow(column="annotator", value=value, images=images, shares=dict.fromkeys(labels, 1 / len(labels)))
            for value, images in (("A.", 1204), ("B.", 871))
        ],
        excluded=[ExcludedRow(reason="label not kept by the card: surprise", images=112, examples=["a/1.jpg", "b/2.jpg"])],
        quarantined=[ExcludedRow(reason="truncated JPEG", images=2, examples=["broken/3.jpg"])],
        splits={"train": 2173, "discovery": 1086, "confirmation": 1087},
        licence="research use only",
        citation="Example et al., 2020",
        limits=["With these sizes the audit can detect gaps of 6 points or more between the two groups."],
        warnings=[DataWarning(code=DataWarningCode.REPEATED_ROWS, images=87)],
    )  # fmt: skip


def rate_rows(attribute: str, groups: list[str], outcome: str) -> list[RateRow]:
    rows = []
    for index, group in enumerate(groups):
        value = 0.5123 - 0.0817 * index
        rows.append(
            RateRow(
                attribute=attribute, group=group, outcome=outcome, is_reference=index == len(groups) - 1,
                images=1204 - 17 * index, subjects=871 - 9 * index, positives=540 - 60 * index,
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
        reason={"too little data": "12 subjects, 30 needed", "not estimable": "no image has this label"}.get(state, ""),
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
                    by_seed=[value, value * 0.93], verdict="confirmed" if is_planted else "no effect found",
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
            together=estimate(0.0411, 0.008), sum_of_singles=estimate(0.1234, 0.021), beyond_sum=estimate(-0.0823, 0.015),
            share_of_gap=estimate(0.72, 0.1), sum_share_of_gap=estimate(2.16, 0.3),
        )
        for names in sets
    ]  # fmt: skip


def disparity_finding(number: int, attribute: str, group: str, reference: str, outcome: str) -> Finding:
    return Finding(
        id=f"F-{number:08x}", kind="disparity",
        title=f"The model predicts “{outcome[:30]}” more often for {group[:30]} than for {reference[:30]} (question {number})",
        severity="high" if number < 3 else "medium", severity_reason="false positives differ by 8.8 points",
        confidence="high", confidence_reason="seen in both splits and by every training seed",
        criterion="The label-standardised gap stays within 10 points and the impact ratio above 0.8.",
        condition=f"The gap is 5.7 points [3.8, 7.6] for {outcome[:30]}.",
        cause="The training images of the two groups hold different shares of the label.",
        effect="People of one group are described wrongly more often than people of the other.",
        recommendation="Balance the training images over group and label, and audit again.",
        attribute=attribute, group=group, reference=reference, outcome=outcome, metric="standardised_gap",
        n_group=412, n_reference=433, unknown=87, estimate=estimate(0.0572 + number / 1000, 0.019), p_raw=0.00021, p_adjusted=0.0013,
        family_size=6, heads=[], intervention="", placebo="", percentile_in_layer=None, accuracy_change=None,
        agreement_over_seeds="2 of 2 seeds show the same sign", replication="not applicable to rates",
        other_explanations=["Pose and lighting differ between the groups.", "The labels may be wrong more often for one group."],
        hashes={"audit data": "d" * 64, "weights": "a" * 64}, reproduce="vit-audit run dataset.yaml --data faces",
        expected=0.0572, tolerance=0.0005,
        wording="The rate of predicted happiness differs by 5.7 points [3.8, 7.6] at equal label mix on this data.",
    )  # fmt: skip


def head_finding(attribute: str, group: str, reference: str, outcome: str, head: str) -> Finding:
    base = disparity_finding(99, attribute, group, reference, outcome)
    return base.model_copy(
        update={
            "id": "F-3fa9c1d2", "kind": "head", "title": f"Head {head} carries a part of the gap", "severity": "high",
            "metric": "mediated gap", "estimate": estimate(0.0285, 0.007), "heads": [head], "expected": 0.0285,
            "intervention": f"{head} takes the activation of an image of the other group with the same label",
            "placebo": f"{head} takes the activation of an image of the same group", "percentile_in_layer": 100.0,
            "accuracy_change": -0.0012, "replication": "2.9 points [2.2, 3.6] on the confirmation split",
            "condition": "Patching the head changes the gap by 2.9 points [2.2, 3.6].",
            "wording": (
                f"Patching {head} changed the gap in predicted happiness by 2.9 points [2.2, 3.6] on this data. This "
                "shows that the head's activation affects this output under this intervention; it does not show that "
                "the head encodes the attribute, is the only route, or that removing it makes the system fair."
            ),
        }
    )  # fmt: skip


def base(
    *, attribute: str = "gender", groups: tuple[str, ...] = ("female", "male"), outcome: str = "happiness",
    layers: int = 4, heads: int = 4, planted: bool = True, design_c: bool = True, state: State = "disparity",
    findings: int = 1, valid: bool = True, name: str = "Expressions in news photographs",
) -> Audit:  # fmt: skip
    group, reference = groups[0], groups[-1]
    contrast_id = f"{attribute}:{group}-{reference}"
    metrics: tuple[Metric, ...] = ("standardised_gap", "tpr_gap", "fpr_gap")
    states: tuple[State, ...] = (state, "no disparity detected", "not estimable")
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
        reasons=["The false-positive rate of happiness differs by 8.8 points between the groups (policy: 10 points or a ratio of 0.8)."],
        not_shown=["Why the training data are as they are.", "What the model does on other cameras, places or people."],
        next_steps=["Have a second reviewer read each finding and record a decision.", "Balance the training images over group and label, and audit again."],
        intended_use="Sorting a press archive by facial expression.",
        out_of_scope="Decisions about people at work or in education.",
        model=ModelInfo(
            name="vit_small_patch14_dinov2", origin="trained by this audit from vit_small.safetensors",
            weights_sha256="a" * 64, parameters=21_600_000, layers=layers, heads=heads, image_size=98,
            classes=["neutral", outcome], training="the last six blocks fine-tuned for 3 epochs", seeds=[0, 1],
            accuracy_by_seed=[0.8914, 0.8876], balanced_accuracy_by_seed=[0.8871, 0.8832],
        ),
        legal=answers({"gdpr-9": "Public research collections; no link to identities is kept."}, "emotion"),
        controls=controls(valid, layers, heads),
        data=data(attribute, list(groups), ["neutral", outcome]),
        rates=rate_rows(attribute, list(groups), outcome)
        + rate_rows("gender x race", ["female, asian", "female, caucasian", "male, caucasian"], outcome),
        contrasts=[contrast(attribute, group, reference, outcome, m, s) for m, s in zip(metrics, states, strict=True)]
        + [contrast("gender x race", "female, asian", "male, caucasian", outcome, "standardised_gap", "too little data")],
        ranges=[
            RangeRow(
                attribute=attribute, outcome=outcome, highest=group, lowest=reference, groups=len(groups),
                widest=0.0712, by_chance=0.0223, corrected=0.0489, p=0.004,
            )
        ],
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
        grids=[grid(f"bias:{contrast_id}", "Mediated gap of each head", "points", layers, heads, random.Random(5), 0.0285)],
        stability=[
            Stability(
                contrast=contrast_id, outcome=outcome, split_half_rank_correlation=0.71, top10_overlap=0.6,
                seeds_rank_correlation=0.83, note="The order of the strongest heads repeats itself.",
            )
        ],
        localisation={f"{contrast_id}:{outcome}": f"localised: {head_name}" if planted else "not localisable"},
        method=MethodReport(
            preregistration_sha256="c" * 64,
            hypotheses=["The label-standardised gap of happiness between the groups is zero."],
            metrics=["Label-standardised gap", "True-positive gap", "False-positive gap"],
            thresholds={"alpha": 0.05, "gap above": 0.1, "impact ratio below": 0.8, "subjects in a group, at least": 30},
            family="16 heads x 1 outcome x 1 contrast, Westfall-Young max-T", permutations=5000, bootstrap=2000,
            estimands=[
                ("Interventional indirect effect", "IIE(a→b) = E[p(x; u←u(x')) − p(x; u←u(x''))]",
                 "How much the prediction changes when the head takes its activation from the other group, beyond a same-group swap."),
                ("Label-standardised gap", "D = Σ w(y) (E[p | a, y] − E[p | b, y])", "The gap at equal label mix."),
            ],
            designs=["Design A: group swap in one model", "Design C: balanced reference model"],
            engine="batched sweep; largest difference to plain hooks 2.3e-6 on 64 images",
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
        grid(f"bias:{name}", f"Mediated gap, {name}", "points", layers, heads, random.Random(5), 0.0285)
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
        localisation={f"{name}:happiness": f"localised: L{layers - 1}H{heads // 2}" for name in names},
    )  # fmt: skip


def changed(audit: Audit, **update: object) -> Audit:
    return Audit.model_validate(audit.model_dump() | update)


def examples() -> dict[str, Audit]:
    """Every example by name."""
    quiet = base(planted=False, state="no disparity detected", findings=0)
    return {
        "disparity": base(),
        "many": base(findings=12, layers=12, heads=6, groups=("female", "other", "male")),
        "passed": changed(quiet, outcome="PASSED", exit_code=0, reasons=["No gap is above the policy."]),
        "invalid": changed(
            base(valid=False), outcome="INVALID", exit_code=3,
            reasons=["Null: another seed of the same condition did not stay quiet."],
        ),
        "inconclusive": changed(
            base(planted=False, state="too little data", findings=0), outcome="INCONCLUSIVE", exit_code=4,
            reasons=["One group has 12 subjects; 30 are needed."],
        ),
        "not_localisable": base(planted=False),
        "no_heads": changed(quiet, outcome="PASSED", exit_code=0, heads=[], joint=[], agreement=[], grids=[], stability=[], localisation={}),
        "no_design_c": base(design_c=False),
        "single_layer": base(layers=1, heads=3),
        "hostile": base(
            attribute=HOSTILE[0], groups=(HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[4]), outcome=HOSTILE[2],
            name=HOSTILE[0],
        ),
    }  # fmt: skip
