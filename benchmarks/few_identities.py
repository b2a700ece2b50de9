"""Curve of mAP against the number of labelled training identities, from the workdirs of fine-tuning runs.

    python -m benchmarks.few_identities --output=docs/images/few_identities.png WORKDIR [WORKDIR ...]

Each workdir holds data.json, which records the training identities, and results.json or, for an imported network that was
trained on none of them, results_NAME.json. Runs with as many identities are averaged; the points show them all.
"""

import argparse
import collections
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RANKINGS = {"individual": "individual", "individual, k_reciprocal": "with k-reciprocal re-ranking"}


def read(workdir: Path) -> tuple[int, dict[str, float]]:
    """Return the number of training identities of a run, 0 for an imported network, and mAP in per cent by ranking."""
    data = json.loads((workdir / "data.json").read_text())
    identities = 0 if "imported" in data else data["identities"]
    files = sorted(workdir.glob("results*.json"))
    if len(files) != 1:
        raise SystemExit(
            f"{workdir}: found {len(files)} results files, expected one; evaluate the network, or remove the others"
        )
    results = json.loads(files[0].read_text())
    return identities, {name: 100 * results[name]["mAP"] for name in RANKINGS if name in results}


def main() -> None:
    """Read the runs, print a table and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    points: dict[str, dict[int, list[float]]] = {name: collections.defaultdict(list) for name in RANKINGS}
    for workdir in arguments.workdirs:
        identities, values = read(workdir)
        for name, value in values.items():
            points[name][identities].append(value)
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    counts = sorted(set().union(*points.values()))
    places = {count: place for place, count in enumerate(counts)}  # even steps: the counts grow by factors
    for (name, by_count), marker in zip(points.items(), "os"):
        means = {count: sum(values) / len(values) for count, values in sorted(by_count.items())}
        line = axes.plot([places[c] for c in means], list(means.values()), label=RANKINGS[name])[0]
        for count, values in by_count.items():
            axes.plot([places[count]] * len(values), values, marker, color=line.get_color(), markersize=5)
        for count, mean in means.items():
            axes.annotate(f"{mean:.1f}", (places[count], mean), (0, 7), textcoords="offset points", ha="center")
        print(f"{name}: " + ", ".join(f"{c}: {v}" for c, v in sorted(by_count.items())))
    axes.set(xlabel="labelled identities", ylabel="mAP (%)", ylim=(0, 100))
    axes.set_xticks(list(places.values()), [str(count) for count in counts])
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.output, dpi=150)


if __name__ == "__main__":
    main()
