"""Finished audits in experiment trackers: MLflow, Weights & Biases, TensorBoard, and others with the same methods."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

from audit.errors import AuditError, InputError, UnfinishedError, one_line_of
from audit.extras import needs
from audit.given import as_path, check_choice, check_kind
from audit.report.card_section import card_section
from audit.report.tracked import documents, facts, numbers

if TYPE_CHECKING:
    from audit.api.results import Result

__all__ = ["MLflowTracker", "TensorBoardTracker", "Tracker", "WandbTracker"]

LONGEST_NAME = 200  # characters of a run's name
AT_ONCE = 500  # numbers, in one request to MLflow
ID = 32  # characters of a record's hash that name its run
ANSWERS_WITHIN = 10.0  # seconds; MLflow's own client asks a dead server again and again, for minutes
PORTS = {"http": 80, "https": 443}
REGISTERED = re.compile(r"models:/(?P<name>[^/]+)/(?P<version>\d+)")


@runtime_checkable
class Tracker(Protocol):
    """What ``va.audit(plan, trackers=[...])`` tells of a finished run.

    Examples
    --------
    ``result`` is that of the example of :func:`vit_audit.audit`.

    >>> class Lines:
    ...     def check(self):
    ...         pass
    ...     def log(self, result):
    ...         print(result.outcome)
    ...         return "standard output"
    >>> result.track(Lines())
    DISPARITY FOUND
    ['standard output']
    """

    def check(self) -> None:
        """Raise ``InputError`` where a run could not be logged; called before the audit begins.

        Examples
        --------
        >>> import vit_audit as va
        >>> va.WandbTracker("smiles", "runs").check()  # doctest: +SKIP
        """
        ...

    def log(self, result: Result) -> str:
        """Log a finished run; return where.

        Examples
        --------
        >>> import vit_audit as va
        >>> va.WandbTracker("smiles", "runs").log(result)  # doctest: +SKIP
        """
        ...


@dataclass(frozen=True)
class MLflowTracker:
    """Log to MLflow: gaps, rates and counts as metrics, the report and its tables as artifacts, hashes as tags.

    Parameters
    ----------
    tracking_uri : str
        A server's address, or a store's.
    experiment : str
        Made where there is none.
    model : str
        A registered model, as "models:/smiles/3": the run names it, and the model's version gets outcome and run as
        tags.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.MLflowTracker("http://localhost:5000", model="models:/smiles/3").experiment
    'vit-audit'
    >>> va.MLflowTracker("http://localhost:5000", model="smiles")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: model: is 'smiles'; write models:/NAME/VERSION, the version as a number
    """

    tracking_uri: str
    experiment: str = "vit-audit"
    model: str = ""

    def __post_init__(self) -> None:
        check_kind("tracking_uri", self.tracking_uri, str, "give the address of the server")
        check_kind("experiment", self.experiment, str, "give its name")
        check_kind("model", self.model, str, "write models:/NAME/VERSION")
        if self.model and REGISTERED.fullmatch(self.model) is None:
            raise InputError("model", f"is {self.model!r}", "write models:/NAME/VERSION, the version as a number")

    def _client(self) -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing goes anywhere but to this address
        return needs("mlflow", "MLflowTracker").MlflowClient(tracking_uri=self.tracking_uri)

    def check(self) -> None:
        """Ask the server for experiment and model.

        Raises
        ------
        InputError
            If it does not answer, or has no such model.

        Examples
        --------
        >>> import vit_audit as va
        >>> va.MLflowTracker("http://localhost:5000").check()  # doctest: +SKIP
        """
        client = self._client()
        try:
            self._connect()
            client.get_experiment_by_name(self.experiment)
            if found := REGISTERED.fullmatch(self.model):
                client.get_model_version(found["name"], found["version"])
        except Exception as error:
            what = _short(error).replace(self.tracking_uri, self._shown())
            raise InputError(self._shown(), what, "start the server, or correct the address") from error

    def _connect(self) -> None:
        address = urlsplit(self.tracking_uri)
        if address.scheme in PORTS and address.hostname:
            port = address.port or PORTS[address.scheme]
            socket.create_connection((address.hostname, port), timeout=ANSWERS_WITHIN).close()

    def _shown(self) -> str:
        """Return the address without a user's name and password."""
        address = urlsplit(self.tracking_uri)
        return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()

    def log(self, result: Result) -> str:
        """Log a finished run, unless the experiment has it; returns its address.

        Examples
        --------
        >>> va.MLflowTracker("http://localhost:5000").log(result)  # doctest: +SKIP
        'http://localhost:5000/#/experiments/1/runs/0f3c...'
        """
        client, audit, told = self._client(), result.record, facts(result.record, result.digest)
        known = client.get_experiment_by_name(self.experiment)
        experiment = client.create_experiment(self.experiment) if known is None else known.experiment_id
        tags = told | ({"vit_audit.registered_model": self.model} if self.model else {})
        where = f"{self._shown()}/#/experiments/{experiment}/runs/"
        if logged := _same(client, experiment, tags):
            return where + logged
        note = {"mlflow.note.content": card_section(audit, result.digest)}
        run = client.create_run(experiment, tags=tags | note, run_name=audit.name[:LONGEST_NAME]).info
        with _ended(client, run.run_id):
            metric = needs("mlflow", "MLflowTracker").entities.Metric
            rows = [metric(name, value, run.start_time, 0) for name, value in numbers(audit).items()]
            for first in range(0, len(rows), AT_ONCE):
                client.log_batch(run.run_id, metrics=rows[first : first + AT_ONCE])
            for name, path in documents(result.folder).items():
                client.log_artifact(run.run_id, str(path), artifact_path=_folder("vit-audit", name))
            if found := REGISTERED.fullmatch(self.model):
                for key, value in ({"vit_audit.run_id": run.run_id} | told).items():
                    client.set_model_version_tag(found["name"], found["version"], key, value)
        return f"{where}{run.run_id}"


