"""Every file in configs/: it is valid, its data set takes its options, and the paper's settings are the paper's."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cacenet_jax import experiment, optim
from cacenet_jax.config import differences, elsewhere, paper, to_dict, validate
from cacenet_jax.data.builders.prepare import builder_class
from cacenet_jax.errors import UserError

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
PAPER = ("dukemtmc", "market1501", "msmt17", "occluded_duke")


def load(name, *arguments):
    path = next(file for file in FILES if file.stem == name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_config_is_valid_and_its_network_fits_its_images(name):
    config = load(name)
    validate(config)
    builder_class(config.data.name).complete_options(config.data.options.to_dict())
    net = experiment.model(config, 10)
    images = jax.ShapeDtypeStruct((2, config.data.height, config.data.width, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda key, x: net.init_with_output(key, x, train=False)[0], key, images)
    assert shapes[0].embedding.shape == (2, config.model.embed_dim)
    if not config.model.pairs:
        assert shapes[1] is None
    elif config.model.pair_score == "evidence":
        assert shapes[1].evidence.shape == (2, 2)
    else:
        assert shapes[1].conditional.embedding.shape == (2, 2, config.model.embed_dim)


@pytest.mark.parametrize("name", PAPER)
def test_settings_of_the_paper(name):
    """Section 4.2."""
    config = load(name)
    assert (config.data.height, config.data.width) == (384, 128)
    assert (config.data.num_ids, config.data.images_per_id, config.epochs) == (4, 4, 80)
    assert config.model.backbone == "resnet50" and config.model.clue_weight == 0 and config.model.filters == "tied"
    assert (config.optim.name, config.optim.weight_decay, config.augment.erase) == ("sgd", 5e-4, 0.5)
    rate = optim.schedule(config, 808)
    assert rate(0) == 0 and rate(80 * 808) == pytest.approx(0, abs=1e-9)
    assert float(rate(5 * 808)) == pytest.approx(6.25e-3)


def test_the_baseline_differs_in_the_pair_stage_alone():
    full, baseline = load("synthetic").to_dict(), load("synthetic", "baseline").to_dict()
    assert full["model"].pop("pairs") is True and baseline["model"].pop("pairs") is False
    assert full == baseline


def test_a_run_from_before_a_field_existed_is_the_run_of_its_default():
    recorded, current = to_dict(paper()), to_dict(paper())
    del recorded["model"]["alignment"], recorded["data"]["parts"]
    assert differences(recorded, current) == []
    current["model"]["alignment"] = "full"
    assert differences(recorded, current) == ["model.alignment: 'attention' -> 'full'"]
    recorded["model"]["gone"] = 1
    assert "model.gone: 1 -> None" in differences(recorded, current)


@pytest.mark.parametrize("where, first", [("gpu", "market1501_lite0"), ("cpu", "market1501_lite0_cpu")])
def test_the_second_stage_of_lite0_has_the_network_and_the_images_of_the_first(where, first):
    second, first = load("market1501_lite0_plus", where), load(first)
    for field in ("backbone", "backbone_fields", "width", "last_stride", "embed_dim"):
        assert second.model[field] == first.model[field]
    for field in ("name", "height", "width", "options"):
        assert second.data[field] == first.data[field]
    validate(second)


@pytest.mark.parametrize(
    ("name", "other", "options"),
    [
        ("msmt17", "market1501", {"check_counts": False}),
        ("msmt17", "msmt17", {"check_counts": False, "train_val": False}),
        ("msmt17", "reid_folder", {}),
        ("synthetic", "market1501", {}),
    ],
)
def test_a_cross_domain_test_keeps_the_options_that_the_other_data_set_has_too(name, other, options):
    config = load(name)
    config.eval.data = other
    if "check_counts" in config.data.options:
        config.data.options.check_counts = False
    before, found = to_dict(config), elsewhere(config)
    assert (found.data.name, found.data.options.to_dict()) == (other, options)
    assert to_dict(config) == before and found.data.height == config.data.height
    config.eval.data = "nowhere"
    with pytest.raises(UserError, match=r"data set 'nowhere' is unknown"):
        elsewhere(config)
