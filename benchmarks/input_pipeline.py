"""Benchmark of the input pipeline: images/s of training_batches by worker processes and threads, against the step's need.

    python -m benchmarks.input_pipeline                                            # Market-1501 where it is prepared
    python -m benchmarks.input_pipeline --data=synthetic --check --need=960        # one GPU at 60 steps/s of 16 images
    python -m benchmarks.input_pipeline --data=market1501 --root=data --step       # and beside our step on this machine

Records of JPEG (Market-1501) or PNG (synthetic) are read, decoded and resized to 384 x 128 in batches of 16, as in training,
and thrown away. `images/s` is the median of interleaved runs; `per CPU second` divides by the processor time of this process
(not of workers), so it holds on a machine that is busy with other things too. The first batch is waited for and not counted.

What is needed: 60 steps/s of 16 images are 960 images/s a GPU, 7,680 for eight GPUs of one host. --step measures the
training step here on a resident batch, and the trainer's loop around it on fresh ones (decoded by threads and copied while
the device works): where the loop takes longer than the step, it waits for its input.

--check exits 1 where the best setting gives less than --need images/s, or the loop takes over a tenth longer than the step.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import absl.flags

from benchmarks.timing import Report, verdict
from cacenet_jax.data.batch import Batch
from cacenet_jax.data.builders import open_split, prepare
from cacenet_jax.data.pipeline import reading_threads, training_batches
from cacenet_jax.data.sampler import PKSampler
from cacenet_jax.data.subsets import Subset, all_records
from cacenet_jax.errors import UserError

ONE_GPU = 960.0  # images/s
MAX_WAIT = 1.1  # loop over step


def subset_of(data: str, root: str | None, data_dir: str, height: int, width: int, scratch: str) -> tuple[str, Subset]:
    """The training split of Market-1501, or of a few people rendered into a scratch folder."""
    if data != "synthetic":
        try:
            prepared = prepare("market1501", root=root, data_dir=data_dir, options={"check_counts": False})
            return "market1501", all_records(open_split(prepared, "train"))
        except UserError as error:
            if data == "market1501":
                raise SystemExit(f"--data=market1501: {error}") from error
    options = {"num_train_ids": 16, "num_test_ids": 4, "images_per_id": 8, "height": height, "width": width,
               "supersample": 1}  # fmt: skip
    prepared = prepare("synthetic_pedestrians", root=None, data_dir=scratch, options=options)
    return "synthetic", all_records(open_split(prepared, "train"))


class Pipeline:
    """Batches of one setting, without end; `images` draws some and says how long it took."""

    def __init__(self, subset: Subset, batch: int, height: int, width: int, workers: int, threads: int):
        sampler = PKSampler(subset.labels, batch // 4, 4, seed=0)
        self.batches: Iterator[Batch] = training_batches(
            subset, sampler, height=height, width=width, first_step=0, last_step=10**7, workers=workers, threads=threads
        )
        self.batch = batch
        next(self.batches)

    def images(self, steps: int) -> tuple[float, float]:
        """Images a second, and a second of this process's processor time."""
        # What lies decoded in the buffers is drawn first: it was made while other settings were timed.
        for _ in range(16):
            next(self.batches)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(self.batches)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return steps * self.batch / wall, steps * self.batch / max(cpu, 1e-9)


def rates(report: Report, subset: Subset, args: argparse.Namespace) -> float:
    """Prints the table of settings; the best rate."""
    settings = [(0, threads) for threads in args.threads] + [(workers, 0) for workers in args.workers if workers]
    found: dict[tuple[int, int], list[tuple[float, float]]] = {setting: [] for setting in settings}
    for _, setting in itertools.product(range(args.repeats), settings):
        pipeline = Pipeline(subset, args.batch, args.height, args.width, *setting)
        found[setting].append(pipeline.images(args.steps))
        del pipeline  # its threads would decode ahead while the next setting is timed
    rows = []
    for (workers, threads), runs in found.items():
        wall = statistics.median(rate for rate, _ in runs)
        cpu = statistics.median(rate for _, rate in runs) if not workers else None
        shown = threads or f"{reading_threads(workers)} (auto)"
        rows.append((f"{workers} workers", shown, wall, min(r for r, _ in runs), max(r for r, _ in runs), cpu))
    report.table("rates", ("setting", "threads each", "images/s", "slowest", "fastest", "per CPU second"), rows)
    return max(row[2] for row in rows)


