"""What the tests of the launchers share: usual words, and how one is run and read."""

import json
import os
import subprocess
import sys
from pathlib import Path

from command import PATIENCE, ROOT, TINY

LAUNCH = ROOT / "launch"
SCRIPTS = ("local.sh", "tpu_pod.sh", "slurm.sbatch", "xpk.sh")
RUN = (f"--config={TINY}", "--workdir=run")
POD_RUN = ("--config=configs/market1501.py", "--workdir=/mnt/share/run")
SHARE_RUN = (f"--config={TINY}", "--workdir=/share/run")
SPACE = ("--config", str(TINY), "--workdir=run")
POD = ("--name", "pod", "--zone", "us-east5-a")
GPU = ("--name", "cacenet", "--image", "me/cacenet:1", "--hosts", "2", "--accelerator", "nvidia-h100-80gb")
TPU = (
    "--name",
    "cacenet",
    "--image",
    "me/cacenet:1",
    "--hosts",
    "4",
    "--accelerator",
    "tpu-v5p-slice",
    "--topology",
    "2x2x4",
)


def launch(script: str, *words: str, folder: Path = ROOT, env=None, timeout=PATIENCE) -> subprocess.CompletedProcess:
    """As a user runs it; nothing of Slurm or of a cluster is around."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words], cwd=folder, env={**clean, "PYTHON": sys.executable, **(env or {})},
        capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def shown(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The words of each command that a launcher shows, as a shell reads them."""
    assert done.returncode == 0, done.stderr
    return [
        json.loads(
            subprocess.run(
                ["bash", "-c", f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' {line[2:]}"],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for line in done.stdout.splitlines()
        if line.startswith("+ ")
    ]  # fmt: skip
