"""Each variant is a config that can be run, of every data set, and changes what it says and nothing else."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.reproduce.variants import RECIPES, ROWS, apply
from cacenet_jax.run.choices import flatten, to_dict
from cacenet_jax.run.records import differences, effective
from cacenet_jax.run.validation import validate

CONFIGS = Path(__file__).parents[2] / "configs"
WITH_VARIANTS = ("synthetic_ablation", "market1501", "dukemtmc", "msmt17", "occluded_duke", "market1501_cpu")


def get_config(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize("name", WITH_VARIANTS)
def test_every_variant_of_every_config_is_valid_and_changes_its_fields_alone(name):
    get = get_config(name)
    full = get()
    validate(full)
    for variant, fields in {**RECIPES, **ROWS}.items():
        config = get(variant)
        validate(config)
        assert {field: dict(flatten(to_dict(config)))[field] for field in fields} == fields
        changed = {text.split(":")[0] for text in differences(to_dict(full), to_dict(config))}
        assert changed <= set(fields), variant


def test_the_full_model_of_the_paper_is_these_rows():
    full = effective(to_dict(paper()))
    same = {row for row in ROWS if effective(to_dict(apply(paper(), row))) == full}
    assert same == {"full", "discrepancy", "attention", "alpha_0.9"}


def test_rows_differ_and_the_config_itself_stays():
    config = paper()
    before = to_dict(config)
    rows = {str(effective(to_dict(apply(config, row)))) for row in ROWS}
    assert len(rows) == len(ROWS) - 3
    assert to_dict(config) == before
    assert apply(config, "normal").data.get_type("root") is str  # so that a command line can set it


def test_a_row_of_another_stage_does_not_keep_the_fields_of_the_first():
    config = get_config("market1501_cpu")("clues")
    assert (config.model.pair_stage, config.model.pair.to_dict()) == ("keypoints", {})
    assert get_config("market1501_cpu")("normal").model.pair.filters == "untied"


def test_an_unknown_variant_names_those_that_there_are():
    with pytest.raises(UserError, match=r"variant 'fly'.*released, full, individual, clues.*alpha_0\.6"):
        get_config("synthetic_ablation")("fly")


@pytest.mark.parametrize("row", ["individual", "clues", "individual_gcn", "topk", "semantic"])  # each another stage
def test_the_network_of_a_row_takes_the_images_of_the_ablation(row):
    config = get_config("synthetic_ablation")(row)
    net = experiment.read(config).network.build(10)
    images = jax.ShapeDtypeStruct((4, config.data.height, config.data.width, net.image_channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    individual, pairs = jax.eval_shape(lambda key, x: net.init_with_output(key, x, train=False)[0], key, images)
    assert individual.embedding.shape == (4, config.model.embed_dim)
    assert (pairs is None) == (row == "individual")
