"""Which gap of an audit is repaired, and which heads of it are known to tell its groups apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.card.repair_spec import RepairSpec
from audit.errors import InputError
from audit.evidence.outcome import main_gaps
from audit.pipeline.repair_aim import aimed_gap, heads_with_effect
from audit.records import Audit, ContrastRow, Verdict
from tests.report.examples import base, changed, examples

pytestmark = pytest.mark.unit
RUN = Path("runs/one")


def gap_of(audit: Audit, **spec: object) -> ContrastRow | None:
    return aimed_gap(audit, RepairSpec.model_validate(spec), RUN)


def test_the_largest_detected_gap_is_aimed_at_and_where_there_is_none_nothing_is() -> None:
    audit = examples()["disparity"]
    found = gap_of(audit)
    assert found is not None
    assert abs(found.estimate.value or 0) == max(
        abs(r.estimate.value or 0) for r in main_gaps(audit.contrasts).values()
    )
    assert gap_of(audit, attribute=found.attribute, outcome=found.outcome) == found
    assert gap_of(examples()["passed"]) is None


def test_a_gap_of_something_else_is_not_called_nothing_to_repair() -> None:
    audit = examples()["disparity"]
    found = gap_of(audit)
    assert found is not None
    crossed = [row.model_copy(update={"attribute": "gender x age"}) for row in audit.contrasts]
    with pytest.raises(InputError, match=r"one: has a gap, but of gender x age \(.*\), not of what is asked for; name"):
        gap_of(changed(audit, contrasts=[row.model_dump() for row in crossed]))
    with pytest.raises(InputError, match=r"repair.attribute is 'height'; choose from"):
        gap_of(audit, attribute="height")


def test_heads_whose_question_has_no_gap_are_known_to_tell_groups_apart_too() -> None:
    audit = base(groups=("female", "male"))
    gap = gap_of(audit)
    assert gap is not None
    contrast = f"{gap.attribute}:{gap.group}-{gap.reference}"
    own = [head for head in audit.heads if (head.contrast, head.outcome) == (contrast, gap.outcome)]
    verdicts = [Verdict.CONFIRMED, Verdict.CONFIRMED_NO_GAP, *([Verdict.NOT_CONFIRMED] * (len(own) - 2))]
    heads = [head.model_copy(update={"verdict": verdict}) for head, verdict in zip(own, verdicts, strict=True)]
    alone = audit.model_copy(update={"heads": heads, "answers": []})
    assert heads_with_effect(alone, gap) == {heads[0].name, heads[1].name}
    assert heads_with_effect(alone, gap.model_copy(update={"outcome": "another"})) == set()
    (answer, *_) = [a for a in audit.answers if (a.contrast, a.outcome) == (contrast, gap.outcome)]
    together = answer.model_copy(update={"jointly": True, "heads": [heads[2].name]})
    assert heads_with_effect(alone.model_copy(update={"answers": [together]}), gap) == {h.name for h in heads[:3]}
