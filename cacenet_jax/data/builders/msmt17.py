"""MSMT17 (Wei et al., Person Transfer GAN to Bridge Domain Gap, CVPR 2018), in the V1 and V2 layouts."""

import posixpath
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from cacenet_jax.data.builders.base import Entry, FileScan, ReidBuilder, Scan
from cacenet_jax.data.builders.location import locate
from cacenet_jax.data.builders.source import Source, open_source
from cacenet_jax.errors import UserError

_LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
_FOLDERS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
_NAME = re.compile(r"-?\d+_\d+_(\d{1,9})_")  # the third field is the camera


class Msmt17(ReidBuilder, skip_registration=True):
    """Builder for MSMT17. Identities are numbered from 0 in train, and from 0 again in query and gallery.

    The option `train_val` adds the images of list_val.txt to train, as in some papers but not in the original protocol.
    """

    name = "msmt17"
    SUMMARY = "MSMT17: 4,101 identities, 15 cameras."
    HOME = "get MSMT17 from its authors' page www.pkuvmc.com/dataset.html"
    OPTIONS: ClassVar[Mapping[str, Any]] = {"check_counts": True, "train_val": False}

    @classmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Scan the lists of images, or those of the training or the test set alone.

        Raises:
            UserError: a file is missing or a line does not parse.
        """
        source = open_source(root)
        layouts = {layout: (*folders, *_LISTS) for layout, folders in _FOLDERS.items()}
        test_lists = ("list_query.txt", "list_gallery.txt")
        train_lists = ("list_train.txt", "list_val.txt")
        partial = {f"{layout} test": (test, *test_lists) for layout, (_, test) in _FOLDERS.items()}
        partial |= {f"{layout} train": (train, *train_lists) for layout, (train, _) in _FOLDERS.items()}
        location = locate(source, layouts, ("MSMT17_V1", "MSMT17_V2", "MSMT17"), cls.HOME, partial)
        train, test = _FOLDERS[location.layout.split()[0]]

        def read(list_name: str, folder: str) -> list[Entry]:
            path = posixpath.join(location.folder, f"list_{list_name}.txt")
            is_absent = location.layout in partial and not source.exists(path)
            return [] if is_absent else _read_list(source, path, posixpath.join(location.folder, folder))

        splits = {
            "train": read("train", train),
            "query": read("query", test),
            "gallery": read("gallery", test),
        }
        if options["train_val"]:
            splits["train"] += read("val", train)
        return FileScan(source, location.folder, splits)

    @classmethod
    def expected_counts(cls, options: Mapping[str, Any]) -> Mapping[str, int] | None:
        """Return the published counts, or None if check_counts is off."""
        train = 32_621 if options["train_val"] else 30_248
        return {"train": train, "query": 11_659, "gallery": 82_161} if options["check_counts"] else None


def _read_list(source: Source, path: str, folder: str) -> list[Entry]:
    """Parse a list with lines `<file> <pid>`. The camera is the third field of the file name."""
    entries = []
    for number, line in enumerate(source.read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, pid = line.strip().rpartition(" ")
        match = _NAME.match(posixpath.basename(name))
        if match is None or not re.fullmatch(r"\d{1,9}", pid):
            raise UserError(
                f"{source.display_path(path)} line {number}: {line.strip()!r} does not parse; expected "
                "'0000/0000_000_01_0303morning_0008_0.jpg 0' (file whose third field is the camera, then "
                "the pid)"
                f"; restore the original list"
            )
        name = name.strip()
        entries.append(Entry(posixpath.join(folder, name), name, int(pid), int(match[1])))
    return entries
