"""Inference with a trained network: embed images and rank galleries, without labels or a data set.

    reid = load("workdirs/synthetic")  # or workdirs/synthetic/export, or a copy of it
    embeddings = reid.embed(["a.jpg", "b.jpg"])
    for match in reid.rank("query.jpg", ["a.jpg", "b.jpg"])[0]:
        print(match.name, match.mixed)

Results match those of the evaluation, because the same functions decode and resize images, extract features and compute
the distances.

Legend: n images, Q queries, G gallery images, K re-scored candidates per query, L length of a ranked list, H x W
pixels, F embedding size. The terms of an image are the arrays that the pair stage precomputes for it.
"""

import functools
import os
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from PIL import Image

from cacenet_jax.data.images import ListedImages, batches
from cacenet_jax.errors import UserError
from cacenet_jax.export.calibration import read_calibration
from cacenet_jax.export.inference import Inference, load_inference
from cacenet_jax.retrieval.calibration import Calibration
from cacenet_jax.retrieval.compare import Comparer, HostTerms
from cacenet_jax.retrieval.distances import cosine_distance
from cacenet_jax.retrieval.extract import extract, image_shapes, round_up
from cacenet_jax.retrieval.ranked_list import Comparison, Match, RankedList
from cacenet_jax.retrieval.rankings import mixed_distance, nearest
from cacenet_jax.retrieval.term_store import replicate

if TYPE_CHECKING:
    from cacenet_jax.index.index import Index

ImageLike = str | os.PathLike[str] | np.ndarray | jax.Array | Image.Image
Images = ImageLike | Iterable[ImageLike]

_AXIS = "images"  # name of the device axis
_SMALL_BATCHES = (1, 8)  # besides batch_size; each is compiled when it is first used
_OTHER_DISK = "set the environment variable TMPDIR to a folder on another disk, or rank fewer queries at a time"


