"""The second stage: a trained network stays as it is and learns to compare; stopped, it goes on without a trace."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import cacenet_jax
from cacenet_jax import experiment
from cacenet_jax.data.builders import open_split
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.subsets import all_records
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError
from cacenet_jax.models.cacenet import INDIVIDUAL_PARAMETERS
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import override, to_dict
from cacenet_jax.run.completion import complete
from cacenet_jax.run.initialisation import check_source
from cacenet_jax.run.validation import validate
from cacenet_jax.train import prepare_data, train

SPEC = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "configs" / "tiny.py")
TINY = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TINY)


def first_config(folder):
    config = TINY.get_config()
    config.data.dir, config.epochs, config.model.pair_stage = str(folder / "prepared"), 2, "none"
    return config


def second_config(folder):
    config = first_config(folder)
    config.epochs, config.checkpoint_every, config.init_from = 2, 5, str(folder / "first")
    config.model.update({"pair_stage": "evidence", "pair": {"features": 8}, "frozen": True})
    config.data.num_ids, config.data.hard_pool, config.optim.weight_decay = 3, 4, 0.5
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A first stage without a pair stage, and a second one."""
    folder = tmp_path_factory.mktemp("stages")
    results = train(first_config(folder), folder / "first"), train(second_config(folder), folder / "second")
    return folder, *results


def arrays(workdir, step=None):
    checkpoints = Checkpoints(workdir, create=False)
    params, stats = checkpoints.parameters(step or checkpoints.steps()[-1], replicated_sharding(global_mesh(1)))
    checkpoints.close()
    return jax.tree.map(np.asarray, {"params": params, "batch_stats": stats})


def test_what_is_frozen_stays_and_the_individual_ranking_with_it(folder):
    folder, before, after = folder
    first, second = arrays(folder / "first"), arrays(folder / "second")
    for collection in ("params", "batch_stats"):
        for name in first[collection].keys() & set(INDIVIDUAL_PARAMETERS):
            jax.tree.map(np.testing.assert_array_equal, first[collection][name], second[collection][name])
    assert after["individual"] == before["individual"] and "conditional" in after
    judge = second["params"]["local_evidence"]["judge_bias"]
    assert judge.shape == (32,) and abs(judge).max() > 1e-4  # it started at 0
    assert "conditional_head" not in second["params"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(folder):
    folder, _, _ = folder
    stopped = folder / "stopped"
    config = second_config(folder)
    whole = arrays(folder / "second")
    # What a run of another length leaves at step 5 would differ in its schedule, so the same run is stopped.
    with pytest.MonkeyPatch.context() as patch:
        save = Checkpoints.save

        def stop_after_five(self, step, state, validation_map=None):
            save(self, step, state, validation_map)
            if step == 5:
                raise KeyboardInterrupt

        patch.setattr(Checkpoints, "save", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            train(config, stopped)
    shutil.move(folder / "first", folder / "elsewhere")  # what a run began from is not needed again
    try:
        train(config, stopped)
    finally:
        shutil.move(folder / "elsewhere", folder / "first")
    jax.tree.map(np.testing.assert_array_equal, whole, arrays(stopped))


def test_a_network_of_another_shape_is_refused(folder):
    folder, _, _ = folder
    config = second_config(folder)
    config.model.embed_dim = 8
    told = r"not fit this network \(5 of .*model.embed_dim: 16 -> 8(.|\n)*head/conv/kernel \(64, 16\) ag"
    with pytest.raises(UserError, match=told):
        train(config, folder / "other")
    config = second_config(folder)
    config.init_from = str(folder / "nowhere")
    with pytest.raises(UserError, match=r"init_from: found no checkpoints in .*nowhere"):
        train(config, folder / "other")
    assert not (folder / "other").exists()  # not claimed: a mistake can be corrected


def test_a_network_of_other_maps_is_refused_before_the_workdir_is_claimed(folder):
    config = second_config(folder[0])
    config.model.backbone_fields.last_stride = 2  # no parameter's shape tells
    with pytest.raises(UserError, match=r"another kind \(model.backbone_fields.last_stride: 1 -> 2\)"):
        train(config, folder[0] / "other")
    assert not (folder[0] / "other").exists()


def test_a_network_that_knows_the_validation_identities_is_refused(folder):
    first, config = folder[0] / "first", second_config(folder[0])
    data = json.loads((first / "data.json").read_text())
    check_source(first, to_dict(config), {**data, "sha256": "others"})  # nobody is held out
    config.data.val_share = 0.25
    check_source(first, to_dict(config), data)
    config.data.options.check_counts = True  # changes no record
    check_source(first, to_dict(config), data)
    with pytest.raises(UserError, match=r"other people of synthetic_pedestrians \(training data: .*'sha256': 'others'"):
        check_source(first, to_dict(config), {**data, "sha256": "others"})  # another cut of as many identities
    config.data.options.seed = 5
    with pytest.raises(UserError, match=r"other people of synthetic_pedestrians \(data.options.seed: None -> 5\)"):
        check_source(first, to_dict(config), data)


@pytest.mark.slow
def test_a_frozen_network_of_other_people_finds_look_alikes_by_mean_embeddings(folder, capsys):
    folder, _, _ = folder
    config = second_config(folder)
    config.data.options.update({"seed": 5, "num_train_ids": 12})
    config.data.hard_pool = 3
    train(config, folder / "others")
    assert "trained on other identities; its classifier is their mean embeddings" in capsys.readouterr().out
    first, second = arrays(folder / "first"), arrays(folder / "others")
    classifier = second["params"]["individual_head"].pop("classifier")["kernel"]
    first["params"]["individual_head"].pop("classifier")
    for name in ("backbone", "individual_head"):
        jax.tree.map(np.testing.assert_array_equal, first["params"][name], second["params"][name])
    # Literal: images of the training split, embedded by the loaded network, averaged by identity.
    recorded = json.loads((folder / "others" / "config.json").read_text())
    split = open_split(prepare_data(experiment.read(complete(config)).data, ("train",)), "train")
    subset = all_records(split)
    images = np.concatenate([x for x, _ in evaluation_batches(
        subset, height=recorded["data"]["height"], width=recorded["data"]["width"], batch_size=1, parts=None
    )])  # fmt: skip
    embedding = cacenet_jax.load(folder / "first").embed(images)
    means = np.stack([embedding[subset.labels == label].mean(axis=0) for label in range(subset.num_identities)], axis=1)
    np.testing.assert_allclose(classifier, means, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("init_from", None, "init_from: found None"),
        ("model.frozen", False, "hard_pool: found 4, expected 0 without model.frozen"),
        ("data.hard_pool", 1, "hard_pool: found 1, expected at least num_ids - 1, 2"),
        ("eval.flip", False, "eval.flip: found False, expected True with model.frozen"),
        (
            "model.pair.clue_weight",
            0.5,
            r"config.model.pair.clue_weight: pair stage 'evidence' has no field clue_weight, expected .*\(features\)",
        ),
        ("model.pair_stage", "none", "frozen: found True, expected False without a pair stage"),
    ],
)
def test_impossible_second_stages_are_named(tmp_path, field, value, message):
    config = second_config(tmp_path)
    with pytest.raises(UserError, match=message):
        validate(override(config, {field: value}))
