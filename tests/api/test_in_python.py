"""A whole audit from Python: the reader's own module and data frame, and what goes wrong."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config

import vit_audit as va
from audit.api.tables import Table
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.records import LeftOut
from audit.report.text import reach_line
from tests.small_world import SMALL_CARD, without_pdf

pytestmark = pytest.mark.end_to_end
SETTINGS = {
    "name": "In Python",
    "controls": SMALL_CARD["controls"],
    "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200, "min_group_size": 10},
}


def tiny(classes: int = 2) -> torch.nn.Module:
    torch.manual_seed(3)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=16, depth=2, embed_dim=64, num_heads=4, num_classes=classes
    )
    return model.eval()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("faces")
    table = sample_faces(120, 5, split="discovery")
    source = SyntheticSource(table)
    for key in table["image"]:
        source.open(key).save(folder / f"{key}.png")
    frame = table.assign(path=[f"{key}.png" for key in table["image"]])
    return folder, frame[["path", "expression", "skin_tone"]]


def data_of(faces: tuple[Path, pd.DataFrame], **changes: Any) -> va.Data:
    folder, frame = faces
    named = {"images": "path", "label": "expression", "groups": {"skin_tone": "skin_tone"}, "root": folder}
    return va.Data.from_frame(frame, **{**named, **changes})


@pytest.fixture(scope="module")
def net(faces: tuple[Path, pd.DataFrame]) -> va.Net:
    """Return a model that gives half of the faces either answer."""
    folder, frame = faces
    model = tiny()
    logits = va.wrap(model, ["neutral", "smiling"]).predict([folder / path for path in frame["path"]])
    with torch.no_grad():
        model.head.bias[0] += float(np.median(logits[:, 1] - logits[:, 0]))
    return va.wrap(model, ["neutral", "smiling"])


@pytest.fixture(scope="module")
def result(net: va.Net, faces: tuple[Path, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> va.Result:
    plan = va.plan(SETTINGS, net, data_of(faces))
    with without_pdf():
        return va.audit(plan, out=tmp_path_factory.mktemp("runs") / "own")


def test_own_module_and_frame_are_audited(result: va.Result) -> None:
    assert isinstance(result.outcome, va.Outcome)
    assert result.exit_code in va.ExitCode
    rates = result.rates.to_frame()
    assert set(rates["group"]) == {"lighter", "darker"}
    assert (rates["selection_rate"] >= rates["selection_rate_low"] - 1e-9).all()
    assert (rates["selection_rate"] <= rates["selection_rate_high"] + 1e-9).all()
    assert len(result.controls.to_frame()) == len(result.record.controls.controls)


def test_a_notebook_shows_the_outcome_rates_and_gaps(result: va.Result) -> None:
    shown, controls = result._repr_html_(), result.controls
    passed = sum(control.passed for control in controls)
    assert f": {result.outcome}</h3>" in shown
    assert f"{passed} of {len(controls)} controls passed; {len(result.findings)} findings" in shown
    assert shown.count("<table") == 1
    for group in ("lighter", "darker"):
        assert f"<td>{group}</td>" in shown
    assert ("<svg" in shown) == bool(result.gaps)


def test_opened_again_it_is_the_same(result: va.Result) -> None:
    again = va.open_run(result.folder)
    assert type(again) is type(result)
    assert again.record == result.record
    pd.testing.assert_frame_equal(again.rates.to_frame(), result.rates.to_frame())
    pd.testing.assert_frame_equal(again.gaps.to_frame(), result.gaps.to_frame())
    verified = again.verify()
    assert verified.holds, [str(f) for f in verified.faults]


@pytest.mark.usefixtures("no_pdf")
def test_a_second_call_goes_on_where_it_ended(result: va.Result, net: va.Net, faces: tuple[Path, pd.DataFrame]) -> None:
    before = (result.folder / "audit.json").read_bytes()
    va.audit(va.plan(SETTINGS, net, data_of(faces)), out=result.folder)
    assert (result.folder / "audit.json").read_bytes() == before


def test_another_question_is_refused_in_the_same_folder(
    result: va.Result, net: va.Net, faces: tuple[Path, pd.DataFrame]
) -> None:
    other = va.plan({**SETTINGS, "policy": {"gap_above": 0.3}}, net, data_of(faces))
    with pytest.raises(va.InputError, match="another card, model, data"):
        va.audit(other, out=result.folder)


def test_a_map_style_dataset_gives_the_same_answers(result: va.Result, faces: tuple[Path, pd.DataFrame]) -> None:
    folder, frame = faces
    from PIL import Image

    class Faces(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(frame)

        def __getitem__(self, index: int) -> dict[str, Any]:
            path = frame["path"].iloc[index]
            pixels = np.asarray(Image.open(folder / path).convert("RGB"))
            return {"path": path, "image": torch.from_numpy(pixels.copy()).permute(2, 0, 1)}

    data = va.Data.from_dataset(
        Faces(), table=frame.sample(frac=1, random_state=0), key="path", label="expression",
        groups={"skin_tone": "skin_tone"},
    )  # fmt: skip
    plan = va.plan(SETTINGS, va.wrap(tiny(), ["neutral", "smiling"]), data)
    files = va.plan(SETTINGS, va.wrap(tiny(), ["neutral", "smiling"]), data_of(faces))
    pd.testing.assert_frame_equal(plan.inputs.samples.frame, files.inputs.samples.frame)
    pd.testing.assert_frame_equal(plan.power(), files.power())


def test_a_table_without_rows_has_the_columns_of_one_with(result: va.Result) -> None:
    for table in (result.rates, result.gaps, result.heads, result.controls):
        empty = type(table)(()) if type(table) is not Table else Table((), type(table[0]))
        assert list(empty.to_frame().columns) == list(table.to_frame().columns)
        assert len(empty.to_frame()) == 0


def test_a_plan_says_with_how_many_sealed_images_a_repair_could_be_certified(
    net: va.Net, faces: tuple[Path, pd.DataFrame]
) -> None:
    assert va.plan(SETTINGS, net, data_of(faces)).reach is None
    none = va.plan({**SETTINGS, "repair": {}}, net, data_of(faces)).reach
    assert none is not None
    assert (none.sealed, none.images) == (False, 120)
    assert none.needed_images is not None
    assert f"with {none.needed_images:,} sealed images in the mix of the 120 audited images" in reach_line(none)
    shares = {"train": 0, "discovery": 0.25, "confirmation": 0.25, "repair": 0.25, "sealed": 0.25}
    some = va.plan({**SETTINGS, "repair": {}}, net, data_of(faces, shares=shares)).reach
    assert some is not None
    assert some.sealed
    assert some.images < 60
    assert not some.reachable
    assert reach_line(some).startswith(f"sealed: {some.images} images of {some.subjects} subjects; a repair that")
    wide = {"gap_margin": 0.5, "accuracy_margin": 0.5, "error_margin": 0.5}
    easy = va.plan({**SETTINGS, "repair": wide}, net, data_of(faces)).reach
    assert easy is not None
    assert easy.needed_images is not None
    assert easy.needed_images < none.needed_images


def test_predictions_are_the_modules_own(faces: tuple[Path, pd.DataFrame]) -> None:
    folder, frame = faces
    from PIL import Image

    model = tiny()
    paths = [folder / p for p in frame["path"][:5]]
    logits = va.wrap(model, ["neutral", "smiling"]).predict(paths)
    assert logits.dtype == np.float32
    transform = create_transform(**resolve_data_config({"input_size": (3, 64, 64)}, model=model), is_training=False)
    images = torch.stack([transform(Image.open(p).convert("RGB")) for p in paths])
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-5)


def test_reports_and_plots(result: va.Result, tmp_path: Path) -> None:
    page = result.report(tmp_path / "page.html")
    assert result.outcome in page.read_text(encoding="utf-8")
    with pytest.raises(va.InputError, match="neither"):
        result.report(tmp_path / "page.docx")
    axes = result.rates.plot()
    assert len(axes.get_yticks()) == len(result.rates)
    assert result.gaps.plot(ax=axes) is axes
    copy = result.save(tmp_path / "copy")
    assert copy.record == result.record
    with pytest.raises(va.InputError, match="exists already"):
        result.save(tmp_path / "copy")


def test_progress_comes_through_the_callback_and_the_log(
    faces: tuple[Path, pd.DataFrame], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.INFO, logger="vit_audit"):
        va.plan(SETTINGS, va.wrap(tiny(), ["neutral", "smiling"]), data_of(faces),
                callback=lambda *step: told.append(step))  # fmt: skip
    assert ("data: opening every image", 0, 0) in told
    assert "data: opening every image" in caplog.messages
    assert capsys.readouterr() == ("", "")


def process_state() -> tuple[Any, ...]:
    handlers = tuple(signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT))
    deterministic = torch.are_deterministic_algorithms_enabled()
    return handlers, deterministic, torch.get_num_threads(), tuple(map(repr, warnings.filters)), torch.initial_seed()


def test_a_run_and_a_failed_run_leave_the_process_as_it_was(
    faces: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data = va.wrap(tiny(), ["neutral", "smiling"]), data_of(faces)
    assert callable(va.audit)  # its libraries are imported; statsmodels sets filters of warnings then
    before = process_state()
    plan = va.plan(SETTINGS, net, data)
    assert process_state() == before
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(va.InputError, match="is a file"):
        va.audit(plan, out=file)
    assert "choose from auto, cpu, cuda" in refused(lambda: va.audit(plan, device="tpu"))
    assert "choose from float32, bf16, fp16" in refused(lambda: va.audit(plan, precision="float8"))
    assert "'4' is no size of 1G or more" in refused(lambda: va.audit(plan, memory=4))  # type: ignore[arg-type]
    assert process_state() == before
    va.audit(plan, out=tmp_path / "run", report=False, memory="8G")
    assert process_state() == before


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(va.InputError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_one_line_each(faces: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, frame = faces
    net = va.wrap(tiny(), ["neutral", "smiling"])
    items = [{"path": p} for p in frame["path"]]
    keyed = {"table": frame, "key": "path", "label": "expression", "groups": {"skin_tone": "skin_tone"}}
    assert "Linear" in refused(lambda: va.wrap(torch.nn.Linear(2, 2), ["no", "yes"]))
    assert "no column 'age'" in refused(lambda: data_of(faces, groups={"age": "age"}))
    assert "carry no 'path'" in refused(lambda: va.Data.from_dataset([np.zeros((8, 8, 3), np.uint8)], **keyed))
    short = {**keyed, "table": frame[3:]}
    assert "3 keys of the dataset are not in the table" in refused(lambda: va.Data.from_dataset(items, **short))
    twice = {**keyed, "table": pd.concat([frame, frame[:2]])}
    assert "2 keys occur twice" in refused(lambda: va.Data.from_dataset(items, **twice))
    said = refused(lambda: va.plan(SETTINGS, va.wrap(tiny(), ["neutral", "grin"]), data_of(faces, labels=None)))
    assert "smiling" in said
    lost = frame.assign(path=[f"gone/{p}" for p in frame["path"]])
    assert "missing" in refused(lambda: va.plan(SETTINGS, net, data_of((folder, lost))))
    assert list(tmp_path.iterdir()) == []


def test_a_shuffled_dataset_is_noticed(faces: tuple[Path, pd.DataFrame]) -> None:
    _, frame = faces
    keys = list(frame["path"])

    class Shuffled:
        turns = 0

        def __len__(self) -> int:
            return len(keys)

        def __getitem__(self, index: int) -> dict[str, Any]:
            self.turns += 1
            moved = index if self.turns <= len(keys) + 1 else (index + 1) % len(keys)
            return {"path": keys[moved], "image": np.full((16, 16, 3), moved, np.uint8)}

    data = va.Data.from_dataset(
        Shuffled(), table=frame, key="path", label="expression", groups={"skin_tone": "skin_tone"}
    )
    with pytest.raises(va.DataError, match=r"in its place|shuffled"):
        data.source.open(keys[0])


def test_disparity_alone() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    group = np.repeat(["a", "b"], 200)
    predicted = np.where(group == "a", truth, 0)
    found = va.disparity(truth, predicted, group)
    gaps = found.gaps.to_frame().set_index("metric")["estimate"]
    assert gaps["tpr_gap"] == -1.0
    assert gaps["fpr_gap"] == 0.0
    selected = found.rates.to_frame().set_index("group")["selection_rate"]
    assert selected["b"] == 0.0
    assert selected["a"] == pytest.approx(truth[:200].mean())
    with pytest.raises(va.DataError, match="differ in length"):
        va.disparity(truth, predicted[:-1], group)


TRUTH, PREDICTED, GROUP = ["no", "yes"] * 40, ["no", "yes"] * 20 + ["no"] * 40, ["a"] * 40 + ["b"] * 40


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (([None, *TRUTH[1:]], PREDICTED, GROUP), {}, "1 labels are missing"),
        ((TRUTH, np.array([np.nan] + [1.0] * 79), GROUP), {}, "1 labels are missing"),
        ((TRUTH, np.ones((80, 2)), GROUP), {}, "2 dimensions"),
        ((TRUTH, PREDICTED, GROUP, [None, *range(79)]), {}, "subjects: 1 are missing"),
        ((TRUTH, PREDICTED, GROUP), {"outcomes": ["maybe"]}, "no, yes"),
        ((TRUTH, PREDICTED, GROUP), {"outcomes": "yes"}, "no, yes"),
        ((TRUTH, PREDICTED, GROUP), {"outcomes": []}, "no, yes"),
        ((TRUTH, PREDICTED, GROUP), {"alpha": 2}, "alpha is 2"),
        ((TRUTH, PREDICTED, GROUP), {"min_group_size": 0}, "size of 1 or more"),
        ((TRUTH, PREDICTED, GROUP), {"reference": "c"}, "no group 'c'"),
        ((TRUTH, PREDICTED, pd.DataFrame({"label": GROUP})), {}, "'label' cannot name an attribute"),
        ((TRUTH, PREDICTED, pd.DataFrame([GROUP, GROUP], index=["g", "g"]).T), {}, "occurs twice"),
    ],
)
def test_disparity_refuses_what_has_no_answer(arguments: Any, options: Any, said: str) -> None:
    assert said in refused(lambda: va.disparity(*arguments, **options))


def test_a_group_called_unknown_is_what_is_missing() -> None:
    found = va.disparity(TRUTH * 2, PREDICTED * 2, [*GROUP, *["unknown", None] * 40])
    assert found.rates.to_frame().set_index("group")["images"].to_dict() == {"a": 40, "b": 40, "unknown": 80}
    assert set(found.gaps.to_frame()["group"]) == {"b"}


@pytest.mark.parametrize("predicted", [np.array([0.0, 1.0] * 40), np.array([False, True] * 40), torch.arange(80) % 2])
def test_labels_of_another_number_type_are_the_same_labels(predicted: Any) -> None:
    found = va.disparity(np.array([0, 1] * 40), predicted, [0] * 40 + [1] * 40, reference=0)  # type: ignore[arg-type]
    assert found.rates.to_frame()["accuracy"].tolist() == [1.0, 1.0]
    assert set(found.gaps.to_frame()["reference"]) == {"0"}


def test_odd_frames_are_refused(faces: tuple[Path, pd.DataFrame]) -> None:
    folder, frame = faces
    assert "has no rows" in refused(lambda: data_of((folder, frame[:0])))
    assert "occurs twice" in refused(lambda: data_of((folder, pd.concat([frame, frame[["skin_tone"]]], axis=1))))
    assert "no name in text" in refused(lambda: data_of((folder, frame.rename(columns={"expression": 1}))))
    assert "map each attribute" in refused(lambda: data_of(faces, groups=["skin_tone"]))
    data = data_of(faces)
    assert "plan, card: is a Data" in refused(lambda: va.plan(data))  # type: ignore[arg-type]


def test_an_item_that_cannot_be_read_is_set_aside_and_counted(faces: tuple[Path, pd.DataFrame]) -> None:
    _, frame = faces

    class Torn:
        def __len__(self) -> int:
            return len(frame)

        def __getitem__(self, index: int) -> Any:
            if index == 7:
                raise OSError("truncated")
            return np.full((64, 64, 3), index, np.uint8), 0

    keyed = {"table": frame, "key": "path", "label": "expression", "groups": {"skin_tone": "skin_tone"}}
    data = va.Data.from_dataset(Torn(), keys=list(frame["path"]), **keyed)
    plan = va.plan(SETTINGS, va.wrap(tiny(), ["neutral", "smiling"]), data)
    (row,) = plan.data.quarantined
    assert (row.kind, row.detail) == (LeftOut.NOT_OPENED, "OSError: truncated")
    assert row.examples == [frame["path"].iloc[7]]
    assert "map-style" in refused(lambda: va.Data.from_dataset(iter([1]), **keyed))


def test_tensors_that_the_model_cannot_read_are_refused() -> None:
    model, images = tiny(), torch.zeros(2, 3, 64, 64)
    assert "the model reads (N, 3, 64, 64)" in refused(
        lambda: va.patch_heads(model, images[..., :32], images[..., :32])
    )
    assert "no tensor" in refused(lambda: va.patch_heads(model, images.numpy(), images))  # type: ignore[arg-type]
    assert "float64" in refused(lambda: va.attribution(model, images.double(), images.double()))
    assert "pairs (layer, head)" in refused(lambda: va.patch_heads(model, images, images, heads=[0]))  # type: ignore[list-item]
    assert "log_odds" in refused(lambda: va.patch_heads(model, images, images, scale="nats"))  # type: ignore[arg-type]
    rows = torch.tensor([0, 1])
    assert "count from 0" in refused(lambda: va.sweep(model, images, rows, rows, layers=range(9)))


def test_a_module_that_says_nothing_of_its_outputs_or_pixels() -> None:
    from torchvision.models import VisionTransformer

    module = VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=2)
    images = torch.zeros(1, 3, 32, 32)
    assert va.patch_heads(module, images, images).shape == (1, 4, 2)
    assert "normalised" in refused(lambda: va.wrap(module, ["no", "yes"]))
    assert va.wrap(module, ["no", "yes"], mean=[0.5] * 3, std=[0.5] * 3).spec.mean == [0.5] * 3
    assert "mean" in refused(lambda: va.wrap(module, ["no", "yes"], mean=[127.0] * 3, std=[0.5] * 3))
    assert "each output once" in refused(lambda: va.wrap(module, ["no", "no"]))
    assert "torch.nn.Module" in refused(lambda: va.wrap("vit", ["no", "yes"]))  # type: ignore[arg-type]
