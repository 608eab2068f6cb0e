"""From a YAML file to a Card, and from a path in a card to a file."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from audit.card.faults import Lines, PathParts, closest, did_you_mean, faults_of, spell
from audit.card.reader_names import OF_PLACES
from audit.card.repair_spec import NEED_GROUP
from audit.card.schema import ONNX, PREDICTIONS, Card, Shares
from audit.card.text_values import keep_text
from audit.errors import CardError, DataError, InputError
from audit.filenames import name_on_disk, printable
from audit.remote import Place, RemotePath, is_address
from audit.resources import DATA_VARIABLE, resource_dir

AnyCard = TypeVar("AnyCard", bound=Card)
MAX_CARD_BYTES = 1_000_000
DEEPEST = 100  # lists and mappings within one another; a card has four
MISSING = "?"  # stands for a required word that a faulty card lacks
RESERVED = ("image", "label", "subject", "split")  # columns of every table of samples
_WRITE_ONE = "'vit-audit init PATH' writes a first card"


def load_card(path: Path) -> Card:
    """Read and check a card, as :func:`vit_audit.load_card` describes it."""
    text = _read_text(path)
    root, data = _parse(text, path)
    lines = Lines(root)
    faults = [
        (line, where, f"key occurs twice; the first is on line {first}, keep one of them")
        for where, line, first in lines.duplicates
    ]
    card, found = _validate(data)
    faults += [(lines.line(where), where, what) for where, what in found]
    if faults or card is None:
        in_order = sorted(faults, key=lambda fault: fault[0])
        raise CardError([f"{path}:{line} {spell(where)}: {what}" for line, where, what in in_order])
    return card


def check_card(data: Mapping[str, Any], where: str = "card") -> Card:
    """Check a card that was made in Python.

    Parameters
    ----------
    data : mapping
        As YAML would hold it: texts, numbers, lists, mappings.
    where : str
        What to call it in messages.

    Returns
    -------
    Card
        Complete, with every default filled in.

    Raises
    ------
    CardError
        With every fault found, as ``load_card`` finds them.
    """
    card, found = _validate(dict(data))
    if found or card is None:
        raise CardError([f"{where} {spell(path)}: {what}" for path, what in found])
    return card


def _validate(data: dict[str, Any]) -> tuple[Card | None, list[tuple[PathParts, str]]]:
    """Return the card and every fault: of single fields, and of parts that disagree although each is right.

    Faulty values are taken out, so that their defaults stand in for them while the rest is compared.
    """
    try:
        card = Card.model_validate(data)
        return card, list(_disagreements(card))
    except ValidationError as error:
        found = faults_of(error, Card, data)
    rest = copy.deepcopy(data)
    for where, _ in found:
        _take_out(rest, where)
    try:
        spared = Card.model_validate(rest)
    except ValidationError:
        return None, found  # something that has no default
    beside = [f for f in _disagreements(spared) if not any(_nested(f[0], where) for where, _ in found)]
    return None, found + beside


def _nested(a: PathParts, b: PathParts) -> bool:
    """Tell whether one place lies within the other."""
    return a[: len(b)] == b[: len(a)]


def _take_out(data: Any, where: PathParts) -> None:
    """Remove what is at ``where``, or put a word there if it is missing, so that the rest can be read."""
    *path, last = where or ("",)
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(data, list) and isinstance(last, int):
        if last < len(data):  # else it is the list that is too short
            data[last] = str(data[last])
    elif isinstance(data, dict):
        if last in data:
            del data[last]
        elif last:
            data[last] = MISSING


def with_classes(card: AnyCard, classes: Sequence[str]) -> AnyCard:
    """Return a card of a model that is audited as it is, with the names of its outputs."""
    if card.training != "none":
        return card
    return card.model_copy(update={"model": card.model.model_copy(update={"classes": list(classes)})})


def built_in_cards() -> dict[str, Path]:
    """Return the cards that come with the tool, by the names that ``find_card`` knows them by."""
    return dict(sorted((card.stem, card) for card in resource_dir("datasets").glob("*.yaml")))


def find_card(name_or_path: str | Path) -> Path:
    """Return the file of a card, given its path or the name of a built-in card.

    Parameters
    ----------
    name_or_path : str or pathlib.Path
        A path, or ``synthetic-expressions``, or ``datasets/synthetic-expressions.yaml`` from any folder.

    Returns
    -------
    pathlib.Path
        An existing file.

    Raises
    ------
    InputError
        If there is neither such a file nor such a built-in card.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    built_in = built_in_cards()
    if path.stem in built_in and path.parent.as_posix() in (".", "datasets") and _is_card_name(path):
        return built_in[path.stem]
    if path.is_dir():
        raise InputError(str(path), "is a folder, not a card", f"name the YAML file; {_WRITE_ONE}")
    close = closest(path.stem, built_in)
    hint = f"built-in cards: {', '.join(built_in)}" if close is None else f"did you mean '{close}'?"
    raise InputError(str(name_or_path), "no such card", f"{hint}; {_WRITE_ONE}")


