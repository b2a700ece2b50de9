"""Benchmark of the exact pair stage against the literal one: time, memory, operations and agreement.

    python -m benchmarks.pair_stage --check                      # two CPU cores, float32: about three minutes
    python -m benchmarks.pair_stage --dtype=bfloat16 --check     # a GPU
    python -m benchmarks.pair_stage --memory                     # compiled memory from 16 to 256 images; nothing is run

16 images of 192 nodes and 2048 channels, every ordered pair, to 768 numbers a pair: f(u|v) = mean_u[(I - R A R) X Theta],
with the two weights w, w' and Theta as parameters. Each form forward, and forward with all gradients (maps, w, w', Theta)
for a dense cotangent, as one compiled program:

    literal    the whole 2N x 2N graph and the whole conditional map of every pair, vmapped: models/graph.py, with its
               products in the type of the maps as the exact form has them
    exact      pair_stages/conditional/batch_grid.py as the network uses it, with its memory budget
    bare Gram  X X^T of the maps as one (B N) x D matrix, and its derivative as JAX takes it: three products; the exact form
               needs two of them, because its cross blocks are symmetric

Time is the median of runs in turn. Memory is what XLA reserves for temporaries (`temp_size_in_bytes`: arguments and results
are not in it). Operations are those of matrix products, 2 for a multiply-add, counted in the trace.

Agreement is measured in float64, on fewer images of the same size (every pair of them), for the result and each gradient:
the largest difference over the largest magnitude.

--check exits 1 where the exact form is less than 30 times faster or 40 times smaller than the literal one, takes more than
1.5 times the bare Gram product, or where they differ by 1e-10 or more in float64. With --memory it exits 1 where
temporaries exceed the budget, a copy of the maps and their gradients aside (arguments and results are never in it).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device
from benchmarks.timing import Report, verdict
from cacenet_jax.models.attention import correspondence
from cacenet_jax.models.graph import inverse_sqrt_degree
from cacenet_jax.models.pair_stages.conditional.batch_grid import coefficients, encoded_grid
from cacenet_jax.models.pair_stages.conditional.memory_plan import Plan, make_plan

MIN_SPEED, MIN_MEMORY, MAX_GRAM, MAX_DIFFERENCE = 30.0, 40.0, 1.5, 1e-10
BATCHES = (16, 32, 64, 128, 256)
ARGUMENTS = ("maps", "w", "w'", "Theta")


def literal(maps_BND: jax.Array, intra_D: jax.Array, cross_D: jax.Array, theta_DF: jax.Array) -> jax.Array:
    """Compute f(u|v) of all pairs from their full graphs and maps, (B, B, F), with products in the dtype of the maps."""
    dtype = maps_BND.dtype
    acc_dtype = jnp.promote_types(dtype, jnp.float32)

    def pair(u_ND: jax.Array, v_ND: jax.Array) -> jax.Array:
        adjacency = correspondence(u_ND, v_ND, intra_D, cross_D)
        graph_LL = jnp.block([[adjacency.intra_u, adjacency.cross], [adjacency.cross.T, adjacency.intra_v]])
        root_L = inverse_sqrt_degree(graph_LL.sum(axis=1))
        nodes_LD = jnp.concatenate([u_ND, v_ND])
        normalised_LL = (root_L[:, None] * graph_LL * root_L).astype(dtype)
        out_LD = nodes_LD - jnp.matmul(normalised_LL, nodes_LD, preferred_element_type=acc_dtype)
        out_LF = jnp.matmul(out_LD.astype(dtype), theta_DF, preferred_element_type=acc_dtype)
        return out_LF[: u_ND.shape[0]].mean(axis=0)

    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(maps_BND, maps_BND)


def exact(
    grid_plan: Plan, maps_BND: jax.Array, intra_D: jax.Array, cross_D: jax.Array, theta_DF: jax.Array
) -> jax.Array:
    """Compute f(u|v) of all pairs as the network does, (B, B, F)."""

    def encode(own: jax.Array, near: jax.Array) -> jax.Array:
        pooled = (own - near).astype(maps_BND.dtype)
        return jnp.matmul(pooled, theta_DF, preferred_element_type=own.dtype)

    return encoded_grid(grid_plan, maps_BND, coefficients(grid_plan, maps_BND, intra_D, cross_D), encode)


def gram(maps_BND: jax.Array) -> jax.Array:
    """Compute X X^T of all nodes of all images."""
    nodes_LD = maps_BND.reshape(-1, maps_BND.shape[-1])
    return nodes_LD @ nodes_LD.T


def with_gradients(form: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Return a function from (cotangent, *arguments) to the result and the gradient of every argument."""

    def both(cotangent: jax.Array, *arguments: jax.Array) -> Any:
        value, back = jax.vjp(form, *arguments)
        return value, *back(cotangent.astype(value.dtype))

    return both


