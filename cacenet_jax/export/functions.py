"""A network as two functions of named arrays, with the weights inside: the form that is exported.

    extractor(images)               -> {"embedding": f(I), and the terms of the pair stage under their own names}
    pair_scorer(query, candidates)  -> distances of one image's terms and those of c others

Both are those of models/scoring.py, what retrieval ranks with. Reads no data and no checkpoint: the process that
converts to ONNX imports it too.

Legend: B images, H x W pixels, C channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.scoring import scoring

EMBEDDING = "embedding"
Named = dict[str, Any]  # arrays, or their shapes and types, by name

# Fields of a backbone that choose a form that is fast on a CPU; an artefact for every platform has the general one.
_CPU_FORMS = ("matmul_1x1", "cpu_stem", "cpu_depthwise")


class Functions(NamedTuple):
    """A network as functions of arrays.

    Attributes:
        extractor: uint8 images (B, H, W, C) to the L2-normalised embedding (B, F) and the terms, leading axis B.
        pair_scorer: terms of one image and of others (leading axis) to distances; None without the pair stage.
        image: shape of an image, (H, W, C).
        terms: shapes and types of an image's terms.
        selections: names of the terms that hold a top-K selection.
    """

    extractor: Callable[[Any], Named]
    pair_scorer: Callable[[Named, Named], Any] | None
    image: tuple[int, int, int]
    terms: Named
    selections: frozenset[str]


def general(net: CACENet) -> CACENet:
    """The same network with the backbone in the form that suits every platform."""
    forms: dict[str, Any] = {name: False for name in _CPU_FORMS if hasattr(net.backbone, name)}
    return net.clone(backbone=net.backbone.clone(**forms))


def functions(net: CACENet, variables: Any, image_size: tuple[int, int], flip: bool) -> Functions:
    """Return the functions of a trained network.

    Terms are float32 regardless of config.eval.map_dtype: other runtimes may not support bfloat16.

    Args:
        net: the network.
        variables: its parameters and statistics, arrays of any kind.
        image_size: height and width of an image.
        flip: average the maps of an image and its mirror image.
    """
    variables = jax.tree.map(jnp.asarray, variables)
    functions = scoring(net, flip, "float32")
    constants = functions.compose(variables) if functions.compose else None
    image = (*image_size, net.image_channels)

    def describe(images_BHWC: UInt8[Array, "B H W C"]) -> Any:
        return functions.describe((variables, constants), images_BHWC)

    like = jax.eval_shape(describe, jax.ShapeDtypeStruct((1, *image), jnp.uint8)).terms
    structure = jax.tree.structure(like)
    terms = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in _named(like).items()}

    def extractor(images_BHWC: UInt8[Array, "B H W C"]) -> Named:
        described = describe(images_BHWC)
        return {EMBEDDING: described.embedding} | _named(described.terms)

    distance = functions.distance
    if distance is None:
        return Functions(extractor, None, image, terms, net.selection_terms)

    def pair_scorer(query: Named, candidates: Named) -> Array:
        one, others = (jax.tree.unflatten(structure, [given[name] for name in terms]) for given in (query, candidates))
        return distance(constants, one, others)

    return Functions(extractor, pair_scorer, image, terms, net.selection_terms)


def _named(terms: Any) -> Named:
    """Arrays of nested named tuples by their path, for example `clues.salience_N`; none for None."""
    named = jax.tree_util.tree_leaves_with_path(terms)
    return {jax.tree_util.keystr(path, simple=True, separator=".") or "terms": x for path, x in named}