def resolve(
    path: str, *, card_path: Path, data_root: Path | None, missing_ok: bool = False, inside: bool = False
) -> Path:
    """Return the file or folder that a path in a card means on this machine.

    Parameters
    ----------
    path : str
        As it is in the card: ``data.path``, ``model.weights``, ``controls.path``.
    card_path : pathlib.Path
        The card's file; its folder is where relative paths start.
    data_root : pathlib.Path or None
        ``--data``; where None, the environment variable VIT_AUDIT_DATA is asked. It comes first,
        the card's folder second.
    missing_ok : bool
        Return the first place tried, rather than raise, where there is nothing yet (for downloads).
    inside : bool
        Refuse a path that leads out of the data folder and out of the card's.

    Returns
    -------
    pathlib.Path
        An existing file or folder (but for ``missing_ok``).

    Raises
    ------
    DataError
        If it is in neither place (both are named), or leads out of them where it may not.
    """
    if data_root is None and os.environ.get(DATA_VARIABLE):
        data_root = Path(os.environ[DATA_VARIABLE])
    roots = [card_path.parent] if data_root is None else [data_root, card_path.parent]
    try:
        below = Path(name_on_disk(path)).expanduser()
    except (UnicodeEncodeError, RuntimeError):  # half a character; the home of nobody
        below = Path(printable(path))
    tried = list(dict.fromkeys(root / below for root in roots))
    if inside and not any(_is_below(candidate, root) for candidate in tried for root in roots):
        what = "leads out of the data folder and the card's"
        raise DataError(f"{card_path.name} '{path}'", what, "write a path below one of them, or set data.links: true")
    for candidate in tried:
        if candidate.exists():
            return candidate
    if missing_ok:
        return tried[0]
    places = " or ".join(f"'{printable(str(candidate))}'" for candidate in tried)
    raise DataError(
        f"{card_path.name} '{path}'",
        f"no such file or folder at {places}",
        f"say where the files lie with --data PATH or {DATA_VARIABLE}",
    )


def locate(path: str, *, card_path: Path, data_root: Path | None, missing_ok: bool = False) -> Place:
    """Return what ``data.path`` means: the address of a store as it is, else as ``resolve`` does.

    Raises
    ------
    DataError
        As ``resolve`` does.
    """
    if is_address(path):
        return RemotePath(path)
    return resolve(path, card_path=card_path, data_root=data_root, missing_ok=missing_ok)


def _is_below(path: Path, root: Path) -> bool:
    return Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(root.absolute()))


def shown_path(path: str) -> str:
    """Return a path of a card as a report may show it: where it is absolute, the folders are nobody else's business."""
    return Path(path).name if is_address(path) or Path(path).expanduser().is_absolute() else path


