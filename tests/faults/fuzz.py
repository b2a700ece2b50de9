"""Faulty files by the thousand: every one must be read or refused with a UserError, soon and in little memory.

    python -m tests.faults.fuzz --count=20000 --seed=0 [--kind=images|manifests|weights|zips]

The count is divided among the kinds. Each kind runs in a process of its own, which may crash. A line per kind says how
many files there were, and the exit code is 1 if one was a crash, took more than 10 s or more than 2 GB. Such a file is
kept in the current folder.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import samples

SECONDS, MIB = 10, 2000
_START = 120  # seconds for imports in the process of a kind


class Outcome(NamedTuple):
    """What became of the files of a kind; `fault` is empty, or says which file did what."""

    kind: str
    files: int
    accepted: int
    refused: int
    slowest: float
    peak_mib: float
    fault: str

    def line(self) -> str:
        return (
            f"{self.kind}: {self.files} files, {self.accepted} accepted, {self.refused} refused, "
            f"slowest {self.slowest:.2f} s, peak memory {self.peak_mib:.0f} MiB"
            + (f"; {self.fault}" if self.fault else "")
        )


# -- Readers, as a user's command reaches them -------------------------------------------------------------------------


def read_image(data: bytes, folder: Path) -> None:
    from cacenet_jax.data import images

    (folder / "x").write_bytes(data)
    images.read(folder / "x", np.empty((32, 16, 3), np.uint8), "x")
    images.decode(data, 32, 16, "x")  # of records, which hold only what was read before


def read_manifest(data: bytes, folder: Path) -> None:
    from cacenet_jax.data.builders.reid_folder import ReidFolder
    from cacenet_jax.export.folder import MANIFEST
    from cacenet_jax.export.folder import read_manifest as read

    if data.lstrip()[:1] == b"{":
        for name in ("extractor.jaxexport", "check.npz"):
            (folder / name).write_bytes(samples.EXPORTED)
        (folder / MANIFEST).write_bytes(data)
        read(folder)
        return
    for name in "abcd":
        (folder / f"{name}.png").touch()
    (folder / "manifest.csv").write_bytes(data)
    ReidFolder.scan(str(folder), dict(ReidFolder.OPTIONS))


def read_weights(data: bytes, folder: Path) -> None:
    from cacenet_jax.pretrained.reading import read

    (folder / "x.pth").write_bytes(data)
    for x in read(folder / "x.pth").values():
        np.array(x).sum()


def read_zip(data: bytes, folder: Path) -> None:
    from cacenet_jax.data.builders.reid_folder import ReidFolder

    (folder / "x.zip").write_bytes(data)
    scan = ReidFolder.scan(str(folder / "x.zip"), dict(ReidFolder.OPTIONS))
    for split, count in scan.counts().items():
        if count:  # a split without images is not read
            for _ in scan.examples(split, 0, count):
                pass


Reader = Callable[[bytes, Path], None]
READERS: dict[str, Reader] = {
    "images": read_image, "manifests": read_manifest, "weights": read_weights, "zips": read_zip,
}  # fmt: skip


# -- Processes ---------------------------------------------------------------------------------------------------------


def peak_mib() -> float:
    """Peak memory of this process. On Linux getrusage would begin with that of the process which started this one."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(kind: str, count: int, seed: int, results: Any, log: str, reader: Reader) -> None:
    """Read files and report each one: its index when it begins; then if it was accepted, the seconds and the memory."""
    from cacenet_jax.errors import UserError

    os.dup2(os.open(log, os.O_WRONLY), 2)  # the image libraries print a line for each fault
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if reader is READERS[kind]:
            read_valid(kind, folder)
        for index in range(count):
            data = samples.sample(kind, seed, index)
            results.send((index, None, 0.0, peak_mib()))
            start = time.perf_counter()
            try:
                reader(data, folder)
                state: object = True
            except UserError as error:
                state = False if str(error).splitlines()[0].strip() else "a UserError without a message"
            except BaseException as error:
                state = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            results.send((index, state, time.perf_counter() - start, peak_mib()))


def read_valid(kind: str, folder: Path) -> None:
    """Import what a reader needs, so that the first file does not pay for it."""
    from cacenet_jax.errors import UserError

    for data in samples.valid(kind):
        try:
            READERS[kind](data, folder)
        except UserError:
            continue


def fuzz(kind: str, count: int, seed: int, keep: Path | None = None, reader: Reader | None = None) -> Outcome:
    """Read `count` files of a kind in a new process, up to the first fault, and keep that file."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    descriptor, log = tempfile.mkstemp()
    worker = context.Process(target=work, args=(kind, count, seed, sender, log, reader or READERS[kind]), daemon=True)
    worker.start()
    sender.close()
    counts, slowest, peak, fault, index = {True: 0, False: 0}, 0.0, 0.0, "", -1
    while sum(counts.values()) < count and not fault:
        try:
            if not receiver.poll(SECONDS if index >= 0 else _START):
                fault = f"more than {SECONDS} s"
                break
            index, state, seconds, memory = receiver.recv()
        except EOFError:
            worker.join()
            fault = f"a crash with exit code {worker.exitcode}: {Path(log).read_text(errors='replace')[-500:].strip()}"
            break
        slowest, peak = max(slowest, seconds), max(peak, memory)
        if isinstance(state, bool):
            counts[state] += 1
        elif state is not None:
            fault = str(state)
        if not fault and (peak > MIB or seconds > SECONDS):
            fault = f"{peak:.0f} MiB" if peak > MIB else f"{seconds:.1f} s"
    worker.kill()
    worker.join()
    os.close(descriptor)
    os.unlink(log)
    if fault and index >= 0:
        path = (keep or Path.cwd()) / f"fault_{kind}_{seed}_{index}"
        path.write_bytes(samples.sample(kind, seed, index))
        fault = f"FAULT in file {index} (kept as {path.name}): {fault}"
    return Outcome(kind, sum(counts.values()), counts[True], counts[False], slowest, peak, fault)


def main() -> int:
    """Fuzz the kinds of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="number of files, divided among the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=[*READERS], help="only this kind")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    kinds = [args.kind] if args.kind else [*READERS]
    failed = False
    for kind in kinds:
        outcome = fuzz(kind, -(-args.count // len(kinds)), args.seed)
        print(outcome.line(), flush=True)
        failed |= bool(outcome.fault)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
