import pandas as pd
import pytest

from audit.pipeline.run_controls import check_round_trips, pairs_as_given

pytestmark = pytest.mark.unit


def pairs(contrast: str, *, edited: bool) -> pd.DataFrame:
    versions = ["own", "twin", *(["back", "self"] if edited else [])]
    rows = {"version": versions, "pair": 0, "layer": 0, "head": 0, "p:smiling": 0.5}
    return pd.DataFrame(rows).assign(contrast=contrast)


def test_only_pictures_that_were_edited_are_edited_back() -> None:
    both = pd.concat([pairs("tone:dark-light", edited=True), pairs("gender:woman-man", edited=False)])
    assert pairs_as_given(both) == ["gender:woman-man"]
    (control,) = check_round_trips(both)
    assert (control.passed, control.estimate.value) == (True, 0.0)
    assert control.contrast == "tone:dark-light"
    assert (pairs_as_given(None), check_round_trips(None)) == ([], [])
