"""A SLURM of two nodes on loopback, for benchmarks and tests; of Debian's packages ``slurm-wlm`` and ``munge``.

    python benchmarks/scale/slurm_here.py FOLDER        # starts it, says what to export, and ends it on Ctrl-C

Nothing of the system's own configuration is read or changed: daemons, keys, logs and states lie in one folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("one", "two")
ENOUGH = 60.0  # seconds until the nodes are idle
CONFIGURATION = """ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the daemons that are not installed."""
    return [name for name in DAEMONS if _found(name) is None]


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@dataclass
class Slurm:
    """A SLURM that runs.

    Parameters
    ----------
    folder : pathlib.Path
        Where it keeps everything.
    """

    folder: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def own(self) -> dict[str, str]:
        """What a process needs in its environment to reach it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, name: str, *command: str) -> None:
        """Start a daemon."""
        program = _found(command[0]) or command[0]
        with (self.folder / "said").open("ab") as said:
            self.started[name] = subprocess.Popen(
                [program, *command[1:]], env=os.environ | self.own, stdout=said, stderr=said, cwd=self.folder
            )

    def ask(self, *command: str) -> str:
        """Call one of SLURM's programs, and return what it says."""
        return subprocess.run(
            command, env=os.environ | self.own, capture_output=True, text=True, check=False, timeout=60
        ).stdout

    def lose(self, node: str) -> None:
        """Kill a node with all that runs on it, as without power, once SLURM knows; then start it again."""
        self.started[node].kill()
        self.started[node].wait()
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                around = process.environ()
                if around.get("SLURM_CONF") == self.own["SLURM_CONF"] and around.get("SLURMD_NODENAME") == node:
                    process.kill()
        self.start(node, "slurmd", "-D", "-N", node)
        time.sleep(2.0)
        self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        for line in self.ask("squeue", "--noheader", "--states=PENDING", "--format=%i %r").splitlines():
            job, _, reason = line.partition(" ")
            if reason == "BeginTime":  # SLURM lets a job that has lost its node wait for two minutes
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def until_idle(self) -> None:
        """Wait until all nodes answer."""
        deadline = time.monotonic() + ENOUGH
        while time.monotonic() < deadline and all(process.poll() is None for process in self.started.values()):
            if self.ask("sinfo", "--noheader", "--Node", "--format=%t").split() == ["idle"] * len(NODES):
                return
            time.sleep(0.5)
        raise SystemExit(f"SLURM did not start: look at the logs in {self.folder}")


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Start SLURM for the length of a block.

    Parameters
    ----------
    folder : pathlib.Path
        Where it keeps everything; no other user may write to it.
    """
    found = Slurm(folder.absolute())
    folder = found.folder
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    _configure(folder)
    files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("log", "pid", "seed")]
    try:
        found.start(
            "munged",
            "munged",
            "--foreground",
            "--force",
            f"--socket={folder}/munge.socket",
            f"--key-file={key}",
            *files,
        )
        time.sleep(1.0)
        found.start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            found.start(node, "slurmd", "-D", "-N", node)
        found.until_idle()
        yield found
    finally:
        for process in reversed(found.started.values()):
            process.terminate()
        for process in found.started.values():
            process.wait(60)


def _configure(folder: Path) -> None:
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    text = CONFIGURATION.format(host=socket.gethostname(), port=ports[0], folder=folder, nodes=nodes)
    (folder / "slurm.conf").write_text(text, encoding="ascii")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    if missing():
        raise click.ClickException(f"not installed: {', '.join(missing())}")
    with slurm(folder) as found:
        click.echo("\n".join(f"export {name}={value}" for name, value in found.own.items()))
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    sys.exit(main())