def problem(args: argparse.Namespace, images: int, dtype: Any) -> list[jax.Array]:
    """Draw maps after a ReLU, w and w' of order 1/D, and Theta."""
    rng = np.random.default_rng(0)
    shape = (images, args.nodes, args.channels)
    maps = np.maximum(rng.standard_normal(shape), 0)
    weights = [rng.uniform(0.5, 1.5, args.channels) / args.channels for _ in range(2)]
    weights[1][: args.channels // 3] *= -1  # so that the ReLU cuts off a part of the affinities
    theta = rng.standard_normal((args.channels, args.embed)) / args.channels**0.5
    return [jnp.asarray(x, dtype) for x in (maps, *weights, theta)]


def planned(args: argparse.Namespace, images: int, dtype: Any) -> Plan:
    """Return the network's memory plan for this grid."""
    return make_plan(images, images, args.nodes, args.channels, args.pair_memory_mib, jnp.dtype(dtype).itemsize)


def agreement(report: Report, args: argparse.Namespace) -> float:
    """Return the largest relative difference of the two forms in float64, over the result and all gradients."""
    with jax.enable_x64(True):
        images = args.agree_images
        arguments = problem(args, images, jnp.float64)
        cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((images, images, args.embed)))
        grid_plan = planned(args, images, jnp.float64)
        forms = (literal, lambda *x: exact(grid_plan, *x))
        want, have = (jax.device_get(jax.jit(with_gradients(form))(cotangent, *arguments)) for form in forms)
    differences = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(have, want, strict=True)]
    names = ("f(u|v)", *(f"gradient of {name}" for name in ARGUMENTS))
    rows = [(name, f"{difference:.1e}") for name, difference in zip(names, differences, strict=True)]
    report.table("agreement", (f"float64, {images} images", "largest difference / largest magnitude"), rows)
    return max(differences)


def measure(report: Report, args: argparse.Namespace) -> tuple[float, float | None, float]:
    """Measure all forms; returns the ratios literal/exact of time and memory, and exact/Gram of time."""
    dtype = jnp.dtype(args.dtype)
    arguments = problem(args, args.images, dtype)
    grid_plan = planned(args, args.images, dtype)
    rng = np.random.default_rng(1)
    dense = jnp.asarray(rng.standard_normal((args.images, args.images, args.embed)), jnp.float32)
    lines = args.images * args.nodes
    square = jnp.asarray(rng.standard_normal((lines, lines)), dtype)
    forms: dict[str, tuple[Callable[..., Any], jax.Array, list[jax.Array]]] = {
        "literal": (literal, dense, arguments),
        "exact": (lambda *x: exact(grid_plan, *x), dense, arguments),
        "bare Gram": (gram, square, arguments[:1]),
    }
    programs, memory, flops = {}, {}, {}
    for name, (form, cotangent, given) in forms.items():
        for suffix, function, inputs in (
            (", forward", form, given),
            ("", with_gradients(form), [cotangent, *given]),
        ):
            compiled = device.compiled(function, *inputs)
            programs[name + suffix] = lambda compiled=compiled, inputs=inputs: compiled(*inputs)
            analysis = compiled.memory_analysis()
            memory[name + suffix] = None if analysis is None else analysis.temp_size_in_bytes / 2**20
            flops[name + suffix] = device.matrix_flops(function, *inputs)
    quick = {name: run for name, run in programs.items() if "literal" not in name}
    slow = {name: run for name, run in programs.items() if "literal" in name}
    timed = device.time_all(quick, args.repeats)
    timed |= device.time_all(slow, args.repeats, limit_s=args.literal_seconds)
    timed |= {f"{name} again": found for name, found in device.time_all(quick, args.repeats).items()}
    rows = []
    for name in programs:
        found = timed[name]
        rows.append((name, 1e3 * found.median, 1e3 * found.low, 1e3 * found.high, memory[name], flops[name] / 1e12,
                     flops[name] / found.median / 1e12))  # fmt: skip
    header = ("form", "ms", "fastest", "slowest", "temporaries MiB", "TFLOP", "TFLOP/s")
    report.table("forms", header, rows)
    report.say("(without ', forward': forward and backward)")
    # Of the two rounds around the literal form the slower one counts: the machine may have changed meanwhile.
    exact_s = max(timed[name].median for name in ("exact", "exact again"))
    speed = timed["literal"].median / exact_s
    smaller = memory["literal"] / memory["exact"] if memory["exact"] else None
    beside_gram = max(timed[f"exact{again}"].median / timed[f"bare Gram{again}"].median for again in ("", " again"))
    small = f", {smaller:.0f} times less memory" if smaller else ""
    report.say(f"exact against literal: {speed:.1f} times faster{small}; {beside_gram:.2f} times the bare Gram product")
    report.data |= {"speed": speed, "memory": smaller, "gram": beside_gram, "plan": grid_plan._asdict()}
    return speed, smaller, beside_gram


