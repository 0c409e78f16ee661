"""A SLURM cluster of this machine, to try and to test jobs on: munged, slurmctld and a slurmd for each node.

    python -m tools.slurm_here --nodes 2 -- examples/slurm/sweep.sh 300k vanilla PHD-CSWA-2-16-32

starts it, runs the command in it, waits until no job is left, and stops it. Needs Debian's slurmctld, slurmd,
slurm-client and munge, and root; each daemon runs as this user. Everything lies in a temporary folder,
listens on loopback only, and is stopped by process id.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.ports import held_ports

PATIENCE_S = 300
"""What a daemon or a command of SLURM takes on the busiest machine: only one that hangs takes longer."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first_job}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SwitchType=switch/none
ReturnToService=2
KillWait=5
MessageTimeout=60
TCPTimeout=30
BatchStartTimeout=300
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
PropagateResourceLimits=NONE
NodeName=DEFAULT CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4000
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A running cluster; ``environment`` makes SLURM's commands find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str, **environment: str) -> str:
        """Output of a command; its errors are in the exception."""
        done = subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def seconds(self, job: str) -> int:
        """How long a job has been running, in its present start."""
        minutes = self.run("squeue", "--noheader", f"--jobs={job}", "--format=%M").strip()
        return sum(60**power * int(part) for power, part in enumerate(reversed(minutes.split(":"))))

    def wait(self, seconds: float = 2 * PATIENCE_S) -> None:
        """Until no job is left, which takes longer only if one hangs."""
        deadline = time.monotonic() + seconds
        while queue := self.run("squeue", "-h"):
            assert time.monotonic() < deadline, queue
            self.heal()
            time.sleep(0.5)

    def heal(self) -> None:
        """Bring back nodes that SLURM has drained because processes outlived their job: without control
        groups it cannot find the children of a process that was killed.
        """
        for line in self.run("sinfo", "--noheader", "--format=%N %t %E").splitlines():
            if "drain" in line and "Kill task failed" in line:
                self.run("scontrol", "update", f"nodename={line.split()[0]}", "state=resume")

    def lose_node(self, name: str) -> None:
        """Kill a node's slurmd and all that it has started, as a power cut would; bring it back when no job
        is on it any more.
        """
        daemon = int((self.folder / f"slurmd.{name}.pid").read_text())
        for pid in [daemon, *self.processes(f"SLURMD_NODENAME={name}")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")
        deadline = time.monotonic() + PATIENCE_S
        while self.run("squeue", "--noheader", f"--nodelist={name}", "--states=RUNNING"):
            assert time.monotonic() < deadline, self.run("squeue")
            time.sleep(0.2)
        shutil.rmtree(self.folder / "spool" / name, ignore_errors=True)
        self.run("slurmd", "-N", name)  # registers, and so returns to service

    def processes(self, *variables: str) -> list[int]:
        """Those of this cluster's daemons and jobs whose environment holds the variables."""
        wanted = {f"SLURM_CONF={self.folder}/slurm.conf".encode(), *map(str.encode, variables)}
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and wanted <= {*(entry / "environ").read_bytes().split(b"\0")}:
                    found.append(int(entry.name))
        return found


@contextlib.contextmanager
def cluster(nodes: int = 2, cpus: int = 1) -> Iterator[Cluster]:
    """Start the daemons, and stop them in the end.

    Raises:
        RuntimeError: SLURM is not installed, or does not come up.
    """
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise RuntimeError(f"apt-get install slurmctld slurmd slurm-client munge: {missing[0]} is not there")
    with tempfile.TemporaryDirectory(prefix="phd-slurm-") as name:
        folder = Path(name)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nIgnoreSystemd=yes\n")
        started = Cluster(folder)
        # Held as long as the cluster lasts: a lost node's is free for a moment.
        with held_ports(nodes + 1) as (port, *ports):
            lines = [
                f"NodeName=n{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[i]}"
                for i in range(nodes)
            ]
            # Another cluster of this machine has other jobs, and a job's number is its torchrun's port.
            first_job = random.randrange(1, 1_000_000)
            text = CONFIGURATION.format(
                folder=folder, user=user, port=port, cpus=cpus, nodes="\n".join(lines), first_job=first_job
            )
            (folder / "slurm.conf").write_text(text)
            try:
                _munged(folder, key)
                started.run("slurmctld", "-c")
                for i in range(nodes):
                    started.run("slurmd", "-N", f"n{i}")
                _until_idle(started, nodes)
                yield started
            finally:
                _stop(started)


def _munged(folder: Path, key: Path) -> None:
    subprocess.run(
        [
            *("munged", "--force", f"--socket={folder}/munge.sock", f"--key-file={key}"),
            *(f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"),
            f"--seed-file={folder}/munge.seed",
        ],
        check=True,
    )


def _until_idle(started: Cluster, nodes: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        states = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%T"], env=started.environment, capture_output=True, text=True
        ).stdout.split()
        if states.count("idle") == nodes:
            return
        time.sleep(0.2)
    logs = "\n".join(file.read_text()[-2000:] for file in started.folder.glob("*.log"))
    raise RuntimeError(f"SLURM did not come up\n{logs}")


def _stop(started: Cluster) -> None:
    """The daemons, and what is left of the jobs."""
    pids = [
        int(file.read_text())
        for file in sorted(started.folder.glob("*.pid"), reverse=True)
        if file.read_text().strip()
    ]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    for pid in [*pids, *started.processes()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each node (default 1)")
    parser.add_argument("command", nargs="+", help="what to run in it; after --")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and stop the daemons
    with cluster(args.nodes, args.cpus) as started:
        code = subprocess.run(args.command, env=started.environment).returncode
        shown = ""
        while jobs := started.run("squeue", "--noheader", "--format=%i %j %T %r %M"):
            now = "\n".join(line.rsplit(" ", 1)[0] for line in jobs.splitlines())
            if now != shown:
                print(
                    f"{time.strftime('%T')} {len(jobs.splitlines())} jobs: {'; '.join(now.splitlines()[:3])}",
                    flush=True,
                )
            shown = now
            time.sleep(2)
    return code


if __name__ == "__main__":
    sys.exit(main())