def beside_the_step(report: Report, subset: Subset, args: argparse.Namespace) -> float:
    """Prints times of the step, of the input and of the loop of both; loop over step."""
    import jax

    from benchmarks import device, problem
    from cacenet_jax.distributed.device_map import AXIS, DeviceMap

    size = problem.Size(
        args.backbone, args.batch, args.height, args.width, args.dtype, identities=subset.num_identities
    )
    report.say(f"step: {size}; {device.machine_line()}")
    device_map = DeviceMap(jax.local_devices()[:1], "pmap")
    step = device_map.map(problem.step_of(problem.network(size, AXIS)))
    pipeline = Pipeline(subset, args.batch, args.height, args.width, 0, 0)
    state = device_map.replicate(problem.state_of(size))
    resident = jax.tree.map(jax.device_put, device_map.split(next(pipeline.batches)))
    state, metrics = step(state, resident)
    jax.block_until_ready(metrics)

    def run(steps: int, fresh: bool) -> float:
        """The trainer's loop: the metrics of a step are fetched when the next one is queued."""
        nonlocal state
        pending: Any = None
        begin = time.perf_counter()
        for _ in range(steps):
            batch = device_map.split(next(pipeline.batches)) if fresh else resident
            state, metrics = step(state, batch)
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
        jax.device_get(pending)
        return (time.perf_counter() - begin) / steps

    steps = args.loop_steps or max(2, min(200, round(5 / max(run(2, False), 1e-3))))
    found: dict[bool, list[float]] = {False: [], True: []}
    for _, fresh in itertools.product(range(args.repeats), (False, True)):
        found[fresh].append(run(steps, fresh))
    alone, both = (statistics.median(found[fresh]) for fresh in (False, True))
    rows = [
        ("step, resident batch", 1e3 * alone, args.batch / alone),
        ("loop, fresh batches", 1e3 * both, args.batch / both),
    ]
    report.table("loop", ("trainer", "ms", "images/s"), rows)
    report.say(f"the loop takes {both / alone:.3f} times the step, over {steps} steps a run, {args.repeats} runs")
    report.data["loop_over_step"] = both / alone
    return both / alone


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("auto", "market1501", "synthetic"), default="auto", help="%(default)s")
    parser.add_argument("--root", default="data", help="folder of the Market-1501 folder or zip; %(default)s")
    parser.add_argument("--data-dir", default="data/prepared", help="where prepared data is kept; %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="images; %(default)s")
    parser.add_argument("--height", type=int, default=384, help="pixels; %(default)s")
    parser.add_argument("--width", type=int, default=128, help="pixels; %(default)s")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="worker processes beside 0; 1 2")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="of no workers; 0 1 2 4 8, 0 is auto"
    )
    parser.add_argument("--steps", type=int, default=60, help="batches a run; %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs; %(default)s")
    parser.add_argument("--step", action="store_true", help="beside the training step on this machine")
    parser.add_argument("--backbone", default="resnet50", help="of that step; %(default)s")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of that step; %(default)s")
    parser.add_argument("--loop-steps", type=int, default=0, help="of that loop a run, 0 for five seconds' worth")
    parser.add_argument("--check", action="store_true", help="exit 1 where the input is the bottleneck")
    parser.add_argument("--need", type=float, default=ONE_GPU, help="images/s; %(default)s")
    parser.add_argument("--out", metavar="DIR", help="folder for the .txt and the .json")
    args = parser.parse_args(argv)
    absl.flags.FLAGS.mark_as_parsed()  # grain reads flags when it starts a worker
    report = Report("input_pipeline", args.out)
    with tempfile.TemporaryDirectory() as scratch:
        name, subset = subset_of(args.data, args.root, args.data_dir, args.height, args.width, scratch)
        report.say(f"{name}, {len(subset.indices)} images, to {args.height} x {args.width} in batches of {args.batch}; "
                   f"{os.cpu_count()} CPU cores")  # fmt: skip
        report.data |= {"data": name, "cpus": os.cpu_count(), "need": args.need}
        best = rates(report, subset, args)
        report.say(f"needed: {args.need:g} images/s; the best setting gives {best / args.need:.2f} times that")
        report.data["best"] = best
        ratio = beside_the_step(report, subset, args) if args.step else None
    bounds = [("images/s", best, ">=", args.need)]
    if args.step:
        bounds.append(("loop over step", ratio, "<=", MAX_WAIT))
    code = verdict(report, bounds) if args.check else 0
    report.write()
    return code


if __name__ == "__main__":
    sys.exit(main())
