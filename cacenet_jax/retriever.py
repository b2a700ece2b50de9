"""A trained network in use: images to embeddings and to ranked lists, without labels and without a data set.

    reid = load("workdirs/synthetic")               # or workdirs/synthetic/export, or a copy of it
    embeddings = reid.embed(["a.jpg", "b.jpg"])
    for match in reid.rank("query.jpg", ["a.jpg", "b.jpg"])[0]:
        print(match.name, match.mixed)

The numbers are those of the evaluation: images are decoded, resized and described by the same functions, and lists are
ordered by the same distances.

Legend: n images, Q queries, G gallery images, K re-scored candidates of a query, L places of a list, H x W pixels, F
embedding size.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Float
from PIL import Image

from cacenet_jax.data.images import ListedImages, batches
from cacenet_jax.errors import UserError
from cacenet_jax.export import jax_artefacts
from cacenet_jax.export.folder import EXTRACTOR, JAX, MANIFEST, PAIR_SCORER, read_manifest
from cacenet_jax.models.cacenet import Described
from cacenet_jax.models.scoring import scoring
from cacenet_jax.retrieval.compare import Comparer, HostTerms
from cacenet_jax.retrieval.extract import extract, image_shapes, round_up
from cacenet_jax.retrieval.ranked_list import Match, RankedList
from cacenet_jax.retrieval.rankings import cosine_distance, mixed_distance, nearest
from cacenet_jax.retrieval.term_store import replicate

ImageLike = str | os.PathLike[str] | np.ndarray | jax.Array | Image.Image
Images = ImageLike | Iterable[ImageLike]

_AXIS = "images"  # of the devices
_OTHER_DISK = "set the environment variable TMPDIR to a folder on another disk, or rank fewer queries at a time"


class _Network(NamedTuple):
    """A trained network as retrieval uses it, wherever it was loaded from.

    Attributes:
        describe: `variables` and uint8 images (n, H, W, 3) to their features.
        variables: first argument of `describe`, a tree of arrays.
        distance: `constants`, terms of one image and of C others to C distances; None without a pair stage.
        constants: first argument of `distance`, a tree of arrays.
        image_size: (H, W).
        top_k: K.
        mix: weight of the pair distance.
        batch_size: images described at a time.
        memory_gib: limit of the terms in the host's memory; more lie in temporary files.
    """

    describe: Callable[[Any, Any], Described]
    variables: Any
    distance: Callable[[Any, Any, Any], Any] | None
    constants: Any
    image_size: tuple[int, int]
    top_k: int
    mix: float
    batch_size: int
    memory_gib: float


def load(place: str | os.PathLike[str], *, batch_size: int | None = None) -> "Retriever":
    """Load a trained network.

    From a workdir it is the checkpoint that config.eval.checkpoint of WORKDIR/config.json names. From the folder of an
    export (WORKDIR/export or a copy of it) it is the artefacts of jax.export, without the code of the network. Both give the
    same numbers, except that an export keeps the terms of the pair stage in float32 and an evaluation in
    config.eval.map_dtype.

    Args:
        place: workdir of a run that has a checkpoint, or folder of an export.
        batch_size: images described at a time on all devices of this process together, which every call is filled up to;
            config.eval.batch_size of the run by default. A small one answers sooner where few images come at a time.

    Raises:
        UserError: the folder is neither of them, its files do not fit together, the artefacts do not run on this platform,
            or the network needs part labels.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}, expected 1 or more; raise it")
    folder = Path(place)
    for marker, loader in _LOADERS.items():
        if (folder / marker).is_file():
            network = loader(folder)
            return Retriever(network._replace(batch_size=batch_size or network.batch_size), str(place))
    state = "a folder without config.json or manifest.json" if folder.is_dir() else "no folder"
    raise UserError(
        f"{place}: found {state}, expected the workdir of a run or the folder of an export; train one with --mode=train, "
        "or correct the path"
    )


