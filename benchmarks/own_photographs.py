"""The worked example of docs/finetune.md: a folder of unlabelled photographs makes a network better, measured.

    python -m benchmarks.own_photographs --workdir=workdirs/synthetic --output=workdirs/own_photographs

Renders people whom the network has not seen: photographs without labels, and a test set with labels, which only scores.
Then it runs the commands of the page: index, group, fine-tune on the groups as they are, and on groups corrected by
someone who knows everybody; and prints mAP / rank-1 before and after, and how good the groups are.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cacenet_jax.data.builders import open_split, prepare
from cacenet_jax.index.groups import pairwise_f

ROOT = Path(__file__).parents[1]
PEOPLE = {"num_train_ids": 120, "num_test_ids": 80, "images_per_id": 12, "seed": 11}


def render(folder: Path) -> dict[str, int]:
    """Write the photographs, under names that say nothing, and the test set; return the identity of each photograph."""
    prepared = prepare("synthetic_pedestrians", root=None, data_dir="data/prepared", options=PEOPLE)
    truth: dict[str, int] = {}
    photographs, test = folder / "photographs", folder / "people"
    photographs.mkdir(parents=True)
    records = open_split(prepared, "train").records
    for number, place in enumerate(np.random.default_rng(0).permutation(len(records)).tolist()):
        record, name = records[place], f"{number:05d}.png"
        (photographs / name).write_bytes(record["image"])
        truth[name] = int(record["pid"])
    for split in ("query", "gallery"):
        (test / split).mkdir(parents=True)
        for record in open_split(prepared, split).records:
            name = f"{record['pid']:04d}_c{record['camid']}_{record['name'].replace('/', '_')}"
            (test / split / name).write_bytes(record["image"])
    return truth


def run(*words: str) -> float:
    """Run the program and return its seconds."""
    print("cacenet", *words, flush=True)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cacenet_jax.main", *words], cwd=ROOT, check=True)
    return time.perf_counter() - begin


def score(workdir: Path, test: Path) -> str:
    """Return mAP / rank-1 of the individual and the mixed ranking of the test set."""
    run("--mode=evaluate", f"--workdir={workdir}", "--config.eval.data=reid_folder", f"--config.data.root={test}")
    results = json.loads((workdir / "results_reid_folder.json").read_text())
    rankings = [name for name in ("individual", "mixed") if name in results]
    return ", ".join(
        f"{name} {100 * results[name]['mAP']:.2f} / {100 * results[name]['rank1']:.2f}" for name in rankings
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a trained network")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--epochs", type=int, default=10)
    chosen = parser.parse_args(arguments)
    output, workdir = chosen.output.resolve(), chosen.workdir.resolve()
    if output.exists():
        raise SystemExit(f"{output}: found a folder, expected none; remove it or choose another --output")
    truth = render(output)
    lines = [f"before: {score(workdir, output / 'people')}"]
    index = f"--index={output / 'photographs.lance'}"
    seconds = run("--mode=index", f"--workdir={workdir}", f"--images={output / 'photographs'}", index)
    seconds_group = run("--mode=group", f"--workdir={workdir}", index, f"--output={output / 'groups'}")
    with open(output / "groups" / "groups.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    identities = np.array([truth[Path(row["path"]).name] for row in rows])
    groups = np.array([int(row["identity"]) for row in rows])
    lines.append(
        f"groups: {len(np.unique(groups))} of {len(np.unique(identities))} people, pairwise F "
        f"{pairwise_f(groups, identities):.3f}, index {seconds:.0f} s, group {seconds_group:.0f} s"
    )
    with open(output / "groups" / "corrected.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "identity": identity} for row, identity in zip(rows, identities.tolist()))
    for name in ("groups", "corrected"):
        tuned = output / f"tuned_{name}"
        seconds = run(
            "--config=configs/finetune.py", f"--config.init_from={workdir}", "--config.data.name=reid_folder",
            f"--config.data.root={output / 'groups' / name}.csv", f"--config.epochs={chosen.epochs}",
            "--config.data.val_share=0", "--config.data.num_ids=8", f"--workdir={tuned}",
        )  # fmt: skip
        lines.append(f"after, {name}.csv: {score(tuned, output / 'people')}, trained in {seconds:.0f} s")
    shutil.rmtree(output / "photographs.lance")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
