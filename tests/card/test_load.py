"""Every fault of a card, its line and its fix."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.card import check_card, find_card, load_card, resolve
from audit.card.load import shown_path
from audit.card.schema import Shares
from audit.errors import CardError, DataError, InputError
from audit.resources import resource_dir
from tests.strategies import card_mappings

pytestmark = pytest.mark.unit

GOOD = """\
name: Try
data:
  path: faces.csv
  labels: [neutral, happiness]
groups:
  gender:
    column: gender
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "dataset.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(folder: Path, text: str | bytes) -> list[str]:
    path = write(folder, text)
    with pytest.raises(CardError) as caught:
        load_card(path)
    assert all("\n" not in fault for fault in caught.value.faults)
    return [fault.replace(str(folder) + "/", "") for fault in caught.value.faults]


def test_smallest_card_has_every_default(tmp_path: Path) -> None:
    card = load_card(write(tmp_path, GOOD))
    assert card.data.labels == ["neutral", "happiness"]
    assert card.groups["gender"].assigned_by == "not stated"
    assert card.policy.impact_ratio_below == 0.8


def test_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    assert load_card(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())).name == "Try"


WORDS = [
    "no", "yes", "on", "off", "y", "1", "2.0", "1e3", "007", "0x1F", "1_000", "12:30", "null", "~", "None", "NA",
    "True", "2024-01-31", "=", ".inf", "+1",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_labels_groups_and_names_are_what_is_written(tmp_path: Path, word: str) -> None:
    text = GOOD.replace("labels: [neutral, happiness]", f"labels: [{word}, happiness]\n  label: {word}")
    text += f"    values:\n    - {word}\n    - 'b'\n  race: {{column: {word}, reference: b, assigned_by: {word}}}\n"
    text += f"model: {{classes: [{word}, 3.0, Yes]}}\naudit: {{outcomes: [{word}]}}\nlegal: {{{word}: {word}}}\n"
    card = load_card(write(tmp_path, text))
    assert (card.data.labels, card.data.label) == ([word, "happiness"], word)
    assert card.groups["gender"].values == [word, "b"]
    assert (card.groups["race"].column, card.groups["race"].assigned_by) == (word, word)
    assert card.model.classes == [word, "3.0", "Yes"]
    assert card.audit.outcomes == [word]
    assert card.legal == {word: word}


def test_what_may_be_text_or_a_list_is_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    text = GOOD.replace("  path:", "  subject: 3\n  seed: 7\n  links: yes\n  path:") + "    reference: off\n"
    text += "model: {overrides: {depth: 4, qk_norm: on, act: gelu}}\naudit: {alpha: 0.01}\n"
    card = load_card(write(tmp_path, text))
    assert (card.data.subject, card.data.seed, card.data.links) == ("3", 7, True)
    assert card.groups["gender"].reference == "off"
    assert card.model.overrides == {"depth": 4, "qk_norm": True, "act": "gelu"}
    assert card.audit.alpha == 0.01


def test_who_decides_and_what_groups_are_called_is_read(tmp_path: Path) -> None:
    text = (
        GOOD.replace("  path:", "  display: {happiness: happy}\n  path:")
        + "    display: {no: people without a beard}\n"
    )
    card = load_card(write(tmp_path, text + "report: {owner: Ethics board, decide_by: 2027-03-01}\n"))
    assert card.data.display == {"happiness": "happy"}
    assert card.groups["gender"].display == {"no": "people without a beard"}
    assert (card.report.owner, card.report.decide_by) == ("Ethics board", "2027-03-01")
    assert card.policy.harmful_error == "both"
    with pytest.raises(CardError) as caught:
        load_card(write(tmp_path, text + "report: {decide_by: soon}\npolicy: {harmful_error: all}\n"))
    assert any("report.decide_by: 'soon' is no day; write it as 2027-03-01" in fault for fault in caught.value.faults)
    assert any("policy.harmful_error" in fault for fault in caught.value.faults)


@pytest.mark.parametrize("path", ["https://user:key@host/faces.tar", "https://host/faces.tar?X-Amz-Signature=1"])
def test_an_address_that_lets_somebody_in_is_refused(tmp_path: Path, path: str) -> None:
    text = re.sub(r"  path: .*", f"  path: '{path}'", GOOD)
    with pytest.raises(CardError, match=r"data\.path: names a user or a signature, which records would show"):
        load_card(write(tmp_path, text))


def test_errors_of_annotations_are_shares_of_all_or_by_group(tmp_path: Path) -> None:
    text = GOOD.replace("  path:", "  label_error: 0.03\n  path:") + "    error: {no: 0.02, 1: 0}\n"
    card = load_card(write(tmp_path, text + "  race: {column: race, error: 0.5}\n"))
    assert card.data.label_error == 0.03
    assert card.groups["gender"].error == {"no": 0.02, "1": 0}
    assert card.groups["race"].error == 0.5


@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_what_may_be_left_out_is_left_out_by_nothing(tmp_path: Path, nothing: str) -> None:
    text = GOOD.replace("  path:", f"  subject: {nothing}\n  path:") + f"    reference: {nothing}\n"
    card = load_card(write(tmp_path, text))
    assert card.data.subject is None
    assert card.groups["gender"].reference is None
    quoted = load_card(write(tmp_path, GOOD + "    reference: 'null'\n"))
    assert quoted.groups["gender"].reference == "null"


def with_download(entry: str) -> str:
    return GOOD.replace("  labels:", f"  download:\n    - {{{entry}}}\n  labels:")


HASH = "sha256:" + "0" * 64
ONE_FAULT = {
    "download from a file": (
        with_download(f"url: file:///etc/passwd, hash: '{HASH}'"),
        "dataset.yaml:5 data.download[0].url: is no address of a file; begin with https://, and name no user",
    ),
    "download without a hash": (
        with_download("url: 'https://a.org/b'"),
        "dataset.yaml:5 data.download[0].hash: required key is missing; write 'hash: ...'",
    ),
    "download with half a hash": (
        with_download("url: 'https://a.org/b', hash: 'sha256:12'"),
        (
            "dataset.yaml:5 data.download[0].hash: is no hash; write sha256: and 64 hexadecimal digits "
            "(or md5: and 32), in lower case"
        ),
    ),
    "download to elsewhere": (
        with_download(f"url: 'https://a.org/b', hash: '{HASH}', to: ../c"),
        (
            "dataset.yaml:5 data.download[0].to: '../c' leaves the data folder; "
            "write a path below it, with forward slashes"
        ),
    ),
    "unknown key": (
        GOOD.replace("    column: gender", "    column: gender\n    colum: x"),
        "dataset.yaml:8 groups.gender.colum: unknown key 'colum'; did you mean 'column'?",
    ),
    "unknown top key": (
        GOOD + "modle: {}\n",
        "dataset.yaml:8 modle: unknown key 'modle'; did you mean 'model'?",
    ),
    "unknown key in a union": (
        GOOD + "training:\n  epoch: 2\n",
        "dataset.yaml:9 training.epoch: unknown key 'epoch'; did you mean 'epochs'?",
    ),
    "unknown key in a list": (
        GOOD.replace(
            "  labels:", "  plant:\n    - {attribute: gender, group: a, label: neutral, keep: 0, kep: 1}\n  labels:"
        ),
        "dataset.yaml:5 data.plant[0].kep: unknown key 'kep'; did you mean 'keep'?",
    ),
    "missing key points at its parent": (
        GOOD.replace("column: gender", "note: none"),
        "dataset.yaml:6 groups.gender.column: required key is missing; write 'column: ...'",
    ),
    "missing part": (
        "name: Try\ngroups:\n  gender: {column: gender}\n",
        "dataset.yaml:1 data: required key is missing; write 'data: ...'",
    ),
    "no groups": (
        GOOD[: GOOD.index("groups")] + "groups: {}\n",
        "dataset.yaml:5 groups: too few entries (0); give at least 1",
    ),
    "literal": (
        GOOD + "task: emotoin\n",
        "dataset.yaml:8 task: 'emotoin' is not one of emotion, action, other; did you mean 'emotion'?",
    ),
    "union of a literal": (
        GOOD + "training: non\n",
        "dataset.yaml:8 training: expected 'none' or a mapping (key: value), got 'non'",
    ),
    "list for text": (
        GOOD.replace("    column: gender", "    column: gender\n    values: [[a], '2']"),
        "dataset.yaml:8 groups.gender.values[0]: expected text, got a list",
    ),
    "nothing for text": (
        GOOD.replace("path: faces.csv", "label:\n  path: faces.csv"),
        "dataset.yaml:3 data.label: expected text, got nothing",
    ),
    "text for number": (
        GOOD + "audit: {alpha: small}\n",
        "dataset.yaml:8 audit.alpha: expected a number, got 'small'",
    ),
    "list for mapping": (
        GOOD + "model: [vit]\n",
        "dataset.yaml:8 model: expected a mapping (key: value), got a list",
    ),
    "text or list": (
        GOOD.replace("  path:", "  subject: {a: b}\n  path:"),
        "dataset.yaml:3 data.subject: expected text or a list, got a mapping (key: value)",
    ),
    "range": (
        GOOD + "audit:\n  alpha: 0.9\n",
        "dataset.yaml:9 audit.alpha: the number 0.9 is out of range; it must be less than 0.5",
    ),
    "most labels wrong": (
        GOOD.replace("  path:", "  label_error: 0.6\n  path:"),
        "dataset.yaml:3 data.label_error: the number 0.6 is out of range; it must be at most 0.5",
    ),
    "groups less than never wrong": (
        GOOD + "    error: -0.1\n",
        "dataset.yaml:8 groups.gender.error: the number -0.1 is out of range; it must be at least 0.0",
    ),
    "one group wrong more often than right": (
        GOOD + "    error: {female: 0.02, male: 0.7}\n",
        "dataset.yaml:8 groups.gender.error.male: the number 0.7 is out of range; it must be at most 0.5",
    ),
    "error of a group that is none": (
        GOOD + "    values: [female, male]\n    error: {femal: 0.02}\n",
        "dataset.yaml:9 groups.gender.error.femal: 'femal' is no such group; did you mean 'female'?",
    ),
    "part between parts": (
        GOOD + "intersections: [[gender, race]]\n",
        "dataset.yaml:8 intersections[0][1]: 'race' is not under groups; choose from gender",
    ),
    "training none needs classes": (
        GOOD + "training: none\n",
        "dataset.yaml:8 training: training: none needs model.classes, the class names in the order of the outputs",
    ),
    "no path": (
        GOOD.replace("  path: faces.csv\n", ""),
        "dataset.yaml:2 data: reader 'table' needs 'path'; name the file or folder",
    ),
    "one label": (
        GOOD.replace("[neutral, happiness]", "[neutral]"),
        "dataset.yaml:4 data.labels: fewer than two labels; a classifier needs two",
    ),
    "outcome": (
        GOOD + "audit: {outcomes: [hapiness]}\n",
        "dataset.yaml:8 audit.outcomes[0]: 'hapiness' is not a label; did you mean 'happiness'?",
    ),
    "shares": (
        GOOD.replace("  path:", "  shares: [0.5, 0.2, 0.2]\n  path:"),
        "dataset.yaml:3 data.shares: the shares sum to 0.9; they must sum to 1",
    ),
    "reference": (
        GOOD + "    values: [male, female]\n    reference: mal\n",
        "dataset.yaml:9 groups.gender.reference: 'mal' is not among values; did you mean 'male'?",
    ),
    "duplicate key": (
        GOOD + "name: Again\n",
        "dataset.yaml:8 name: key occurs twice; the first is on line 1, keep one of them",
    ),
    "syntax": (
        GOOD + "model: {name: vit\n",
        (
            "dataset.yaml:9 card: YAML syntax: expected ',' or '}', but got '<stream end>'; "
            "check quotes, brackets, colons and indentation around this line"
        ),
    ),
    "tab": (
        "data:\n\tpath: x\n",
        (
            "dataset.yaml:2 card: YAML syntax: found character '\\t' that cannot start any token; "
            "indent with spaces, not tabs"
        ),
    ),
    "alias": (
        "data: &d {path: x}\ngroups: *d\n",
        "dataset.yaml:2 card: alias '*d' is not allowed; write it out",
    ),
    "tag": (
        "data: !!python/object/apply:os.getcwd []\n",
        (
            "dataset.yaml:1 card: YAML syntax: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.getcwd'; remove the tag"
        ),
    ),
    "empty": ("# nothing\n", "dataset.yaml:1 card: the file is empty; 'vit-audit init PATH' writes a first card"),
    "no mapping": (
        "- a\n",
        "dataset.yaml:1 card: expected a mapping (key: value), got a list; 'vit-audit init PATH' writes a first card",
    ),
    "not utf-8": (b"name: x\ntask: \xff\n", "dataset.yaml:2 card: not UTF-8 text; save the file as UTF-8"),
}


@pytest.mark.parametrize(("text", "expected"), ONE_FAULT.values(), ids=ONE_FAULT.keys())
def test_each_fault_is_exactly_one_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert faults(tmp_path, text) == [expected]


def test_faults_of_single_fields_hide_none_between_parts(tmp_path: Path) -> None:
    text = (
        GOOD
        + "  x y: {colum: a}\nmatch_on: [label]\naudit: {alpha: 2, outcomes: [joy]}\nintersections: [[gender, race]]\n"
    )
    text += "training: none\nmodel: {image_size: -1}\n"
    found = "\n".join(faults(tmp_path, text))
    for place in (
        "colum",
        "column",
        "match_on[0]",
        "audit.alpha",
        "audit.outcomes[0]",
        "intersections[0][1]",
        "training",
    ):
        assert place in found
    assert "model.image_size" in found


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("path:", "pth:") + "    colour: x\naudit: {alpha: 2}\nname: Again\npolcy: {}\n"
    lines = [fault.split(" ")[0] for fault in faults(tmp_path, text)]
    assert lines == [f"dataset.yaml:{line}" for line in (3, 8, 9, 10, 11)]


def test_a_huge_card_is_refused_unread(tmp_path: Path) -> None:
    assert "over the limit" in faults(tmp_path, "#" * 1_000_001)[0]


def test_deep_nesting_is_no_traceback(tmp_path: Path) -> None:
    assert "nested too deep" in faults(tmp_path, "a: " + "[" * 1000 + "]" * 1000)[0]


def test_missing_card_names_init(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such card; 'vit-audit init PATH' writes a first card"):
        load_card(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder, not a card"):
        load_card(tmp_path)


@pytest.mark.property
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mapping=card_mappings())
def test_what_is_valid_loads_and_says_the_same(tmp_path: Path, mapping: dict[str, Any]) -> None:
    card = load_card(write(tmp_path, yaml.safe_dump(mapping)))
    assert list(card.groups) == sorted(mapping["groups"])
    assert card.data.labels == mapping["data"]["labels"]


@pytest.mark.property
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, len(GOOD)), length=st.integers(0, 9), put=st.text(max_size=6))
def test_no_damage_to_a_card_makes_a_traceback(tmp_path: Path, start: int, length: int, put: str) -> None:
    damaged = GOOD[:start] + put + GOOD[start + length :]
    path = write(tmp_path, damaged.encode("utf-8", "surrogatepass"))
    try:
        load_card(path)
    except CardError as error:
        assert error.faults
        assert all(fault.startswith(f"{path}:") for fault in error.faults)