class Retriever:
    """A trained network that embeds images and ranks galleries, returned by `load`.

    Images are given one by one or several at a time, of any size and mixed: paths of JPEG and PNG files, uint8 arrays
    (height, width, 3) in the order red, green, blue, PIL images, or one array (n, height, width, 3). Grey values are
    repeated and an alpha channel is dropped. All images of a call are held in memory only as they were given: they are
    decoded, resized to `image_size` and described in batches of one shape, so that any number of images compiles one program
    and takes bounded memory.

    Attributes:
        image_size: (height, width) of an image in the network.
        embedding_size: F.
        top_k: images that `rank` scores again by pairs for each query, config.eval.top_k of the run; 0 in a network without
            a pair stage.
        mix: weight of the pair distance in the mixed one, config.eval.mix of the run; 0 in a network without a pair stage.
        batch_size: images described at a time.
    """

    def __init__(self, network: _Network, place: str):
        """Prepare the network on the devices of this process.

        Args:
            network: the network.
            place: folder that it was loaded from.
        """
        # Devices of this process alone: where several run, each may have images of its own.
        self._mesh = Mesh(np.asarray(jax.local_devices()), (_AXIS,), axis_types=(AxisType.Auto,))
        self._network, self._place = network, place
        self._variables, self._constants = replicate((network.variables, network.constants), self._mesh)
        self.image_size = network.image_size
        self.batch_size = round_up(network.batch_size, self._mesh)
        like = image_shapes(network.describe, self._variables, (*self.image_size, 3))
        self._terms_like = like.terms
        self.embedding_size: int = like.embedding.shape[-1]
        self.top_k, self.mix = (network.top_k, network.mix) if network.distance is not None else (0, 0.0)
        self._compare: Comparer | None = None
        if network.distance is not None:
            self._compare = Comparer(network.distance, self._constants, self._mesh, self.top_k)

    def __repr__(self) -> str:
        """Return the place and the sizes."""
        sizes = (
            f"image_size={self.image_size}, embedding_size={self.embedding_size}, top_k={self.top_k}, mix={self.mix}"
        )
        return f"Retriever({self._place!r}, {sizes})"

    def embed(self, images: Images) -> Float[np.ndarray, "n F"]:
        """Compute the L2-normalised embeddings f(I) of images.

        Args:
            images: one image or n of them, as the class takes them.

        Returns:
            float32, in the order of the images; (1, F) for one image.

        Raises:
            UserError: a file cannot be read or a value is no image; names the image.
        """
        return self._describe(ListedImages.of(images, "image"), None)

    def distances(self, queries: Images, gallery: Images) -> Float[np.ndarray, "Q G"]:
        """Compute the individual (cosine) distances between all queries and all gallery images.

        Args:
            queries: one image or Q of them, as the class takes them.
            gallery: one image or G of them.

        Returns:
            float32, 0 for equal directions to 2.

        Raises:
            UserError: as in `embed`.
        """
        query_QF = self._describe(ListedImages.of(queries, "query"), None)
        gallery_GF = self._describe(ListedImages.of(gallery, "gallery image"), None)
        return cosine_distance(query_QF, gallery_GF.astype(np.float64))

    def rank(self, queries: Images, gallery: Images, k: int = 10) -> list[RankedList]:
        """Rank a gallery for each query, as the mixed ranking of the evaluation does.

        Individual distances rank the whole gallery. The `top_k` nearest images are scored again by the pair stage and
        re-ordered among themselves by the mixed distance, so that a re-scored image never falls behind one that was not.
        Equal distances keep the order of the gallery. No image is left out: the query itself is found where the gallery
        holds it.

        The gallery is described anew in each call, so rank several queries in one call where there are several.

        Args:
            queries: one image or Q of them, as the class takes them.
            gallery: one image or G of them.
            k: places of a list, cut to G. Does not change how many images are re-scored.

        Returns:
            A ranked list for each query, in their order; a list of one for one query.

        Raises:
            UserError: as in `embed`, no query, no gallery image, or no room for the terms of the pair stage.
        """
        query, shown = ListedImages.of(queries, "query"), ListedImages.of(gallery, "gallery image")
        if not query.images or not shown.images:
            raise UserError(
                f"rank: found {len(query.images)} queries and {len(shown.images)} gallery images, expected at least one of "
                "each; check the patterns of their paths"
            )
        if k < 1:
            raise UserError(f"k: found {k}, expected 1 or more; raise it")
        num_query, num_gallery = len(query.images), len(shown.images)
        top_k = min(self.top_k, num_gallery)
        # The terms of an image are a thousand times as large as its embedding. Where the queries cannot reach most of the
        # gallery (one query in a large folder), their candidates are described a second time rather than all terms kept.
        keep_all = num_query * top_k >= num_gallery
        query_terms = self._allocate(num_query) if top_k else None
        gallery_terms = self._allocate(num_gallery) if top_k and keep_all else None
        query_QF, gallery_GF = self._describe(query, query_terms), self._describe(shown, gallery_terms)
        order_QL, individual_QL = nearest(query_QF, gallery_GF, max(top_k, k))
        pair_QL = np.full(individual_QL.shape, np.nan, np.float32)
        mixed_QL = pair_QL.copy() if top_k else individual_QL.copy()
        if self._compare is not None and query_terms is not None:
            first_QK = order_QL[:, :top_k]
            kept = np.arange(num_gallery) if keep_all else np.unique(first_QK)
            if gallery_terms is None:
                gallery_terms = self._allocate(len(kept))
                self._describe(shown.take(kept), gallery_terms)
            pair_QK = self._compare(query_terms, gallery_terms, np.searchsorted(kept, first_QK))
            mixed_QK = mixed_distance(pair_QK, individual_QL[:, :top_k], self.mix)
            place_QK = np.argsort(mixed_QK, axis=1, kind="stable")  # equal distances keep the individual order
            pair_QL[:, :top_k], mixed_QL[:, :top_k] = pair_QK, mixed_QK
            for values in (order_QL, individual_QL, pair_QL, mixed_QL):
                values[:, :top_k] = np.take_along_axis(values[:, :top_k], place_QK, axis=1)

        def ranked(q: int) -> RankedList:
            columns = (x[q, :k].tolist() for x in (order_QL, individual_QL, pair_QL, mixed_QL))
            return RankedList(query.names[q], tuple(Match(shown.names[row[0]], *row) for row in zip(*columns)))

        return [ranked(q) for q in range(num_query)]

    def _describe(self, listed: ListedImages, terms: HostTerms | None) -> Float[np.ndarray, "n F"]:
        """Compute embeddings, and the terms of the pair stage where there is a place for them."""
        count = len(listed.images)
        if not count:
            return np.empty((0, self.embedding_size), np.float32)
        embedding = extract(
            self._network.describe, self._variables, batches(listed, self.image_size, self.batch_size), count,
            image_shape=(*self.image_size, 3), batch=self.batch_size, mesh=self._mesh, store=terms,
        )  # fmt: skip
        broken = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
        if broken.size:
            raise UserError(
                f"{listed.names[broken[0]]}: found an embedding that is not finite, expected numbers; check the network's "
                "parameters for NaN and inf"
            )
        return embedding.astype(np.float32, copy=False)

    def _allocate(self, count: int) -> HostTerms:
        """Allocate the terms of a number of images."""
        limit = round(self._network.memory_gib * 2**30)
        return HostTerms(self._terms_like, count, self.batch_size, limit, tempfile.gettempdir(), _OTHER_DISK)


