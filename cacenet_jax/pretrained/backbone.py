"""Loading of config.pretrained into the variables of a backbone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import Backbone
from cacenet_jax.pretrained.matching import MatchedWeights, match_weights
from cacenet_jax.pretrained.reading import read
from cacenet_jax.pretrained.sources import locate

# Optional layers that ImageNet networks lack; they are initialised as the identity.
_ADDED = (".non_local_block.",)


def shapes(backbone: Any, height: int, width: int) -> dict[str, Any]:
    """Return the shapes and dtypes of a backbone's `params` and `batch_stats`, without computing anything."""
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return dict(jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), images))


def load(source: str, backbone: Backbone, like: Mapping[str, Any], name: str) -> MatchedWeights:
    """Load published weights into the variables of a backbone.

    Args:
        source: source of the weights (see `sources`), which may be downloaded from the Hub.
        backbone: backbone module, which defines the names of the weights.
        like: `params` and `batch_stats` of the backbone, as arrays or `jax.ShapeDtypeStruct`s.
        name: name of the backbone, for error messages.

    Raises:
        UserError: the source is missing or broken, or its arrays do not match. All mismatches are listed.
    """
    arrays = read(locate(source))
    if hasattr(backbone, "current_names"):
        names = backbone.current_names(arrays)
        arrays = {names[name]: x for name, x in arrays.items()}
    unused = getattr(backbone, "unused_weights", ())
    try:
        return match_weights(
            arrays, like, backbone.torch_name, source_name=source, target_name=name, may_lack=_ADDED, unused=unused
        )
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"config.pretrained: found {name}, which has no published weights ({error}), expected a backbone "
            "with published weights; choose another config.model.backbone, or leave config.pretrained out"
        ) from error
