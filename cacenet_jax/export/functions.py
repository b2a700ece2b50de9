"""The functions to export: a network as two functions of named arrays, with its weights as constants.

    extractor(images)               -> {"embedding": f(I), and the terms of the pair stage by name}
    pair_scorer(query, candidates)  -> distances between the terms of one image and those of c others

Both wrap the functions in models/scoring.py that retrieval uses. This module reads no data and no checkpoint, because
the ONNX conversion process imports it too.

Legend: B images, H x W pixels, C channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.scoring import scoring
from cacenet_jax.retrieval.term_store import named_terms

EMBEDDING = "embedding"
Named = dict[str, Any]  # arrays or jax.ShapeDtypeStructs by name

# Backbone fields that select a fast CPU implementation; artefacts for all platforms use the general one.
_CPU_FORMS = ("matmul_1x1", "cpu_stem", "cpu_depthwise")


class Functions(NamedTuple):
    """A network as functions of arrays.

    Attributes:
        extractor: map uint8 images (B, H, W, C) to L2-normalised embeddings (B, F) and terms with leading axis B.
        pair_scorer: map the terms of one image and of others (with leading axis) to distances; None without a pair
            stage.
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
    """Return the network with the backbone implementation that suits all platforms."""
    forms: dict[str, Any] = {name: False for name in _CPU_FORMS if hasattr(net.backbone, name)}
    return net.clone(backbone=net.backbone.clone(**forms))


def functions(net: CACENet, variables: Any, image_size: tuple[int, int], flip: bool) -> Functions:
    """Return the exportable functions of a trained network.

    Terms are float32 regardless of config.eval.map_dtype: other runtimes may not support bfloat16.

    Args:
        net: the network.
        variables: its parameters and statistics, arrays of any kind.
        image_size: height and width of the images.
        flip: average the maps of each image and its mirror image.
    """
    variables = jax.tree.map(jnp.asarray, variables)
    functions = scoring(net, flip, "float32")
    constants = functions.compose(variables) if functions.compose else None
    image = (*image_size, net.image_channels)

    def describe(images_BHWC: UInt8[Array, "B H W C"]) -> Any:
        return functions.describe((variables, constants), images_BHWC)

    like = jax.eval_shape(describe, jax.ShapeDtypeStruct((1, *image), jnp.uint8)).terms
    structure = jax.tree.structure(like)
    terms = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in named_terms(like).items()}

    def extractor(images_BHWC: UInt8[Array, "B H W C"]) -> Named:
        described = describe(images_BHWC)
        return {EMBEDDING: described.embedding} | named_terms(described.terms)

    distance = functions.distance
    if distance is None:
        return Functions(extractor, None, image, terms, net.selection_terms)

    def pair_scorer(query: Named, candidates: Named) -> Array:
        one, others = (jax.tree.unflatten(structure, [given[name] for name in terms]) for given in (query, candidates))
        return distance(constants, one, others)

    return Functions(extractor, pair_scorer, image, terms, net.selection_terms)