def test_every_built_in_card_loads_and_names_its_command() -> None:
    folder = resource_dir("datasets")
    cards = sorted(folder.rglob("*.yaml"))
    assert cards
    for path in cards:
        load_card(path)
        assert f"vit-audit run datasets/{path.name}" in path.read_text(encoding="utf-8").split("name:")[0]


def test_find_card_knows_paths_and_built_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    built_in = resource_dir("datasets") / "synthetic-expressions.yaml"
    assert find_card(own) == own
    assert find_card("synthetic-expressions") == built_in
    assert find_card("datasets/synthetic-expressions.yaml") == built_in
    with pytest.raises(InputError, match="did you mean 'synthetic-expressions'"):
        find_card("synthetic-expresions")
    with pytest.raises(InputError, match=r"no such card; built-in cards: .*synthetic-balanced"):
        find_card("qqqq.yaml")


def test_paths_start_at_the_data_root_then_at_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIT_AUDIT_DATA", raising=False)
    here, there = tmp_path / "cards", tmp_path / "data"
    here.mkdir()
    there.mkdir()
    card = here / "dataset.yaml"
    (here / "a.csv").touch()
    assert resolve("a.csv", card_path=card, data_root=None) == here / "a.csv"
    assert resolve("a.csv", card_path=card, data_root=there) == here / "a.csv"
    (there / "a.csv").touch()
    assert resolve("a.csv", card_path=card, data_root=there) == there / "a.csv"
    monkeypatch.setenv("VIT_AUDIT_DATA", str(there))
    assert resolve("a.csv", card_path=card, data_root=None) == there / "a.csv"
    assert resolve("b", card_path=card, data_root=None, missing_ok=True) == there / "b"
    with pytest.raises(DataError) as caught:
        resolve("b.csv", card_path=card, data_root=there)
    assert str(there / "b.csv") in str(caught.value)
    assert str(here / "b.csv") in str(caught.value)
    assert "--data PATH or VIT_AUDIT_DATA" in str(caught.value)


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_what_is_nested_too_deep_is_refused_at_once(opening: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(opening * 20_000, encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(CardError, match="nested too deep"):
        load_card(path)
    assert time.process_time() - begun < 5


def test_a_list_that_is_too_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("data: {path: t.csv, shares: [0.5]}\ngroups: {g: {column: g}}\n", encoding="utf-8")
    with pytest.raises(CardError, match=r"data\.shares"):
        load_card(path)


@pytest.mark.parametrize(
    ("path", "shown"), [("faces.csv", "faces.csv"), ("a/faces.csv", "a/faces.csv"), ("/srv/me/faces.csv", "faces.csv"),
                        ("~/faces.csv", "faces.csv"), ("/data/set/", "set")],
)  # fmt: skip
def test_where_files_lie_on_a_machine_is_not_shown(path: str, shown: str) -> None:
    assert shown_path(path) == shown


def card_with(folder: Path, shares: str, more: str = "") -> Path:
    path = folder / "shares.yaml"
    path.write_text(f"data: {{path: t.csv, shares: {shares}}}\ngroups: {{g: {{column: g}}}}\n{more}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "shares",
    [
        "[0.5, 0.3, 0.2]",
        "[0.5, 0.3, 0.2, 0, 0]",
        "{train: 0.5, discovery: 0.3, confirmation: 0.2}",
        "{confirmation: 0.2, train: 0.5, discovery: 0.3, sealed: 0}",
    ],
)
def test_shares_are_a_list_or_named(tmp_path: Path, shares: str) -> None:
    found = load_card(card_with(tmp_path, shares)).data.shares
    assert found == Shares(train=0.5, discovery=0.3, confirmation=0.2)


def test_splits_may_be_held_back(tmp_path: Path) -> None:
    named = load_card(card_with(tmp_path, "{train: .4, discovery: .2, confirmation: .2, repair: .1, sealed: .1}"))
    listed = load_card(card_with(tmp_path, "[.4, .2, .2, .1, .1]"))
    assert named == listed
    assert tuple(named.data.shares.model_dump().items())[-2:] == (("repair", 0.1), ("sealed", 0.1))


OWN_MODEL = "training: none\nmodel: {classes: [a, b], weights: w.pth}\n"
BAD_SHARES = {
    "four": ("[.4, .2, .2, .2]", "", "data.shares: 4 shares; name them, e.g. {train: 0.5, discovery: 0.25"),
    "sum": (
        "{train: .5, discovery: .2, confirmation: .2}",
        "",
        "data.shares: the shares sum to 0.9; they must sum to 1",
    ),
    "nothing to confirm on": ("{train: .5, discovery: .5}", "", "data.shares: the share of 'confirmation' is 0; every"),
    "nothing to train on": ("{discovery: .5, confirmation: .5}", "", "data.shares: the share of 'train' is 0; every"),
    "unknown": ("{trian: .5}", "", "data.shares.trian: unknown key 'trian'; did you mean 'train'?"),
    "above one": ("{train: 1.5}", "", "data.shares.train: the number 1.5 is out of range; it must be at most 1"),
    "own model": ("{discovery: 1}", OWN_MODEL, "data.shares: the share of 'confirmation' is 0; every split"),
}


@pytest.mark.parametrize(("shares", "more", "expected"), BAD_SHARES.values(), ids=BAD_SHARES)
def test_bad_shares_are_named(tmp_path: Path, shares: str, more: str, expected: str) -> None:
    with pytest.raises(CardError) as caught:
        load_card(card_with(tmp_path, shares, more))
    (fault,) = caught.value.faults
    assert fault.startswith(f"{tmp_path / 'shares.yaml'}:1 {expected}")


def test_an_own_model_needs_no_share_to_train_on(tmp_path: Path) -> None:
    assert load_card(card_with(tmp_path, "{discovery: .5, confirmation: .5}", OWN_MODEL)).data.shares.train == 0


def test_a_path_may_have_to_stay_inside(tmp_path: Path) -> None:
    """As ``controls.path`` has to, without ``data.links``."""
    card, root = tmp_path / "cards" / "card.yaml", tmp_path / "data"
    for folder in ("cards/own", "data/set", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    for path in ("own", "set", "./set", "link", "../data/set", str(root / "set")):
        assert resolve(path, card_path=card, data_root=root, inside=True).is_dir()
    for path in (str(tmp_path / "elsewhere"), "../elsewhere", "set/../../elsewhere"):
        assert resolve(path, card_path=card, data_root=root).is_dir()
        with pytest.raises(DataError, match=r"leads out of the data folder and the card's; write a path below"):
            resolve(path, card_path=card, data_root=root, inside=True)


def test_a_card_made_in_python_has_the_same_faults(tmp_path: Path) -> None:
    plain = yaml.safe_load(GOOD)
    assert check_card(plain) == load_card(write(tmp_path, GOOD))
    with pytest.raises(CardError) as caught:
        check_card({**plain, "modle": {}, "match_on": ["label"], "audit": {"alpha": 2}}, "settings")
    assert sorted(caught.value.faults) == [
        "settings audit.alpha: the number 2 is out of range; it must be less than 0.5",
        (
            "settings match_on[0]: 'label' is a group or a column of every table; name a nuisance, or rename the group "
            "('column' may stay as it is)"
        ),
        "settings modle: unknown key 'modle'; did you mean 'model'?",
    ]


BLACK = "model: {name: predictions, path: p.csv, "
ZERO_SHOT = "training: none\nmodel: {name: huggingface, weights: clip, prompts: "
NOT_TOGETHER = {
    "classes": ("model: {classes: [a, b, a]}\n", "model.classes: 'a' occurs twice; name each once"),
    "classes of a model as it is": (
        "training: none\nmodel: {classes: [a, b, a]}\n",
        "model.classes: 'a' occurs twice; name each once",
    ),
    "outcomes": ("audit: {outcomes: [happiness, happiness]}\n", "audit.outcomes: 'happiness' occurs twice; name each"),
    "attributes": ("intersections: [[gender, gender]]\n", "intersections[0]: 'gender' occurs twice; name each once"),
    "weights of a table": (BLACK + "weights: w.pth}\n", "model.weights: is not read with name: predictions; remove it"),
    "layers of a table": (BLACK + "overrides: {depth: 3}}\n", "model.overrides: is not read with name: predictions"),
    "size of a table": (BLACK + "image_size: 64}\n", "model.image_size: is not read with name: predictions; remove"),
    "average of a network of its own": (
        "model: {name: onnx, weights: w.onnx, classes: [a, b], state: ema}\n",
        "model.state: is not read with name: onnx; remove it",
    ),
    "two means": (
        "model: {mean: [0.5], preprocess: {mean: [0.4]}}\n",
        "model.mean: preprocess states it too; give it once",
    ),
    "blank text": (ZERO_SHOT + "{a: [x, ' '], b: [y]}}\n", "model.prompts.a[1]: says nothing; describe the class"),
    "one text twice": (
        ZERO_SHOT + "{a: [x, x], b: [y]}}\n",
        "model.prompts.a[1]: 'x' is said of 'a' already; give each",
    ),
    "one text of two": (ZERO_SHOT + "{a: [x], b: [y, x]}}\n", "model.prompts.b[1]: 'x' is said of 'a' already; give"),
}


@pytest.mark.parametrize(("more", "expected"), NOT_TOGETHER.values(), ids=NOT_TOGETHER)
def test_what_does_not_go_together_is_named(tmp_path: Path, more: str, expected: str) -> None:
    (fault,) = faults(tmp_path, GOOD + more)
    assert expected in fault


@pytest.mark.parametrize(
    ("match_on", "said"),
    [
        ([{"age": 5}], "match_on[0].age: say how far apart donors may be: {caliper: 5}"),
        (
            [{"age": {"caliper": 5, "clipper": 1}}],
            "match_on[0].age.clipper: unknown key 'clipper'; did you mean 'caliper'?",
        ),
        ([{"age": {"caliper": 0}}], "match_on[0].age.caliper: the number 0 is out of range; it must be more than 0.0"),
        ([{"age": {"caliper": "five"}}], "match_on[0].age.caliper: expected a number, got 'five'"),
        (["age", {"age": {"caliper": 5}}], "match_on: 'age' occurs twice; name each once"),
        ([{"label": {"caliper": 5}}], "match_on[0]: 'label' is a group or a column of every table"),
    ],
)
def test_what_is_wrong_with_a_covariate(match_on: list[object], said: str) -> None:
    with pytest.raises(CardError) as raised:
        check_card({"data": {"path": "a.csv"}, "groups": {"gender": {"column": "gender"}}, "match_on": match_on})
    assert str(raised.value).startswith(f"card {said}")


def test_covariates_and_categories_of_match_on() -> None:
    plain = {"data": {"path": "a.csv"}, "groups": {"gender": {"column": "gender"}}}
    card = check_card({**plain, "match_on": ["source", {"age": {"caliper": 5}}, "pose"]})
    assert (card.categories, card.calipers) == (["source", "pose"], {"age": 5.0})
    named = check_card({**plain, "match_on": ["age"]})
    assert named.model_dump()["match_on"] == ["age"]  # so that the question of a run stays what it was
