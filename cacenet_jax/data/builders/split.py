"""Access to prepared data: random access to records, labels from a small cached index."""

import contextlib
import dataclasses
import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from cacenet_jax.data import json_files
from cacenet_jax.data.builders.scan import SPLITS
from cacenet_jax.errors import UserError

_REMEDY = "remove this directory and prepare again"
_INDEX_KEYS = ("pids", "camids", "names", "checksums", "num_bytes")


class Prepared(NamedTuple):
    """Prepared copy of a data set.

    Attributes:
        name: name of the data set.
        directory: absolute path of the copy, readable by `tensorflow_datasets.builder_from_directory`.
        skipped: (SPLIT/NAME, reason) of each broken image that was left out.
    """

    name: str
    directory: str
    skipped: tuple[tuple[str, str], ...] = ()


class Records(Sequence):
    """Random-access sequence of the records of a split; records[i] is {image, pid, camid, name, parts}.

    `image` and `parts` are encoded bytes (`parts` is empty if unknown), `pid` and `camid` are int, and `name` is str.
    The object pickles to a few kilobytes and opens its files on first access, so it can be sent to worker processes.
    """

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        position = index.__index__()
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        record = self._source[position % len(self)]
        return {**record, "name": record["name"].decode()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Split of a data set.

    Attributes:
        records: records, sorted by name (in rendering order for rendered data).
        pids: identity of each record, shape (n,).
        camids: camera of each record, shape (n,); -1 if unknown.
        names: name of each record, a list of length n.
        checksums: CRC-32 of each record's encoded image and part labels, shape (n,); None if unknown.
    """

    records: Records
    pids: Int[np.ndarray, "n"]
    camids: Int[np.ndarray, "n"]
    names: list[str]
    checksums: Int[np.ndarray, "n"] | None = None

    @property
    def digest(self) -> str:
        """Hash of all names, labels and images in order; the same for every copy of the same data."""
        content = hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogateescape"))
        for column in (self.pids, self.camids, self.checksums):
            content.update(b"" if column is None else np.ascontiguousarray(column).tobytes())
        return content.hexdigest()

    def __len__(self) -> int:
        """Return the number of records, n."""
        return len(self.pids)


def open_split(prepared: Prepared, split: str) -> Split:
    """Open a split of prepared data.

    Args:
        prepared: prepared copy, as returned by `prepare`.
        split: "train", "query" or "gallery".

    Returns:
        The split, which is empty if the data set does not have it.

    Raises:
        UserError: the split is unknown, or files in the prepared directory are missing or truncated.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} does not exist; expected one of {', '.join(SPLITS)}; correct it")
    builder = _builder(prepared.directory)
    if split not in builder.info.splits:
        return Split(Records([]), np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    info = builder.info.splits[split]
    sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in map(os.fspath, info.filepaths)]
    if sum(sizes) != info.num_bytes:
        raise UserError(
            f"{prepared.directory}: the records of split {split} have {sum(sizes):,} bytes, expected "
            f"{info.num_bytes:,}; "
            f"the prepared copy is damaged, remove this directory and prepare again"
        )
    undecoded = {"image": tfds.decode.SkipDecoding()}
    records = Records(builder.as_data_source(split, decoders=undecoded))
    path = os.path.join(prepared.directory, f"index-{split}.npz")
    index = _load_index(path, len(records), info.num_bytes)
    if index is None:
        rows = [(record["pid"], record["camid"], record["name"], _checksum(record)) for record in records]
        pids, camids, names, checksums = zip(*rows)
        index = {
            "pids": np.array(pids, np.int64),
            "camids": np.array(camids, np.int64),
            "names": np.array(names),
            "checksums": np.array(checksums, np.int64),
        }
        _save_index(path, {**index, "num_bytes": np.int64(info.num_bytes)})
    return Split(records, index["pids"], index["camids"], index["names"].tolist(), index["checksums"])


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(record["parts"], zlib.crc32(record["image"]))


def split_counts(directory: str) -> dict[str, int]:
    """Return the number of records in each split of a prepared directory."""
    splits = _builder(directory).info.splits
    return {split: int(splits[split].num_examples) if split in splits else 0 for split in SPLITS}


def read_metadata(directory: str) -> dict[str, Any]:
    """Return the metadata of a prepared directory, including its origin and options.

    Raises:
        UserError: they are missing or damaged.
    """
    path = Path(directory) / "metadata.json"
    metadata = json_files.read(path, _REMEDY) or {}
    is_whole = isinstance(metadata.get("options"), dict) and isinstance(metadata.get("origin"), str)
    if not is_whole or not all(_are_pairs(metadata.get(name, [])) for name in ("skipped", "copies")):
        raise UserError(f"{path}: found no options and origin of a prepared data set, expected both; {_REMEDY}")
    return metadata


def _are_pairs(values: Any) -> bool:
    """Return True for a list of pairs of strings."""
    return isinstance(values, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in values
    )


def _builder(directory: str) -> Any:
    """Return TFDS's builder of a prepared directory."""
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # whatever a damaged file makes TFDS and protobuf raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{directory}: found no prepared data set ({reason}), expected one; {_REMEDY}") from error


def _load_index(path: str, length: int, num_bytes: int) -> dict[str, np.ndarray] | None:
    """Return the cached labels, or None if they are missing, unreadable or stale."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            index = {key: stored[key] for key in _INDEX_KEYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    lengths = {len(index[key]) for key in _INDEX_KEYS if key != "num_bytes"}
    return index if index["num_bytes"] == num_bytes and lengths == {length} else None


def _save_index(path: str, index: dict[str, Any]) -> None:
    """Cache the labels atomically; do nothing if the directory is not writable."""
    buffer = io.BytesIO()
    np.savez(buffer, **index)
    with contextlib.suppress(OSError):
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".index-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(buffer.getvalue())
            os.chmod(temporary, 0o664)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