def _is_card_name(path: Path) -> bool:
    return path.suffix in ("", ".yaml", ".yml")


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise InputError(str(path), "is a folder, not a card", f"name the YAML file; {_WRITE_ONE}")
    try:
        size = path.stat().st_size
        if size > MAX_CARD_BYTES:
            raise CardError([f"{path}:1 card: {size:,} bytes is over the limit of {MAX_CARD_BYTES:,}; is this a card?"])
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(str(path), "no such card", _WRITE_ONE) from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CardError([f"{path}:{line} card: not UTF-8 text; save the file as UTF-8"]) from None


def _parse(text: str, path: Path) -> tuple[yaml.Node | None, dict[str, Any]]:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # the parser's time grows with the square of the depth
                raise CardError([f"{path}:1 card: nested too deep to be a card"])
            if isinstance(event, yaml.AliasEvent):  # a few lines of aliases can unfold to gigabytes
                line = event.start_mark.line + 1 if event.start_mark is not None else 1
                raise CardError([f"{path}:{line} card: alias '*{event.anchor}' is not allowed; write it out"])
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            keep_text(root, Card)
        data = loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        raise CardError([_syntax_fault(path, error)]) from None
    except yaml.YAMLError as error:
        raise CardError([f"{path}:1 card: not YAML ({_one_line(error)}); remove that character"]) from None
    except ValueError as error:  # the 30th of February, a number of 5,000 digits
        raise CardError([f"{path}:1 card: a value cannot be read ({error}); put it in quotes"]) from None
    except RecursionError:
        raise CardError([f"{path}:1 card: nested too deep to be a card"]) from None
    if data is None:
        raise CardError([f"{path}:1 card: the file is empty; {_WRITE_ONE}"])
    if not isinstance(data, dict):
        raise CardError([f"{path}:1 card: expected a mapping (key: value), got {_kind(data)}; {_WRITE_ONE}"])
    return root, data


