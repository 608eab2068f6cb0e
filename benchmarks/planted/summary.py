"""From one row per model to the figures of the benchmark, each with its interval and n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from audit.evidence.stats import rate_interval
from benchmarks.planted.models import DOSES
from benchmarks.planted.rivals import TOOL

Row = Mapping[str, Any]
Figure = dict[str, float | int | None]
PROBE = "linear probe"
HIGH_DOSES = 2
RESAMPLES = 5000


def share(hits: Sequence[bool]) -> Figure:
    """Return a share with Clopper and Pearson's 95% interval."""
    n = len(hits)
    if n == 0:
        return {"estimate": None, "low": None, "high": None, "n": 0}
    low, high = proportion_confint(sum(hits), n, method="beta")
    return {"estimate": sum(hits) / n, "low": float(low), "high": float(high), "n": n}


def share_within(hits: Sequence[Sequence[bool]]) -> Figure:
    """Return a share over all heads of all models, with Wilson's interval at the effective size: heads of one model
    are not independent.
    """
    flat = np.array([h for model in hits for h in model], dtype=bool)
    models = np.repeat(np.arange(len(hits)), [len(model) for model in hits]).astype(np.int64)
    found = rate_interval(flat, models)
    return {"estimate": found.value, "low": found.low, "high": found.high, "n": len(flat)}


