"""Benchmark of an index of photographs: time to make it, time of a search, size, and what an approximate index loses.

    python -m benchmarks.photograph_index --workdir=workdirs/osnet_second --images=FOLDER
    python -m benchmarks.photograph_index --workdir=workdirs/osnet --images=FOLDER --torch --limit=2000
    python -m benchmarks.photograph_index --rows=1000000

The first indexes a folder and searches it 50 times with images of it, by the individual distance alone and with the best
images re-scored. With --torch, the same images go through a PyTorch extractor in the manner of torchreid's (Pillow, resize,
normalise, batches of 32, OSNet x0.25 channels last, mean over positions), which writes nothing, in turn with the indexing.
The third fills a table with random unit vectors around 10,000 centres and measures exact and approximate search.
"""

import argparse
import os
import resource
import runpy
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

import cacenet_jax as cace
from benchmarks.backbone import TORCH_NETWORKS
from cacenet_jax.index import table as table_module
from cacenet_jax.index.table import NAME, Table

SEARCHES, NEAREST, CENTRES, ROWS_OF_A_WRITE, NOISE = 50, 100, 10_000, 50_000, 0.8


def median_ms(function: Callable[[int], Any], count: int = SEARCHES) -> str:
    """Time calls of a function of a number, and return their median and range in milliseconds."""
    function(0)
    seconds = []
    for number in range(count):
        begin = time.perf_counter()
        function(number)
        seconds.append(time.perf_counter() - begin)
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{1e3 * middle:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"


def mib(folder: str) -> float:
    """Return the size of the files of a folder in MiB."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20


def torch_extractor(paths: Sequence[Path], height: int, width: int, channels_last: bool) -> np.ndarray:
    """Return features of image files by OSNet x0.25 in PyTorch, shape (n, 512)."""
    import torch

    network = runpy.run_path(str(TORCH_NETWORKS))["published_network"]("osnet_x0_25").float().eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    head = torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.BatchNorm1d(512), torch.nn.ReLU()).eval()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = []
    with torch.no_grad():
        for start in range(0, len(paths), 32):
            images = [Image.open(path).convert("RGB").resize((width, height)) for path in paths[start : start + 32]]
            x_BHWC = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
            x_BCHW = ((x_BHWC - mean) / deviation).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            features.append(head(network(x_BCHW)["conv5"].mean(dim=(2, 3))).numpy())
    return np.concatenate(features)


def of_folder(workdir: str, folder: Path, limit: int, beside_torch: bool, place: str) -> None:
    """Index a folder, search it, and print."""
    reid = cace.load(workdir)
    paths = sorted(folder.iterdir())[: limit or None]
    if limit:
        chosen = Path(place, "chosen")
        chosen.mkdir()
        for path in paths:
            os.link(path, chosen / path.name) if path.stat().st_dev == chosen.stat().st_dev else shutil.copy(
                path, chosen
            )
        folder = chosen
    reid.embed(paths[:64])  # compiles
    for number in range(3 if beside_torch else 1):
        begin = time.perf_counter()
        index = reid.index(folder, f"{place}/{number}.lance")
        seconds = time.perf_counter() - begin
        print(f"index: {len(index):,} images in {seconds:.1f} s, {len(index) / seconds:.1f} images/s", flush=True)
        for layout in ("contiguous", "channels last") if beside_torch else ():
            begin = time.perf_counter()
            torch_extractor(paths, *reid.image_size, layout == "channels last")
            other = time.perf_counter() - begin
            print(f"PyTorch, {layout}: {len(paths) / other:.1f} images/s, ratio {other / seconds:.2f}", flush=True)
    print(f"size: {mib(index.place):.1f} MiB, {1024 * mib(index.place) / len(index):.1f} KiB an image", flush=True)
    queries = [paths[i] for i in np.random.default_rng(0).choice(len(paths), SEARCHES, replace=False)]
    print(f"search, individual: {median_ms(lambda i: index.search(queries[i], 20, top_k=0))}", flush=True)
    if reid.top_k:
        print(f"search, best {reid.top_k} re-scored: {median_ms(lambda i: index.search(queries[i], 20))}", flush=True)
    begin = time.perf_counter()
    changes = index.update(folder)
    print(f"update without changes: {time.perf_counter() - begin:.1f} s, {changes.unchanged:,} unchanged", flush=True)


def of_rows(count: int, size: int, place: str) -> None:
    """Fill a table with random rows, search it exactly and approximately, and print."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, size), np.float32)
    settings = {"network": "random", "embedding_size": size, "terms": {}, "root": "/"}
    table = Table.create(f"{place}/rows.lance", settings, {})
    rows_of_lance = table_module.lancedb.connect(table.place).open_table(NAME)
    queries = []
    begin = time.perf_counter()
    for start in range(0, count, ROWS_OF_A_WRITE):
        rows = min(ROWS_OF_A_WRITE, count - start)
        x_nF = centres[generator.integers(0, CENTRES, rows)] + NOISE * generator.standard_normal(
            (rows, size), np.float32
        )
        x_nF /= np.linalg.norm(x_nF, axis=1, keepdims=True)
        queries.append(x_nF[0] + NOISE / 10 * generator.standard_normal(size, np.float32) / size**0.5)
        names = [f"{start + i:09d}" for i in range(rows)]
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(x_nF.ravel()), size)
        rows_of_lance.add(pa.table({"id": names, "path": names, "embedding": embeddings}))
    opened = Table.open(table.place)
    assert opened is not None
    table = opened
    print(f"{count:,} rows of {size}: {time.perf_counter() - begin:.0f} s, {mib(table.place):,.0f} MiB", flush=True)
    chosen = [queries[i % len(queries)] for i in range(SEARCHES)]
    exact = [table.closest(query, NEAREST, None, True)[0] for query in chosen]
    print(f"exact: {median_ms(lambda i: table.closest(chosen[i], NEAREST, None, True))}", flush=True)
    begin = time.perf_counter()
    table.build_vector_index()
    print(f"approximate index: {time.perf_counter() - begin:.0f} s", flush=True)
    recalls = [
        len(set(ids) & set(table.closest(query, NEAREST, None, False)[0])) / NEAREST
        for ids, query in zip(exact, chosen)
    ]
    print(
        f"approximate: {median_ms(lambda i: table.closest(chosen[i], NEAREST, None, False))}, recall of the {NEAREST} "
        f"nearest {np.mean(recalls):.3f} (lowest {min(recalls):.2f})",
        flush=True,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.1f} GiB; {mib(table.place):,.0f} MiB on disk", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", help="workdir, export or published checkpoint")
    parser.add_argument("--images", type=Path, help="folder of images, without subfolders")
    parser.add_argument("--limit", type=int, default=0, help="images of the folder; 0 for all")
    parser.add_argument("--torch", action="store_true", help="measure PyTorch in turn, three times")
    parser.add_argument("--rows", type=int, default=0, help="random rows to search")
    parser.add_argument("--size", type=int, default=512, help="length of a random row; %(default)s")
    chosen = parser.parse_args(arguments)
    if not chosen.rows and not (chosen.workdir and chosen.images):
        parser.error("give --workdir and --images, or --rows")
    with tempfile.TemporaryDirectory() as place:
        if chosen.rows:
            of_rows(chosen.rows, chosen.size, place)
        else:
            of_folder(chosen.workdir, chosen.images, chosen.limit, chosen.torch, place)


if __name__ == "__main__":
    main()
