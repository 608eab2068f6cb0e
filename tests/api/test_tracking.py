"""Trackers: what each has of a run afterwards, read back with the tracker's own means; and what cannot be logged."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import vit_audit as va
from audit.report.tracked import documents, facts, numbers
from tests.report.examples import HOSTILE, examples

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".venv-mlflow" / "bin" / "mlflow"  # made by make long: a server needs older packages than we do
GAP = "gap/skin_tone/darker - lighter/smiling/standardised_gap"
quietly = pytest.mark.filterwarnings("ignore")  # what other people's packages warn of


@pytest.fixture(scope="module")
def sample() -> va.Result:
    return va.open_run(ROOT / "reports" / "sample")


def test_numbers_are_those_of_the_record_under_names_that_trackers_take(sample: va.Result) -> None:
    told = numbers(sample.record)
    gap = next(row for row in sample.record.contrasts if row.id == "skin_tone:darker-lighter:smiling:standardised_gap")
    assert (told[GAP], told[f"{GAP}/low"]) == (gap.estimate.value, gap.estimate.low)
    assert told["gaps above policy"] == sum(row.above_policy for row in sample.record.contrasts)
    assert set(documents(sample.folder)) >= {"report.html", "audit.json", "tables/rates.csv", "exports/junit.xml"}
    assert not any(name.endswith((".parquet", ".safetensors", ".npz")) for name in documents(sample.folder))
    hostile = numbers(examples()["hostile"])
    assert all(all(c.isalnum() or c in "_.- /" for c in name) and len(name) < 250 for name in hostile)
    assert not any(sign in name for name in hostile for sign in HOSTILE[0][:1])
    assert set(numbers(examples()["invalid"])) == {"controls/passed", "controls/failed"}


class Told:
    """A tracker that remembers, and may refuse."""

    def __init__(self, refuses: bool = False, fails: bool = False) -> None:
        self.refuses, self.fails = refuses, fails
        self.runs: list[va.Result] = []

    def check(self) -> None:
        if self.refuses:
            raise va.InputError("tracker", "is not there", "start it")

    def log(self, result: va.Result) -> str:
        if self.fails:
            raise ConnectionError("the server\nhas gone")
        self.runs.append(result)
        return "here"


def test_a_finished_audit_is_logged_and_one_that_could_not_be_is_not_begun(tmp_path: Path) -> None:
    import pandas as pd

    people = pd.DataFrame({"image": range(80), "smiles": ["no", "yes"] * 40, "sex": ["f", "f", "m", "m"] * 20})
    data = va.Data.from_frame(people, images="image", label="smiles", groups={"gender": "sex"})
    answers = people[["image"]].assign(predicted=people["smiles"])
    plan = va.plan({"name": "Smiles"}, va.predictions(answers, classes=["no", "yes"]), data)
    with pytest.raises(va.InputError, match="tracker: is not there; start it"):
        va.audit(plan, tmp_path / "never", report=False, trackers=[Told(refuses=True)])
    assert not (tmp_path / "never").exists()
    told, broken = Told(), Told(fails=True)
    with pytest.raises(va.UnfinishedError) as caught:
        va.audit(plan, tmp_path / "run", report=False, trackers=[told, broken])
    fix = f"log it again: va.open_run({str(tmp_path / 'run')!r}).track(...)"
    assert str(caught.value) == f"Told: the run is finished, and was not logged (the server has gone); {fix}"
    assert [run.folder for run in told.runs] == [tmp_path / "run"]
    assert va.open_run(tmp_path / "run").track(told) == ["here"]


def test_bad_input_is_one_line(sample: va.Result) -> None:
    for call, line in (
        (lambda: va.MLflowTracker("http://x", model="smiles/3"), "model: is 'smiles/3'; write models:/NAME/VERSION"),
        (lambda: va.MLflowTracker(3), "tracking_uri: is a int; give the address of the server"),  # type: ignore[arg-type]
        (lambda: va.WandbTracker("p", "f", mode="on"), "mode: is 'on'; choose from offline, online"),  # type: ignore[arg-type]
        (lambda: va.TensorBoardTracker("f", step="1"), "step: is a str; give a whole number"),  # type: ignore[arg-type]
        (lambda: sample.track(print), "trackers: is a builtin_function_or_method; give MLflowTracker(...)"),  # type: ignore[arg-type]
    ):
        with pytest.raises(va.InputError) as caught:
            call()
        assert str(caught.value).startswith(line)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start MLflow's own server on this machine, and end it."""
    if not SERVER.is_file():
        pytest.skip("the server of MLflow is installed by make long")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("NO_PROXY", "*"), ("no_proxy", "*"), ("MLFLOW_DISABLE_TELEMETRY", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    kept = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", tmp_path / "kept"]
    command = [SERVER, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *kept]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(1200):
                assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
                try:
                    if requests.get(f"{address}/health", timeout=1).ok:
                        break
                except requests.RequestException:
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait()


@quietly
@pytest.mark.long
def test_a_server_of_mlflow_has_metrics_artifacts_and_the_models_version(sample: va.Result, server: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server, registry_uri=server)
    client.create_registered_model("smiles")
    trained = client.create_run(client.create_experiment("training")).info
    client.create_model_version("smiles", source=f"{trained.artifact_uri}/model", run_id=trained.run_id)
    tracker = va.MLflowTracker(server, "audits", model="models:/smiles/1")
    tracker.check()
    (where,) = sample.track(tracker)
    (run,) = client.search_runs([client.get_experiment_by_name("audits").experiment_id])
    assert where.endswith(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(numbers(sample.record))
    assert run.data.tags["vit_audit.registered_model"] == "models:/smiles/1"
    assert facts(sample.record, sample.digest).items() <= run.data.tags.items()
    kept = Path(client.download_artifacts(run.info.run_id, "vit-audit"))
    for name, path in documents(sample.folder).items():
        assert (kept / name).read_bytes() == path.read_bytes(), name
    tags = client.get_model_version("smiles", "1").tags
    assert (tags["vit_audit.run_id"], tags["vit_audit.outcome"]) == (run.info.run_id, "DISPARITY FOUND")
    assert sample.track(tracker) == [where]  # it is there
    assert len(client.search_runs([run.info.experiment_id])) == 1
    with pytest.raises(va.InputError, match=r"2.*not found; start the server, or correct the address"):
        va.MLflowTracker(server, model="models:/smiles/2").check()


@quietly
def test_a_server_that_does_not_answer_is_told_of_at_once_and_no_password_with_it() -> None:
    pytest.importorskip("mlflow")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        port = taken.getsockname()[1]
        begun = time.perf_counter()
        with pytest.raises(va.InputError) as caught:
            va.MLflowTracker(f"http://ann:secret@127.0.0.1:{port}").check()
    assert time.perf_counter() - begun < 60  # its client would ask for minutes
    assert str(caught.value).startswith(f"http://127.0.0.1:{port}: ")
    assert str(caught.value).endswith("; start the server, or correct the address")
    assert "secret" not in str(caught.value)


@quietly
@pytest.mark.long
def test_nobody_logged_in_to_weights_and_biases_is_told_of_before_an_audit(tmp_path: Path) -> None:
    """In a process of its own, which knows of no key."""
    code = (
        "import vit_audit as va\n"
        "try: va.WandbTracker('audits', 'kept', mode='online').check()\n"
        "except va.InputError as error: print(error)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "WANDB_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    line = "WandbTracker: nobody is logged in; run 'wandb login', or take mode='offline'"
    assert said.stdout.splitlines()[-1:] == [line], said.stderr


@quietly
@pytest.mark.long
def test_weights_and_biases_keeps_an_offline_run(sample: va.Result, tmp_path: Path) -> None:
    """In a process of its own: it leaves threads behind."""
    code = (
        "import sys, vit_audit as va; "
        "print(*va.open_run(sys.argv[1]).track(va.WandbTracker('audits', sys.argv[2])), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", code, sample.folder, tmp_path / "kept"], env=environment, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    folder = Path(said.stdout.splitlines()[-1])
    (record,) = folder.glob("run-*.wandb")
    content = record.read_bytes()
    assert GAP.encode() in content
    assert sample.digest.encode() in content
    assert b"exports/junit.xml" in content


@quietly
@pytest.mark.long
def test_tensorboard_draws_the_numbers_at_their_step(sample: va.Result, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    va.open_run(sample.folder).track(va.TensorBoardTracker(tmp_path / "events", step=7))
    kept = EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(kept.Tags()["scalars"]) == set(numbers(sample.record))
    (event,) = kept.Scalars(GAP)
    assert (event.step, event.value) == (7, pytest.approx(numbers(sample.record)[GAP]))
    assert "Differences between groups" in kept.Tensors("vit-audit/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_copy_that_was_handed_on_is_logged_like_its_run(sample: va.Result, tmp_path: Path) -> None:
    shutil.copytree(sample.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("effects"))
    told = Told()
    va.open_run(tmp_path / "copy").track(told)
    assert told.runs[0].digest == sample.digest
