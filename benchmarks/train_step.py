"""Benchmark of a training step of the paper's model: time, time of its parts, and fraction of the device's peak.

    python -m benchmarks.train_step --dtype=bfloat16 --check                   # a GPU; exits 1 where a bound is missed
    python -m benchmarks.train_step --dtype=bfloat16 --profile=workdirs/trace  # the longest kernels, and how much is idle
    python -m benchmarks.train_step --repeats=3                                # two CPU cores: about ten minutes

`step` is the trainer's own: ResNet-50, 384 x 128, 16 images (N 192, D 2048, F 768, 751 identities), a host batch of uint8
in, augmentation on the device, all four losses, SGD, through distributed.DeviceMap on one device with the state donated.
`bare step` is the same on normalised images that lie on the device, without augmentation: what torch_step.py times too.

Each part is timed alone in the same run, compiled by itself, its inputs on the device; its share is its time over the
step's. Forward and backward each:
    backbone      images to maps, and a dense gradient of the maps back to the parameters
    pair stage    maps to the conditional losses: attention, graph, Theta, encoder, mix-up and pair triplet; gradients to
                  the maps and to its own parameters
    individual    maps to the identity and triplet loss, likewise
    optimiser     the update from given gradients, and the norms that the metrics report
    augmentation  uint8 to normalised images
    input         the batch from host memory to the device, waited for (the trainer does not wait, so a step can hide it)
    rest          the step less all of these: negative where parts overlap or fuse
A second estimate of the pair stage is the bare step less `step without pairs`, the individual baseline of table 1.

`bare Gram` is X X^T of maps as one (B N) x D matrix, and both gradients by jax.vjp with a dense cotangent, in the same
type: three products, of which the pair stage needs two, its affinities being symmetric. It may take 1.5 times as long.

Peak fraction: operations over time over peak. Operations are counted by XLA (`cost_analysis` of the compiled part) and
analytically: products and convolutions alone, forward three times, without the gradient to the images; for the pair stage
two of the bare Gram's products and the dense layers after it. XLA counts the body of a loop once. Peak is what a large
product reaches among the same interleaved runs, and the data sheet's where known.

--check exits 1 on a GPU below 60 steps/s (16 images, bfloat16, ResNet-50, 384 x 128), above 1.5 bare Grams, or below 1.5
times PyTorch's speed where --torch names what torch_step.py wrote. Bounds given as options count on any backend and size.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import device, problem, profiling, step_parts
from benchmarks.timing import Report, Timed, verdict
from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed.device_map import AXIS, DeviceMap
from cacenet_jax.train_step import TrainState

MIN_STEPS, MAX_PAIR, MIN_TORCH = 60.0, 1.5, 1.5
SHARES = ("backbone", "pair stage", "individual", "optimiser", "augmentation", "input")


def trainers_step(
    mode: str, size: problem.Size, state: TrainState, batch: Batch
) -> tuple[Callable[[], Any], DeviceMap]:
    """The step as the trainer runs it, from a host batch; each call goes on from the state of the last."""
    device_map = DeviceMap(jax.local_devices()[:1], mode)
    mapped = device_map.map(problem.step_of(problem.network(size, AXIS)))
    held = device_map.replicate(jax.tree.map(jnp.copy, state))

    def run() -> Any:
        nonlocal held
        held, metrics = mapped(held, device_map.split(batch))
        return metrics

    return run, device_map


def first_look(report: Report, run: Callable[[], Any]) -> float:
    """Compiles the step and says at once about how fast it is: a run that is cut short has told this."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    compiled = time.perf_counter()
    calls = 1 if jax.default_backend() == "cpu" else 20
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    once = (time.perf_counter() - compiled) / calls
    report.say(f"compiled in {compiled - begin:.1f} s; first look: {1e3 * once:.4g} ms a step")
    return once


def step_table(report: Report, size: problem.Size, timed: dict[str, Timed], memory: dict[str, int | None]) -> None:
    """Whole steps: time, rate, memory."""
    rows = []
    for name in ("step", "bare step", "step without pairs"):
        if name in timed:
            found = timed[name]
            gigabytes = memory[name] / 1e9 if memory.get(name) else None
            rows.append((name, 1e3 * found.median, 1e3 * found.low, 1e3 * found.high, found.cpu, 1 / found.median,
                         size.batch / found.median, gigabytes))  # fmt: skip
    header = ("whole steps", "ms", "fastest", "slowest", "CPU s", "steps/s", "images/s", "GB")
    report.table("steps", header, rows)


def share_table(
    report: Report, timed: dict[str, Timed], counted: dict[str, float | None], known: dict[str, float], peak: float
) -> None:
    """Parts: time, processor time, share of the step, operations by XLA and by formula, fraction of the measured peak."""
    step, rows, total = timed["step"].median, [], 0.0
    for name in (*SHARES, "bare Gram", "bare step"):
        if name not in timed:
            continue
        seconds = timed[name].median
        if name in SHARES:
            total += seconds
        flops = known.get(name)
        tera = [x / 1e12 if x else None for x in (counted.get(name), flops)]
        share = f"{100 * seconds / step:.1f} %" if name in SHARES else None
        rows.append(
            (
                name,
                1e3 * seconds,
                1e3 * timed[name].low,
                timed[name].cpu,
                share,
                *tera,
                f"{100 * flops / seconds / peak:.1f} %" if flops else None,
            )
        )
    if total:
        rest = step - total
        rows.append(("rest", 1e3 * rest, None, None, f"{100 * rest / step:.1f} %", None, None, None))
    header = ("part", "ms", "fastest", "CPU s", "of step", "TFLOP by XLA", "TFLOP by formula", "of measured peak")
    report.table("parts", header, rows)


