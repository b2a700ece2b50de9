"""Benchmark of re-scoring: pairs/s, against the limits of the device.

    python -m benchmarks.retrieval --check             # two CPU cores: a minute
    python -m benchmarks.retrieval --check --market    # a GPU: Market-1501 too, 3,368 x 15,913, K = 100

Random terms of the paper's size (192 nodes, 2,048 channels, embedding 768) go through the re-scorer that evaluation uses,
from candidates to distances, scheduling on the host included:
    resident    all terms on the device
    streamed    the gallery in temporary files, read in chunks while the device compares the last one
    clues       resident, with the clue distance, another product of 2 N N F operations a pair

Two limits stand beside them, both measured in the same run. Arithmetic: 2 N N D operations a pair for the affinities (and
8 N F + 12 N N for the rest) at the speed of a large product of the same type. Memory: the terms of one image a pair, once,
and the affinities written and read once, at the speed of a copy. `of limit` is the share of the lower one.

--market scores all candidates of 3,368 random queries among 15,913 random images where they fit on the device, else of as
many queries as fit, and says what the whole would take. --check exits 1 on a CPU below 500 pairs/s, on a GPU below 500,000
and above 3 s for Market-1501.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.device import machine, machine_line, time_all
from benchmarks.timing import Report, verdict
from cacenet_jax.models import pair_stages
from cacenet_jax.models.pair_stages.conditional.clues import Clues
from cacenet_jax.models.pair_stages.conditional.head import ComposedHead
from cacenet_jax.models.pair_stages.conditional.stored import CrossWeight, PairConstants, StoredTerms
from cacenet_jax.retrieval.rankings import LabelledSet, Settings, evaluate
from cacenet_jax.retrieval.rescore import Rescorer
from cacenet_jax.retrieval.term_store import Location, Plan, Store, tree_bytes

MIN_PAIRS = {"cpu": 500.0, "gpu": 500_000.0}
MAX_MARKET_S = 3.0
MARKET = (3368, 15913, 100)
CLUE_WEIGHT = 0.5


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; sizes default to what the backend can do in a minute."""
    gpu = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=192, help="N")
    parser.add_argument("--channels", type=int, default=2048, help="D")
    parser.add_argument("--embed", type=int, default=768, help="F")
    parser.add_argument("--pairs", type=int, default=200_000 if gpu else 1000, help="pairs of one run")
    parser.add_argument("--gallery", type=int, default=8000 if gpu else 400, help="gallery images")
    parser.add_argument("--top_k", type=int, default=100, help="candidates of a query")
    parser.add_argument("--pairs_per_call", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64 if gpu else 16, help="images of a stored batch")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the stored terms")
    parser.add_argument("--folder", help="for the streamed gallery; a temporary one by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--market", action="store_true", help="Market-1501's numbers too")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is missed")
    parser.add_argument("--min_pairs", type=float, help="bound on resident pairs/s, in place of the backend's")
    parser.add_argument("--out", help="folder for retrieval.txt and retrieval.json")
    return parser.parse_args(argv)


def like(args: argparse.Namespace, clues: bool) -> StoredTerms:
    """Shapes and types of the terms of one image."""
    shape = lambda *axes, dtype=np.float32: jax.ShapeDtypeStruct(axes, jnp.dtype(dtype))
    nodes, dtype = args.nodes, args.dtype
    return StoredTerms(
        shape(nodes, args.channels, dtype=dtype),
        shape(nodes, args.embed, dtype=dtype),
        shape(args.embed),
        shape(nodes, nodes, dtype=dtype),
        shape(nodes),
        Clues(shape(nodes, args.embed, dtype=dtype), shape(nodes)) if clues else None,
    )


