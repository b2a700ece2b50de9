"""Device traces: the longest kernels of a few calls, read from jax.profiler's trace file without TensorFlow."""

import collections
import gzip
import json
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

from benchmarks.timing import format_table


def events_of(folder: str) -> list[dict[str, Any]]:
    """Read the kernels of the newest trace in a folder: of an accelerator's streams, or XLA's operations on a CPU."""
    files = sorted(pathlib.Path(folder).rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(files[-1]) as file:
        events = json.load(file)["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    devices = {pid for pid, name in processes.items() if name.startswith("/device:")}
    spans = [e for e in events if e.get("ph") == "X" and "dur" in e]
    if not devices:
        return [e for e in spans if "hlo_op" in e.get("args", {})]
    # A TPU repeats its operations on lanes of modules and steps; a GPU has one lane a stream.
    lanes = {key for key, name in threads.items() if key[0] in devices}
    operations = {key for key in lanes if threads[key] == "XLA Ops" or threads[key].startswith("Stream")}
    return [e for e in spans if (e["pid"], e["tid"]) in (operations or lanes)]


def busy_share(events: Iterable[dict[str, Any]]) -> float:
    """Return the share of the time from first to last kernel during which at least one runs."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / (end - spans[0][0])


def longest(events: Iterable[dict[str, Any]], calls: int, count: int) -> list[dict[str, Any]]:
    """Aggregate kernels by name, without trailing numbers: time and launches per call, longest first."""
    total, launches, example = collections.Counter(), collections.Counter(), {}
    for event in events:
        name = re.sub(r"([._]\d+)+$", "", event["name"])
        total[name] += event["dur"]
        launches[name] += 1
        args = event.get("args", {})
        example.setdefault(name, args.get("tf_op") or args.get("name") or args.get("hlo_op") or "")
    return [
        {"kernel": name, "ms": us / 1e3 / calls, "launches": launches[name] / calls, "operation": example[name]}
        for name, us in total.most_common(count)
    ]


def profile(run: Callable[[], Any], folder: str, calls: int = 5, count: int = 25) -> tuple[dict[str, Any], str]:
    """Trace a few calls after two for warm-up.

    Returns:
        The summary as a dictionary and as text.
    """
    jax.block_until_ready(run())
    jax.block_until_ready(run())
    with jax.profiler.trace(folder):
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
    events = events_of(folder)
    if not events:
        return {"kernels": []}, f"the trace under {folder} holds no kernel of a device"
    share, rows = busy_share(events), longest(events, calls, count)
    span = (max(e["ts"] + e["dur"] for e in events) - min(e["ts"] for e in events)) / 1e3 / calls
    summary = {"busy": share, "ms_per_call": span, "launches_per_call": len(events) / calls, "kernels": rows}
    share, kernel_ms = 100 * share, sum(e["dur"] for e in events) / 1e3 / calls
    head = f"{calls} calls, {span:.4g} ms each; a kernel runs in {share:.1f} % of that time, "
    head += f"{len(events) / calls:.0f} launches a call; trace under {folder}\n"
    cells = []
    for row in rows:
        part = f"{100 * row['ms'] / kernel_ms:.1f} %"
        cells.append((row["kernel"][:60], row["ms"], part, row["launches"], row["operation"][-60:]))
    return summary, head + format_table(("kernel", "ms a call", "of kernels", "launches", "for example"), cells)
