"""Benchmark of the training step on 1, 2, 4 and 8 devices: agreement and speed.

    python -m benchmarks.scaling --check                             # eight devices of a CPU, a small network: minutes
    python -m benchmarks.scaling --backbone=resnet50 --height=384 --width=128 --dtype=bfloat16 --check       # all GPUs

Devices of a CPU share its cores: there the table measures correctness, NOT speed.

Strong scaling: the same global batch on n devices; efficiency is t(1) / (n t(n)). Weak scaling: --batch images on every
device; efficiency is t(1) / t(n), below 1 by right, because the pair grid is global: each device compares its images with
those of all devices, so its part of the pair stage grows with n while the backbone's does not.

Every row runs the trainer's step, augmentation included, by DeviceMap. For strong scaling the losses of the first
three steps and the norm of the parameters after them must equal those of one device, by pmap and by shard_map, to rounding:
1e-5 in float32 on a CPU, 2e-2 elsewhere (TF32 and bfloat16 products, summed in another order). --check exits 1 otherwise.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import device, problem
from benchmarks.timing import Report, verdict
from cacenet_jax.distributed.device_map import AXIS, DeviceMap

STEPS = 3


def start_devices() -> None:
    """Configure eight CPU devices, unless JAX_NUM_CPU_DEVICES is set or the backend is initialised."""
    try:
        if jax.config.jax_num_cpu_devices < 0:
            jax.config.update("jax_num_cpu_devices", 8)
    except RuntimeError:
        pass


def mapped_step(size: problem.Size, count: int, mode: str) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return the step on `count` devices, and the losses of its first steps."""
    device_map = DeviceMap(jax.local_devices()[:count], mode)
    step = device_map.map(problem.step_of(problem.network(size, AXIS)))
    batch = problem.batch_of(size)
    state = device_map.replicate(problem.state_of(size))
    losses = {}
    for index in range(STEPS):
        state, metrics = step(state, device_map.split(batch))
        metrics = jax.device_get(metrics)
        losses |= {f"{name} of step {index + 1}": float(value) for name, value in metrics.items() if _compared(name)}
    losses["param_norm"] = float(metrics["param_norm"])

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, device_map.split(batch))
        return metrics

    return run, losses


def _compared(name: str) -> bool:
    return name in ("loss", "identity", "triplet", "pair_identity", "pair_triplet", "grad_norm")


def difference(losses: dict[str, float], expected: dict[str, float]) -> tuple[float, str]:
    """Return the largest relative difference and its name; infinite for values that are not finite."""
    apart = {name: abs(losses[name] - value) / max(abs(value), 1e-3) for name, value in expected.items()}
    return max((value if math.isfinite(value) else math.inf, name) for name, value in apart.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problem.add_size(parser, backbone="resnet_tiny", height=64, width=32, embed_dim=64)
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of devices; 1, 2, 4, 8 as far as there are")
    parser.add_argument("--mode", choices=("pmap", "shard_map", "both"), default="both", help="%(default)s")
    parser.add_argument("--no-weak", dest="weak", action="store_false", help="strong scaling alone")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs; %(default)s")
    parser.add_argument("--limit", type=float, default=60, help="no new round after these seconds; %(default)s")
    parser.add_argument("--check", action="store_true", help="exit 1 where losses differ")
    parser.add_argument(
        "--tolerance", type=float, help="largest relative difference; 1e-5 in float32 on a CPU, else 2e-2"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the .txt and the .json")
    args = parser.parse_args(argv)
    start_devices()
    size, on_cpu = problem.size_of(args), jax.default_backend() == "cpu"
    tolerance = args.tolerance
    if tolerance is None:
        tolerance = 1e-5 if on_cpu and args.dtype == "float32" else 2e-2
    shown = len(jax.local_devices())
    counts = args.counts or [n for n in (1, 2, 4, 8) if n <= shown and size.batch % n == 0]
    if counts[0] != 1 or max(counts) > shown or any(size.batch % n for n in counts):
        raise SystemExit(f"--counts: found {counts}, expected 1 first, divisors of {size.batch}, {shown} at most")
    modes = ("pmap", "shard_map") if args.mode == "both" else (args.mode,)
    report = Report(f"scaling_{args.dtype}", args.out)
    report.data |= {"machine": device.machine(), "size": size._asdict()}
    report.say(f"{size}; {device.machine_line()}")
    if on_cpu:
        report.say("DEVICES OF A CPU SHARE ITS CORES: this compares results, the times say nothing about speed")
    if shown == 1:
        report.say("only one device: nothing to scale to")

    runs: dict[tuple[str, str, int], Callable[[], Any]] = {}
    expected: dict[str, float] = {}
    worst, where = 0.0, ""
    for mode in modes:
        for count in counts:
            runs["strong", mode, count], losses = mapped_step(size, count, mode)
            expected = expected or losses
            apart, name = difference(losses, expected)
            if apart >= worst:
                worst, where = apart, f"{name}, {mode} on {count}"
            if args.weak and count > 1 and mode == modes[0]:
                runs["weak", mode, count], _ = mapped_step(size._replace(batch=count * size.batch), count, mode)
    timed = device.time_all({" ".join(map(str, key)): run for key, run in runs.items()}, args.repeats, args.limit)

    rows = []
    for kind, mode, count in sorted(runs, key=lambda key: (key[0], key[1], key[2])):
        one = timed[f"strong {mode} 1"].median
        seconds = timed[f"{kind} {mode} {count}"].median
        images = size.batch * (count if kind == "weak" else 1)
        efficiency = one / seconds / (count if kind == "strong" else 1)
        rows.append((f"{kind} {mode}", count, images, 1e3 * seconds, images / seconds, f"{100 * efficiency:.0f} %"))
    report.table("scaling", ("scaling", "devices", "images", "ms", "images/s", "efficiency"), rows)
    report.say(f"losses of {STEPS} steps against one device: {worst:.1e} apart at most ({where})")
    report.data |= {"difference": worst, "difference_of": where, "loss": expected["loss of step 1"]}
    bounds = [("difference of losses", worst, "<=", tolerance)]
    code = verdict(report, bounds) if args.check else 0
    report.write()
    return code


if __name__ == "__main__":
    sys.exit(main())
