"""Models whose inside is not given, and images that never reached the classifier: the rates half of an audit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

import vit_audit as va
from audit.exit_codes import ExitCode
from audit.records import Access, DataWarningCode, LocalisationStatus, State
from tests.end_to_end.conftest import Invoke

pytestmark = pytest.mark.end_to_end
CLASSES = ["angry", "happy", "neutral"]
GROUPS = {"gender": {"column": "gender", "reference": "male", "assigned_by": "made up"}, "age": {"column": "age"}}


def people(n: int = 600) -> pd.DataFrame:
    """Return labels and groups of images that lie nowhere, and answers that are worse for women."""
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, n)
    gender, age = (np.repeat(rng.integers(0, 2, n // 2), 2) for _ in range(2))  # two images a person
    answer = np.where(rng.random(n) < np.where(gender == 1, 0.4, 0.1), rng.integers(0, 3, n), label)
    scores = rng.random((n, 3))
    scores[np.arange(n), answer] += 2
    scores /= scores.sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "image": [f"s3://bucket/{i:04d}.jpg" for i in range(n)],
            "label": np.array(CLASSES)[label],
            "gender": np.array(["male", "female"])[gender],
            "age": np.array(["young", "old"])[age],
            "person": [f"p{i // 2}" for i in range(n)],
        }
    )
    return table.assign(**{name: scores[:, k] for k, name in enumerate(CLASSES)})


def write(folder: Path, table: pd.DataFrame, predictions: pd.DataFrame, **changes: Any) -> Path:
    """Write table, predictions and a card; changes update its parts."""
    folder.mkdir(parents=True, exist_ok=True)
    table[["image", "label", "gender", "age", "person", *changes.pop("columns", [])]].to_csv(
        folder / "table.csv", index=False
    )
    predictions.to_csv(folder / "predictions.csv", index=False)
    card: dict[str, Any] = {
        "name": "A black box",
        "data": {"path": "table.csv", "subject": "person"},
        "groups": GROUPS,
        "model": {"name": "predictions", "path": "predictions.csv"},
        "audit": {"outcomes": ["happy"]},
    }
    for part, change in changes.items():
        together = isinstance(card.get(part), dict) and part != "groups"
        card[part] = {**card[part], **change} if together else change
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return folder / "card.yaml"


def scores_of(table: pd.DataFrame) -> pd.DataFrame:
    return table[["image", *CLASSES]]


def ran(invoke: Invoke, card: Path, out: Path, *options: str) -> tuple[int, str, Path, dict[str, Any]]:
    result = invoke("run", card, "--out", out, *options)
    assert out.exists(), result.output
    (folder,) = out.iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return result.exit_code, " ".join(result.stdout.split()), folder, record


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return people()


ONE_LEFT = {"column": "gender", "values": ["male", "female"], "reference": "male"}


@pytest.mark.usefixtures("no_pdf")
@pytest.mark.parametrize("left", ["male", "female"])
def test_where_one_declared_group_is_left_nothing_can_be_compared(
    left: str, table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    """The group that is gone is named throughout: an audit without it is no evidence that all are treated alike."""
    gone = {"male": "female", "female": "male"}[left]
    card = write(tmp_path, table.assign(gender=left), scores_of(table), groups={"gender": ONE_LEFT})
    warning = f"gender: no image of {gone}, which the card names: nothing is known of it"
    checked = invoke("check", card)
    assert checked.exit_code == ExitCode.DONE
    assert warning in " ".join(checked.output.split())
    code, _, folder, record = ran(invoke, card, tmp_path / "out")
    assert (code, record["outcome"]) == (ExitCode.TOO_LITTLE_DATA, "INCONCLUSIVE")
    assert [reason["code"] for reason in record["reasons"]] == ["nothing compared"]
    assert {row["images"] for row in record["data"]["counts"] if row["group"] == gone} == {0}
    page = " ".join((folder / "report.html").read_text(encoding="utf-8").split())
    assert warning in page
    assert "No two groups could be compared." in page


@pytest.mark.usefixtures("no_pdf")
def test_an_empty_reference_leaves_the_other_attribute_to_be_audited(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    groups = {**GROUPS, "gender": {**ONE_LEFT, "values": ["male", "female", "nb"]}}
    gender = table["gender"].replace("male", "nb")
    card = write(tmp_path, table.assign(gender=gender), scores_of(table), groups=groups)
    code, _, folder, record = ran(invoke, card, tmp_path / "out")
    assert code in (ExitCode.DONE, ExitCode.DISPARITY, ExitCode.TOO_LITTLE_DATA)
    of_gender = [row for row in record["contrasts"] if row["attribute"] == "gender"]
    assert {(row["group"], row["state"]) for row in of_gender} == {
        ("female", "not estimable"),
        ("nb", "not estimable"),
    }
    assert {row["images"] for row in record["rates"] if row["group"] == "male"} == {0}
    assert {row["state"] for row in record["contrasts"] if row["attribute"] == "age"} & {
        "no disparity detected",
        "disparity",
    }
    assert "no data: no image of this group" in (folder / "report.html").read_text(encoding="utf-8")


def test_what_a_table_of_predictions_was_taken_for_is_said_as_of_any_other(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    card = write(tmp_path, table, scores_of(table))
    text = scores_of(table).to_csv(index=False, sep=";", decimal=",")
    (tmp_path / "predictions.csv").write_bytes(text.encode("utf-16"))
    taken = "predictions.csv: text in UTF-16, columns separated by semicolons"
    assert f"table: {taken}" in " ".join(invoke("check", card).stdout.split())
    _, _, folder, record = ran(invoke, card, tmp_path / "out")
    assert [form["file"] for form in record["data"]["tables"]] == ["table.csv", "predictions.csv"]
    assert taken in " ".join((folder / "report.html").read_text(encoding="utf-8").split())


@pytest.mark.usefixtures("no_pdf")
def test_predictions_give_rates_and_say_that_heads_were_not_asked(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    card = write(tmp_path, table, scores_of(table), intersections=[["gender", "age"]], audit={"outcomes": CLASSES})
    code, said, folder, record = ran(invoke, card, tmp_path / "out")
    assert (code, record["outcome"]) == (ExitCode.DISPARITY, "DISPARITY FOUND")
    called = table[CLASSES].idxmax(axis=1)
    for outcome in CLASSES:
        metrics = {f.__name__: f for f in (selection_rate, true_positive_rate, false_positive_rate)}
        by_hand = MetricFrame(
            metrics=metrics, y_true=table["label"] == outcome, y_pred=called == outcome,
            sensitive_features=table["gender"],
        ).by_group  # fmt: skip
        for row in record["rates"]:
            if (row["attribute"], row["outcome"]) == ("gender", outcome):
                for name in metrics:
                    assert row[name]["value"] == pytest.approx(by_hand.loc[row["group"], name], abs=1e-12)
                mean = table.loc[table["gender"] == row["group"], outcome].mean()
                assert row["mean_probability"]["value"] == pytest.approx(mean, abs=1e-12)
    assert record["accuracy"][0]["accuracy"]["value"] == pytest.approx((called == table["label"]).mean())
    assert {row["attribute"] for row in record["contrasts"]} == {"gender", "age", "gender x age"}
    assert record["findings"] and {f["kind"] for f in record["findings"]} == {"disparity"}
    assert record["heads"] == record["grids"] == []
    assert {w["status"] for w in record["localisation"].values()} == {LocalisationStatus.NOT_ASKED}
    model = record["model"]
    assert (model["access"], model["layers"], model["parameters"]) == (Access.PREDICTIONS, 0, None)
    assert [c["check"] for c in record["controls"]["controls"]] == ["knows_labels"]
    assert record["data"]["images"] == len(table) and not record["data"]["images_opened"]
    assert record["provenance"]["hashes"]["model"] == record["model"]["weights_sha256"]
    sentence = "not asked: the model's inside was not given"
    page = (folder / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    assert sentence in said and sentence in page
    assert "The method passed its own tests" not in said + page
    assert not (folder / "models").exists()
    found = va.verify(folder)
    assert found.holds, found.faults
    again = invoke("reproduce", folder, record["findings"][0]["id"], "--data", tmp_path)
    assert again.exit_code == 0 and "reproduced" in again.stdout, again.output


def test_check_needs_no_image(table: pd.DataFrame, tmp_path: Path, invoke: Invoke) -> None:
    more = pd.concat([scores_of(table), scores_of(table).head(2).assign(image=["x", "y"])])
    result = invoke("check", write(tmp_path, table, more))
    assert result.exit_code == 0, result.output
    assert "No image was opened" in result.stdout
    assert "2 of 602 predictions are of images that are not part of the audit (e.g. x, y)" in result.stdout


def test_answers_alone_have_rates_and_no_probabilities(table: pd.DataFrame, tmp_path: Path, invoke: Invoke) -> None:
    answers = pd.DataFrame({"image": table["image"], "predicted": table[CLASSES].idxmax(axis=1)})
    card = write(tmp_path, table, answers, model={"classes": CLASSES})
    _, _, folder, record = ran(invoke, card, tmp_path / "out", "--no-report")
    with_scores = ran(invoke, write(tmp_path / "b", table, scores_of(table)), tmp_path / "b" / "out", "--no-report")[3]
    assert record["contrasts"] == with_scores["contrasts"]
    assert {row["mean_probability"]["value"] for row in record["rates"]} == {None}
    found = va.verify(folder)
    assert found.holds, found.faults


def test_logits_are_told_from_probabilities(table: pd.DataFrame, tmp_path: Path, invoke: Invoke) -> None:
    logits = scores_of(table).assign(**{name: np.log(table[name]) + 3 for name in CLASSES})
    found = ran(invoke, write(tmp_path / "a", table, logits), tmp_path / "a" / "out", "--no-report")[3]
    plain = ran(invoke, write(tmp_path / "b", table, scores_of(table)), tmp_path / "b" / "out", "--no-report")[3]
    for a, b in zip(found["rates"], plain["rates"], strict=True):
        assert a["selection_rate"] == b["selection_rate"]
        assert a["mean_probability"]["value"] == pytest.approx(b["mean_probability"]["value"], abs=1e-12)


def test_sigmoids_call_an_image_several_classes_or_none(table: pd.DataFrame, tmp_path: Path, invoke: Invoke) -> None:
    likely = table[CLASSES] ** 0.5  # need not sum to 1
    read = {"output": "sigmoid", "threshold": 0.6}
    logits = scores_of(table).assign(**{name: np.log(likely[name] / (1 - likely[name])) for name in CLASSES})
    records = []
    for kind, given in (("probability", scores_of(table).assign(**likely)), ("logit", logits)):
        card = write(tmp_path / kind, table, given, model={**read, "scores": kind}, audit={"outcomes": CLASSES})
        _, _, folder, record = ran(invoke, card, tmp_path / kind / "out", "--no-report")
        records.append(record)
        assert (record["model"]["output"], record["model"]["decision"]) == ("sigmoid", "threshold")
        for row in record["rates"]:
            mine = table[row["attribute"]] == row["group"]
            rate = (likely.loc[mine, row["outcome"]] >= 0.6).mean()
            assert row["selection_rate"]["value"] == pytest.approx(rate, abs=1e-12)
            assert row["mean_probability"]["value"] == pytest.approx(likely.loc[mine, row["outcome"]].mean(), abs=1e-9)
        found = va.verify(folder)
        assert found.holds, found.faults
    assert records[0]["accuracy"] == records[1]["accuracy"]


def test_a_threshold_is_on_the_second_of_two_classes(table: pd.DataFrame, tmp_path: Path, invoke: Invoke) -> None:
    two = table.assign(label=np.where(table["label"] == "happy", "yes", "no"))
    given = table[["image"]].assign(no=1 - table["happy"], yes=table["happy"])
    card = write(tmp_path, two, given, model={"threshold": 0.3}, audit={"outcomes": ["yes"]})
    record = ran(invoke, card, tmp_path / "out", "--no-report")[3]
    for row in record["rates"]:
        mine = table[row["attribute"]] == row["group"]
        assert row["selection_rate"]["value"] == pytest.approx((table.loc[mine, "happy"] >= 0.3).mean(), abs=1e-12)


def test_a_classifier_that_does_not_know_the_labels_is_invalid(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    turned = scores_of(table).rename(columns=dict(zip(CLASSES, [*CLASSES[1:], CLASSES[0]], strict=True)))
    code, said, _, record = ran(invoke, write(tmp_path, table, turned), tmp_path / "out", "--no-report")
    assert (code, record["outcome"], record["findings"]) == (ExitCode.INVALID, "INVALID", [])
    assert "check that they are of these images, and that each column is named by its class" in said


BAD: list[tuple[str, Any, dict[str, Any], str]] = [
    ("missing", lambda p: p.drop(index=[3, 5]), {}, "no prediction for 2 of 600 images (s3://bucket/0003.jpg, s3://"),
    ("twice", lambda p: pd.concat([p, p.head(1)]), {}, "1 images occur twice (s3://bucket/0000.jpg)"),
    ("no key", lambda p: p.rename(columns={"image": "file"}), {}, "no column 'image' of the images' keys"),
    ("nan", lambda p: p.assign(happy=p["happy"].where(p.index != 7)), {},
     "'s3://bucket/0007.jpg' has nothing for class 'happy' (1 such images)"),
    ("text", lambda p: p.assign(happy="a lot"), {}, "has 'a lot' for class 'happy'"),
    ("sums", lambda p: p.assign(happy=p["happy"] / 2), {}, "no probabilities"),
    ("negative", lambda p: p.assign(happy=-p["happy"]), {"model": {"scores": "probability"}}, "no probabilities"),
    ("one wrong row", lambda p: p.assign(happy=p["happy"].where(p.index != 7, 3.0)), {}, "(1 such images)"),
    ("percent", lambda p: p.assign(**{c: p[c] * 100 for c in CLASSES}), {}, "scores of every image sum to 100"),
    ("scaled", lambda p: p.assign(**{c: p[c] * 1.2 for c in CLASSES}), {}, "divide them by 1.2"),
    ("unknown class", lambda p: p.assign(predicted="hapy"), {"model": {"classes": CLASSES}},
     "is predicted as 'hapy', no class (600 such images); did you mean 'happy'?"),
    ("no such column", lambda p: p, {"model": {"classes": [*CLASSES, "sad"]}}, "no column 'sad' (model.classes)"),
    ("stray column", lambda p: p.assign(latency=-3.5), {}, "column 'latency' is no label of the data"),
    ("answers without classes", lambda p: p[["image"]].assign(predicted="happy"), {}, "name them: model.classes"),
    ("answers and a threshold", lambda p: p.assign(predicted="happy"),
     {"model": {"classes": CLASSES, "threshold": 0.3}}, "the card calls images by a threshold"),
    ("logits or percentages", lambda p: p.assign(happy=p["happy"] * 100), {"model": {"output": "sigmoid"}},
     "may be logits or percentages"),
    *[
        (f"{field} of images", lambda p: p, {"model": {field: value}}, "is not read with name: predictions")
        for field, value in (("preprocess", "legacy"), ("image_size", 32), ("weights", "w.pth"), ("mean", [0.5] * 3))
    ],
    ("output of several", lambda p: p, {"model": {"output_key": "emotion"}}, "is of a model whose inside is given"),
    ("training", lambda p: p, {"training": {"epochs": 1}}, "'predictions' cannot be trained"),
    ("both lists", lambda p: p, {"data": {"not_detected": "x", "not_detected_list": "y"}}, "give one of the two"),
]  # fmt: skip


def test_rounded_probabilities_are_no_logits_and_commas_may_be_decimal(table: pd.DataFrame, tmp_path: Path) -> None:
    """A softmax in single precision may be a hair above 1; a spreadsheet may write 0,5."""
    sure = scores_of(table).assign(**{**dict.fromkeys(CLASSES, 0.0), CLASSES[0]: 1.0000001})
    net = va.predictions(sure)
    assert net.table.answers[CLASSES[0]].unique().tolist() == [1.0]
    commas = scores_of(table).assign(
        **{name: table[name].map(lambda p: f"{p:.6f}".replace(".", ",")) for name in CLASSES}
    )
    assert np.allclose(va.predictions(commas).table.answers[CLASSES], table[CLASSES], atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"classes": ["no", "no"]}, "'no' occurs twice"), ({"scores": "percent"}, "scores: Input should")],
)
def test_what_is_said_of_predictions_is_checked(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(va.ModelError, match=words) as caught:
        va.predictions(pd.DataFrame({"image": ["a"], "no": [0.2], "yes": [0.8]}), **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "changes", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_predictions_are_one_line_and_nothing_is_written(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke, damage: Any, changes: dict[str, Any], words: str
) -> None:
    card = write(tmp_path, table, damage(scores_of(table)), **changes)
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code == ExitCode.BAD_INPUT, result.output
    assert words in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_predictions_in_python(table: pd.DataFrame, tmp_path: Path) -> None:
    data = va.Data.from_frame(
        table[["image", "label", "gender", "age", "person"]], images="image", label="label", subject="person",
        groups=GROUPS,
    )  # fmt: skip
    plan = va.plan({"name": "In Python"}, va.predictions(scores_of(table)), data)
    assert plan.data.head_limits == [] and len(plan.power())
    result = va.audit(plan, out=tmp_path / "run", report=False)
    assert result.outcome == "DISPARITY FOUND"
    assert result.heads.to_frame().empty and len(result.gaps)
    again = result.reproduce(result.findings[0].id, data=data, net=va.predictions(scores_of(table)))
    assert again.holds
    with pytest.raises(va.ModelError, match="occur twice"):
        va.predictions(pd.concat([scores_of(table)] * 2))


@pytest.mark.usefixtures("no_pdf")
@pytest.mark.parametrize("by", ["column", "list"])
def test_images_that_never_reached_the_classifier_are_counted_by_group(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke, by: str
) -> None:
    rng = np.random.default_rng(1)
    lost = rng.random(len(table)) < np.where(table["gender"] == "female", 0.3, 0.05)
    more = table.assign(undetected=np.where(lost, "True", "no"))
    (tmp_path / "lost.txt").write_text("\n".join(table.loc[lost, "image"]) + "\n", encoding="utf-8")
    asked = {"not_detected": "undetected"} if by == "column" else {"not_detected_list": "lost.txt"}
    card = write(tmp_path, more, scores_of(table[~lost]), data=asked, columns=["undetected"])
    _, said, folder, record = ran(invoke, card, tmp_path / "out", *([] if by == "list" else ["--no-report"]))
    rows = {r["group"]: r for r in record["data"]["detection"] if r["attribute"] == "gender"}
    for group, row in rows.items():
        mine = table["gender"] == group
        assert (row["not_detected"], row["images"]) == (lost[mine].sum(), mine.sum())
        assert row["rate"]["value"] == pytest.approx(lost[mine].mean(), abs=1e-12)
        assert row["rate"]["low"] < row["rate"]["value"] < row["rate"]["high"]
    female = rows["female"]
    gap = rows["female"]["rate"]["value"] - rows["male"]["rate"]["value"]
    assert female["difference"]["value"] == pytest.approx(gap, abs=1e-12)
    assert (female["state"], female["family_size"]) == (State.DISPARITY, 2)
    (age,) = [r for r in record["data"]["detection"] if r["attribute"] == "age" and r["difference"] is not None]
    assert age["state"] == State.NOT_DETECTED
    uneven = [w for w in record["data"]["warnings"] if w["code"] == DataWarningCode.UNEVEN_DETECTION]
    assert [w["of"] for w in uneven] == ["gender"]
    assert record["data"]["images"] == (~lost).sum()
    assert sum(r["images"] for r in record["rates"] if r["attribute"] == "gender") == (~lost).sum()
    if by == "list":
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "Images that never reached the classifier" in page
    words = f"female {int(lost[table['gender'] == 'female'].sum())} of {int((table['gender'] == 'female').sum())}"
    assert words in said and words in " ".join(invoke("check", card).stdout.split())
    if by == "column":
        return
    va.open_run(folder).share(tmp_path / "shared")
    found = va.verify(tmp_path / "shared")
    assert found.holds, found.faults
    assert "s3://" not in (tmp_path / "shared" / "audit.json").read_text(encoding="utf-8")
    assert "s3://" not in str(pd.read_parquet(tmp_path / "shared" / "effects" / "undetected.parquet")["image"].iloc[0])


def test_losses_that_are_not_told_are_one_line(table: pd.DataFrame, tmp_path: Path, invoke: Invoke) -> None:
    odd = table.assign(undetected=np.where(table.index == 4, "perhaps", "no"))
    card = write(tmp_path, odd, scores_of(table), data={"not_detected": "undetected"}, columns=["undetected"])
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "'s3://bucket/0004.jpg' has 'perhaps' in 'undetected' (1 such images)" in result.stderr
    (tmp_path / "lost.txt").write_text("nowhere.png\n", encoding="utf-8")
    card = write(tmp_path, table, scores_of(table), data={"not_detected_list": "lost.txt"})
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "1 of 1 images are in no row of the table (nowhere.png)" in result.stderr


def tiny() -> torch.nn.Module:
    """Return the model that the files are made of, with random weights."""
    model: torch.nn.Module = timm.create_model(
        "vit_tiny_patch16_224", num_classes=2, img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2
    )
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 80 pictures whose bar is the label and whose tint is the group, and a model that knows most labels."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    number = np.arange(80)
    group, label = number % 2, number // 2 % 2
    pixels = rng.integers(0, 120, (80, 32, 32, 3)).astype(np.uint8)
    for i in number:
        pixels[i, ..., group[i]] += 60
        pixels[i, 8 if label[i] else 16 :, 8:24] = 230 if label[i] else 20
        Image.fromarray(pixels[i]).save(folder / f"{i:03d}.png")
    pd.DataFrame(
        {
            "image": [f"{i:03d}.png" for i in number],
            "label": np.array(["no", "yes"])[label],
            "gender": np.array(["male", "female"])[group],
        }
    ).to_csv(folder / "table.csv", index=False)
    torch.manual_seed(0)
    model = tiny()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    step = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(25):
        step.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.from_numpy(label)).backward()
        step.step()
    model.eval().requires_grad_(False)
    save_file(model.state_dict(), folder / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        for name, images in (("free", {"images": {0: "n"}}), ("fixed", None)):
            torch.onnx.export(
                model, (torch.zeros(7, 3, 32, 32),), folder / f"{name}.onnx", input_names=["images"],
                output_names=["logits"], dynamic_axes=images, dynamo=False,
            )  # fmt: skip
        difference = torch.nn.Linear(2, 1, bias=False)
        difference.weight.data = torch.tensor([[-1.0, 1.0]])
        one = torch.nn.Sequential(model, difference)  # the log-odds of the second class
        torch.onnx.export(one, (torch.zeros(7, 3, 32, 32),), folder / "one.onnx", dynamo=False)
        share = torch.nn.Sequential(one, torch.nn.Sigmoid(), torch.nn.Flatten(0))
        torch.onnx.export(share, (torch.zeros(7, 3, 32, 32),), folder / "share.onnx", dynamo=False)
        soft = torch.nn.Sequential(model, torch.nn.Softmax(dim=1))
        torch.onnx.export(soft, (torch.zeros(7, 3, 32, 32),), folder / "soft.onnx", dynamo=False)
        for name, (taken, dtype) in OTHER_LAYOUTS.items():
            torch.onnx.export(
                Relaid(model, name), (torch.zeros(taken, dtype=dtype),), folder / f"{name}.onnx", dynamo=False
            )
    return folder


OTHER_LAYOUTS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "last": ((7, 32, 32, 3), torch.float32),
    "gray": ((7, 1, 32, 32), torch.float32),
    "gray-last": ((7, 32, 32, 1), torch.float32),
    "half": ((7, 3, 32, 32), torch.float16),
}


class Relaid(torch.nn.Module):
    """A model of another input: channels last, one channel, or half the bits."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = images.permute(0, 3, 1, 2) if "last" in self.name else images
        logits: torch.Tensor = self.model(seen.float().repeat(1, 3, 1, 1) if "gray" in self.name else seen.float())
        return logits


