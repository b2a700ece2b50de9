"""Installs requirements.txt and keeps a jax that is there already, where it serves.

    python notebooks/install.py

A floor leaves a jax that is new enough alone, but the newest flax may want a newer one, and the plugin that drives a GPU
fits one version of jax. So the installed versions are tried first, as constraints. Where they cannot be kept, jax is
replaced together with its plugin.
"""

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
KEPT = ("jax", "jaxlib")
EXTRAS = {"jax-cuda12-plugin": "jax[cuda12]", "jax-cuda13-plugin": "jax[cuda13]", "libtpu": "jax[tpu]"}


def version(package: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Installs, says what became of jax, and returns the exit status of pip."""
    before = version("jax")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    status = 1
    if before:
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text("".join(f"{package}=={version(package)}\n" for package in KEPT if version(package)))
            status = subprocess.run(
                [*pip, "--constraint", str(constraints)], capture_output=True, check=False
            ).returncode
    if status:  # its reason, if it is another than jax, is told by this one
        extras = [extra for plugin, extra in EXTRAS.items() if version(plugin)]
        status = subprocess.run([*pip, *extras], check=False).returncode
    now = version("jax")
    done = "kept" if now == before else "installed" if before is None else f"installed instead of {before}"
    print(f"error: pip ended with {status}" if status else f"jax {now}: {done}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