def load(
    place: str | os.PathLike[str], *, batch_size: int | None = None, config: ConfigDict | None = None
) -> "Retriever":
    """Load a trained network.

    A workdir provides the checkpoint selected by config.eval.checkpoint in WORKDIR/config.json. An export
    (WORKDIR/export or a copy of it) provides jax.export artefacts, which do not need the network's code. Both produce
    the same numbers, except that the terms of the pair stage are float32 for an export and config.eval.map_dtype for a
    workdir. A published checkpoint of a complete network (`pretrained.networks`) provides its weights, and the packaged
    config of its kind the rest.

    Args:
        place: workdir of a run with a checkpoint, folder of an export, or a published checkpoint: a file,
            hub:OWNER/NAME or package:NAME.
        batch_size: largest number of images per batch over all devices of this process. Defaults to
            config.eval.batch_size of the run. A call with up to one or eight images pads them to a batch of that size.
        config: config of the run in a workdir, with other values of config.eval; None for the recorded one.

    Raises:
        UserError: `batch_size` is below 1, the folder is neither a workdir nor an export, its files are inconsistent,
            the artefacts do not support this platform, the network needs part labels, or the checkpoint is of no known
            kind.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}, expected 1 or more; raise it")
    network = load_inference(str(place), config)
    return Retriever(network._replace(batch_size=batch_size or network.batch_size), str(place))


class Retriever:
    """A trained network that embeds images and ranks galleries, returned by `load`.

    Every method accepts a single image or an iterable of images of any size: paths of JPEG or PNG files, RGB uint8
    arrays (height, width, 3), or PIL images. Types may be mixed. A uint8 array (n, height, width, 3) is a sequence of
    n images. Grey images are expanded to three channels, and alpha channels are dropped. Images are decoded, resized to
    `image_size` and processed in batches of three sizes, so three compiled programs serve any number of images, and memory
    use is bounded.

    Attributes:
        image_size: (height, width) of the network's input.
        embedding_size: F.
        top_k: number of images that `rank` re-scores with the pair stage for each query, config.eval.top_k of the run;
            0 without a pair stage.
        mix: weight of the pair distance in the mixed distance, config.eval.mix of the run; 0 without a pair stage.
        batch_size: number of images per batch, at most; a few images make a smaller one.
    """

    def __init__(self, network: Inference, place: str):
        """Place the network on the devices of this process.

        Args:
            network: network to place.
            place: folder it was loaded from.
        """
        # Use only this process's devices, because other processes may be given different images.
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
        """Return the folder, the sizes and the ranking settings as text."""
        sizes = (
            f"image_size={self.image_size}, embedding_size={self.embedding_size}, top_k={self.top_k}, mix={self.mix}"
        )
        return f"Retriever({self._place!r}, {sizes})"

    @property
    def network(self) -> Inference:
        """The network as functions, with the settings and the fingerprint of its weights."""
        return self._network

    @property
    def terms_like(self) -> Any:
        """Shapes and dtypes of the pair-stage terms of one image; None without a pair stage."""
        return self._terms_like if self._compare is not None else None

    def index(self, images: str | os.PathLike[str], place: str | os.PathLike[str]) -> "Index":
        """Make an index of photographs on disk, or bring one up to date; needs the extra [index].

        Args:
            images: folder of images, with its subfolders, or a manifest; see `cacenet_jax.data.photographs`.
            place: folder of the index, made if it is missing.

        Raises:
            UserError: there are no images, the manifest has mistakes, or the index is one of another network.
        """
        from cacenet_jax.index.opening import make_index

        return make_index(self, images, place)[0]

    def open_index(self, place: str | os.PathLike[str]) -> "Index":
        """Open an index that was made before.

        Raises:
            UserError: there is none, or it is one of another network.
        """
        from cacenet_jax.index.opening import open_index

        return open_index(self, place)

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Probabilities and thresholds for the distances, stored by --mode=calibrate; None if there are none.

        Raises:
            UserError: the calibration is damaged, or is one of other weights or settings.
        """
        return read_calibration(self._place, self._network)

    def compare(self, first: ImageLike, second: ImageLike, prior: float | None = None) -> Comparison:
        """Compute the distances of two images, and the probability that they show one person.

        Args:
            first: an image, in any form the class accepts.
            second: another image.
            prior: share of matching pairs among those that are asked about; that of the calibration if None.

        Raises:
            UserError: as in `embed` and `calibration`.
        """
        calibration = self.calibration  # a wrong one is reported before any work
        embedding_2F, terms = self.describe([first, second])
        individual = float(cosine_distance(embedding_2F[:1], embedding_2F[1:])[0, 0])
        pair, mixed, kind = float("nan"), individual, "individual"
        if terms is not None:
            pair_11 = self.pair_distances(terms.take(np.array([0])), terms, np.array([[1]]))
            mixed_11 = mixed_distance(pair_11, np.array([[individual]], np.float32), self.mix)
            pair, mixed, kind = float(pair_11[0, 0]), float(mixed_11[0, 0]), "mixed"
        probability = None if calibration is None else float(calibration.probability(mixed, kind, prior))
        return Comparison(individual, pair, mixed, probability)

    def describe(self, images: Images | ListedImages) -> tuple[Float[np.ndarray, "n F"], HostTerms | None]:
        """Compute embeddings and, with a pair stage, the terms of images for `pair_distances`.

        Args:
            images: one or n images, in any form the class accepts; images with names are read batch by batch.

        Raises:
            UserError: as in `embed`; also if there is too little disk space for the terms.
        """
        listed = images if isinstance(images, ListedImages) else ListedImages.of(images, "image")
        terms = self._allocate(len(listed.images)) if self._compare is not None and listed.images else None
        return self._describe(listed, terms), terms

    def pair_distances(
        self, query: HostTerms, gallery: HostTerms, candidates_QK: Int[np.ndarray, "Q K"]
    ) -> Float[np.ndarray, "Q K"]:
        """Compute the pair distances between each query and its candidates.

        Args:
            query: terms of the queries, from `describe`.
            gallery: terms of gallery images.
            candidates_QK: indices of gallery images.

        Raises:
            UserError: the network has no pair stage, or a distance is not finite.
        """
        if self._compare is None:
            raise UserError(f"{self._place}: found a network without a pair stage, expected one; use `distances`")
        return self._compare(query, gallery, candidates_QK)

    def embed(self, images: Images) -> Float[np.ndarray, "n F"]:
        """Compute the L2-normalised embeddings f(I) of images.

        Args:
            images: one or n images, in any form the class accepts.

        Returns:
            float32 embeddings in the order of the images; shape (1, F) for a single image.

        Raises:
            UserError: a file cannot be read, a value is not an image, or an embedding is not finite. The message names
                the image.
        """
        return self._describe(ListedImages.of(images, "image"), None)

    def distances(self, queries: Images, gallery: Images) -> Float[np.ndarray, "Q G"]:
        """Compute the individual (cosine) distances between all queries and all gallery images.

        Args:
            queries: one or Q images, in any form the class accepts.
            gallery: one or G images.

        Returns:
            float32 distances, from 0 (same direction) to 2 (opposite).

        Raises:
            UserError: as in `embed`.
        """
        query_QF = self._describe(ListedImages.of(queries, "query"), None)
        gallery_GF = self._describe(ListedImages.of(gallery, "gallery image"), None)
        return cosine_distance(query_QF, gallery_GF.astype(np.float64))

    def rank(self, queries: Images, gallery: Images, k: int = 10) -> list[RankedList]:
        """Rank a gallery for each query, using the mixed ranking of the evaluation.

        The whole gallery is ranked by individual distance. The pair stage then re-scores the `top_k` nearest images,
        which are re-ordered among themselves by mixed distance and stay ahead of all other images. Ties keep gallery
        order. No image is excluded: if the gallery contains the query image, it is ranked too.

        Every call extracts the features of the whole gallery, so pass all queries in one call.

        Args:
            queries: one or Q images, in any form the class accepts.
            gallery: one or G images.
            k: maximum length of each ranked list; does not affect how many images are re-scored.

        Returns:
            One ranked list per query, in query order.

        Raises:
            UserError: as in `embed`; also if there are no queries or no gallery images, `k` is below 1, or there is too
                little disk space for the terms of the pair stage.
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
        # The terms of an image are a thousand times larger than its embedding. If most gallery images cannot be
        # candidates (one query and a large folder), recompute the candidates' terms instead of storing those of the
        # whole gallery.
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
        """Compute embeddings, and write the terms of the pair stage to `terms` unless it is None."""
        count = len(listed.images)
        if not count:
            return np.empty((0, self.embedding_size), np.float32)
        size = self._batch_of(count)
        embedding = extract(
            self._network.describe, self._variables, batches(listed, self.image_size, size), count,
            image_shape=(*self.image_size, 3), batch=size, mesh=self._mesh, store=terms,
        )  # fmt: skip
        broken = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
        if broken.size:
            raise UserError(
                f"{listed.names[broken[0]]}: found an embedding that is not finite, expected numbers; check the network's "
                "parameters for NaN and inf"
            )
        return embedding.astype(np.float32, copy=False)

    def _allocate(self, count: int) -> HostTerms:
        """Allocate storage for the terms of `count` images."""
        limit = round(self._network.memory_gib * 2**30)
        return HostTerms(self._terms_like, count, self._batch_of(count), limit, tempfile.gettempdir(), _OTHER_DISK)

    def _batch_of(self, count: int) -> int:
        """Return the number of images of a batch, so that one image does not take the time of a full batch."""
        sizes = (round_up(size, self._mesh) for size in _SMALL_BATCHES)
        return next((size for size in sizes if count <= size < self.batch_size), self.batch_size)