def mean(values: Sequence[float]) -> Figure:
    """Return a mean over models with its 95% bootstrap interval (BCa; without bounds where nothing varies)."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        return {"estimate": None, "low": None, "high": None, "n": 0}
    found: Figure = {"estimate": float(sample.mean()), "low": None, "high": None, "n": len(sample)}
    if len(sample) > 1 and np.ptp(sample) > 0:
        interval = stats.bootstrap(
            (sample,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
        ).confidence_interval
        found |= {"low": float(interval.low), "high": float(interval.high)}
    elif len(sample) > 1:
        found |= {"low": float(sample[0]), "high": float(sample[0])}
    return found


def ranking(scores: Mapping[str, float], planted: Sequence[str]) -> dict[str, float]:
    """Return how well scores by head put the planted heads first: AUROC, hit@1, hit@3, reciprocal rank.

    Of heads with equal scores a planted one comes last: a tie finds nothing.
    """
    names = sorted(scores)
    values: npt.NDArray[np.float64] = np.array([scores[k] for k in names])
    truth = np.array([k in planted for k in names])
    first = int(stats.rankdata(-values, method="max")[truth].min())
    return {
        "auroc": float(roc_auc_score(truth, values)),
        "hit_at_1": float(first <= 1),
        "hit_at_3": float(first <= 3),
        "mrr": 1.0 / first,
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return every figure of the benchmark.

    Parameters
    ----------
    rows : sequence of mapping
        One a model: ``kind``, ``dose``, ``planted`` and ``decoy`` (names of heads), ``null``, ``outcome``,
        ``localised`` (the heads that the audit confirmed where it localised a gap), ``confirmed`` and ``discovered``
        (gap or no gap), ``disparity``, ``gap_within_margin`` (shown to be small), ``scores`` (method -> head ->
        number), ``named`` (method -> the heads that its test calls significant), ``beyond_sum`` (of two redundant
        heads), ``true_mediated`` (by head, of those that were measured), ``covered`` (was the true mediated gap inside
        its interval, head by head), ``gap_covered``, ``true_gap``.
    """
    invalid = [str(r["name"]) for r in rows if r["outcome"] == "INVALID"]
    rows = [r for r in rows if r["outcome"] != "INVALID"]  # these audits named nothing and measured nothing
    planted = [r for r in rows if not r["null"]]
    nulls = [r for r in rows if r["null"]]
    single = [r for r in planted if r["kind"] == "one head"]
    redundant = [r for r in planted if r["kind"] == "redundant heads"]
    unused = [r for r in nulls if r["kind"] == "unused"]
    high = [r for r in single if r["dose"] in DOSES[-HIGH_DOSES:]]
    ranked = {id(r): {m: ranking(s, r["planted"]) for m, s in r["scores"].items()} for r in planted}

    def of_tool(group: Sequence[Row], figure: str) -> list[float]:
        return [ranked[id(r)][TOOL][figure] for r in group]

    methods = sorted({m for r in planted for m in r["scores"]} - {TOOL})
    return {
        "models": {"planted": len(planted), "null": len(nulls), "invalid": len(invalid)},
        "false_positive_rate": share([bool(r["localised"]) for r in nulls]),
        "false_positive_rate_by_kind": _by(nulls, "kind", lambda g: share([bool(r["localised"]) for r in g])),
        "false_positive_rate_without_a_gap_gate": {
            "confirmed": _by(nulls, "kind", lambda g: share([bool(r["confirmed"]) for r in g])),
            "discovered": _by(nulls, "kind", lambda g: share([bool(r["discovered"]) for r in g])),
        },
        "disparity_in_null_models": _by(nulls, "kind", lambda g: share([r["disparity"] for r in g])),
        "power": _by(single, "dose", lambda g: share([_found_all(r) for r in g])),
        "power_redundant_heads": {
            "any": _by(redundant, "dose", lambda g: share([bool(set(r["planted"]) & set(r["localised"])) for r in g])),
            "both": _by(redundant, "dose", lambda g: share([_found_all(r) for r in g])),
            "shown to make up for each other": _by(redundant, "dose", lambda g: share([_beyond_sum(r) for r in g])),
        },
        "other_heads_named": mean([len(set(r["localised"]) - set(r["planted"])) for r in planted]),
        "other_heads_named_by_dose": _by(
            planted, "dose", lambda g: mean([len(set(r["localised"]) - set(r["planted"])) for r in g])
        ),
        "decoy_named": share([r["decoy"] in r["localised"] for r in rows if r["decoy"]]),
        "auroc": mean(of_tool(planted, "auroc")),
        "hit_at_1": share([bool(v) for v in of_tool(high, "hit_at_1")]),
        "hit_at_1_by_dose": _by(single, "dose", lambda g: share([bool(v) for v in of_tool(g, "hit_at_1")])),
        "hit_at_3": share([bool(v) for v in of_tool(high, "hit_at_3")]),
        "mrr": mean(of_tool(planted, "mrr")),
        "coverage": share_within([r["covered"] for r in rows]),
        "coverage_of_gaps": share([bool(r["gap_covered"]) for r in rows if r["gap_covered"] is not None]),
        "largest_true_gap_of_null_models": {
            str(kind): max(abs(r["true_gap"]) for r in nulls if r["kind"] == kind)
            for kind in sorted({r["kind"] for r in nulls})
        },
        "true_mediated_gaps": {
            "planted": _sizes(single, planted=True),
            "others": _sizes(single, planted=False),
            "of_null_models": _sizes(nulls, planted=False),
        },
        "decodable_but_unused": {
            "best_probe_accuracy": mean([max(r["scores"][PROBE].values()) for r in unused]),
            "probe_fires": share([bool(r["named"][PROBE]) for r in unused]),
            "tool_names_no_head": share([not r["localised"] for r in unused]),
            "tool_shows_the_gap_to_be_small": share([r["gap_within_margin"] for r in unused]),
        },
        "rivals": {method: _rival(planted, high, ranked, method) for method in methods},
        "tests": {
            method: _test(nulls, high, planted, method) for method in sorted({m for r in rows for m in r["named"]})
        },
        "sampled": _sampled(rows, nulls, planted),
        "auroc_by_method_and_dose": {m: _auroc_by_dose(planted, ranked, m) for m in (TOOL, *methods)},
    }


