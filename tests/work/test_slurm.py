"""SLURM: what is submitted, in which order, and what is said where it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.errors import InputError, UnfinishedError, WaitingError
from audit.work.executors import Elsewhere
from audit.work.shards import PLAN
from audit.work.slurm import SlurmJobs, snapshot, submit_first
from benchmarks.scale.slurm_here import missing, slurm
from tests.small_world import SMALL_CARD, invoke, write_card
from tests.work.test_shards import quiet, tasks

pytestmark = [pytest.mark.unit, pytest.mark.cluster]
ROOT = Path(__file__).resolve().parents[2]
NOTED = '#!/bin/sh\nprintf "%s " "$(basename "$0")" "$@" >> "{log}"\nprintf "\\n" >> "{log}"\n'
# Stands in for SLURM where none answers: a job, or each of an array, is over when it is submitted.
STAND_IN = r"""#!/bin/sh
last=1
for option; do case $option in --array=1-*) last=${option#--array=1-} array=yes ;; esac; script=$option; done
for number in $(seq "$last"); do
  if [ "$array" ]; then export SLURM_ARRAY_TASK_ID=$number; fi
  sh "$script" >> "$0.said" 2>&1
done
echo 1
"""


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "work").mkdir(parents=True)
    (folder / "work" / PLAN).write_text(json.dumps({"device": "cpu"}), encoding="utf-8")
    return folder


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where it is noted what SLURM's programs are asked; the answer is job 7."""
    log, folder = tmp_path / "said", tmp_path / "bin"
    folder.mkdir()
    program(folder, "sbatch", NOTED.format(log=log) + "echo '7;cluster'\n")
    program(folder, "scancel", NOTED.format(log=log))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


def stage(run: Path, number: int = 7) -> Elsewhere:
    return Elsewhere(tasks(number), run / "work" / "stage", "cpu", 1)


def test_an_array_over_what_is_left_and_a_job_that_goes_on_after_it(run: Path, said: Path) -> None:
    asked = SlurmJobs(run, "lab", "gpu", "4:00:00", gpus=0, cpus=2, jobs=4, further=("--qos=low",))
    with pytest.raises(WaitingError, match=r"^SLURM job 7: 7 tasks of stage in 4 jobs; job 7 goes on after them"):
        asked.do(stage(run), quiet)
    array, after = said.read_text(encoding="utf-8").splitlines()
    for option in ("--account=lab", "--partition=gpu", "--time=4:00:00", "--cpus-per-task=2", "--qos=low"):
        assert option in array
        assert option in after
    assert "--array=1-4 " in array
    assert "--dependency=afterany:7 " in after
    work = (run / "work" / "slurm" / "stage.sh").read_text(encoding="utf-8")
    assert f'work {run} --device=cpu --workers=2 --shard "$SLURM_ARRAY_TASK_ID/4"' in work
    assert f"PYTHONPATH={run / 'work' / 'source'}" in work
    merge = (run / "work" / "slurm" / "merge.sh").read_text(encoding="utf-8")
    assert f"submit {run} --slurm --here --account=lab --partition=gpu --time=4:00:00 --gpus=0 --cpus=2" in merge
    assert "--sbatch=--qos=low" in merge


def test_accelerators_for_a_run_on_the_processor_are_refused_in_a_line(run: Path, said: Path) -> None:
    told = invoke("submit", run, "--slurm", "--gpus", 2)
    assert (told.exit_code, told.stderr) == (
        2,
        "--gpus: is 2, and the run was laid out for the cpu; leave it out, or lay the run out with --device cuda\n",
    )
    assert not said.exists()


def test_few_tasks_are_left_to_the_job_that_goes_on(run: Path, said: Path) -> None:
    SlurmJobs(run, jobs=16).do(stage(run), quiet)
    assert not said.exists()
    assert submit_first(SlurmJobs(run)) == "7"
    assert "--array" not in said.read_text(encoding="utf-8")


def test_the_copy_of_the_source_is_what_was_there_when_it_was_submitted(run: Path) -> None:
    source = snapshot(run)
    (source / "audit" / "edited.py").touch()
    assert snapshot(run) == source
    code = "import audit; from audit.resources import resource_dir; print(audit.__file__, resource_dir('templates'))"
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(source)}, capture_output=True, text=True,
        check=True, cwd=run,
    ).stdout.split()  # fmt: skip
    assert all(Path(path).is_relative_to(source) for path in told)


def test_where_slurm_refuses_nothing_half_is_left(run: Path, said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = 'case "$*" in *--dependency*) echo "sbatch: error: down" >&2; exit 1;; esac; echo 7\n'
    program(said.with_name("bin"), "sbatch", NOTED.format(log=said) + refuses)
    with pytest.raises(UnfinishedError, match=r"^sbatch: sbatch: error: down; look at sinfo and squeue"):
        SlurmJobs(run, jobs=4).do(stage(run), quiet)
    assert said.read_text(encoding="utf-8").splitlines()[-1] == "scancel 7 "
    with pytest.raises(WaitingError):
        program(said.with_name("bin"), "sbatch", "#!/bin/sh\necho 8\n")
        SlurmJobs(run, jobs=4).do(stage(run), quiet)
    with pytest.raises(WaitingError):
        SlurmJobs(run, jobs=4).do(stage(run), quiet)
    with pytest.raises(UnfinishedError, match=r"3 arrays of jobs have done none of the 7 tasks of stage; read what"):
        SlurmJobs(run, jobs=4).do(stage(run), quiet)
    monkeypatch.setenv("PATH", str(run))
    with pytest.raises(InputError, match=r"^--slurm: sbatch is not installed on this machine; submit on a machine of"):
        submit_first(SlurmJobs(run))


def _slurm_answers() -> bool:
    found = shutil.which("sinfo")
    return found is not None and subprocess.run([found], capture_output=True, check=False).returncode == 0


@pytest.fixture
def some_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a SLURM that answers: the site's, else one on loopback, else what stands in for it."""
    if _slurm_answers():
        yield
    elif os.getuid() == 0 and not missing():
        with slurm(tmp_path / "slurm") as found:
            for name, value in found.own.items():
                monkeypatch.setenv(name, value)
            yield
    else:
        (tmp_path / "bin").mkdir()
        program(tmp_path / "bin", "sbatch", STAND_IN)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        yield


@pytest.mark.long
@pytest.mark.usefixtures("some_slurm")
def test_slurm_gives_the_record_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    card = write_card(tmp_path / "card.yaml", model=SMALL_CARD["model"] | {"weights": "none"})

    def called(*arguments: object) -> int:
        command = [sys.executable, "-c", "from audit.cli import entry; entry()", *map(str, arguments)]
        return subprocess.run(command, check=False).returncode

    code = called("run", card, "--out", tmp_path / "one", "--no-report", "--workers", 1)
    assert called("run", card, "--out", tmp_path / "two", "--no-report", "--workers", 1, "--shards") == 9
    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert called("submit", two, "--slurm", "--jobs", 2, "--workers", 1) == 0
    deadline = time.monotonic() + 1200
    while (two / "work" / PLAN).is_file():
        assert time.monotonic() < deadline
        time.sleep(1)
    assert code in (0, 1, 4)
    assert (one / "audit.json").read_bytes() == (two / "audit.json").read_bytes()
    assert {path.name for path in (two / "work").iterdir()} <= {"source", "slurm"}  # that the last job runs from
