"""Kill runs at random moments and compare their end with that of an undisturbed run.

    python -m tests.faults.kills --count=200 --seed=0          # an hour on two quiet cores

Modes: preparing, training (with its saves, validation and test split), evaluating, exporting and reproducing a table. Of
five kills, three are SIGKILL, one SIGTERM and one SIGINT. Each mode is killed again and again in one workdir until it comes
to its end, which is compared; then it begins anew. Prints a line per mode; the exit status is 1 if an end differs, if a
command fails otherwise than by its signal, or if a file that later runs read is not complete.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.command import TINY, Command

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_OF_THE_CLOCK = ("seconds", "images_per_second")
_DATA = (f"--config={TINY}", "--config.data.dir=prepared", "--config.data.val_share=0.25")
_SHORT = (*_DATA, "--config.epochs=1", "--config.optim.warmup_epochs=0")
_TRAIN = (*_DATA, "--config.epochs=16", "--config.eval_every=10", "--config.checkpoint_every=2", "--config.log_every=1")


@dataclasses.dataclass(frozen=True)
class Mode:
    """A command that is killed.

    Attributes:
        name: name of the mode.
        share: share of all kills.
        words: the command; {run} stands for the workdir.
        outcome: (folder, workdir) -> what must be equal in an undisturbed run.
        begin: (folder, workdir) -> prepares what the command needs.
    """

    name: str
    share: float
    words: tuple[str, ...]
    outcome: Callable[[Path, Path], Any]
    begin: Callable[[Path, Path], None] = lambda folder, workdir: None


def timeless(value: Any) -> Any:
    """Return a JSON value without what depends on the clock."""
    if isinstance(value, dict):
        return {name: timeless(part) for name, part in value.items() if name not in _OF_THE_CLOCK}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def trained(folder: Path, workdir: Path) -> Any:
    """Checksums of all arrays of the last checkpoint, all lines of metrics, and the results."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    metadata = json.loads((workdir / f"checkpoints/{step}/_CHECKPOINT_METADATA").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((workdir / "results.json").read_text())
    return step, metadata["custom_metadata"]["arrays"], timeless(lines), timeless(results)


def prepared(folder: Path, workdir: Path) -> Any:
    """Hashes of the images and labels of all splits; the bytes of the record files differ from run to run."""
    results = json.loads((workdir / "results.json").read_text())
    return json.loads((workdir / "data.json").read_text()), results["fingerprint"]["data"]


def evaluated(folder: Path, workdir: Path) -> Any:
    """The results."""
    return timeless(json.loads((workdir / "results.json").read_text()))


def exported(folder: Path, workdir: Path) -> Any:
    """Names and sizes of the artefacts, and the manifest."""
    files = sorted(path for path in (workdir / "export").rglob("*") if path.is_file() and not path.name.startswith("."))
    return [(str(path.relative_to(workdir)), path.stat().st_size) for path in files]


def reproduced(folder: Path, workdir: Path) -> Any:
    """The cells of the table, without times, and the parameters of every run."""
    head, *rows = ((workdir / "table_1.csv").read_text()).splitlines()
    columns = [i for i, name in enumerate(head.split(",")) if "seconds" not in name]
    cells = [[row.split(",")[i] for i in columns if i < len(row.split(","))] for row in rows]
    return cells, [trained(folder, path.parent)[:2] for path in sorted(workdir.glob("runs/*/seed_*/results.json"))]


def copy_trained(folder: Path, workdir: Path) -> None:
    """Give a mode that needs a trained network a copy of the undisturbed one."""
    shutil.copytree(folder / "train_undisturbed", workdir)


def forget_prepared(folder: Path, workdir: Path) -> None:
    """Remove the prepared data, so that they are made anew."""
    shutil.rmtree(folder / "prepared", ignore_errors=True)


