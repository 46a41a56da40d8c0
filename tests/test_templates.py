"""What the pages give to be copied for clusters, our scripts, and the Dockerfile, as checkers judge them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.watch import ended

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
# The first that has all that the pages use by default, and the newest whose schemas are there.
KUBERNETES = ("1.29", "1.37")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of Kubernetes on all pages, with the names of the pages."""
    for page in PAGES:
        for block in blocks(page, "yaml"):
            for found in yaml.safe_load_all(block):
                if isinstance(found, dict) and "kind" in found:
                    yield page.stem, found


def scripts() -> list[str]:
    return [block for page in PAGES for block in blocks(page, "bash") if "#SBATCH" in block]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_files(version: str) -> None:
    found = list(objects())
    assert {page for page, _ in found} >= {"kubernetes", "cluster"}
    for _, thing in found:
        kubernetes_validate.validate(thing, version, strict=True)


def test_a_wrong_field_of_kubernetes_is_found() -> None:
    job = next(thing for _, thing in objects() if thing["kind"] == "Job")
    job["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(job, KUBERNETES[-1], strict=True)


def checked(*command: str | Path, text: str | None = None) -> str:
    """What a checker says; the empty string if all is well."""
    done = subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_shell_scripts_are_sound() -> None:
    found = scripts()
    assert len(found) == 2
    # SC2016: what the nodes expand is in single quotes, so that the first node does not.
    check = (TOOLS / "shellcheck", "--shell=bash", "--exclude=SC2016")
    for script in found:
        assert checked(*check, "-", text=script) == ""
    ours = [
        path for path in (ROOT / "tools").iterdir() if path.is_file() and b"bash" in path.read_bytes()[:30]
    ]
    assert len(ours) >= 4
    assert checked(*check, "--severity=warning", "--external-sources", f"--source-path={ROOT}", *ours) == ""
    assert "SC2086" in checked(*check, "-", text="#!/bin/bash\na=$1\nls $a\n")


def test_the_dockerfile_is_sound() -> None:
    assert checked(TOOLS / "hadolint", ROOT / "Dockerfile") == ""
    assert "DL3006" in checked(TOOLS / "hadolint", "-", text="FROM debian\n")


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a Slurm of four nodes with 64 cores and 8 GPUs each, of which none is started."""
    missing = [name for name in ("munged", "slurmctld", "sbatch") if not which(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm")
    if os.getuid():
        pytest.skip("a controller of Slurm is started by root")
    # Munge wants a folder that all users may enter, unlike those of pytest.
    tmp_path = Path(tempfile.mkdtemp(prefix="slurm-"))
    tmp_path.chmod(0o755)
    ports = [free_port(), free_port()]
    gpus = [tmp_path / f"gpu{number}" for number in range(8)]
    for path in (*gpus, tmp_path / "state" / "x", tmp_path / "spool" / "x"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "gres.conf").write_text(f"NodeName=n[1-4] Name=gpu File={tmp_path}/gpu[0-7]\n")
    (tmp_path / "slurm.conf").write_text(f"""
        ClusterName=tests
        SlurmctldHost={socket.gethostname()}(127.0.0.1)
        SlurmctldPort={ports[0]}
        SlurmdPort={ports[1]}
        SlurmUser=root
        AuthInfo=socket={tmp_path}/munge
        SlurmctldPidFile={tmp_path}/slurmctld.pid
        SlurmctldLogFile={tmp_path}/slurmctld.log
        StateSaveLocation={tmp_path}/state
        SlurmdSpoolDir={tmp_path}/spool
        ProctrackType=proctrack/linuxproc
        SelectType=select/cons_tres
        GresTypes=gpu
        SuspendTime=60
        SuspendProgram=/bin/true
        ResumeProgram=/bin/true
        NodeName=DEFAULT CPUs=64 Sockets=2 CoresPerSocket=32 RealMemory=256000 Gres=gpu:8
        NodeName=n[1-4] NodeAddr=127.0.0.1 State=CLOUD
        PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
    """)
    (tmp_path / "key").write_bytes(os.urandom(1024))
    (tmp_path / "key").chmod(0o600)
    munge = [
        which("munged"),
        "--foreground",
        "--force",
        f"--key-file={tmp_path}/key",
        f"--socket={tmp_path}/munge",
    ]
    munge += [
        f"--pid-file={tmp_path}/munge.pid",
        f"--log-file={tmp_path}/munge.log",
        f"--seed-file={tmp_path}/seed",
    ]
    environment = os.environ | {"SLURM_CONF": f"{tmp_path}/slurm.conf"}
    programs = [subprocess.Popen(munge, stderr=subprocess.DEVNULL)]
    programs.append(
        subprocess.Popen([which("slurmctld"), "-D", "-c"], env=environment, stderr=subprocess.DEVNULL)
    )
    try:
        yield environment
    finally:
        for program in programs:
            program.terminate()
            program.wait(30)
        shutil.rmtree(tmp_path)


def which(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") or ""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.mark.long
def test_slurm_takes_the_scripts(slurm: dict[str, str], tmp_path: Path) -> None:
    def told(script: str) -> str:
        (tmp_path / "job").write_text(script)
        command = [
            "sbatch",
            "--test-only",
            *(["--array=0-99"] if "ARRAY" in script else []),
            tmp_path / "job",
        ]
        return subprocess.run(
            command, env=slurm, capture_output=True, text=True, check=False, timeout=60
        ).stderr

    assert ended(lambda: "to start at" in told("#!/bin/bash\n"), seconds=30), told("#!/bin/bash\n")
    for script in scripts():
        assert "to start at" in told(script)
    assert "unrecognized option" in told("#!/bin/bash\n#SBATCH --gpu-per-node=8\n")
    assert "not available" in told("#!/bin/bash\n#SBATCH --nodes=5\n")