def _sizes(rows: Sequence[Row], *, planted: bool) -> dict[str, dict[str, float]]:
    """Return median and largest size of the true mediated gaps, dose by dose: of planted heads, or of the others."""
    sizes: dict[str, list[float]] = {}
    for r in rows:
        true = r.get("true_mediated", {})  # with random labels it is 0 by design, and not measured
        sizes.setdefault(str(r["dose"]), []).extend(abs(v) for h, v in true.items() if (h in r["planted"]) == planted)
    return {d: {"median": float(np.median(s)), "largest": max(s)} for d, s in sorted(sizes.items()) if s}


def _significant(row: Row, method: str) -> set[str]:
    """Return the heads that a method's test calls significant, gap or no gap: of this tool the confirmed ones."""
    return set(row["confirmed"] if method == TOOL else row["named"][method])


def _auroc_by_dose(
    planted: Sequence[Row], ranked: Mapping[int, Mapping[str, Mapping[str, float]]], method: str
) -> dict[str, Figure]:
    return _by(planted, "dose", lambda g: mean([ranked[id(r)][method]["auroc"] for r in g]))


def _found_all(row: Row) -> bool:
    return set(row["planted"]) <= set(row["localised"])


def _beyond_sum(row: Row) -> bool:
    """Tell whether the two heads were patched together, and do more than the sum of the two, beyond chance."""
    tried = row["beyond_sum"]
    if tried is None:
        return False
    beyond, sign = tried["beyond"], np.sign(tried["together"]["value"])
    return bool(min(sign * beyond["low"], sign * beyond["high"]) > 0)


def _rival(
    planted: Sequence[Row], high: Sequence[Row], ranked: Mapping[int, Mapping[str, Mapping[str, float]]], method: str
) -> dict[str, Figure]:
    """Return a rival's figures, and by how much this tool's AUROC is above, model by model."""
    return {
        "auroc": mean([ranked[id(r)][method]["auroc"] for r in planted]),
        "auroc_tool_minus_rival": mean(
            [ranked[id(r)][TOOL]["auroc"] - ranked[id(r)][method]["auroc"] for r in planted]
        ),
        "hit_at_1": share([bool(ranked[id(r)][method]["hit_at_1"]) for r in high]),
        "hit_at_3": share([bool(ranked[id(r)][method]["hit_at_3"]) for r in high]),
        "decoy_first": share([max(r["scores"][method], key=r["scores"][method].get) == r["decoy"] for r in planted]),
        "mrr": mean([ranked[id(r)][method]["mrr"] for r in planted]),
    }


def _sampled(rows: Sequence[Row], nulls: Sequence[Row], planted: Sequence[Row]) -> dict[str, Any]:
    """Compare audits that patch a sample with those of the same models that patch all."""

    def cheaper(group: Sequence[Row]) -> float | None:
        spent = sum(r["sampled"]["patching_seconds"] for r in group)
        return sum(r["patching_seconds"] for r in group) / spent if spent else None

    def seldom(group: Sequence[Row]) -> float | None:
        made = sum(r["sampled"]["patches"] for r in group)
        return sum(r["sampled"]["patches_in_all"] for r in group) / made if made else None

    def alike(row: Row) -> bool:
        return set(row["sampled"]["localised"]) == set(row["localised"])

    widths = [w for r in planted for w in r["sampled"]["half_widths"].values()]
    first = [r for r in planted if r["localised"] and r["sampled"]["localised"]]
    return {
        "times_cheaper": cheaper(rows),
        "times_cheaper_planted": cheaper(planted),
        "times_fewer_patches_where_a_gap_is": seldom(rows),
        "same_heads_named": share([alike(r) for r in rows]),
        "same_heads_named_planted": share([alike(r) for r in planted]),
        "same_answer": share([bool(r["localised"]) == bool(r["sampled"]["localised"]) for r in rows]),
        "planted_heads_kept": share([_kept(r) for r in planted]),
        "false_positive_rate": share([bool(r["sampled"]["localised"]) for r in nulls]),
        "coverage": share_within([r["sampled"]["covered"] for r in rows if r["sampled"]["covered"]]),
        "heads_lost": mean([len(set(r["localised"]) - set(r["sampled"]["localised"])) for r in first]),
        "heads_gained": mean([len(set(r["sampled"]["localised"]) - set(r["localised"])) for r in first]),
        "half_width": {
            "median": float(np.median(widths)) if widths else None,
            "largest": float(np.max(widths)) if widths else None,
        },
    }