MODES = (
    Mode("train", 0.45, (*_TRAIN, "--workdir={run}"), trained),
    Mode("prepare", 0.15, (*_SHORT, "--workdir={run}"), prepared, forget_prepared),
    Mode("evaluate", 0.1, ("--mode=evaluate", "--workdir={run}"), evaluated, copy_trained),
    Mode("export", 0.1, ("--mode=export", "--workdir={run}"), exported, copy_trained),
    Mode(
        "reproduce", 0.2,
        (*_DATA[:2], "--config.epochs=3", "--mode=reproduce", "--table=1", "--seeds=1", "--workdir={run}"), reproduced,
    ),
)  # fmt: skip


def broken_files(workdir: Path) -> list[str]:
    """Return the files that later runs read and that are not complete."""
    broken = []
    for path in workdir.rglob("*.json"):
        if path.name.startswith(".") or "tmp" in str(path.relative_to(workdir)):
            continue
        try:
            json.loads(path.read_text())
        except ValueError:
            broken.append(str(path))
    return broken


def torment(mode: Mode, kills: int, command: Command, draw: random.Random) -> list[str]:
    """Kill a mode, compare each of its ends, and return what went wrong."""
    folder = command.folder
    quiet, killed = folder / f"{mode.name}_undisturbed", folder / f"{mode.name}_killed"
    words = [[word.format(run=run.name) for word in mode.words] for run in (quiet, killed)]
    wrong: list[str] = []
    mode.begin(folder, quiet)
    if (done := command(*words[0])).returncode:
        wrong.append(f"the undisturbed run failed: {done.stderr[-500:]}")
        kills = 0
    else:
        expected = mode.outcome(folder, quiet)
        mode.begin(folder, killed)
    start = time.monotonic()
    shutil.rmtree(quiet), mode.begin(folder, quiet)
    command(*words[0])
    alone = time.monotonic() - start  # with compiled programs in the cache
    made = ends = 0
    log = folder / f"{mode.name}.log"
    while made < kills or (kills and not ends):
        number, delay = draw.choice(SIGNALS), draw.uniform(0.1, alone)
        with log.open("a") as stream:
            process = command.start(*words[1], stderr=stream.fileno())
            deadline = time.monotonic() + (delay if made < kills else 600)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            is_killed = process.poll() is None
            if is_killed:
                os.killpg(process.pid, number)
            code = process.wait(timeout=120)
        made += is_killed
        wrong += [f"after kill {made}, {path} is not complete" for path in broken_files(killed)]
        if code == 0:  # it came to its end
            ends += 1
            if mode.outcome(folder, killed) != expected:
                wrong.append(f"after kill {made}, the end differs from that of the undisturbed run")
            shutil.rmtree(killed), mode.begin(folder, killed)
        elif not is_killed or code not in (-number, 128 + number):
            wrong.append(f"kill {made}, {number.name} after {delay:.1f} s: exit code {code}, see {log}")
            shutil.rmtree(killed, ignore_errors=True), mode.begin(folder, killed)
    # Before Python has imported its signal handlers, Ctrl-C shows where it was.
    if "Traceback" in log.read_text().replace('Traceback (most recent call last):\n  File "<frozen runpy>', ""):
        wrong.append(f"a traceback in {log}")
    verdict = "; ".join(wrong) or "every end equals the undisturbed run"
    print(f"{mode.name}: {made} kills, {ends} ends, undisturbed {alone:.1f} s: {verdict}", flush=True)
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Run all modes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills over all modes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", default=",".join(mode.name for mode in MODES), help="names, separated by commas")
    parser.add_argument("--folder", help="where runs are kept; a temporary folder by default")
    args = parser.parse_args(argv)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        command = Command(folder, folder / "xla")
        for mode in MODES:
            if mode.name in args.modes.split(","):
                kills = max(round(args.count * mode.share), 1)
                wrong += torment(mode, kills, command, random.Random(f"{args.seed} {mode.name}"))
    print(f"{len(wrong)} faults" if wrong else "no fault")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
