"""What a caller may get wrong by hand: another kind of value, or another word, is one line that says what to give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch

import vit_audit as va
from audit.api.tables import Heads, Rates
from audit.given import as_path, check_choice, check_kind

pytestmark = pytest.mark.unit
TRUTH, GROUP = ["no", "yes"] * 4, ["a"] * 4 + ["b"] * 4
FRAME = pd.DataFrame({"path": ["a.png"], "label": ["no"], "group": ["a"]})
NAMED: dict[str, Any] = {"images": "path", "label": "label", "groups": {"gender": "group"}}
KEYED: dict[str, Any] = {"key": "path", "label": "label", "groups": {"gender": "group"}}
IMAGES, ORDER = torch.zeros(2, 3, 32, 32), torch.arange(2)
ANY: Any = 3


def tiny() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=8, num_heads=2, num_classes=2)


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "rate": (
        lambda: Rates([]).plot(rate="nope"),
        "rate: is 'nope'; choose from selection_rate, true_positive_rate, false_positive_rate, accuracy",
    ),
    "a field that is no rate": (lambda: Rates([]).plot(rate="group"), "rate: is 'group'; choose from selection_rate"),
    "most": (lambda: Heads([]).plot(most=0), "most: is 0; give the number of heads to draw, 1 or more"),
    "pattern": (lambda: va.supported_models(ANY), "pattern: is a int; give a name as a shell has it"),
    "card": (lambda: va.load_card(ANY), "card: is a int; give a file, or the name of a built-in card"),
    "table of a first card": (lambda: va.first_card(ANY), "path: is a int; give a path"),
    "model section": (lambda: va.load_model("vit"), "load_model: is a str; give the section model of a card"),  # type: ignore[arg-type]
    "classes": (lambda: va.wrap(tiny(), ANY), "classes: are 3; name each output once"),
    "mean": (lambda: va.wrap(tiny(), ["no", "yes"], mean=ANY), "mean: is a int; give three numbers"),
    "images": (lambda: va.wrap(tiny(), ["no", "yes"]).predict(ANY), "images: is a int; give a list of files or images"),
    "frame": (lambda: va.Data.from_frame(ANY, **NAMED), "table: is a int; give a pandas.DataFrame, one row per image"),
    "table": (lambda: va.Data.from_dataset([], table=ANY, **KEYED), "table: is a int; give a pandas.DataFrame"),
    "root": (lambda: va.Data.from_frame(FRAME, root=ANY, **NAMED), "root: is a int; give a path"),
    "subject": (lambda: va.Data.from_frame(FRAME, subject=ANY, **NAMED), "subject: is a int; name its column"),
    "label": (lambda: va.Data.from_frame(FRAME, **{**NAMED, "label": None}), "label: is a NoneType; name its column"),
    "group": (
        lambda: va.Data.from_frame(FRAME, **{**NAMED, "groups": {"gender": 3}}),
        "groups, gender: is a int; name its column",
    ),
    "data_root": (lambda: va.plan("synthetic-balanced", data_root=ANY), "data_root: is a int; give a path"),
    "callback": (lambda: va.plan("synthetic-balanced", callback=ANY), "callback: is a int; give a function"),
    "plan": (lambda: va.audit(ANY), "plan: is a int; give what vit_audit.plan returned"),
    "run": (lambda: va.open_run(ANY), "run: is a int; give a path"),
    "run to verify": (lambda: va.verify(ANY), "run: is a int; give a path"),
    "run to compare": (lambda: va.diff(ANY, "runs/none"), "run: is a int; give a path"),
    "card to fetch": (lambda: va.fetch("raf-db", "data"), "card: is a str; give what load_card returned"),  # type: ignore[arg-type]
    "how many faces": (lambda: va.rendered_faces("faces", images="x"), "images: is a str; give how many"),  # type: ignore[arg-type]
    "seed": (lambda: va.rendered_faces("faces", 8, seed=-1), "seed: is -1; give a whole number, 0 or more"),
    "model": (lambda: va.patch_heads(ANY, IMAGES, IMAGES), "model: is a int; give a torch.nn.Module"),
    "heads": (lambda: va.patch_heads(tiny(), IMAGES, IMAGES, heads=ANY), "heads: is a int; name pairs (layer, head)"),
    "donors": (lambda: va.attribution(tiny(), IMAGES, ANY), "donors: are no tensor of floating-point numbers"),
    "rows": (lambda: va.sweep(tiny(), IMAGES, ORDER / 1, ORDER), "recipients: are no whole numbers; give the row"),
    "rows of text": (lambda: va.sweep(tiny(), IMAGES, ORDER, ["a", "b"]), "donors: are no whole numbers"),  # type: ignore[arg-type]
    "layers": (lambda: va.sweep(tiny(), IMAGES, ORDER, ORDER, layers=ANY), "layers: is a int; give a range"),
    "groups": (lambda: va.disparity(TRUTH, TRUTH, ANY), "groups: is a int; give one for each image"),
    "subjects": (lambda: va.disparity(TRUTH, TRUTH, GROUP, ANY), "subjects: is a int; give one for each image"),
    "alpha": (lambda: va.disparity(TRUTH, TRUTH, GROUP, alpha="x"), "alpha: is a str; give a number"),  # type: ignore[arg-type]
    "outcomes": (lambda: va.disparity(TRUTH, TRUTH, GROUP, outcomes=ANY), "outcomes: is a int; give a list of labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_another_kind_of_value_is_one_line_that_says_what_to_give(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, said = CALLS[name]
    with pytest.raises(va.InputError) as caught:
        call()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_right_passes() -> None:
    check_choice("device", "cpu", ("auto", "cpu"))
    check_kind("classes", ["no"], (list, tuple), "give a list")
    assert as_path("out", "runs/one") == as_path("out", Path("runs/one")) == Path("runs/one")
    assert Rates([]).plot(rate="accuracy").get_xlabel() == "accuracy, percent"