def onnx_card(pictures: Path, folder: Path, name: str, **model: Any) -> Path:
    card = {
        "name": "An ONNX file",
        "data": {"path": str(pictures / "table.csv")},
        "groups": {"gender": {"column": "gender", "reference": "male"}},
        "model": {
            "name": "onnx", "weights": str(pictures / name), "classes": ["no", "yes"], "mean": [0.5] * 3,
            "std": [0.5] * 3, **model,
        },
        "audit": {"min_group_size": 10},
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    return folder / "card.yaml"


SMALLER = {"resize": 48, "crop": 32, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    ("name", "preprocess"),
    [("free.onnx", None), ("fixed.onnx", None), ("soft.onnx", None), ("free.onnx", "legacy"), ("free.onnx", SMALLER)],
)
def test_an_onnx_file_answers_as_the_model_that_it_was_made_of(
    pictures: Path, tmp_path: Path, invoke: Invoke, name: str, preprocess: Any
) -> None:
    said_so = {} if preprocess is None else {"preprocess": preprocess}
    card = onnx_card(pictures, tmp_path, name, **said_so)
    _, said, folder, record = ran(invoke, card, tmp_path / "out", "--no-report")
    model = {
        "name": "vit_tiny_patch16_224", "weights": str(pictures / "model.safetensors"), "classes": ["no", "yes"],
        "image_size": 32, "overrides": {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "preprocess": preprocess or "legacy",
    }  # fmt: skip
    net = va.load_model(model)
    answers = pd.read_parquet(folder / "effects" / "unpatched.parquet").set_index("image")
    logits = torch.from_numpy(net.predict([pictures / name for name in answers.index])).double()
    assert (answers["predicted"] == np.array(["no", "yes"])[logits.argmax(1)]).all()
    assert np.abs(answers["p:yes"] - logits.softmax(1)[:, 1].numpy()).max() < 1e-5
    assert (record["model"]["access"], record["model"]["image_size"]) == (Access.ANSWERS, 32)
    assert record["data"]["images_opened"] and len(answers) == 80
    seen = record["model"]["preprocessing"]
    assert (seen["source"], seen["input_size"]) == ("card" if preprocess == SMALLER else "legacy", [3, 32, 32])
    assert {w["status"] for w in record["localisation"].values()} <= {LocalisationStatus.NOT_ASKED}
    if record["findings"]:
        assert invoke("reproduce", folder, record["findings"][0]["id"]).exit_code == 0
    assert "internal error" not in said


@pytest.mark.parametrize("as_served", [True, False])
def test_an_onnx_file_that_answers_otherwise_than_the_deployed_model_is_invalid(
    as_served: bool, pictures: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Nothing in such a file says how its images are made, so this is where a wrong pipeline shows."""
    model = {
        "name": "vit_tiny_patch16_224", "weights": str(pictures / "model.safetensors"), "classes": ["no", "yes"],
        "image_size": 32, "overrides": {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "preprocess": "legacy", **({} if as_served else {"mean": [0.0] * 3, "std": [1.0] * 3}),
    }  # fmt: skip
    images = pd.read_csv(pictures / "table.csv")["image"]
    logits = va.load_model(model).predict([pictures / name for name in images])
    pd.DataFrame(logits, columns=["no", "yes"]).assign(image=images).to_csv(tmp_path / "served.csv", index=False)
    card = onnx_card(pictures, tmp_path, "free.onnx", served="served.csv")
    checked = invoke("check", card)
    assert ("as deployed: NO" in checked.stdout) != as_served
    assert "table: served.csv: text in UTF-8, columns separated by commas" in " ".join(checked.stdout.split())
    assert (checked.exit_code == ExitCode.INVALID) != as_served
    code, _, folder, record = ran(invoke, card, tmp_path / "out", "--no-report")
    first = record["controls"]["controls"][0]
    assert (first["id"], first["passed"]) == ("served", as_served)
    assert (code == ExitCode.INVALID) != as_served
    assert [form["file"] for form in record["data"]["tables"]] == ["table.csv", "served.csv"]
    if not as_served:
        assert record["contrasts"] == record["rates"] == []
    assert invoke("verify", folder).exit_code == 0


def test_predictions_cannot_be_compared_with_served_answers(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    card = write(tmp_path, table, scores_of(table), model={"served": "served.csv"})
    result = invoke("check", card)
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "predictions were made elsewhere" in result.stderr


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_an_onnx_file_is_given_images_as_it_takes_them(
    pictures: Path, tmp_path: Path, invoke: Invoke, name: str
) -> None:
    channels = 1 if "gray" in name else 3
    card = onnx_card(pictures, tmp_path, f"{name}.onnx", mean=[0.4] * channels, std=[0.3] * channels)
    _, _, folder, record = ran(invoke, card, tmp_path / "out", "--no-report")
    assert record["model"]["preprocessing"]["input_size"] == [channels, 32, 32]
    answers = pd.read_parquet(folder / "effects" / "unpatched.parquet").set_index("image")
    shares = []
    for key in answers.index:
        with Image.open(pictures / key) as opened:
            fitted = ImageOps.fit(opened.convert("RGB"), (32, 32), Image.Resampling.BICUBIC)
        shares.append(np.asarray(fitted.convert("L").convert("RGB") if channels == 1 else fitted) / 255)
    images = ((torch.tensor(np.stack(shares)) - 0.4) / 0.3).permute(0, 3, 1, 2)
    seen = images.half() if name == "half" else images
    model = tiny().eval().requires_grad_(False)
    model.load_state_dict(load_file(pictures / "model.safetensors"))
    expected = model(seen.float()).softmax(1)[:, 1]
    assert np.abs(answers["p:yes"] - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("name", ["one.onnx", "share.onnx"])
def test_an_onnx_file_of_one_output_says_how_likely_the_second_class_is(
    pictures: Path, tmp_path: Path, invoke: Invoke, name: str
) -> None:
    answers, records = {}, {}
    for file, read in ((name, {"output": "sigmoid", "threshold": 0.5}), ("free.onnx", {})):
        folder, card = tmp_path / file, onnx_card(pictures, tmp_path, file, **read)
        _, _, run, records[file] = ran(invoke, card, folder, "--no-report", "--cache-dir", str(tmp_path / "kept"))
        answers[file] = pd.read_parquet(run / "effects" / "unpatched.parquet").set_index("image")
    assert len([path for path in (tmp_path / "kept").rglob("*") if path.is_file()]) == len(answers[name])
    assert records[name]["model"]["one_logit"]
    np.testing.assert_allclose(answers[name]["p:yes"], answers["free.onnx"]["p:yes"], atol=1e-5)
    assert (answers[name]["predicted"] == answers["free.onnx"]["predicted"]).all()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"weights": "one.onnx"}, "write model.output: sigmoid"),
        ({"state": "ema"}, "is not read with name: onnx"),
        ({"mean": None}, "give model.mean and model.std"),
        ({"classes": ["a", "no", "yes"]}, "have 3 numbers an image"),
        ({"image_size": 64}, "is 64, and its input 'images' is tensor(float) of"),
        ({"weights": "table.csv"}, "is no ONNX file"),
        ({"classes": None}, "model.classes"),
        ({"preprocess": "test"}, "has no test size"),
        ({"preprocess": {"crop": 48}}, "the model takes 32 x 32 pixels"),
    ],
)
def test_an_onnx_file_that_does_not_fit_is_one_line(
    pictures: Path, tmp_path: Path, invoke: Invoke, model: dict[str, Any], words: str
) -> None:
    given = {"weights": str(pictures / model.pop("weights"))} if "weights" in model else {}
    result = invoke("run", onnx_card(pictures, tmp_path, "free.onnx", **model, **given), "--out", tmp_path / "out")
    assert result.exit_code == ExitCode.BAD_INPUT, result.output
    assert words in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_how_wrong_annotations_may_be_is_recorded_told_and_derived_again(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    groups = {**GROUPS, "gender": {**GROUPS["gender"], "error": {"female": 0.02}}}
    card = write(tmp_path, table, scores_of(table), groups=groups, data={"label_error": 0.4})
    _, said, folder, record = ran(invoke, card, tmp_path / "out")
    gaps = {(r["contrast"], r["outcome"]) for r in record["sensitivity"]}
    assert gaps == {("gender:female-male", "happy")}
    rows = {r["kind"]: r for r in record["sensitivity"]}
    assert 0 < rows["labels"]["tipping_of_interval"] < rows["labels"]["tipping"] < 0.4
    assert (rows["labels"]["declared"], rows["labels"]["survives"]) == (0.4, False)
    assert (rows["groups"]["declared"], rows["groups"]["declared_reference"]) == (0.02, 0)
    assert "would vanish with: " in said
    assert "does not survive the errors that the card estimates" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Labels that are wrong at random" in page
    assert va.verify(folder).holds
    assert len(va.open_run(folder).sensitivity.to_frame()) == 5


def test_gaps_are_given_before_and_after_groups_are_alike_in_a_covariate(
    table: pd.DataFrame, tmp_path: Path, invoke: Invoke
) -> None:
    """Read with decimal commas, counted where it is missing, kept in a copy that names nobody, and derived again."""
    rng = np.random.default_rng(0)
    years = (40 + 6 * (table["gender"] == "female") + rng.normal(0, 8, len(table))).round(1)
    cells = [str(each).replace(".", ",") for each in years]
    cells[:3] = ["", "n.n.", ""]
    card = write(
        tmp_path, table.assign(years=cells), scores_of(table), columns=["years"], match_on=[{"years": {"caliper": 5}}],
    )  # fmt: skip
    checked = " ".join(invoke("check", card).output.split())
    assert "years: 3 of 600 images have no number" in checked
    assert "years: 1 images hold what is no number (n.n.)" in checked
    _, said, folder, record = ran(invoke, card, tmp_path / "out")
    assert record["data"]["covariates"] == [
        {"column": "years", "caliper": 5, "images": 597, "missing": 3, "lowest": years.min(), "highest": years.max()}
    ]
    rows = [row for row in record["adjusted"] if row["attribute"] == "gender"]
    assert [row["label"] for row in rows] == ["", *CLASSES]
    whole = rows[0]
    assert whole["without_covariate"] == 3
    assert whole["mean_group"]["years"] - whole["mean_reference"]["years"] == pytest.approx(6, abs=2)
    before, after, part = (whole[name]["value"] for name in ("before", "after", "part"))
    assert part == pytest.approx(before - after)
    assert whole["part"]["low"] < 0 < whole["part"]["high"]  # answers depend on group and label alone
    page = " ".join((folder / "report.html").read_text(encoding="utf-8").split())
    assert "Before and after both groups have the same years" in page
    assert "with the same years in both groups" in said
    frame = va.open_run(folder).adjusted.to_frame()
    assert list(frame["after"].dropna()) == [r["after"]["value"] for r in record["adjusted"] if r["after"]["value"]]
    assert (folder / "tables" / "adjusted.csv").read_text(encoding="utf-8").count("\n") == 1 + len(record["adjusted"])
    assert invoke("verify", folder).exit_code == 0
    assert invoke("export", folder, tmp_path / "copy", "--shareable").exit_code == 0
    assert invoke("verify", tmp_path / "copy").exit_code == 0
    assert not frame.empty
    forged = record | {"adjusted": [whole | {"after": whole["before"]}, *record["adjusted"][1:]]}
    (folder / "audit.json").write_text(json.dumps(forged), encoding="utf-8")
    assert "adjusted" in invoke("verify", folder).output


def test_without_covariates_nothing_is_adjusted(table: pd.DataFrame, tmp_path: Path, invoke: Invoke) -> None:
    _, said, folder, record = ran(invoke, write(tmp_path, table, scores_of(table)), tmp_path / "out")
    assert record["adjusted"] == record["data"]["covariates"] == []
    assert "adjusted" not in said
    assert "Before and after" not in (folder / "report.html").read_text(encoding="utf-8")