def _from_workdir(folder: Path) -> _Network:
    """Load the checkpoint of a run with the settings of its config.json."""
    # Here: an export needs neither checkpoints nor what reads data sets.
    from cacenet_jax import experiment
    from cacenet_jax.run.completion import read_config
    from cacenet_jax.train import load_network

    config = read_config(folder, "workdir")
    config.devices = 0  # of this machine, not of the one that trained
    net, _, state = load_network(config, folder)
    _check_channels(net.image_channels, folder)
    settings = experiment.read(config)
    evaluation = settings.evaluation
    functions = scoring(net, evaluation.flip, evaluation.map_dtype)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    constants = functions.compose(variables) if functions.compose else None
    return _Network(
        functions.describe, (variables, constants), functions.distance, constants, settings.data.image_size,
        evaluation.top_k, evaluation.mix, evaluation.batch_size, evaluation.memory_gib,
    )  # fmt: skip


def _from_export(folder: Path) -> _Network:
    """Load the artefacts of an export with the settings of its manifest."""
    manifest = read_manifest(folder)
    images, settings = manifest["images"], manifest["config"]["eval"]
    _check_channels(len(images["channels"]), folder)
    extractor = jax_artefacts.load(folder / (EXTRACTOR + JAX))
    has_pairs = PAIR_SCORER + JAX in manifest["files"]
    scorer = jax_artefacts.load(folder / (PAIR_SCORER + JAX)) if has_pairs else None

    def describe(variables: Any, images: jax.Array) -> Described:
        terms = dict(extractor.call(images))
        return Described(terms.pop("embedding"), terms if has_pairs else None)

    distance = None if scorer is None else lambda constants, one, others: scorer.call(one, others)
    size = (images["height"], images["width"])
    return _Network(
        describe, None, distance, None, size, settings["top_k"], settings["mix"], settings["batch_size"],
        settings["memory_gib"],
    )  # fmt: skip


# The file that tells what a folder is, and how its network is loaded.
_LOADERS: dict[str, Callable[[Path], _Network]] = {"config.json": _from_workdir, MANIFEST: _from_export}


def _check_channels(channels: int, folder: Path) -> None:
    """Raise UserError for a network that needs a fourth channel."""
    if channels != 3:
        raise UserError(
            f"{folder}: found a network of {channels} channels, which reads the body part of each pixel (semantic "
            "alignment), expected one of colours alone; evaluate it on a data set with part labels, or load another"
        )
