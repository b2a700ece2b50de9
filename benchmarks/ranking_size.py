"""Benchmark of time and memory of ranking and re-ranking against the size of the gallery.

    python -m benchmarks.ranking_size --check                        # two CPU cores: some minutes
    python -m benchmarks.ranking_size --gallery 10000 --rerank       # a single size, no re-ranking

Each row is a process of its own, whose peak memory is that of the whole process, embeddings and JAX included:
    ranking                `rankings.evaluate` of all three rankings, K = 100: --queries beside each --gallery, of which at
                           most 15,913 images show someone and the others are distractors
    k-reciprocal           `rerank.k_reciprocal` of Euclidean distances, at --rerank sizes of at most 25,000 images; the
                           memory holds the distances that it is given
    k-reciprocal features  `rerank.k_reciprocal_features` at each of the --rerank sizes, about 20 images an identity

The ranking's process also compares a few queries with a stable sort of all their distances, and fails if one differs. The
default sizes of --rerank are Market-1501's and MSMT17's.

--check exits 1 where a ranking takes more than 4 GB, re-ranking of at most 25,000 images (Market-1501) more than 10 s or
2.5 GB, of more (MSMT17) more than 16 GB. A GB is 10^9 bytes. Processor seconds are of all threads; they depend less on what
else the machine does.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.evaluate_ranking import euclidean, full_argsort
from benchmarks.timing import Report, verdict
from cacenet_jax.retrieval.rankings import LabelledSet, Settings, cosine_distance, evaluate
from cacenet_jax.retrieval.rerank import k_reciprocal, k_reciprocal_features

MARKET, MSMT17 = (3368, 15913), (11659, 82161)
GALLERIES = (10_000, 100_000, 515_913)
IDENTITIES, CAMERAS = 750, 6
RANKING_GB, MARKET_S, MARKET_GB, RERANK_GB = 4.0, 10.0, 2.5, 16.0
MATRIX_IMAGES = 25_000  # of queries and gallery, up to which the distances among all images are affordable
COMPARED = 4  # queries that are compared with a full sort
ROWS = 4096  # embeddings that are made at a time


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=MARKET[0], help="queries beside each gallery")
    parser.add_argument("--gallery", type=int, nargs="*", default=GALLERIES, help="gallery sizes of the ranking")
    parser.add_argument("--rerank", type=size, nargs="*", default=(MARKET, MSMT17), help="QUERIESxGALLERY")
    parser.add_argument("--features", type=int, default=768, help="F, of the ranking and of re-ranking")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is missed")
    parser.add_argument("--max_ranking_gb", type=float, default=RANKING_GB, help="bound of the ranking")
    parser.add_argument("--max_market_s", type=float, default=MARKET_S, help="bound of re-ranking up to 25,000 images")
    parser.add_argument(
        "--max_market_gb", type=float, default=MARKET_GB, help="bound of re-ranking up to 25,000 images"
    )
    parser.add_argument("--max_rerank_gb", type=float, default=RERANK_GB, help="bound of re-ranking more images")
    parser.add_argument("--out", help="folder for ranking_size.txt and ranking_size.json")
    parser.add_argument("--case", choices=CASES, help="run one case in this process and print its row as JSON")
    return parser.parse_args(argv)


def size(text: str) -> tuple[int, int]:
    """Read 3368x15913."""
    num_query, num_gallery = map(int, text.split("x"))
    return num_query, num_gallery


def peak_gigabytes() -> float:
    """Peak resident memory of this process, without that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with the parent's memory where a process is started by vfork
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1]) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def embeddings(pids: np.ndarray, features: int, noise: float, seed: int) -> np.ndarray:
    """Unit vectors around a centre for each identity; distractors (identity 0) have no centre."""
    rng, centre_rng = np.random.default_rng(seed), np.random.default_rng(0)
    centre = centre_rng.standard_normal((int(pids.max()) + 1, features), np.float32)
    centre[0] = 0
    out_NF = np.empty((len(pids), features), np.float32)
    for start in range(0, len(pids), ROWS):
        rows = pids[start : start + ROWS]
        block = centre[rows] + noise * rng.standard_normal((len(rows), features), np.float32)
        out_NF[start : start + ROWS] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return out_NF


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call, by the clock and of the processor."""
    used, begin = time.process_time(), time.perf_counter()
    call()
    return {"seconds": time.perf_counter() - begin, "processor": time.process_time() - used}


def images(count: int, identified: int, identities: int, features: int, seed: int) -> LabelledSet:
    """Random images of which `identified` show someone and the others are distractors, in mixed order."""
    rng = np.random.default_rng(seed)
    pids = np.zeros(count, np.int64)
    pids[rng.permutation(count)[:identified]] = rng.integers(1, identities + 1, min(identified, count))
    return LabelledSet(embeddings(pids, features, 3.0, seed), pids, rng.integers(0, CAMERAS, count))


def ranking(num_query: int, num_gallery: int, features: int) -> dict[str, float]:
    """Time an evaluation; raises RuntimeError if a query differs from a full sort."""
    identities = max(1, min(IDENTITIES, num_query // 4))
    query = images(num_query, num_query, identities, features, 1)
    gallery = images(num_gallery, MARKET[1], identities, features, 2)
    rescore = lambda candidates_QK: np.zeros(candidates_QK.shape, np.float32)
    result = timed(lambda: evaluate(query, gallery, rescore, Settings(top_k=100)))
    few = LabelledSet(*(field[:COMPARED] for field in query))
    distance_QG = cosine_distance(few.embedding, gallery.embedding)
    expected = full_argsort(distance_QG, few.pids, gallery.pids, few.camids, gallery.camids)
    ap = evaluate(few, gallery, None, Settings(top_k=100))["individual"]["mAP"]
    if abs(ap - expected) > 1e-12:
        raise RuntimeError(f"mAP {ap} differs from the full sort's {expected}")
    return result


def clustered(num_query: int, num_gallery: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Query and gallery features with about 20 images an identity."""
    pids = np.random.default_rng(3).integers(1, (num_query + num_gallery) // 20 + 2, num_query + num_gallery)
    all_AF = embeddings(pids, features, 1.5, 4)
    return all_AF[:num_query], all_AF[num_query:]


def matrices(num_query: int, num_gallery: int, features: int) -> dict[str, float]:
    """Time re-ranking of distances."""
    query_QF, gallery_GF = clustered(num_query, num_gallery, features)
    distances = euclidean(query_QF, gallery_GF), euclidean(query_QF, query_QF), euclidean(gallery_GF, gallery_GF)
    return timed(lambda: k_reciprocal(*distances))


def from_features(num_query: int, num_gallery: int, features: int) -> dict[str, float]:
    """Time re-ranking of features."""
    sets = clustered(num_query, num_gallery, features)
    return timed(lambda: k_reciprocal_features(*sets))


CASES = {"ranking": ranking, "k-reciprocal": matrices, "k-reciprocal features": from_features}


def measure(case: str, num_query: int, num_gallery: int, features: int) -> dict:
    """Seconds, processor seconds and peak memory of a case in a process of its own."""
    words = [f"--case={case}", f"--rerank={num_query}x{num_gallery}", f"--features={features}"]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.ranking_size", *words],
        cwd=Path(__file__).parents[1], env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if process.returncode:
        raise SystemExit(f"{case} at {num_query} x {num_gallery} ended with exit code {process.returncode}")
    return json.loads(process.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    args = parse(argv)
    if args.case:
        result = CASES[args.case](*args.rerank[0], args.features)
        print(json.dumps(result | {"gb": peak_gigabytes()}))
        return 0

    report = Report("ranking_size", args.out)
    report.say(f"{os.cpu_count()} CPU cores, {args.features} features, float32")
    cases = [("ranking", (args.queries, num_gallery)) for num_gallery in args.gallery]
    cases += [("k-reciprocal", pair) for pair in args.rerank if sum(pair) <= MATRIX_IMAGES]
    cases += [("k-reciprocal features", pair) for pair in args.rerank]
    rows, bounds = [], []
    for case, (num_query, num_gallery) in cases:
        result = measure(case, num_query, num_gallery, args.features)
        rows.append([case, num_query, num_gallery, result["seconds"], result["processor"], result["gb"]])
        where = f"{case}, {num_query} x {num_gallery}"
        print(f"{where}: {result['seconds']:.1f} s, {result['gb']:.2f} GB", file=sys.stderr, flush=True)
        if case == "ranking":
            bounds.append((f"GB of {where}", result["gb"], "<=", args.max_ranking_gb))
        elif num_query + num_gallery <= MATRIX_IMAGES:
            bounds.append((f"GB of {where}", result["gb"], "<=", args.max_market_gb))
            bounds.append((f"seconds of {where}", result["seconds"], "<=", args.max_market_s))
        else:
            bounds.append((f"GB of {where}", result["gb"], "<=", args.max_rerank_gb))
    report.table("sizes", ("case", "queries", "gallery", "s", "processor s", "peak GB"), rows)
    status = verdict(report, bounds) if args.check else 0
    report.write()
    return status


if __name__ == "__main__":
    sys.exit(main())