@functools.lru_cache(maxsize=4)
def random_batch(one: StoredTerms, batch: int, mesh: Mesh) -> Any:
    """A function from a number to a batch of terms: affinities of both signs, degrees that fit them."""

    def make(seed: jax.Array) -> StoredTerms:
        keys = iter(jax.random.split(jax.random.key(seed), 8))
        draw = lambda like: jax.random.normal(next(keys), (batch, *like.shape), jnp.float32)
        key_BND, value_BNF, own_BF = draw(one.keys_NE), draw(one.values_NF), draw(one.own_F)
        intra_BNN = jax.nn.relu(draw(one.intra_NN))
        clues = None
        if one.clues is not None:
            region_BNF = draw(one.clues.direction_NF)
            region_BNF /= jnp.linalg.norm(region_BNF, axis=-1, keepdims=True)
            salience_BN = jnp.full((batch, *one.clues.salience_N.shape), 1 / one.keys_NE.shape[0])
            clues = Clues(region_BNF.astype(one.clues.direction_NF.dtype), salience_BN)
        dtype = one.keys_NE.dtype
        scaled = (key_BND / one.keys_NE.shape[1] ** 0.25).astype(dtype)
        value_BNF = (value_BNF / one.keys_NE.shape[0]).astype(dtype)
        return StoredTerms(scaled, value_BNF, own_BF, intra_BNN.astype(dtype), intra_BNN.sum(axis=2), clues)

    return jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))


def fill(store: Store, one: StoredTerms, first: int, distinct: int | None = None) -> Store:
    """Random terms; `distinct` batches are drawn and then repeated, where drawing takes longer than what is measured."""
    make = random_batch(one, store.batch, store.mesh)
    for step in range(store.steps):
        store.put(step, make(np.uint32(first + (step % distinct if distinct else step))))
    return store


def distance_function(args: argparse.Namespace) -> Callable[..., jax.Array]:
    """What evaluation maps over the pairs: the distances of the paper's stage, with the clue distance where it is stored."""
    fields = {"channels": args.channels, "embed_dim": args.embed, "num_identities": 1, "clue_weight": CLUE_WEIGHT}
    return pair_stages.build("conditional", **fields).distances


def make_constants(args: argparse.Namespace) -> PairConstants:
    """Constants of which a pair reads the signs and the offset alone."""
    sign_E = np.where(np.random.default_rng(0).random(args.channels) < 0.9, 1, -1).astype(np.float32)
    empty = np.zeros((0, 0), np.float32)
    cross = CrossWeight(empty, sign_E, np.float32(-0.1))
    return jax.tree.map(jnp.asarray, PairConstants(ComposedHead(empty, empty, empty), cross))


def limits(args: argparse.Namespace) -> tuple[dict[str, Callable[[], Any]], float, float]:
    """A large product and a copy with a change, with the operations of the one and the bytes of the other."""
    cpu = jax.default_backend() == "cpu"
    size, length = (2048, 2**26) if cpu else (8192, 2**29)
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(args.dtype))
    array = jnp.zeros(length, jnp.float32)
    multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    change = jax.jit(lambda x: x + 1)
    functions = {"product": lambda: multiply(left, right), "copy": lambda: change(array)}
    return functions, 2.0 * size**3, 8.0 * length


def candidates(queries: int, gallery: int, top_k: int) -> np.ndarray:
    """Distinct random gallery images of each query."""
    rng = np.random.default_rng(0)
    return np.stack([rng.choice(gallery, top_k, replace=False) for _ in range(queries)]).astype(np.int32)


def pair_flops(args: argparse.Namespace, clues: bool) -> float:
    """Operations of a pair, 2 for a multiply-add."""
    nodes, embed = args.nodes, args.embed
    return 2 * nodes**2 * (args.channels + (embed if clues else 0)) + 12 * nodes**2 + 8 * nodes * embed


def pair_bytes(args: argparse.Namespace, clues: bool) -> float:
    """Bytes that a pair cannot do without: one image's terms, and its affinities written and read."""
    return tree_bytes(like(args, clues)) + 8 * args.nodes**2


