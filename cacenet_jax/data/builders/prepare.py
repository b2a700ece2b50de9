"""Preparation of data sets. Records are written once, to a temporary directory that is renamed on completion."""

import contextlib
import fcntl
import importlib
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from cacenet_jax.data.builders.base import ReidBuilder, ReidConfig
from cacenet_jax.data.builders.scan import ON_ERROR, SPLITS, Scan
from cacenet_jax.data.builders.split import Prepared, read_metadata, split_counts
from cacenet_jax.distributed.progress import Progress, shown
from cacenet_jax.errors import UserError, printable, writing

_BUILDERS = {  # data set name -> class in the module of that name
    "dukemtmc_reid": "DukemtmcReid",
    "market1501": "Market1501",
    "msmt17": "Msmt17",
    "occluded_dukemtmc": "OccludedDukemtmc",
    "reid_folder": "ReidFolder",
    "synthetic_pedestrians": "SyntheticPedestrians",
}
_CHECK_OPTIONS = ("check_counts",)  # options that do not affect the records


def available() -> tuple[str, ...]:
    """Return the names of all available data sets."""
    return tuple(_BUILDERS)


def prepare(
    name: str,
    *,
    root: str | None,
    data_dir: str,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
    needs: Sequence[str] = SPLITS,
    on_error: str = "raise",
) -> Prepared:
    """Prepare a data set, or return the existing copy.

    A copy is stored in data_dir/<name>/<fingerprint>/<version>. The fingerprint covers the name, labels, size and
    modification time (checksum in a zip) of each image. Changing images or options therefore creates a new copy, but
    moving the data set does not. Old copies remain until the user removes them. An interrupted preparation creates no
    copy, and the next one removes its leftover files.

    Args:
        name: one of `available()`.
        root: data set folder, a folder above it, or a zip of it. None selects the only prepared copy, without access to
            the source. Ignored for rendered data sets.
        data_dir: folder for prepared data.
        options: options of the builder; see its OPTIONS.
        progress: if True, report progress and notes on stderr, as a bar on a terminal and as lines of text otherwise.
        needs: splits that must have images: train to train, query and gallery to evaluate. A data set to train on may lack
            query and gallery together, but not one of them.
        on_error: "raise" to stop at a broken image, "skip" to leave it out. With "skip", the copy is stored
            separately, and its metadata.json lists the omitted images.

    Returns:
        The prepared copy.

    Raises:
        UserError: the name is unknown, the options are invalid, or the files are not as expected.
    """
    builder = builder_class(name)
    chosen = builder.complete_options(options)
    home = os.path.join(os.path.abspath(os.path.expanduser(data_dir)), name)
    if on_error not in ON_ERROR:
        raise UserError(f"on_error: found {on_error!r}, expected one of {', '.join(ON_ERROR)}; choose one of them")
    directory, scan = _resolve(builder, chosen, home, root, needs, on_error)
    is_new = not os.path.isdir(directory)
    if scan is not None and is_new:
        with _locked(home, progress), writing(home):
            if not os.path.isdir(directory):  # another process may have prepared it in the meantime
                _remove_leftovers(home)
                _write(builder, scan, _content_options(chosen), directory, progress, on_error)
    metadata = read_metadata(directory)
    if progress:
        for note in [*(scan.notes if scan is not None else ()), *_content_notes(directory, metadata, is_new)]:
            print(f"note: {note}", file=sys.stderr, flush=True)
    return Prepared(name, directory, tuple((image, reason) for image, reason in metadata.get("skipped", ())))


def find_prepared(
    name: str, *, root: str | None, data_dir: str, options: Mapping[str, Any] | None = None, on_error: str = "raise"
) -> str:
    """Return the directory in which `prepare` stores a data set, without preparing it. It may not exist.

    Args:
        name: as in `prepare`.
        root: as in `prepare`.
        data_dir: as in `prepare`.
        options: as in `prepare`.
        on_error: as in `prepare`.

    Raises:
        UserError: as in `prepare`, except that the contents of image files are not checked.
    """
    builder = builder_class(name)
    home = os.path.join(os.path.abspath(os.path.expanduser(data_dir)), name)
    return _resolve(builder, builder.complete_options(options), home, root, SPLITS, on_error)[0]


def builder_class(name: str) -> type[ReidBuilder]:
    """Return the builder class of a data set.

    Raises:
        UserError: the name is unknown.
    """
    if name not in _BUILDERS:
        raise UserError(f"data set {name!r} is unknown; expected one of {', '.join(_BUILDERS)}; correct the name")
    return getattr(importlib.import_module(f"cacenet_jax.data.builders.{name}"), _BUILDERS[name])


