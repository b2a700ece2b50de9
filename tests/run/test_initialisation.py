"""What a new run starts from: published weights of its backbone; a network of other identities, or of the same."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from cacenet_jax import experiment
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import resnet
from cacenet_jax.run import initialisation
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import override, to_dict
from cacenet_jax.run.workdir import claim_workdir
from cacenet_jax.train import train
from cacenet_jax.train_step import create_state

SPEC = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "configs" / "tiny.py")
TINY = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TINY)
EIGHT = {"images": 48, "identities": 8, "sha256": "a"}
SIX = {"images": 36, "identities": 6, "sha256": "b"}


def config_of(**fields):
    config = TINY.get_config()
    config.model.pair_stage = "none"
    return override(config, fields)


def state_of(config, identities, seed=0):
    """A network and random numbers for all that a fresh state of it holds; compiles nothing."""
    settings, rng = experiment.read(config), np.random.default_rng(seed)
    net, optimizer = settings.network.build(identities), settings.optimizer(1)
    shapes = jax.eval_shape(lambda key: create_state(net, optimizer, key, (32, 16)), jax.random.key(0))
    return net, jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.2, 0.4, x.shape), x.dtype), shapes)


def workdir_of(folder, config, data, seed=7):
    """A workdir as a run leaves it, with a network from another seed."""
    _, state = state_of(config, data["identities"], seed)
    claim_workdir(folder, to_dict(config), data)
    checkpoints = Checkpoints(folder)
    checkpoints.save(12, state)
    checkpoints.close()
    return state


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def unused(state):
    raise AssertionError("no network here is frozen")


# -- Published weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of a tiny ResNet in PyTorch's names, and these weights."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lambda: resnet.build("resnet_tiny").init(jax.random.key(0), jnp.zeros((1, 32, 16, 3))))
    variables = jax.tree.map(lambda x: rng.uniform(0.2, 0.4, x.shape).astype(np.float32), shapes)
    flat = traverse_util.flatten_dict(variables)
    arrays = {resnet.torch_name(p): x.transpose(3, 2, 0, 1) if x.ndim == 4 else x for p, x in flat.items()}
    path = tmp_path / "weights.safetensors"
    save_file(
        {n: np.array(x, order="C") for n, x in arrays.items()} | {"fc.weight": np.ones((2, 64), np.float32)}, path
    )
    return str(path), variables


def test_a_backbone_starts_from_published_weights_and_the_rest_as_without_them(weights, capsys):
    source, variables = weights
    config = config_of(pretrained=source)
    net, state = state_of(config, 8)
    begun = initialisation.initialise(config, state, EIGHT, unused)
    images = jax.random.normal(jax.random.key(1), (2, 32, 16, 3))
    maps = jax.jit(lambda v: net.apply(v, images, train=False, method="maps"))
    alone = jax.jit(lambda v: resnet.build("resnet_tiny").apply(v, images, train=False))(variables)
    np.testing.assert_array_equal(maps({"params": begun.params, "batch_stats": begun.batch_stats}), alone)
    assert np.abs(maps({"params": state.params, "batch_stats": state.batch_stats}) - alone).max() > 0.1
    assert_equal(begun.params["individual_head"], state.params["individual_head"])
    assert capsys.readouterr().out == f"starting from {source}: 60 arrays of resnet_tiny; left out: fc (1)\n"


@pytest.mark.slow
def test_a_training_goes_on_from_the_files_weights(weights, tmp_path, capsys, monkeypatch):
    source, variables = weights
    config = config_of(pretrained=source, epochs=1)
    config.update_from_flattened_dict({"optim.warmup_epochs": 0.5, "data.dir": str(tmp_path / "prepared")})
    monkeypatch.setattr("cacenet_jax.train.score_test", lambda *_: {})
    train(config, tmp_path / "run")
    assert "60 arrays of resnet_tiny" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["pretrained"] == source
    checkpoints = Checkpoints(tmp_path / "run", create=False)
    params, _ = checkpoints.parameters(6, replicated_sharding(global_mesh(1)))
    checkpoints.close()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params["backbone"], variables["params"])
    assert 0 < max(jax.tree.leaves(moved)) < 6 * 2e-3  # six steps of AdamW at 1e-3 or less; the weights are 0.2 to 0.4


def test_weights_that_do_not_fit_end_a_run_before_anything_is_prepared(weights, tmp_path):
    config = config_of(pretrained=weights[0])
    config.model.backbone, config.data.dir = "resnet_small", str(tmp_path / "prepared")
    with pytest.raises(
        UserError, match=r"config.pretrained: found .*does not fit resnet_small \(60 of another shape\)"
    ):
        train(config, tmp_path / "run")
    config.pretrained = str(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"config.pretrained: found no file"):
        train(config, tmp_path / "run")
    config.pretrained, config.init_from = None, str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config.init_from: found no checkpoints in .*nowhere"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "prepared").exists() and not (tmp_path / "run").exists()


# -- A network of ours --------------------------------------------------------------------------------------------------


def test_fine_tuning_with_other_identities_starts_their_classifiers_anew(tmp_path, capsys):
    theirs = workdir_of(tmp_path / "first", config_of(), EIGHT)
    config = config_of(init_from=str(tmp_path / "first"))
    config.model.pair_stage, config.model.backbone_fields.last_stride = (
        "conditional",
        2,
    )  # what has no parameter may differ
    _, state = state_of(config, 6)
    begun = initialisation.initialise(config, state, SIX, unused)
    assert_equal(begun.params["backbone"], theirs.params["backbone"])
    assert_equal(begun.batch_stats["backbone"], theirs.batch_stats["backbone"])
    head, fresh = begun.params["individual_head"], state.params["individual_head"]
    assert_equal(head["classifier"], fresh["classifier"])
    assert_equal(head["conv"], theirs.params["individual_head"]["conv"])
    assert_equal(begun.params["conditional_head"], state.params["conditional_head"])
    line = capsys.readouterr().out
    assert line.startswith(f"starting from {tmp_path / 'first'}, step 12: backbone, individual_head; new: ")
    assert "individual_head/classifier (8 identities there, 6 here)" in line and "conditional_head" in line


@pytest.mark.parametrize("same", [True, False])
def test_a_classifier_is_taken_only_if_its_classes_are_the_same_people(tmp_path, same):
    theirs = workdir_of(tmp_path / "first", config_of(), EIGHT)
    config = config_of(init_from=str(tmp_path / "first"))
    _, state = state_of(config, 8)
    begun = initialisation.initialise(config, state, EIGHT if same else EIGHT | {"sha256": "others"}, unused)
    expected = theirs if same else state
    classifier = lambda state: state.params["individual_head"]["classifier"]
    assert_equal(classifier(begun), classifier(expected))
    assert np.abs(classifier(theirs)["kernel"] - classifier(state)["kernel"]).max() > 1e-3


RELEASED = {"model.pair_stage": "released", "model.pooling": "gem"}


@pytest.mark.parametrize("adds", [True, False])
def test_the_pair_classifier_of_a_shared_encoder_comes_and_goes_with_the_pair_stage(tmp_path, capsys, adds):
    without, both = {"model.pooling": "gem"}, RELEASED
    theirs = workdir_of(tmp_path / "first", config_of(**(without if adds else both)), EIGHT)
    config = config_of(init_from=str(tmp_path / "first"), **(both if adds else without))
    _, state = state_of(config, 8)
    begun = initialisation.initialise(config, state, EIGHT, unused)
    head = begun.params["individual_head"]
    for layer in ("conv", "bn", "classifier"):
        assert_equal(head[layer], theirs.params["individual_head"][layer])
    if adds:
        assert_equal(head["pair_classifier"], state.params["individual_head"]["pair_classifier"])
    said = capsys.readouterr().out.partition("; new: " if adds else "; not used: ")[2]
    assert "pair_graph" in said and "individual_head/pair_classifier" in said


def test_everything_that_does_not_fit_is_told_at_once(tmp_path):
    workdir_of(tmp_path / "first", config_of(), EIGHT)
    config = config_of(init_from=str(tmp_path / "first"))
    config.model.backbone, config.model.embed_dim = "resnet_small", 8
    with pytest.raises(UserError) as caught:
        initialisation.initialise(config, state_of(config, 6)[1], SIX, unused)
    first, *lines = str(caught.value).splitlines()
    assert "; its config differs in model.backbone: 'resnet_tiny' -> 'resnet_small'; model.embed_dim: 16 -> 8)" in first
    assert len(lines) == 1 and ": backbone/" in lines[0]
    assert lines[0].startswith(f"  of another shape in {tmp_path / 'first'} than in this network (")


def recorded(folder, data, **fields):
    """A workdir whose config and data are all that is looked at."""
    config = config_of(**fields)
    config.data.options = ConfigDict()
    claim_workdir(folder, to_dict(config), data)
    (folder / "checkpoints").mkdir()


def check(folder, data=SIX, **fields):
    config = config_of(**{"data.val_share": 0.2} | fields)
    config.data.options = ConfigDict()
    initialisation.check_source(folder, to_dict(config), data)


def test_a_network_that_may_know_the_validation_identities_is_refused(tmp_path):
    recorded(tmp_path / "first", EIGHT, **{"data.name": "market1501"})
    with pytest.raises(UserError, match=r"trained on other people of market1501 .*'sha256': 'a'.*data.val_share=0"):
        check(tmp_path / "first", **{"data.name": "market1501"})
    check(tmp_path / "first", EIGHT, **{"data.name": "market1501"})  # the same cut
    check(tmp_path / "first", **{"data.name": "market1501", "data.val_share": 0.0})  # nobody is held out
    check(tmp_path / "first", **{"data.name": "msmt17"})  # people whom it has not seen


def test_a_data_set_made_of_anothers_images_holds_the_same_people(tmp_path):
    recorded(tmp_path / "first", EIGHT, **{"data.name": "dukemtmc_reid"})
    with pytest.raises(UserError, match=r"trained on other people of dukemtmc_reid"):
        check(tmp_path / "first", **{"data.name": "occluded_dukemtmc"})


def test_what_a_network_itself_began_from_counts(tmp_path):
    recorded(tmp_path / "first", EIGHT, **{"data.name": "market1501"})
    recorded(tmp_path / "second", EIGHT, **{"data.name": "msmt17", "init_from": str(tmp_path / "first")})
    with pytest.raises(UserError, match=r"found .*first, trained on other people of market1501"):
        check(tmp_path / "second", **{"data.name": "market1501"})
    check(tmp_path / "second", **{"data.name": "dukemtmc_reid"})


def test_a_frozen_network_pools_as_it_was_trained_to(tmp_path):
    recorded(tmp_path / "first", EIGHT, **{"model.pooling": "gem"})
    frozen = {"model.pair_stage": "evidence", "model.frozen": True}
    with pytest.raises(UserError, match=r"of another kind \(model.pooling: 'gem' -> 'mean'\)"):
        check(tmp_path / "first", EIGHT, **frozen)
    check(tmp_path / "first", EIGHT, **frozen, **{"model.pooling": "gem"})
