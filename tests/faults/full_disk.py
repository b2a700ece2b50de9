"""Disks without space: a small tmpfs where one can be mounted, and a limit on the size of files everywhere."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE_KIB = 24 << 10


class SmallDisk:
    """A tmpfs of 24 MiB, mounted at `folder`."""

    def __init__(self, folder: Path):
        self.folder, self._filling = folder, folder / "filling"

    def leave(self, kib: int) -> None:
        """Fill the disk up to `kib` KiB, which are rounded to whole pages."""
        self.clear()
        disk = os.statvfs(self.folder)
        size = disk.f_bavail * disk.f_frsize - kib * 1024
        with self._filling.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def clear(self) -> None:
        """Remove the filling."""
        self._filling.unlink(missing_ok=True)

    def refuse_writing(self) -> None:
        """Make the whole disk read-only."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a tmpfs, or skip the test where that is not allowed."""
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KIB}k", "tmpfs", str(folder)], capture_output=True, check=False
        )
        reason = done.stderr.decode().strip()
    except OSError as error:
        reason = str(error)
    if reason:
        pytest.skip(f"a tmpfs cannot be mounted here: {reason}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write no file beyond `size` bytes, as a quota does: EFBIG, also in libraries in C++."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
