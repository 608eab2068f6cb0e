"""From the forms of schema 2.0 before its release to its last: what was still sentences, and what it did not hold."""

from __future__ import annotations

import re

from audit.records.from_1_0 import Plain, engine, without

TRAINED_FROM = re.compile(r"trained by this audit from weights '(.*)'")
TRAINING = re.compile(
    r"(?:all parts|the last (?P<blocks>\d+) blocks) fine-tuned on (?P<images>\d+) images for (?P<epochs>\d+) epochs, "
    r"batches of (?P<batch_size>\d+), AdamW, learning rate (?P<learning_rate>\S+) with cosine schedule, "
    r"weight decay (?P<weight_decay>\S+)"
)
UNTRAINED = "not trained by this audit"
RENDERED = re.compile(r"rendered faces \((\S+), seed (\d+)\)")
SQUARE = "crop to a centred square, resize to {0} x {0}, bicubic"  # what all versions before 0.2 did to images


def has_sentences(held: Plain) -> bool:
    """Tell whether a record says in words where its model, its data and its method are from."""
    return "origin" in held["model"]


def from_sentences(held: Plain) -> Plain:
    """Return a record with model, limits, method and controls' setup as data; sentences alone are left out."""
    method = held["method"]
    return {
        **held,
        "model": model(held["model"]),
        "controls": without(held["controls"], "setting"),
        "data": {**held["data"], "limits": []},
        "contrasts": [without(row, "reason") for row in held["contrasts"]],
        "method": {**method, "engine": engine(method["engine"]), "patches": None},
    }


def model(held: Plain) -> Plain:
    """Return a model with where it is from, and how it was trained, as data.

    Raises
    ------
    ValueError
        If the sentence on the training cannot be read: a model that this audit trained is not to pass for another's.
    """
    origin, said = TRAINED_FROM.match(held["origin"]), TRAINING.fullmatch(held["training"])
    if said is None and held["training"] != UNTRAINED:
        raise ValueError(held["training"])
    training = None if said is None else {
        name: float(v) if name in ("learning_rate", "weight_decay") else None if v is None else int(v)
        for name, v in said.groupdict().items()
    }  # fmt: skip
    weights = "" if origin is None else origin.group(1)
    return {**without(held, "origin"), "weights": weights, "training": training}


def has_notes(held: Plain) -> bool:
    """Tell whether a record names the source of its data in words."""
    return isinstance(held["data"]["source"], str)


def from_notes(held: Plain) -> Plain:
    """Return a record with the source of its data as data, and without notes on rates."""
    data, said = held["data"], held["data"]["source"]
    drawn = RENDERED.fullmatch(said)
    source: Plain = {"kind": "files", "path": said}
    if drawn is not None:
        source = {"kind": "rendered", "version": drawn.group(1), "seed": int(drawn.group(2))}
    rates = [without(row, "note") for row in held["rates"]]
    return {**held, "data": {**data, "source": source}, "rates": rates}


def lacks_preprocessing(held: Plain) -> bool:
    """Tell whether a record is of a version that knew one way only to make images for a model."""
    return "preprocessing" not in held["model"]


def with_preprocessing(held: Plain) -> Plain:
    """Return a record that says which way that was."""
    own = held["model"]
    steps = [SQUARE.format(own["image_size"])]
    return {**held, "model": {**own, "preprocessing": {"source": "legacy", "library": "vit-audit", "steps": steps}}}
