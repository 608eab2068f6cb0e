"""The card's section on repairs: what it refuses, and that no audit depends on it."""

from __future__ import annotations

from typing import Any, get_args

import pytest

import vit_audit as va
from audit.card.repair_spec import NEED_GROUP, RepairMethod, RepairSpec
from audit.errors import CardError
from audit.records.repair_methods import Method
from audit.store import question_hash

pytestmark = pytest.mark.unit
DATA: dict[str, Any] = {"path": "faces.csv", "labels": ["no", "yes"]}
GROUPS = {"gender": {"column": "gender"}}


def card(**repair: Any) -> va.Card:
    return va.Card(data=DATA, groups=GROUPS, **({"repair": repair} if repair else {}))


def test_cards_that_differ_in_their_repair_or_in_what_is_told_of_the_data_ask_the_same_question() -> None:
    plain, mild, strict = card(), card(gap_margin=0.1), card(gap_margin=0.01, methods=["dfr"])
    assert mild.repair != strict.repair
    told = va.Card(
        data={**DATA, "consent": "yes", "consent_source": "a form", "layout": "real copy"},
        groups={"gender": {**GROUPS["gender"], "provenance": "annotated"}},
    )
    without = {key: value for key, value in plain.model_dump().items() if key != "repair"}
    without["data"] = {k: v for k, v in without["data"].items() if k not in ("consent", "consent_source", "layout")}
    without["groups"] = {g: {k: v for k, v in one.items() if k != "provenance"} for g, one in without["groups"].items()}
    assert plain.asked() == without
    (asked,) = {question_hash({"card": each.asked()}) for each in (plain, mild, strict, told)}
    other = va.Card(data={**DATA, "seed": 1}, groups=GROUPS)
    assert question_hash({"card": other.asked()}) != asked


def test_the_methods_are_those_of_the_records_but_for_the_control() -> None:
    assert {*get_args(RepairMethod), Method.RANDOM_HEADS} == set(Method)


def test_methods_that_need_the_group_compete_only_where_they_are_named() -> None:
    assert set(get_args(RepairMethod)) - set(RepairSpec().competing) == set(NEED_GROUP) == {"threshold_optimizer"}
    assert RepairSpec(methods=["dfr", "leace"]).competing == ["dfr", "leace"]


@pytest.mark.parametrize(
    ("repair", "fault"),
    [
        ({"attribute": "gendr"}, "repair.attribute: 'gendr' is not under groups; did you mean 'gender'?"),
        ({"outcome": "yess"}, "repair.outcome: 'yess' is not in data.labels; did you mean 'yes'?"),
        ({"methods": ["threshold_optimizer"]}, "few laws allow; state the legal_basis, or leave it out"),
        ({"methods": ["threshold_optimizer"], "legal_basis": "  "}, "state the legal_basis"),
        ({"methods": ["dfr", "dfr"]}, "'dfr' occurs twice; name each once"),
        ({"methods": ["random_heads"]}, "repair.methods[0]"),
        ({"gap_margin": 0}, "repair.gap_margin"),
        ({"harmful_error": "none"}, "repair.harmful_error"),
    ],
)
def test_what_cannot_be_meant_is_one_line(repair: dict[str, Any], fault: str) -> None:
    with pytest.raises(CardError) as caught:
        card(**repair)
    (line,) = caught.value.faults
    assert fault in line


def test_a_stated_basis_lets_the_group_be_used() -> None:
    stated = card(methods=["threshold_optimizer"], legal_basis="positive action, Article 157(4) TFEU")
    assert stated.repair is not None
    assert stated.repair.competing == ["threshold_optimizer"]


def test_the_error_that_harms_is_that_of_the_policy_unless_the_repair_names_another() -> None:
    policy = {"harmful_error": "missed"}
    assert va.Card(data=DATA, groups=GROUPS, policy=policy).to_repair.harmful_error == "missed"
    other = va.Card(data=DATA, groups=GROUPS, policy=policy, repair={"harmful_error": "false_alarm"})
    assert other.to_repair.harmful_error == "false_alarm"