def _same(client: Any, experiment: str, tags: dict[str, str]) -> str | None:
    """Return the identifier of a run of MLflow that holds the same audit, and all of it."""
    names = ("vit_audit.audit_sha256", "vit_audit.registered_model")
    asked = [f"tags.`{name}` = '{tags[name]}'" for name in names if name in tags]
    found = client.search_runs([experiment], " and ".join([*asked, "attributes.status = 'FINISHED'"]), max_results=1)
    return str(found[0].info.run_id) if found else None


def _folder(root: str, name: str) -> str:
    return "/".join([root, *name.split("/")[:-1]])


@contextmanager
def _ended(client: Any, run: str) -> Iterator[None]:
    """Close an MLflow run, whatever becomes of it."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        client.set_terminated(run, status=status)


@dataclass(frozen=True)
class WandbTracker:
    """Log to Weights & Biases: gaps, rates and counts in the summary, the report and its tables as an artifact.

    An audit is one run there, by the hash of its record: logged again, it is that run.

    Parameters
    ----------
    project : str
    folder : str or pathlib.Path
        Where its files go; offline they stay there until ``wandb sync``.
    mode : {"offline", "online"}

    Examples
    --------
    >>> import vit_audit as va
    >>> va.WandbTracker("smiles", "runs").mode
    'offline'
    """

    project: str
    folder: str | Path
    mode: Literal["offline", "online"] = "offline"

    def __post_init__(self) -> None:
        check_kind("project", self.project, str, "give its name")
        as_path("folder", self.folder)
        check_choice("mode", self.mode, ("offline", "online"))

    def check(self) -> None:
        """Ask whether wandb is installed and, online, whether it knows who logs.

        Raises
        ------
        InputError
            If nobody is logged in.

        Examples
        --------
        >>> va.WandbTracker("smiles", "runs").check()  # doctest: +SKIP
        """
        wandb = needs("wandb", "WandbTracker")
        if self.mode == "online" and not wandb.login(prompt=False):
            raise InputError("WandbTracker", "nobody is logged in", "run 'wandb login', or take mode='offline'")

    def log(self, result: Result) -> str:
        """Log a finished run; returns the folder of its files.

        Examples
        --------
        >>> va.WandbTracker("smiles", "runs").log(result)  # doctest: +SKIP
        'runs/wandb/offline-run-...'
        """
        wandb, audit = needs("wandb", "WandbTracker"), result.record
        place = as_path("folder", self.folder)
        place.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(console="off", silent=True)
        told = facts(audit, result.digest)
        run = wandb.init(
            project=self.project, dir=str(place), mode=self.mode, name=audit.name[:LONGEST_NAME], config=told,
            job_type="audit", settings=quiet, id=result.digest[:ID], resume="allow",
        )  # fmt: skip
        try:
            run.summary.update(numbers(audit) | {"outcome": str(audit.outcome)})
            artifact = wandb.Artifact(f"vit-audit-{result.digest[:12]}", type="audit", metadata=told)
            for name, path in documents(result.folder).items():
                artifact.add_file(str(path), name=name)
            run.log_artifact(artifact)
            return str(Path(run.dir).parent)
        finally:
            run.finish()


@dataclass(frozen=True)
class TensorBoardTracker:
    """Log to TensorBoard: gaps, rates and counts as scalars, and the outcome as text.

    Parameters
    ----------
    folder : str or pathlib.Path
        Of the event files.
    step : int
        At which the scalars are drawn, such as the epoch of the model.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.TensorBoardTracker("runs/tensorboard", step=12).step
    12
    """

    folder: str | Path
    step: int = 0

    def __post_init__(self) -> None:
        as_path("folder", self.folder)
        check_kind("step", self.step, int, "give a whole number")

    def check(self) -> None:
        """Ask whether TensorBoard is installed.

        Examples
        --------
        >>> va.TensorBoardTracker("runs/tensorboard").check()  # doctest: +SKIP
        """
        needs("tensorboard", "TensorBoardTracker")

    def log(self, result: Result) -> str:
        """Log a finished run; returns the folder.

        Examples
        --------
        >>> va.TensorBoardTracker("runs/tensorboard").log(result)  # doctest: +SKIP
        'runs/tensorboard'
        """
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder)) as writer:
            for name, value in numbers(result.record).items():
                writer.add_scalar(name, value, self.step)
            writer.add_text("vit-audit", card_section(result.record, result.digest), self.step)
        return str(self.folder)


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Raise where a run could not be logged, before hours of work.

    Raises
    ------
    InputError
        If one is none, or says that it cannot log.
    """
    check_kind("trackers", trackers, Sequence, "give a list of trackers")
    for tracker in trackers:
        check_kind("trackers", tracker, Tracker, "give MLflowTracker(...), or an object with 'check' and 'log'")
        tracker.check()


def track(result: Result, trackers: Sequence[Tracker]) -> list[str]:
    """Log a run to each tracker; return where."""
    return [_logged(tracker, result) for tracker in trackers]


def _logged(tracker: Tracker, result: Result) -> str:
    try:
        return tracker.log(result)
    except AuditError:
        raise
    except Exception as error:
        what = f"the run is finished, and was not logged ({_short(error)})"
        fix = f"log it again: va.open_run({str(result.folder)!r}).track(...)"
        raise UnfinishedError(type(tracker).__name__, what, fix) from error


def _short(error: Exception) -> str:
    return one_line_of(error)[:200]