def _kept(row: Row) -> bool:
    """Tell whether the sampled audit names those planted heads that the full one does."""
    return set(row["planted"]) & set(row["localised"]) <= set(row["sampled"]["localised"])


def _test(nulls: Sequence[Row], high: Sequence[Row], planted: Sequence[Row], method: str) -> dict[str, Any]:
    """Return how often a method's own test calls heads significant, where it should and where it should not."""
    return {
        "null_models": _by(nulls, "kind", lambda g: share([bool(_significant(r, method)) for r in g])),
        "null_models_with_a_gap": share([r["disparity"] and bool(_significant(r, method)) for r in nulls]),
        "planted_head_named": share([set(r["planted"]) <= _significant(r, method) for r in high]),
        "other_heads_named": mean([len(_significant(r, method) - set(r["planted"])) for r in planted]),
    }


def _by(rows: Sequence[Row], column: str, figure: Callable[[list[Row]], Figure]) -> dict[str, Figure]:
    values = sorted({r[column] for r in rows})
    return {str(v): figure([r for r in rows if r[column] == v]) for v in values}


def table(results: Mapping[str, Any]) -> str:
    """Write the figures as Markdown tables."""
    lines = ["| figure | estimate | 95% interval | n |", "|---|---|---|---|"]
    lines.append(_line("false positives: null models in which a head is named", results["false_positive_rate"]))
    lines += [_line(f"- {kind}", f) for kind, f in results["false_positive_rate_by_kind"].items()]
    for step, by_kind in results["false_positive_rate_without_a_gap_gate"].items():
        lines += [_line(f"any head {step}, gap or no gap: {kind}", f) for kind, f in by_kind.items()]
    lines += [_line(f"power, one head, dose {dose}", f) for dose, f in results["power"].items()]
    for found, by_dose in results["power_redundant_heads"].items():
        lines += [_line(f"power, two redundant heads, {found}, dose {dose}", f) for dose, f in by_dose.items()]
    lines += [_line(f"hit@1, one head, dose {dose}", f) for dose, f in results["hit_at_1_by_dose"].items()]
    named = [
        ("hit@1, one head, the two high doses", "hit_at_1"),
        ("hit@3, one head, the two high doses", "hit_at_3"),
        ("MRR", "mrr"),
        ("AUROC over heads", "auroc"),
        ("heads named besides the planted ones, mean", "other_heads_named"),
        ("the decoy is named", "decoy_named"),
        ("coverage of the mediated gaps' 95% intervals", "coverage"),
        ("coverage of the gaps' 95% intervals", "coverage_of_gaps"),
    ]
    lines += [_line(text, results[key]) for text, key in named]
    others = results["other_heads_named_by_dose"]
    lines += [_line(f"heads named besides the planted ones, dose {dose}", f) for dose, f in others.items()]
    unused = results["decodable_but_unused"]
    lines.append(_line("decodable but unused: best head's probe accuracy", unused["best_probe_accuracy"]))
    lines.append(_line("decodable but unused: the probe calls a head significant", unused["probe_fires"]))
    lines.append(_line("decodable but unused: this tool names no head", unused["tool_names_no_head"]))
    lines.append(_line("decodable but unused: it shows the gap to be small", unused["tool_shows_the_gap_to_be_small"]))
    gaps = ", ".join(f"{kind} {100 * gap:.1f}" for kind, gap in results["largest_true_gap_of_null_models"].items())
    lines += ["", f"Largest true gap of a null model, points: {gaps}."]
    lines += ["", "| true mediated gaps, points | median | largest |", "|---|---|---|"]
    for which, by_dose in results["true_mediated_gaps"].items():
        for dose, size in by_dose.items():
            name = "heads of null models" if which == "of_null_models" else f"one head, {which}, dose {dose}"
            lines.append(f"| {name} | {100 * size['median']:.1f} | {100 * size['largest']:.1f} |")
    figures = ("auroc", "auroc_tool_minus_rival", "hit_at_1", "hit_at_3", "mrr", "decoy_first")
    lines += ["", "| ranking by | AUROC | this tool minus it | hit@1, high doses | hit@3 | MRR | decoy first |"]
    lines.append("|---|---|---|---|---|---|---|")
    own = (_text(results[k]) if k in results else "" for k in figures)
    lines.append(f"| **{TOOL}** | {' | '.join(own)} |")
    for method, f in sorted(results["rivals"].items(), key=lambda item: -(item[1]["auroc"]["estimate"] or 0.0)):
        lines.append(f"| {method} | {' | '.join(_text(f[k]) for k in figures)} |")
    tests = ("null_models_with_a_gap", "planted_head_named", "other_heads_named")
    kinds = sorted({kind for f in results["tests"].values() for kind in f["null_models"]})
    asked = [f"null models in which a head is significant: {kind}" for kind in kinds]
    asked += ["all null models, where a gap is detected", "planted head significant, high doses", "others significant"]
    lines += ["", f"| test of | {' | '.join(asked)} |", "|---" * (1 + len(asked)) + "|"]
    for method, f in results["tests"].items():
        shown = [f["null_models"][kind] for kind in kinds] + [f[k] for k in tests]
        lines.append(f"| {method} | {' | '.join(_text(figure) for figure in shown)} |")
    return "\n".join([*lines, *_sampled_lines(results.get("sampled"))]) + "\n"


