"""Preparing a data set once: written aside, renamed when complete."""

import contextlib
import fcntl
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging
from tqdm import tqdm

from cacenet_jax.data.builders.base import ReidBuilder, ReidConfig, Scan
from cacenet_jax.data.builders.split import Prepared, read_metadata, split_counts
from cacenet_jax.errors import UserError

_BUILDERS = {  # name -> class, in the module of the same name
    "dukemtmc_reid": "DukemtmcReid",
    "market1501": "Market1501",
    "msmt17": "Msmt17",
    "occluded_dukemtmc": "OccludedDukemtmc",
    "reid_folder": "ReidFolder",
    "synthetic_pedestrians": "SyntheticPedestrians",
}
_NOT_CONTENT = ("check_counts",)  # options that change no record
_LINE_EVERY_S = 10.0


def available() -> tuple[str, ...]:
    """Return the names of the data sets."""
    return tuple(_BUILDERS)


def prepare(
    name: str,
    *,
    root: str | None,
    data_dir: str,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Prepared:
    """Prepare a data set, or return at once what was prepared before.

    A copy lives in data_dir/<name>/<fingerprint>/<version>. The fingerprint covers each image's name, labels,
    size and time of change (in a zip: checksum), so other images, changed images and other options get a copy
    of their own, and the same data set found through another path does not. Old copies stay until the user
    removes them. Killed or failed preparations leave nothing that counts.

    Args:
        name: one of `available()`.
        root: the data set's folder, the folder above it, or its zip. None takes the one copy that is prepared
            already, without looking for its source. Ignored by data that is rendered.
        data_dir: where prepared data lives.
        options: the builder's options; see its OPTIONS.
        progress: whether to report progress on stderr, as a bar on a terminal and as plain lines otherwise.

    Returns:
        where the prepared data is.

    Raises:
        UserError: for whatever is wrong with the name, the options or the user's files, in one line.
    """
    builder = builder_class(name)
    chosen = builder.complete_options(options)
    home = os.path.join(os.path.abspath(os.path.expanduser(data_dir)), name)
    directory, scan = _find(builder, chosen, home, root)
    if scan is not None and not os.path.isdir(directory):
        with _locked(home, progress):
            if not os.path.isdir(directory):  # another process may have been faster
                _remove_leftovers(home)
                _write(builder, scan, _content(chosen), home, progress)
    return Prepared(name, directory)


def find(name: str, *, root: str | None, data_dir: str, options: Mapping[str, Any] | None = None) -> str:
    """Return where the prepared copy of a data set is or would be, and prepare nothing.

    Args:
        name: as for `prepare`, as everything else.
        root: the data set's folder or zip.
        data_dir: where prepared data lives.
        options: the builder's options.

    Returns:
        the directory.

    Raises:
        UserError: the data set is not there, or is not what it should be by its names and counts.
    """
    builder = builder_class(name)
    home = os.path.join(os.path.abspath(os.path.expanduser(data_dir)), name)
    return _find(builder, builder.complete_options(options), home, root)[0]


def builder_class(name: str) -> type[ReidBuilder]:
    """Return the builder of a data set. Raises UserError for an unknown name."""
    if name not in _BUILDERS:
        raise UserError(f"data set {name!r} is unknown; expected one of {', '.join(_BUILDERS)}; correct the name")
    return getattr(importlib.import_module(f"cacenet_jax.data.builders.{name}"), _BUILDERS[name])


def _find(builder: type[ReidBuilder], chosen: dict[str, Any], home: str, root: str | None) -> tuple[str, Scan | None]:
    """Return the directory of the prepared copy, and the scan of its source where that was looked for."""
    if builder.NEEDS_ROOT and not root:
        directory = _prepared_before(builder, home, chosen)
        builder.check_counts(split_counts(directory), chosen, directory)
        return directory, None
    scan = builder.scan(root or "", chosen)
    builder.check_counts(scan.counts(), chosen, scan.origin)
    return os.path.join(home, scan.fingerprint, str(builder.VERSION)), scan


def _content(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in _NOT_CONTENT}


def _prepared_before(builder: type[ReidBuilder], home: str, options: Mapping[str, Any]) -> str:
    """Return the only prepared directory with these options. Raises UserError for none or several."""
    found = []
    for copy in sorted(os.listdir(home)) if os.path.isdir(home) else ():
        directory = os.path.join(home, copy, str(builder.VERSION))
        if os.path.isdir(directory) and read_metadata(directory)["options"] == _content(options):
            found.append(directory)
    if not found:
        raise UserError(
            f"{builder.name}: no data root given and nothing prepared in {home}; set "
            f"config.data.root to its folder or zip; {builder.HOME}"
        )
    if len(found) > 1:
        listed = ", ".join(f"{directory} from {read_metadata(directory)['origin']}" for directory in found)
        raise UserError(
            f"{builder.name}: no data root given and several copies prepared ({listed}); set "
            "config.data.root or remove all but one"
        )
    return found[0]


def _write(builder: type[ReidBuilder], scan: Scan, options: dict[str, Any], home: str, progress: bool) -> None:
    """Write the records; TFDS writes into a directory named incomplete.… and renames it at the end."""
    copy = os.path.join(home, scan.fingerprint)
    try:
        with (
            _reporter(builder.name, sum(scan.counts().values()), progress) as on_image,
            tempfile.TemporaryDirectory() as unused,
            _quiet_tfds(),
        ):
            config = ReidConfig(name=scan.fingerprint, scan=scan, options=options, on_image=on_image)
            writer = builder(data_dir=os.path.dirname(home), config=config, file_format="array_record")
            writer.download_and_prepare(download_dir=unused)
    finally:
        with contextlib.suppress(OSError):  # not empty: it holds the finished copy
            os.rmdir(copy)


def _remove_leftovers(home: str) -> None:
    """Remove what killed preparations left; the lock is held, so nobody is writing there."""
    for copy in os.listdir(home):
        folder = os.path.join(home, copy)
        for item in os.listdir(folder) if os.path.isdir(folder) else ():
            if item.startswith("incomplete."):
                shutil.rmtree(os.path.join(folder, item), ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty, or a file
            os.rmdir(folder)


@contextlib.contextmanager
def _locked(home: str, progress: bool) -> Iterator[None]:
    """Hold the data set's lock, which the system drops when the process ends, however it ends."""
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
                    f"{os.path.basename(home)}: waiting for another process that prepares it",
                    file=sys.stderr,
                    flush=True,
                )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keep TFDS from warning that the configuration is not one of its own."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _reporter(name: str, total: int, progress: bool) -> Iterator[Callable[[], None]]:
    """Yield what to call after each image: it moves a bar, prints a line now and then, or does nothing."""
    if not progress:
        yield lambda: None
    elif sys.stderr.isatty():
        with tqdm(total=total, desc=f"preparing {name}", unit=" images") as bar:
            yield lambda: bar.update() and None
    else:
        yield (lines := _Lines(name, total)).step
        lines.say()


class _Lines:
    """Progress as plain lines."""

    def __init__(self, name: str, total: int):
        self._name, self._total, self._done = name, total, 0
        self._start = self._last = time.monotonic()

    def step(self) -> None:
        """Count an image; print a line every few seconds."""
        self._done += 1
        if time.monotonic() - self._last > _LINE_EVERY_S:
            self.say()

    def say(self) -> None:
        """Print how far it is."""
        self._last = time.monotonic()
        took = self._last - self._start
        print(
            f"preparing {self._name}: {self._done:,} of {self._total:,} images, {took:.1f} s",
            file=sys.stderr,
            flush=True,
        )