def _resolve(
    builder: type[ReidBuilder],
    chosen: dict[str, Any],
    home: str,
    root: str | None,
    needs: Sequence[str],
    on_error: str,
) -> tuple[str, Scan | None]:
    """Return the directory of the prepared copy and the scan of its source, or None if the source is not needed."""
    if builder.NEEDS_ROOT and not root:
        directory = _existing_copy(builder, home, chosen, on_error)
        skipped = Counter(name.partition("/")[0] for name, _ in read_metadata(directory).get("skipped", ()))
        counts = {split: count + skipped[split] for split, count in split_counts(directory).items()}
        builder.check_counts(counts, chosen, directory, needs)
        return directory, None
    scan = builder.scan(root or "", chosen)
    builder.check_counts(scan.counts(), chosen, scan.origin, needs)
    scan.require(needs, on_error)
    copy = scan.fingerprint if on_error == "raise" else f"{scan.fingerprint}-{on_error}"
    return os.path.join(home, copy, str(builder.VERSION)), scan


def _content_notes(directory: str, metadata: Mapping[str, Any], is_new: bool) -> Iterator[str]:
    """Yield lines for the user about the images of a prepared copy."""
    where = os.path.join(directory, "metadata.json")
    if skipped := metadata.get("skipped"):
        image, reason = skipped[0]
        yield f"{len(skipped):,} broken images are left out, first {printable(image)} ({reason}); {where} lists them"
    copies = metadata.get("copies")
    if copies and is_new:
        first, second = map(printable, copies[0])
        yield (
            f"{len(copies):,} images are copies of an image of another identity, first {second} of {first}; {where} "
            "lists them"
        )


def _content_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that affect the records."""
    return {key: value for key, value in options.items() if key not in _CHECK_OPTIONS}


def _existing_copy(builder: type[ReidBuilder], home: str, options: Mapping[str, Any], on_error: str) -> str:
    """Return the only prepared directory with these options and this behaviour for broken images.

    Raises:
        UserError: there is no such directory, or more than one.
    """
    matches = []
    for copy in sorted(os.listdir(home)) if os.path.isdir(home) else ():
        directory = os.path.join(home, copy, str(builder.VERSION))
        if not os.path.isdir(directory):
            continue
        metadata = read_metadata(directory)
        stored = builder.OPTIONS | metadata["options"]  # a copy may be older than an option
        if _content_options(stored) == _content_options(options) and metadata.get("on_error", "raise") == on_error:
            matches.append(directory)
    if not matches:
        raise UserError(
            f"{builder.name}: no data root given and nothing prepared in {home}; set "
            f"config.data.root to its folder or zip; {builder.HOME}"
        )
    if len(matches) > 1:
        listed = ", ".join(f"{directory} from {read_metadata(directory)['origin']}" for directory in matches)
        raise UserError(
            f"{builder.name}: no data root given and several copies prepared ({listed}); set "
            "config.data.root or remove all but one"
        )
    return matches[0]


def _write(
    builder: type[ReidBuilder], scan: Scan, options: dict[str, Any], directory: str, progress: bool, on_error: str
) -> None:
    """Write the records. TFDS writes to a directory `incomplete.…` and renames it at the end."""
    copy = os.path.dirname(directory)
    data_dir, name = os.path.dirname(os.path.dirname(copy)), os.path.basename(copy)
    try:
        with (
            shown(progress),
            Progress(f"preparing {builder.name}", sum(scan.counts().values()), "images", is_prominent=True) as bar,
            tempfile.TemporaryDirectory() as unused,
            _quiet_tfds(),
            warnings.catch_warnings(),
        ):
            # About large images, which are refused, and about damaged EXIF, which is not used.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            config = ReidConfig(name=name, scan=scan, options=options, on_error=on_error, on_image=bar.update)
            writer = builder(data_dir=data_dir, config=config, file_format="array_record")
            writer.download_and_prepare(download_dir=unused)
    finally:
        with contextlib.suppress(OSError):  # not empty if it contains the finished copy
            os.rmdir(copy)


def _remove_leftovers(home: str) -> None:
    """Remove incomplete copies left by interrupted preparations. The caller must hold the lock."""
    for copy in os.listdir(home):
        folder = os.path.join(home, copy)
        for item in os.listdir(folder) if os.path.isdir(folder) else ():
            if item.startswith("incomplete."):
                shutil.rmtree(os.path.join(folder, item), ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty, or a file
            os.rmdir(folder)


@contextlib.contextmanager
def _locked(home: str, progress: bool) -> Iterator[None]:
    """Hold the file lock of a data set. The operating system releases it if the process dies."""
    try:
        os.makedirs(home, exist_ok=True)
        lock = open(os.path.join(home, ".lock"), "w")
    except OSError as error:
        raise UserError(f"data directory {home} cannot be written ({error.strerror}); choose another one") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(
                    f"{os.path.basename(home)}: waiting for another process that is preparing it",
                    file=sys.stderr,
                    flush=True,
                )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Suppress absl warnings, because TFDS warns about an unknown configuration."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
