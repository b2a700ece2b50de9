"""Worker process that runs one training step of the tiny network in both dtypes and modes, and writes the results.

python step_worker.py HOST:PORT PROCESSES PROCESS FOLDER
"""

import pickle
import sys
from pathlib import Path

from cacenet_jax.distributed import processes

if __name__ == "__main__":
    processes.start(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), timeout=600)
    import jax
    from agreement import ACROSS, on_devices
    from tiny_training import tiny_config

    results = {}
    for dtype, mode in ACROSS:
        with jax.enable_x64(dtype == "float64"):
            results[dtype, mode] = on_devices(tiny_config(dtype), mode, 0, dtype)
    layout = [(device.process_index, device.id) for device in jax.devices()]
    greetings = processes.exchange("greeting", f"process {jax.process_index()}")
    number = processes.broadcast_from_writer("number", 0.1 + jax.process_index())
    report = {
        "results": results,
        "layout": layout,
        "greetings": greetings,
        "number": number,
        "writer": processes.is_writer(),
    }
    (Path(sys.argv[4]) / f"{sys.argv[3]}.pickle").write_bytes(pickle.dumps(report))
