"""From records of schema 1.0, which held sentences, to the first form of schema 2.0, which holds what they said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Plain = dict[str, Any]  # of JSON

CHANNELS = ("colour", "blur")
FORMS = ("models", "input")  # of a channel's effects
HEAD = re.compile(r"\b(L\d+H\d+)\b")
SIZES = re.compile(r"(\d+) \w+?s, (\d+) seed")  # "16 heads, 2 seed(s); ..."
ENGINE = re.compile(r", ([^,;]+); largest difference from plain hooks in this run: ([\d.e+-]+) in a logit")
NOTHING: Plain = {"value": None}  # an estimate that is missing
SENTENCES = ("title", "setting", "statistic", "meaning", "mend")  # of a control
OF_METHOD = ("hypotheses", "metrics", "family", "estimands", "designs")  # now those of the tool's templates
MIRRORED = (("value", "value"), ("low", "high"), ("high", "low"))  # of a rate and of one minus it
OF_FINDING = (
    "title", "severity_reason", "confidence_reason", "criterion", "condition", "cause", "effect", "recommendation",
    "intervention", "placebo", "agreement_over_seeds", "replication", "other_explanations", "wording",
)  # fmt: skip


def from_1_0(held: Plain) -> Plain:
    """Return a record of schema 1.0 as one of schema 2.0.

    Shares of a gap are left out: they were of a gap in mean probability, and are now of one in rates.
    """
    heads, where = held["heads"], {key: localisation(said) for key, said in held["localisation"].items()}
    method, controls = held["method"], held["controls"]
    return {
        **without(held, "not_shown"),
        "schema_version": "2.0",
        "reasons": [],
        "next_steps": [],
        "controls": {
            **controls,
            "controls": [control(row) for row in controls["controls"]],
            "grids": [of_channel(grid) for grid in controls["grids"]],
            "not_run": [],
        },
        "data": {**held["data"], "excluded": [], "quarantined": [], "warnings": []},
        "rates": [with_counts(row) for row in held["rates"]],
        "findings": [finding(row, held["contrasts"], heads, where) for row in held["findings"]],
        "heads": [{**row, "share_of_gap": NOTHING} for row in heads],
        "joint": [{**row, "share_of_gap": NOTHING, "sum_share_of_gap": NOTHING} for row in held.get("joint", [])],
        "pairs": [without(row, "round_trip") for row in held.get("pairs", [])],
        "grids": [of_question(grid, where) for grid in held["grids"]],
        "stability": [stability(row) for row in held["stability"]],
        "localisation": where,
        "method": {
            **without(method, *OF_METHOD),
            "words_sha256": "",
            "layers": len({row["layer"] for row in heads}),
            "effort": method.get("effort") or [],
            "precision": None,
        },
        "provenance": without(held["provenance"], "seconds", "stages"),
    }


def without(row: Mapping[str, Any], *names: str) -> Plain:
    """Return a row but for some of its fields."""
    return {name: value for name, value in row.items() if name not in names}


def localisation(said: str) -> Plain:
    """Return where a gap was found; "localised: L1H0, L1H2" named the heads."""
    status, _, heads = said.partition(": ")
    return {"status": status, "heads": HEAD.findall(heads)}


def control(row: Plain) -> Plain:
    """Return a control with what its id and its statistic said as fields."""
    statistic = row["statistic"]
    end = statistic.partition(" end of ")[0]
    head = HEAD.search(statistic)
    gates = "Design C" if row["setting"].startswith("Design C") else "audit"
    return {
        "gates": gates,
        **without(row, *SENTENCES),
        **named(row["id"]),
        "judged": {"lower": "low", "upper": "high"}.get(end, "value"),
        "head": "" if head is None else head.group(),
    }


def named(name: str) -> Plain:
    """Return what a control's id says: the check, and of which channel, models or pictures.

    Examples
    --------
    >>> named("barrier:colour null models")
    {'check': 'barrier', 'channel': 'colour', 'form': 'null models'}
    >>> named("blur_joint_input")
    {'check': 'joint', 'channel': 'blur', 'form': 'input'}
    """
    check, _, of = name.partition(":")
    if check == "round_trip":
        return {"check": check, "contrast": of}
    if of:
        channel, _, form = of.partition(" ")
        rest = {"channel": channel, "form": form} if channel in CHANNELS else {"form": of.removeprefix("Design C, ")}
        return {"check": check, **rest}
    channel, _, of = name.partition("_")
    if channel not in CHANNELS:
        return {"check": name}
    check, _, form = of.rpartition("_")
    return {"check": check, "channel": channel, "form": form} if form in FORMS else {"check": of, "channel": channel}


def of_channel(grid: Plain) -> Plain:
    """Return a picture of the colour or blur control, whose id said what it shows."""
    channel, _, kind = grid["id"].partition("_")
    marks = [["above zero" if mark == "beyond null" else mark for mark in row] for row in grid["marks"]]
    said = {"kind": kind or "effect", "channel": channel, "unit": "log-odds", "marks": marks}
    return {**without(grid, "title", "caption"), **said}


def of_question(grid: Plain, where: Mapping[str, Plain]) -> Plain:
    """Return the picture of one question, ``bias:CONTRAST:OUTCOME``."""
    question = grid["id"].partition(":")[2]
    contrast, _, outcome = question.rpartition(":")
    status = where.get(question, {}).get("status", "")
    said = {"kind": "no gap" if status.startswith("no gap") else "gap", "contrast": contrast, "outcome": outcome}
    return {**without(grid, "title", "caption"), **said, "unit": "probability"}


def stability(row: Plain) -> Plain:
    """Return how far a ranking repeats itself, with the numbers of heads and seeds that its note had."""
    sizes = SIZES.match(row["note"])
    heads, seeds = (0, 0) if sizes is None else map(int, sizes.groups())
    return {**without(row, "note"), "heads": heads, "seeds": seeds}


def with_counts(row: Plain) -> Plain:
    """Return rates with the counts that they are of: nothing but the product of a rate and its number of images."""
    positives, negatives = row["positives"], row["images"] - row["positives"]
    found, alarms = (row[f"{kind}_positive_rate"] for kind in ("true", "false"))
    hits = 0 if found["value"] is None else round(found["value"] * positives)
    missed = {name: None if found[end] is None else 1 - found[end] for name, end in MIRRORED}
    return {
        **row,
        "negatives": negatives,
        "true_positives": hits,
        "false_positives": 0 if alarms["value"] is None else round(alarms["value"] * negatives),
        "false_negatives": positives - hits,
        "false_negative_rate": {**missed, "level": found["level"]},
    }


def finding(row: Plain, contrasts: Iterable[Plain], heads: Iterable[Plain], where: Mapping[str, Plain]) -> Plain:
    """Return a finding with what its sentences said as far as rows of the record say it, too."""
    contrast = f"{row['attribute']}:{row['group']}-{row['reference']}"
    plain = without(row, *OF_FINDING)
    if row["kind"] == "head":
        own = (contrast, row["outcome"], row["heads"][0])
        return {**plain, **_of_head(row, next(h for h in heads if (h["contrast"], h["outcome"], h["name"]) == own))}
    gaps = [c for c in contrasts if c["id"].startswith(f"{contrast}:{row['outcome']}:")]
    quoted = next(c for c in gaps if c["metric"] == row["metric"])
    said = {
        "by_seed": quoted["by_seed"],
        "above_policy": any(c["above_policy"] for c in gaps),
        "ratio": quoted["ratio"],
        "localisation": where.get(f"{contrast}:{row['outcome']}", {}).get("status"),
    }
    if quoted["above_policy"]:
        said |= {"worst_metric": row["metric"], "worst": row["estimate"]["value"]}
    return {**plain, **said}


def _of_head(row: Plain, head: Plain) -> Plain:
    """Return a finding on a head: its estimate was of a gap in mean probability, and is now of one in rates."""
    return {
        "metric": "standardised_gap",
        "estimate": head.get("confirmation_rate") or NOTHING,
        "probability": row["estimate"],
        "by_seed": head["by_seed"],
        "discovery": head["discovery"],
        "discovery_p_adjusted": head["discovery_p_adjusted"],
        "placebo": head["placebo"],
    }


def engine(said: str) -> Plain:
    """Return what ran, of a sentence on it."""
    found = ENGINE.search(said)
    return {"device": "", "largest_difference": None} if found is None else {
        "device": found.group(1), "largest_difference": float(found.group(2))
    }  # fmt: skip