def _sampled_lines(figures: Mapping[str, Any] | None) -> list[str]:
    """Write the comparison of sampled audits with full ones; nothing for results that are older than it."""
    if figures is None:
        return []
    named = [
        ("the same heads are named, all models", "same_heads_named"),
        ("the same heads are named, planted models", "same_heads_named_planted"),
        ("the same answer: some head or none", "same_answer"),
        ("planted heads that all patches name are named", "planted_heads_kept"),
        ("false positives: null models in which a head is named", "false_positive_rate"),
        ("coverage of the mediated gaps' 95% intervals", "coverage"),
        ("heads named by all patches only, mean", "heads_lost"),
        ("heads named by the sample only, mean", "heads_gained"),
    ]
    ratios = [
        ("times cheaper, all models", figures["times_cheaper"]),
        ("times cheaper, planted models", figures["times_cheaper_planted"]),
        ("times fewer patches in Design A, where a gap is detected", figures["times_fewer_patches_where_a_gap_is"]),
        ("half-width of a head's interval against all patches: median", figures["half_width"]["median"]),
        ("half-width of a head's interval against all patches: largest", figures["half_width"]["largest"]),
    ]
    lines = ["", "| a sample of the patches, against all | estimate | 95% interval | n |", "|---|---|---|---|"]
    lines += [f"| {text} | {'none' if ratio is None else f'{ratio:.2f}'} | | |" for text, ratio in ratios]
    return lines + [_line(text, figures[key]) for text, key in named]


def _line(name: str, figure: Figure) -> str:
    if figure["estimate"] is None:
        return f"| {name} | none | | 0 |"
    interval = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
    return f"| {name} | {figure['estimate']:.3f} | {interval} | {figure['n']} |"


def _text(figure: Figure) -> str:
    if figure["estimate"] is None:
        return "none"
    return f"{figure['estimate']:.2f}" + (
        "" if figure["low"] is None else f" [{figure['low']:.2f}, {figure['high']:.2f}]"
    )
