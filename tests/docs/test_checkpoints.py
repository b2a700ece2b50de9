"""The table of parameter names in docs/checkpoints.md is that of the networks."""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest
from documents import ROOT, section
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply

CHANNELS, EMBED_DIM, IDENTITIES, EVIDENCE = 64, 8, 5, 6
# Fields of config.model.pair, and the first column of the rows that apply.
NETWORKS = {
    "conditional": ({}, {"every", "conditional", "conditional, keypoints"}),
    "untied": (
        {"filters": "untied", "keys": "correlation"},
        {
            "every",
            "conditional",
            "conditional, keypoints",
            "filters=untied",
            "keys=correlation",
            "keys=correlation or standardised",
        },
    ),
    "keypoints": ({}, {"every", "conditional, keypoints"}),
    "evidence": ({"features": EVIDENCE}, {"every", "evidence"}),
    "released": ({}, {"every", "released", "pooling=gem"}),
    "none": ({}, {"every"}),
    "head_bias": ({}, {"every", "head_bias"}),
}
LETTERS = {"D": CHANNELS, "D/16": CHANNELS // 16, "F": EMBED_DIM, "I": IDENTITIES, "E": EVIDENCE, "2E": 2 * EVIDENCE}


def documented() -> list[tuple[str, str, tuple]]:
    """Return (network, name, shape) for each name, braces expanded."""
    rows = []
    for line in section(ROOT / "docs/checkpoints.md", "Names").splitlines():
        if not (match := re.match(r"\| ([^|]+) \| `([^`]+)` \| (.*?) \|", line)):
            continue
        network, name, shape = match.groups()
        shapes = [
            tuple(LETTERS.get(x, x) for x in re.findall(r"[\w/]+", group)) for group in re.findall(r"\((.*?)\)", shape)
        ]
        shapes = [tuple(int(x) for x in shape) for shape in shapes]
        choices = [choice.split(",") for choice in re.findall(r"\{(.*?)\}", name)]
        form = re.sub(r"\{.*?\}", "{}", name)
        names = [form.format(*choice) for choice in itertools.product(*choices)]
        shapes = shapes if len(shapes) == len(names) else (shapes or [()]) * len(names)
        rows += [(network.replace("`", ""), name, shape) for name, shape in zip(names, shapes, strict=True)]
    return rows


def variables(name: str) -> dict[str, tuple]:
    config = apply(paper(), "released") if name == "released" else paper()
    config.model.backbone, config.model.embed_dim = "resnet_tiny", EMBED_DIM
    config.model.backbone_fields = ConfigDict()
    config.model.pair_stage = {"untied": "conditional", "head_bias": "none"}.get(name, name)
    config.model.head_bias = name == "head_bias"
    config.model.pair = ConfigDict(NETWORKS[name][0])
    net = experiment.read(config).network.build(IDENTITIES)
    images = jnp.zeros((2, 32, 16, net.image_channels))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
    flat = {**flatten_dict(shapes["params"], sep="/"), **flatten_dict(shapes["batch_stats"], sep="/")}
    return {key: x.shape for key, x in flat.items() if not key.startswith("backbone/")}


@pytest.mark.parametrize("name", NETWORKS)
def test_names(name):
    applies = NETWORKS[name][1]
    expected = {key: shape for network, key, shape in documented() if network in applies and key != "backbone/..."}
    if name == "keypoints":  # its affinities have one weight
        assert "cross_weight" in expected
    assert variables(name) == expected


def test_every_row_is_tested():
    assert {network for network, _, _ in documented()} == set().union(*(rows for _, rows in NETWORKS.values()))