def _syntax_fault(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    problem = error.problem or "cannot be read"
    if "\\t" in problem:
        fix = "indent with spaces, not tabs"
    elif "mapping values are not allowed" in problem:
        fix = "check the indentation, and put a value that holds ': ' in quotes"
    elif "could not determine a constructor" in problem:
        fix = "remove the tag"
    elif "single document" in (error.context or ""):
        fix = "a card is one document; remove the second '---'"
    else:
        fix = "check quotes, brackets, colons and indentation around this line"
    return f"{path}:{line} card: YAML syntax: {problem}; {fix}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _kind(data: object) -> str:
    return "a list" if isinstance(data, list) else "a single value"


OF_A_FILE = {"weights", "preprocess", "image_size", "mean", "std"}  # fields of model that an ONNX file has use for
OF_AN_INSIDE = {*OF_A_FILE, "state", "train_blocks", "channel_slices", "overrides"}


def _disagreements(card: Card) -> Iterator[tuple[PathParts, str]]:
    """Yield what is wrong between parts that are each right: (path, message)."""
    yield from _bad_groups(card)
    yield from _bad_data(card)
    for place, combination in enumerate(card.intersections):
        for position, attribute in enumerate(combination):
            if attribute not in card.groups:
                what = f"'{attribute}' is not under groups; {did_you_mean(attribute, card.groups)}"
                yield ("intersections", place, position), what
    yield from _bad_prompts(card)
    yield from _bad_model(card)
    yield from _bad_repair(card)
    own = card.training == "none" and card.model.name not in ("huggingface", PREDICTIONS)
    if own and card.model.classes is None:
        of_fault = ("model", "classes") if "model" in card.model_fields_set else ("training",)
        yield of_fault, "training: none needs model.classes, the class names in the order of the outputs"
    if card.training != "none" and card.model.served is not None:
        yield ("model", "served"), "is of a model that is audited as it is; write training: none, or remove it"
    if card.training != "none" and card.model.output == "sigmoid":
        yield ("model", "output"), "training has a softmax over the labels; remove it, or audit as is (training: none)"
    if card.model.decision == "argmax" and card.model.threshold is not None:
        yield ("model", "threshold"), "not read with decision: argmax; remove it, or write decision: threshold"
    for position, outcome in enumerate(card.audit.outcomes or []):
        known = (card.model.classes if card.training == "none" else None) or card.data.labels
        if known is not None and outcome not in known:
            what = f"'{outcome}' is not a label; {did_you_mean(outcome, known)}"
            yield ("audit", "outcomes", position), what


def _bad_model(card: Card) -> Iterator[tuple[PathParts, str]]:
    """Yield what does not go with a model whose inside is not given, or with any other."""
    model = card.model
    if model.is_black_box and card.training != "none":
        yield ("training",), f"'{model.name}' cannot be trained; write training: none, or leave it out"
    if model.name == PREDICTIONS and model.path is None:
        yield ("model",), f"name '{PREDICTIONS}' needs 'path'; name the table of predictions"
    if model.name == ONNX and model.weights in ("pretrained", "rendered", "none"):
        yield ("model",), f"name '{ONNX}' needs 'weights'; name the .onnx file"
    if model.name != PREDICTIONS and model.path is not None:
        yield ("model", "path"), f"is of name: {PREDICTIONS}; a model's own file goes to 'weights'"
    if model.name == ONNX and model.preprocess == "test":
        yield ("model", "preprocess"), "an ONNX file has no test size; state it as a mapping, or write legacy"
    if model.is_black_box and model.output_key is not None:
        yield ("model", "output_key"), f"is of a model whose inside is given, not of name: {model.name}; remove it"
    if model.name == PREDICTIONS and model.served is not None:
        yield (
            ("model", "served"),
            "is compared with a model that runs here, and predictions were made elsewhere; remove it",
        )
    for field in sorted(model.model_fields_set & OF_AN_INSIDE) if model.is_black_box else ():
        if model.name == PREDICTIONS or field not in OF_A_FILE:
            yield ("model", field), f"is not read with name: {model.name}; remove it"
    stated = set() if isinstance(model.preprocess, str) else model.preprocess.model_fields_set
    for field in sorted(stated & model.model_fields_set & {"mean", "std"}):
        yield ("model", field), "preprocess states it too; give it once"
    if not model.is_black_box and model.scores is not None:
        yield ("model", "scores"), f"is of name: {PREDICTIONS} and name: {ONNX}; remove it"


def _bad_repair(card: Card) -> Iterator[tuple[PathParts, str]]:
    """Yield what of the repair names no group or label, and methods that nothing allows."""
    repair = card.repair
    if repair is None:
        return
    if repair.attribute is not None and repair.attribute not in card.groups:
        hint = did_you_mean(repair.attribute, card.groups)
        yield ("repair", "attribute"), f"'{repair.attribute}' is not under groups; {hint}"
    if repair.outcome is not None and card.data.labels is not None and repair.outcome not in card.data.labels:
        hint = did_you_mean(repair.outcome, card.data.labels)
        yield ("repair", "outcome"), f"'{repair.outcome}' is not in data.labels; {hint}"
    for name in NEED_GROUP if not repair.legal_basis.strip() else ():
        if name in (repair.methods or ()):
            fix = "state the legal_basis, or leave it out"
            yield ("repair", "methods"), f"'{name}' treats people by their group, which few laws allow; {fix}"


def _bad_prompts(card: Card) -> Iterator[tuple[PathParts, str]]:
    model, where = card.model, ("model", "prompts")
    if model.prompts is None:
        if card.training == "none" and model.name.startswith("open_clip/"):
            yield ("model",), "open_clip's models have no classifier of their own; write what describes each in prompts"
        return
    if model.name != "huggingface" and not model.name.startswith("open_clip/"):
        yield where, f"'{model.name}' reads no text; name: huggingface or open_clip/NAME does"
    if card.training != "none":
        yield where, "are of a model that is audited as it is; write training: none, or remove them"
    told: dict[str, str] = {}
    for name, texts in model.prompts.items():
        for position, text in enumerate(texts):
            if not text.strip():
                yield (*where, name, position), "says nothing; describe the class"
            elif text in told:
                yield (*where, name, position), f"'{text}' is said of '{told[text]}' already; give each text once"
            told.setdefault(text, name)
    if model.classes != list(model.prompts):
        yield where, "do not describe model.classes, in their order; leave model.classes out"


def _bad_groups(card: Card) -> Iterator[tuple[PathParts, str]]:
    for name, group in card.groups.items():
        if name in RESERVED or " x " in name or ":" in name:
            what = f"'{name}' cannot name an attribute: {', '.join(RESERVED)}, ' x ' and ':' mean something else"
            yield ("groups", name), f"{what}; rename it ('column' may stay as it is)"
        for named in group.error if isinstance(group.error, Mapping) else ():
            if group.values is not None and named not in group.values:
                hint = did_you_mean(named, group.values)
                yield ("groups", name, "error", named), f"'{named}' is no such group; {hint}"
        if group.bins is not None and group.values is not None:
            yield ("groups", name, "values"), "bins make the groups; leave values out"
        if group.bins is not None and any(a >= b for a, b in pairwise(group.bins)):
            yield ("groups", name, "bins"), "the edges do not rise; write each once, from low to high"
        for field in ("bins", "merge", "missing") if card.data.reader == "synthetic" else ():
            if getattr(group, field) not in (None, False, "own_group"):
                yield (
                    ("groups", name, field),
                    "rendered faces have the groups that they are rendered with; leave it out",
                )
        if group.values is not None and len(set(group.values)) < 2:
            yield ("groups", name, "values"), "fewer than two groups; name two or leave it out"
        elif group.values and group.reference is not None and group.reference not in group.values:
            hint = did_you_mean(group.reference, group.values)
            yield ("groups", name, "reference"), f"'{group.reference}' is not among values; {hint}"
    for position, entry in enumerate(card.match_on):
        for column in [entry] if isinstance(entry, str) else entry:
            if column in (*RESERVED, *card.groups):
                fix = "name a nuisance, or rename the group ('column' may stay as it is)"
                yield ("match_on", position), f"'{column}' is a group or a column of every table; {fix}"


def _bad_data(card: Card) -> Iterator[tuple[PathParts, str]]:
    data = card.data
    if data.reader not in ("synthetic", "frame") and data.path is None:
        yield ("data",), f"reader '{data.reader}' needs 'path'; name the file or folder"
    if data.path is not None and is_address(data.path) and data.reader not in OF_PLACES:
        *first, last = OF_PLACES
        fix = f"copy it to a disk, or use {', '.join(first)} or {last}"
        yield ("data", "path"), f"is the address of a store, which reader '{data.reader}' does not open; {fix}"
    if data.labels is not None and len(data.labels) < 2:
        yield ("data", "labels"), "fewer than two labels; a classifier needs two"
    if data.not_detected is not None and data.not_detected_list is not None:
        yield ("data", "not_detected_list"), "says the same as 'not_detected'; give one of the two"
    if data.reader == "frame" and data.not_detected_list is not None:
        yield ("data", "not_detected_list"), "is for tables in files; name a column as 'not_detected'"
    shares = data.shares.model_dump()
    used = Shares.AUDITED if card.training == "none" else ("train", *Shares.AUDITED)
    empty = [split for split in used if shares[split] == 0]
    if abs(sum(shares.values()) - 1) > 1e-6:
        yield ("data", "shares"), f"the shares sum to {sum(shares.values()):g}; they must sum to 1"
    elif empty:
        yield ("data", "shares"), f"the share of '{empty[0]}' is 0; every split that is used needs images"
    for position, plant in enumerate(data.plant):
        where: PathParts = ("data", "plant", position)
        group = card.groups.get(plant.attribute)
        if group is None:
            hint = did_you_mean(plant.attribute, card.groups)
            yield (*where, "attribute"), f"'{plant.attribute}' is not under groups; {hint}"
        elif group.values is not None and plant.group not in group.values:
            hint = did_you_mean(plant.group, group.values)
            yield (*where, "group"), f"'{plant.group}' is no such group; {hint}"
        if data.labels is not None and plant.label not in data.labels:
            hint = did_you_mean(plant.label, data.labels)
            yield (*where, "label"), f"'{plant.label}' is not in data.labels; {hint}"