def memory_table(report: Report, args: argparse.Namespace) -> int:
    """Report compiled temporaries, forward and backward, by batch size; returns 1 if they exceed the budget."""
    dtype, rows, failed = jnp.dtype(args.dtype), [], 0
    for images in BATCHES:
        grid_plan = planned(args, images, dtype)
        maps = jax.ShapeDtypeStruct((images, args.nodes, args.channels), dtype)
        weight = jax.ShapeDtypeStruct((args.channels,), dtype)
        theta = jax.ShapeDtypeStruct((args.channels, args.embed), dtype)
        cotangent = jax.ShapeDtypeStruct((images, images, args.embed), jnp.float32)
        function = with_gradients(lambda *x, grid_plan=grid_plan: exact(grid_plan, *x))
        found = device.compiled(function, cotangent, maps, weight, weight, theta).memory_analysis().temp_size_in_bytes
        # Aside: a copy of the maps for the loops, and their gradients by three ways (keys, own, given) until summed.
        maps_bytes = 4 * images * args.nodes * args.channels
        beside = max(found - 4 * maps_bytes, 0)
        failed |= beside > args.pair_memory_mib * 2**20
        literal_bytes = 4 * images**2 * (2 * args.nodes) * (2 * args.nodes + args.channels)  # one graph and map a pair
        mib = [x / 2**20 for x in (maps_bytes, found, beside, literal_bytes)]
        cut = f"{grid_plan.panel} rows, {'kept' if grid_plan.keep else 'twice'}; {grid_plan.encode}"
        rows.append((images, *(round(x) for x in mib), cut))
    header = ("images", "maps", "temporaries", "less maps", "a graph and map a pair", "panel; encode")
    report.table("memory", header, rows)
    report.say(
        f"MiB; budget {args.pair_memory_mib:g} MiB for 'less maps': without a copy of the maps and three gradients of them"
    )
    report.data["check"] = "failed" if failed else "passed"
    return failed


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="%(default)s")
    parser.add_argument("--nodes", type=int, default=192, help="%(default)s")
    parser.add_argument("--channels", type=int, default=2048, help="%(default)s")
    parser.add_argument("--embed", type=int, default=768, help="%(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="%(default)s")
    parser.add_argument(
        "--pair-memory-mib", type=float, default=1024.0, help="config.model.pair_memory_mib; %(default)s"
    )
    parser.add_argument("--agree-images", type=int, default=4, help="images of the float64 comparison; %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each program; %(default)s")
    parser.add_argument("--literal-seconds", type=float, default=60, help="time for the literal form; %(default)s")
    parser.add_argument("--memory", action="store_true", help="memory against the batch, compiled and not run")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is missed")
    parser.add_argument("--out", help="folder for pair_stage.txt and pair_stage.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    args = parse(argv)
    report = Report("pair_stage_memory" if args.memory else "pair_stage", args.out)
    report.say(device.machine_line())
    size = f"{args.images} images, " if not args.memory else ""
    report.say(f"{size}{args.nodes} nodes, {args.channels} channels to {args.embed}, {args.dtype}")
    report.data |= device.machine()
    if args.memory:
        failed = memory_table(report, args)
    else:
        speed, smaller, beside_gram = measure(report, args)
        bounds = [
            ("times faster than literal", speed, ">=", MIN_SPEED),
            ("times less memory than literal", smaller, ">=", MIN_MEMORY),
            ("times the bare Gram product", beside_gram, "<=", MAX_GRAM),
            ("difference in float64", agreement(report, args), "<=", MAX_DIFFERENCE),
        ]
        failed = verdict(report, bounds)
    report.write()
    return failed if args.check else 0


if __name__ == "__main__":
    sys.exit(main())