def torch_ratio(report: Report, size: problem.Size, bare: float, paths: Iterable[str]) -> float | None:
    """Return the time of PyTorch's fastest literal step over ours, or None without a comparable result."""
    best = None
    for path in map(pathlib.Path, paths):
        if not path.is_file():
            report.say(f"{path}: no such file, so nothing to compare with")
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        fields = ("backbone", "batch", "height", "width", "dtype")
        ours = {field: getattr(size, field) for field in fields}
        other = {name: value for name, value in ours.items() if found["size"].get(name) != value}
        if other or found["size"].get("small"):
            report.say(f"{path}: measured another size ({found['size']}), not compared")
            continue
        for name, seconds in found["seconds"].items():
            ratio = seconds["median"] / bare
            report.say(
                f"PyTorch {found['torch']}, {name}: {1e3 * seconds['median']:.4g} ms, {ratio:.2f} x our bare step"
            )
            if name.startswith("literal"):
                best = ratio if best is None else min(best, ratio)
    return best


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problem.add_size(parser)
    parser.add_argument("--mode", choices=("pmap", "shard_map"), default="pmap", help="config.parallel; %(default)s")
    parser.add_argument("--no-shares", dest="shares", action="store_false", help="whole steps, no parts")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved runs of each function; %(default)s")
    parser.add_argument("--limit", type=float, default=240, help="no new round after these seconds; %(default)s")
    parser.add_argument("--torch", nargs="*", default=[], metavar="JSON", help="what torch_step.py wrote")
    parser.add_argument("--profile", metavar="DIR", help="write a trace and list the longest kernels, nothing else")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is missed")
    parser.add_argument("--min-steps", type=float, help=f"steps/s; {MIN_STEPS:g} on a GPU")
    parser.add_argument("--max-pair", type=float, help=f"pair stage over bare Gram; {MAX_PAIR:g} on a GPU")
    parser.add_argument("--min-torch", type=float, help=f"PyTorch's time over ours; {MIN_TORCH:g} on a GPU")
    parser.add_argument("--out", metavar="DIR", help="folder for the .txt and the .json")
    args = parser.parse_args(argv)
    if args.check and jax.default_backend() == "gpu":
        if problem.size_of(args) == problem.Size(dtype="bfloat16") and args.min_steps is None:
            args.min_steps = MIN_STEPS
        args.max_pair = MAX_PAIR if args.max_pair is None else args.max_pair
        args.min_torch = MIN_TORCH if args.min_torch is None else args.min_torch
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    args = parse(argv)
    size = problem.size_of(args)
    name = "profile" if args.profile else "train_step"
    report = Report(f"{name}_{args.dtype}", args.out)
    report.data |= {"machine": device.machine(), "size": size._asdict()}
    report.say(f"{size}; {device.machine_line()}")

    state, batch = problem.state_of(size), problem.batch_of(size)
    run, device_map = trainers_step(args.mode, size, state, batch)
    report.data["first look"] = first_look(report, run)
    if args.profile:
        report.data["profile"], text = profiling.profile(run, args.profile)
        report.say(text)
        report.write()
        return 0

    parts = {"bare step": step_parts.bare_step(size, state, batch)}
    if args.shares:
        parts["step without pairs"] = step_parts.bare_step(size, state, batch, pairs=False)
        parts |= step_parts.parts(size, state, batch)
        parts["bare Gram"] = step_parts.bare_gram(size)
    functions = {"step": run} | {name: part.run for name, part in parts.items()}
    if args.shares:
        functions["input"] = lambda: jax.device_put(device_map.split(batch), device_map.devices[0])
    functions["large product"], product_flops = device.large_product(args.dtype)
    del state
    timed = device.time_all(functions, args.repeats, args.limit)
    report.data["seconds"] = {name: value._asdict() for name, value in timed.items()}

    step_table(report, size, timed, {name: part.memory for name, part in parts.items()})
    known = step_parts.analytic_flops(size)
    known["bare step"] = known["backbone"] + known["pair stage"] + known["individual"]
    peak = product_flops / timed["large product"].median
    nominal = device.nominal_peak(device.machine()["device"], args.dtype)
    share_table(report, timed, {name: part.flops for name, part in parts.items()}, known, peak)
    bare = timed["bare step"].median
    fractions = {"measured": known["bare step"] / bare / peak}
    report.say(
        f"a large product reaches {peak / 1e12:.4g} TFLOP/s; the bare step {100 * fractions['measured']:.1f} % of it"
    )
    if nominal:
        fractions["data sheet"] = known["bare step"] / bare / nominal
        report.say(
            f"data sheet: {nominal / 1e12:.4g} TFLOP/s; the bare step {100 * fractions['data sheet']:.1f} % of it"
        )
    report.data |= {"peak_flops": {"measured": peak, "data sheet": nominal}, "peak_fraction": fractions}

    pair_ratio = None
    if args.shares:
        pair_ratio = timed["pair stage"].median / timed["bare Gram"].median
        marginal = bare - timed["step without pairs"].median
        report.say(f"pair stage: {pair_ratio:.2f} bare Grams; by the difference of steps {1e3 * marginal:.4g} ms")
        report.data |= {"pair_over_gram": pair_ratio, "pair_by_difference": marginal}
    ratio = torch_ratio(report, size, bare, args.torch)
    report.data["torch_over_ours"] = ratio
    bounds = (
        ("steps/s", 1 / timed["step"].median, ">=", args.min_steps),
        ("pair stage over bare Gram", pair_ratio, "<=", args.max_pair if args.shares else None),
        ("PyTorch over ours", ratio, ">=", args.min_torch if args.torch else None),
    )
    code = verdict(report, bounds) if args.check else 0
    report.write()
    return code


if __name__ == "__main__":
    sys.exit(main())
