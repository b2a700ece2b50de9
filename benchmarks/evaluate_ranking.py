"""Benchmark of time and memory of evaluating a ranking of the size of Market-1501.

Distances of a random problem with planted structure (identities around centres, a shift for each camera,
distractors) are scored by `evaluate_ranking`, and a part of the queries by the usual loop with a full argsort
for each query, whose time is scaled to all queries. Both must agree. `--rerank` times k-reciprocal re-ranking
too; it holds the distances among the gallery (1 GB at the default size), so its memory is reported apart.
`--check` exits with 1 past the limits.

    python -m benchmarks.evaluate_ranking --check
"""

import argparse
import resource
import statistics
import sys
import time

import numpy as np

from cacenet_jax.retrieval.metrics import evaluate_ranking
from cacenet_jax.retrieval.rerank import k_reciprocal

MAX_SECONDS = 4.0
MAX_GIGABYTES = 1.5


def peak_gigabytes() -> float:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def problem(num_query: int, num_gallery: int, seed: int = 0):
    """Features and labels: 750 identities, 6 cameras, a sixth of the gallery distractors of identity 0."""
    rng = np.random.default_rng(seed)
    identities = max(2, min(750, num_query // 4))
    centre = rng.standard_normal((identities + 1, 64), np.float32)
    camera = 0.5 * rng.standard_normal((6, 64), np.float32)

    def images(count: int, distractors: float):
        pids = rng.integers(1, identities + 1, count)
        pids[rng.random(count) < distractors] = 0
        camids = rng.integers(0, 6, count)
        features = centre[pids] + camera[camids] + 1.2 * rng.standard_normal((count, 64), np.float32)
        features[pids == 0] = rng.standard_normal((int((pids == 0).sum()), 64), np.float32) * 1.7
        return features / np.linalg.norm(features, axis=1, keepdims=True), pids, camids

    return images(num_query, 0.0), images(num_gallery, 1 / 6)


def euclidean(a_NF: np.ndarray, b_MF: np.ndarray) -> np.ndarray:
    """Distances of unit vectors, with one array of the result's size."""
    out_NM = a_NF @ b_MF.T
    out_NM *= -2
    out_NM += 2
    return np.sqrt(np.maximum(out_NM, 0, out=out_NM), out=out_NM)


def full_argsort(distance_QG, query_pids, gallery_pids, query_camids, gallery_camids) -> float:
    """Compute mAP by the usual loop: sort all indices of a query, filter, accumulate."""
    precisions = []
    for distance_G, pid, camid in zip(distance_QG, query_pids, query_camids, strict=True):
        order = np.argsort(distance_G, kind="stable")
        pids, camids = gallery_pids[order], gallery_camids[order]
        match = (pids == pid)[~((pids == pid) & (camids == camid))]
        if match.any():
            precision = np.cumsum(match) / np.arange(1, match.size + 1)
            precisions.append(precision[match].mean())
    return float(np.mean(precisions))


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=3368, help="number of queries (default: Market-1501's)")
    parser.add_argument("--gallery", type=int, default=15913, help="number of gallery images (default: Market-1501's)")
    parser.add_argument("--threads", type=int, default=2, help="threads of evaluate_ranking")
    parser.add_argument("--reference", type=int, default=400, help="queries for the reference loop")
    parser.add_argument("--ties", action="store_true", help="round distances to half precision: ties in every row")
    parser.add_argument("--rerank", action="store_true", help="time k-reciprocal re-ranking as well")
    parser.add_argument("--check", action="store_true", help=f"fail above {MAX_SECONDS} s or {MAX_GIGABYTES} GB")
    args = parser.parse_args()

    (query_QF, query_pids, query_camids), (gallery_GF, gallery_pids, gallery_camids) = problem(
        args.queries, args.gallery
    )
    distance_QG = euclidean(query_QF, gallery_GF)
    if args.ties:
        distance_QG = distance_QG.astype(np.float16).astype(np.float32)
    labels = (query_pids, gallery_pids, query_camids, gallery_camids)

    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        metrics = evaluate_ranking(distance_QG, *labels, num_threads=args.threads)
        seconds.append(time.perf_counter() - begin)
    best, memory = min(seconds), peak_gigabytes()
    print(f"{args.queries} queries x {args.gallery} gallery images, float32, {args.threads} threads")
    print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    median = statistics.median(seconds)
    print(f"evaluate_ranking: best {best:.2f} s, median {median:.2f} s of 3, peak {memory:.2f} GB")

    part = min(args.reference, args.queries)
    part_labels = (query_pids[:part], gallery_pids, query_camids[:part], gallery_camids)
    begin = time.perf_counter()
    expected = full_argsort(distance_QG[:part], *part_labels)
    reference = (time.perf_counter() - begin) * args.queries / part
    result = evaluate_ranking(distance_QG[:part], *part_labels)["mAP"]
    print(f"full argsort loop: {reference:.2f} s (from {part} queries), {reference / best:.1f} times as long")
    if abs(result - expected) > 1e-12:
        print(f"mAP {result} differs from the loop's {expected}")
        return 1

    if args.rerank:
        distance_QQ, distance_GG = euclidean(query_QF, query_QF), euclidean(gallery_GF, gallery_GF)
        begin = time.perf_counter()
        reranked_QG = k_reciprocal(distance_QG, distance_QQ, distance_GG)
        took = time.perf_counter() - begin
        after = evaluate_ranking(reranked_QG, *labels)["mAP"]
        print(f"k_reciprocal: {took:.1f} s, peak {peak_gigabytes():.2f} GB with the distances it is given")
        print(f"mAP {metrics['mAP']:.4f} before, {after:.4f} after")

    if args.check and (best > MAX_SECONDS or memory > MAX_GIGABYTES):
        print(f"over the limit of {MAX_SECONDS} s or {MAX_GIGABYTES} GB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
