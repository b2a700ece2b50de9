"""Custom image folders, with a manifest `path,pid[,camid][,split]` or labels in the names of files or folders."""

import os
import posixpath
from collections.abc import Mapping
from typing import Any, ClassVar

from cacenet_jax.data.builders.base import SPLITS, TEST_SPLITS, Entry, FileScan, ReidBuilder, Scan
from cacenet_jax.data.builders.hold_out import hold_out
from cacenet_jax.data.builders.location import DatasetLocation, locate
from cacenet_jax.data.builders.manifest import read_manifest
from cacenet_jax.data.builders.market_style import FOLDERS
from cacenet_jax.data.builders.name_labels import entries_of_folders
from cacenet_jax.data.builders.scan import unread_images
from cacenet_jax.data.builders.source import Source, open_source
from cacenet_jax.data.image_files import IMAGE_SUFFIXES
from cacenet_jax.errors import UserError, raise_together

_PLAIN = {split: split for split in SPLITS}
_POOL = "pool"  # layout of images without folders for the splits


class ReidFolder(ReidBuilder, skip_registration=True):
    """Builder for the user's own images, in a folder or a zip.

    The manifest is manifest.csv, the file named by the option `manifest`, or the data root itself if that is a .csv
    file. Cells are separated by commas, semicolons, tabs or |. Its paths are relative to the manifest. The columns `pid`
    and `camid` must each contain only integers or only names; names are numbered from 0 in sorted order. An empty or
    absent camid means that the camera is unknown (-1). Without a `split` column, the first folder of the path determines
    the split: train, query, gallery, or a Market-1501 folder name. A manifest that is the data root itself may name
    images anywhere, and without any split all of them are for training. Boxes and frames are cut from their images and
    videos.

    Without a manifest, the identity and the optional camera are parsed from file names such as 0002_c1….jpg or
    0002_….jpg, or each identity has a folder (options `identity` and `camera`). Images with pid -1 are junk and are
    dropped.

    With the option `test_ids`, images without a test split are divided by identity: that many random identities, chosen
    with `test_seed`, become query and gallery.
    """

    name = "reid_folder"
    SUMMARY = "A user's own person images."
    HOME = (
        "add manifest.csv with the columns path,pid,camid,split, sort the images into the folders train, query and "
        "gallery, or set config.data.options.test_ids to divide them by identity"
    )
    OPTIONS: ClassVar[Mapping[str, Any]] = {
        "manifest": "manifest.csv",
        "identity": "auto",
        "camera": "",
        "test_ids": 0,
        "test_seed": 0,
    }

    @classmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Scan the manifest or the folders.

        Raises:
            UserError: files are missing, or lines or file names do not parse.
        """
        manifest, test_ids = os.path.expanduser(options["manifest"]), options["test_ids"]
        root = os.path.expanduser(root)
        is_alone = root.lower().endswith(".csv") and not os.path.isdir(root)
        if is_alone:
            root, manifest = os.path.split(os.path.abspath(root))
        source = open_source(root, is_confined=not is_alone)
        location = cls._locate(source, manifest, pooled=test_ids != 0)
        where = source.display_path(location.folder)
        notes: list[str] = []
        splits: dict[str, list[Entry]]
        if location.layout == "manifest":
            pool = "train" if test_ids else None
            splits = read_manifest(source, posixpath.join(location.folder, manifest), pool, is_alone)
        else:
            names = {"plain": _PLAIN, "market": FOLDERS, _POOL: {"train": ""}}[location.layout.split()[0]]
            folders = {split: posixpath.join(location.folder, name) for split, name in names.items()}
            folders = {split: folder.rstrip("/") for split, folder in folders.items()}
            splits, notes = entries_of_folders(source, folders, options["identity"], options["camera"], where)
            unread = unread_images(source, folders.values())
            if not any(splits.values()):
                raise_together(unread)
            notes += unread
        report: dict[str, Any] = {}
        if test_ids:
            splits, report = hold_out(splits, test_ids, options["test_seed"], where)
        return FileScan(source, location.folder, splits, notes=notes, report=report)

    @classmethod
    def _locate(cls, source: Source, manifest: str, pooled: bool) -> DatasetLocation:
        """Return the layout and the folder. Where there are no splits, `pooled` accepts images below the root."""
        layouts = {"manifest": (manifest,), "plain": SPLITS, "market": tuple(FOLDERS.values())}
        partial = {
            f"{layout} {part}": tuple(names[split] for split in splits)
            for layout, names in (("plain", _PLAIN), ("market", FOLDERS))
            for part, splits in (("test", TEST_SPLITS), ("train", ("train",)))
        }
        if manifest != cls.OPTIONS["manifest"]:  # named explicitly, so there is no fallback
            return locate(source, {"manifest": (manifest,)}, (), cls.HOME)
        try:
            return locate(source, layouts, (), cls.HOME, partial)
        except UserError:
            if pooled and any(path.lower().endswith(IMAGE_SUFFIXES) for path in source.files("")):
                return DatasetLocation(_POOL, "")
            raise
