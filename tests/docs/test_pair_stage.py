"""The page about pair stages: its table of fields, and its worked example as a module of a user's."""

import re
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_training
from command import ROOT, TINY
from documents import blocks
from oracles import batch_hard
from tiny_retrieval import applied, compose, describe, distances, network

import cacenet_jax as cace
from cacenet_jax import experiment
from cacenet_jax.export import jax_artefacts
from cacenet_jax.export.functions import functions
from cacenet_jax.export.run import check_values
from cacenet_jax.models import pair_stages

PAGE = ROOT / "docs/pair_stage.md"
STAGE = "my_stages:Stripes"


def test_fields_of_the_stages():
    """The table lists every stage and field with its default."""
    documented = {}
    for name, cell in re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", PAGE.read_text(), re.MULTILINE):
        documented[name] = {field: eval(value) for field, value in re.findall(r"`(\w+)=([^`]+)`", cell)}
    assert documented.pop("none") == {} and documented.pop("pair_stage", {}) == {}
    assert documented == {name: pair_stages.fields(name) for name in pair_stages.STAGES}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example as my_stages.py in a folder that Python imports from."""
    (block,) = blocks(PAGE)
    (tmp_path / "my_stages.py").write_text(block.code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_stages", None)


@pytest.mark.usefixtures("x64", "example")
def test_example_trains():
    """A step: the triplet loss of its distances, whose gradient reaches its parameters."""
    config = tiny_training.tiny_config("float64", pair_stage=STAGE, pair={"stripes": 2})
    net, batch = tiny_training.network(config, one_block=True), tiny_training.batch_of("float64")
    state = tiny_training.state_of(net, optax.sgd(1.0), "float64")
    after, metrics = jax.jit(tiny_training.step_of(config, one_block=True))(state, batch)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    maps, _ = applied(net, variables, batch.images, train=True, mutable=["batch_stats"], method="maps")
    pair = literal(np.asarray(maps), state.params["stripe_embedding"], 2)
    np.testing.assert_allclose(metrics["pair_triplet"], batch_hard(pair, tiny_training.LABELS, 0.5), rtol=1e-9)
    for name in ("kernel", "bias"):
        assert (after.params["stripe_embedding"][name] != state.params["stripe_embedding"][name]).any()


def literal(maps, dense, stripes):
    """Distances of all pairs, stripe by stripe."""
    means = maps.reshape(len(maps), stripes, -1, maps.shape[-1]).mean(axis=2)
    means = means @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    return np.array([[1 - np.mean([a @ b for a, b in zip(u, v, strict=True)]) for v in means] for u in means])


@pytest.mark.usefixtures("x64", "example")
def test_example_scores_and_shows_pairs():
    net, variables = network(stage=STAGE, stripes=2)
    images = jnp.asarray(np.random.default_rng(3).standard_normal((3, 4, 2, 3)))
    maps = applied(net, variables, images, train=False, method="maps")
    expected = literal(np.asarray(maps), variables["params"]["stripe_embedding"], 2)
    assert np.ptp(expected[0, 1:]) > 1e-3
    constants = compose(net, variables)
    for dtype, tolerance in ((jnp.float64, 1e-10), (jnp.bfloat16, 1e-2)):
        _, terms = describe(net, variables, constants, maps, dtype)
        assert terms.shape == (3, 2, net.embed_dim) and terms.dtype == dtype
        scores = [distances(net, constants, terms[u], terms) for u in range(3)]
        assert scores[0].dtype in (jnp.float32, jnp.float64)
        np.testing.assert_allclose(scores, expected, atol=tolerance)
        np.testing.assert_allclose(scores, np.transpose(scores), atol=1e-7)
    view = applied(net, variables, terms[0], terms[1], maps[0], maps[1], method="view")
    assert view.correspondence_NM.shape == (8, 8) and view.norm_N is None


@pytest.mark.slow
def test_example_exports(example):
    """Two functions, and the same from an artefact for any number of images."""
    config = tiny_training.tiny_config(pair_stage=STAGE, pair={"stripes": 2})
    net = experiment.read(config).network.build(4)
    state = tiny_training.state_of(net, optax.identity())
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    model = functions(net, variables, tiny_training.SHAPE, flip=True)
    images = np.random.default_rng(0).integers(0, 256, (3, *tiny_training.SHAPE, 3), np.uint8)
    described = jax.jit(model.extractor)(images)
    terms = {name: described[name] for name in model.terms}
    scores = model.pair_scorer({name: x[0] for name, x in terms.items()}, terms)
    assert scores.shape == (3,) and scores.dtype == jnp.float32 and abs(scores[0]) < 1e-6 < scores[1]
    for artefact in jax_artefacts.write(example, model, ("cpu",), check_values(model, 3)):
        assert max(artefact.largest_difference.values()) < 1e-5, artefact


@pytest.mark.slow
def test_example_runs_in_every_mode(example, command):
    """Train, evaluate, draw and export by the command line; the export ranks as the workdir does."""
    environment = {"PYTHONPATH": f"{ROOT}:{example}"}
    choice = ("--config.model.pair_stage=" + STAGE, "--config.model.pair.stripes=2", "--config.data.dir=prepared")
    for words in ((f"--config={TINY}", *choice), ("--mode=evaluate",), ("--mode=visualize",), ("--mode=export",)):
        done = command(*words, "--workdir=run", env=environment)
        assert done.returncode == 0, done.stderr
    folder = command.folder / "run"
    assert (folder / "figures/report.html").is_file()
    random = np.random.default_rng(0)
    images = [cv2.blur(random.integers(0, 256, (48, 24, 3), np.uint8), (5, 5)) for _ in range(9)]
    (ours,), (exported,) = (cace.load(place).rank(images[0], images[1:]) for place in (folder, folder / "export"))
    for name in ("individual", "pair", "mixed"):
        for lists in zip(ours, exported, strict=True):
            np.testing.assert_allclose(*(getattr(match, name) for match in lists), atol=2e-2)  # terms in bfloat16
    assert [match.pair for match in exported] != [match.individual for match in exported]