def market(
    args: argparse.Namespace, mesh: Mesh, constants: PairConstants, report: Report
) -> tuple[float | None, float]:
    """Seconds of re-scoring Market-1501, None where it does not fit, and of its individual ranking."""
    one = like(args, False)
    num_query, num_gallery, top_k = MARKET
    stats = mesh.local_devices[0].memory_stats() or {}
    limit = 0.8 * stats.get("bytes_limit", 0) or 4 * 2**30
    share = min(1.0, limit / (tree_bytes(one) * (num_query + num_gallery)))
    part_q, part_g = int(num_query * share), int(num_gallery * share)
    if jax.default_backend() == "cpu":
        part_q = min(part_q, max(args.pairs // top_k, 1))
    query = fill(Store(one, part_q, args.batch, mesh), one, 0)
    gallery = fill(Store(one, part_g, args.batch, mesh), one, 10**6, distinct=None if part_g == num_gallery else 8)
    plan = Plan("device", query.steps, gallery.steps)
    rescorer = Rescorer(distance_function(args), constants, query, gallery, plan, args.pairs_per_call)
    wanted = candidates(part_q, part_g, top_k)
    rescorer(wanted)
    begin = time.perf_counter()
    rescorer(wanted)
    seconds = time.perf_counter() - begin
    rows = [["re-scoring", part_q, part_g, part_q * top_k, seconds, seconds * num_query / part_q]]

    rng = np.random.default_rng(0)

    def labelled(count: int) -> LabelledSet:
        embedding = rng.standard_normal((count, args.embed), np.float32)
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        return LabelledSet(embedding, rng.integers(0, 750, count), rng.integers(0, 6, count))

    sets = labelled(num_query), labelled(num_gallery)
    begin = time.perf_counter()
    evaluate(*sets, lambda wanted: np.zeros(wanted.shape, np.float32), Settings(top_k=top_k))
    ranking = time.perf_counter() - begin
    rows.append(["three rankings, on the host", num_query, num_gallery, num_query * num_gallery, ranking, ranking])
    report.table("market", ["Market-1501", "queries", "gallery", "pairs", "s", "s for all queries"], rows)
    return (seconds if (part_q, part_g) == MARKET[:2] else None), ranking


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    args = parse(argv)
    report = Report("retrieval", args.out)
    report.data["machine"] = machine()
    report.say(machine_line())
    mesh = Mesh(np.asarray(jax.local_devices()[:1]), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    constants = make_constants(args)
    queries = max(args.pairs // args.top_k, 1)
    wanted = candidates(queries, args.gallery, args.top_k)
    reference, flops, moved = limits(args)

    def rescorer(clues: bool, location: Location, folder: str = ".") -> Rescorer:
        one = like(args, clues)
        query, gallery = (Store(one, count, args.batch, mesh, location, folder) for count in (queries, args.gallery))
        plan = Plan(location, query.steps, gallery.steps if location == "device" else max(gallery.steps // 8, 1))
        sets = fill(query, one, 0), fill(gallery, one, 10**6)
        return Rescorer(distance_function(args), constants, *sets, plan, args.pairs_per_call)

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        cases = {
            "resident": (False, rescorer(False, "device")),
            "streamed": (False, rescorer(False, "file", folder)),
            "clues": (True, rescorer(True, "device")),
        }
        functions = {name: functools.partial(case[1], wanted) for name, case in cases.items()}
        timed = time_all(reference | functions, args.repeats)  # in turn: what disturbs one disturbs all
    peak, bandwidth = flops / timed["product"].median, moved / timed["copy"].median
    report.data |= {"peak_flops": peak, "copy_bytes_per_s": bandwidth}
    report.say(
        f"{args.dtype}: N {args.nodes}, D {args.channels}, F {args.embed}; a large product {peak / 1e12:.4g} TFLOP/s, "
        f"a copy {bandwidth / 1e9:.4g} GB/s; {tree_bytes(like(args, False)) / 1e6:.4g} MB an image"
    )
    rows, rates = [], {}
    for name, (clues, _) in cases.items():
        rates[name] = wanted.size / timed[name].median
        arithmetic, memory = peak / pair_flops(args, clues), bandwidth / pair_bytes(args, clues)
        spread = f"{wanted.size / timed[name].high:.4g} to {wanted.size / timed[name].low:.4g}"
        rows.append([name, rates[name], spread, arithmetic, memory, rates[name] / min(arithmetic, memory)])
    header = ["terms", "pairs/s", "range", "arithmetic limit", "memory limit", "of limit"]
    report.table("pairs", header, rows)
    del cases, functions, reference
    market_s = market(args, mesh, constants, report)[0] if args.market else None

    backend = jax.default_backend()
    bounds = [("pairs/s, resident", rates["resident"], ">=", args.min_pairs or MIN_PAIRS.get(backend))]
    if args.market and backend == "gpu":
        bounds.append(("seconds of re-scoring Market-1501", market_s, "<=", MAX_MARKET_S))
    status = verdict(report, bounds) if args.check or args.min_pairs else 0
    report.write()
    return status


if __name__ == "__main__":
    sys.exit(main())
