"""From config.pretrained to the variables of the backbone that a config describes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import Backbone
from cacenet_jax.pretrained.matching import Fitted, fit
from cacenet_jax.pretrained.reading import read
from cacenet_jax.pretrained.sources import locate

# Layers that ImageNet networks do not have and a config may add; they start as the identity.
_ADDED = (".non_local_block.",)


def shapes(backbone: Backbone, height: int, width: int) -> dict[str, Any]:
    """`params` and `batch_stats` of a backbone as shapes and types, of images of a size; computes nothing."""
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return dict(jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), images))


def load(source: str, backbone: Backbone, like: Mapping[str, Any], name: str) -> Fitted:
    """The variables that a source gives a backbone.

    Args:
        source: as `sources.locate` takes it; one of the Hub may be downloaded.
        backbone: whose names the source should have.
        like: its `params` and `batch_stats`, arrays or shapes.
        name: what to call it in an error.

    Raises:
        UserError: no such source, a broken one, or everything in it that does not fit.
    """
    arrays = read(locate(source))
    unused = getattr(backbone, "unused_weights", ())
    try:
        return fit(arrays, like, backbone.torch_name, there=source, here=name, may_lack=_ADDED, unused=unused)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"config.pretrained: found {name}, which has no published weights ({error}), expected a backbone that has some; "
            "choose another config.model.backbone, or leave config.pretrained out"
        ) from error
