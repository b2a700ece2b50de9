"""Every file in configs/: it is valid, its data set takes its options, and the paper's settings are the paper's."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from command import TINY

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.data.builders.prepare import builder_class
from cacenet_jax.errors import UserError
from cacenet_jax.run.choices import flatten, lookup, override, to_dict, with_eval_dataset
from cacenet_jax.run.completion import PATHS, complete
from cacenet_jax.run.records import differences
from cacenet_jax.run.validation import validate
from cacenet_jax.run.workdir import write_json

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
PAPER = ("dukemtmc", "market1501", "msmt17", "occluded_duke")


def load(name, *arguments):
    path = next(file for file in FILES if file.stem == name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def after(folder, first, name, *arguments):
    """A config that goes on from another one, whose workdir recorded it."""
    write_json(folder / "config.json", to_dict(first))
    config = load(name, *arguments)
    config.init_from = str(folder)
    return complete(config)


def second_stage(folder, first):
    return after(folder, first, "second_stage")


@pytest.mark.parametrize(
    "name", [*(file.stem for file in FILES), "finetune:pairs", *(f"{name}:released" for name in PAPER)]
)
def test_config_is_valid_and_its_network_fits_its_images(name, tmp_path):
    name, *variant = name.split(":")
    goes_on = name in ("second_stage", "finetune")
    config = after(tmp_path, load("synthetic"), name, *variant) if goes_on else load(name, *variant)
    validate(config)
    builder_class(config.data.name).complete_options(config.data.options.to_dict())
    net = experiment.read(config).network.build(10)
    images = jax.ShapeDtypeStruct((2, config.data.height, config.data.width, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda key, x: net.init_with_output(key, x, train=False)[0], key, images)
    assert shapes[0].embedding.shape == (2, config.model.embed_dim)
    assert (shapes[1] is None) == (config.model.pair_stage == "none")


@pytest.mark.parametrize("name", PAPER)
def test_settings_of_the_paper(name):
    """Section 4.2."""
    config = load(name)
    assert (config.data.height, config.data.width) == (384, 128)
    assert (config.data.num_ids, config.data.images_per_id, config.epochs) == (4, 4, 80)
    assert (config.model.backbone, config.model.backbone_fields.to_dict()) == ("resnet50", {})
    assert (config.model.pair_stage, config.model.pair.to_dict()) == ("conditional", {})
    assert (config.optim.name, config.optim.weight_decay, config.augment.erase) == ("sgd", 5e-4, 0.5)
    rate = experiment.read(config).learning_rate(808)
    assert rate(0) == 0 and rate(80 * 808) == pytest.approx(0, abs=1e-9)
    assert float(rate(5 * 808)) == pytest.approx(6.25e-3)


def test_defaults_stand_once():
    """Settings that have defaults of their own, for those who build them by hand, agree with the config's."""
    settings = experiment.read(paper())
    assert settings.optimiser == type(settings.optimiser)()
    assert settings.loss == type(settings.loss)()
    assert settings.augmentation() == type(settings.augmentation())()


def test_the_baseline_differs_in_the_pair_stage_alone():
    full, baseline = load("synthetic").to_dict(), load("synthetic", "baseline").to_dict()
    assert (full["model"].pop("pair_stage"), baseline["model"].pop("pair_stage")) == ("conditional", "none")
    assert full["model"].pop("pair") and not baseline["model"].pop("pair")
    assert full == baseline


def test_a_run_from_before_a_field_existed_is_the_run_of_its_default():
    recorded, current = to_dict(paper()), to_dict(paper())
    del recorded["model"]["relu"], recorded["data"]["parts"]
    assert differences(recorded, current) == []
    current["model"]["pair"] = {"alignment": "attention"}  # the stage's default, spelt out
    current["model"]["backbone_fields"] = {"last_stride": 1}
    assert differences(recorded, current) == []
    current["model"]["pair"] = {"alignment": "full"}
    assert differences(recorded, current) == ["model.pair.alignment: 'attention' -> 'full'"]
    recorded["model"]["gone"] = 1
    assert "model.gone: 1 -> None" in differences(recorded, current)
    current["model"] |= {"pair_stage": "evidence", "pair": {"features": 8}}
    assert "model.pair_stage: 'conditional' -> 'evidence'" in differences(recorded, current)
    assert not [text for text in differences(recorded, current) if text.startswith("model.pair.")]


@pytest.mark.parametrize(
    "first", [("synthetic",), ("market1501_cpu",), ("market1501_lite0",), ("market1501_lite0", "cpu")], ids=str
)
def test_a_second_stage_has_the_network_and_the_images_of_the_first(first, tmp_path):
    first = load(*first)
    first.data.root, first.data.dir, first.data.val_share, first.data.on_error = "there", "kept/here", 0.25, "skip"
    second = second_stage(tmp_path, first)
    validate(second)
    for field in ("backbone", "backbone_fields", "embed_dim", "pooling", "relu"):
        assert second.model[field] == first.model[field], field
    fields = (
        "name",
        "options",
        "root",
        "dir",
        "height",
        "width",
        "val_share",
        "val_seed",
        "val_group",
        "parts",
        "on_error",
    )
    for field in fields:
        assert second.data[field] == first.data[field], field
    assert second.augment.pad == first.augment.pad
    assert (second.model.pair_stage, second.model.frozen) == ("evidence", True)
    assert to_dict(complete(second)) == to_dict(second)


def test_a_second_stage_needs_its_first(tmp_path):
    with pytest.raises(UserError, match=r"config.init_from: not given, expected the workdir of the first stage"):
        complete(load("second_stage"))
    config = load("second_stage")
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match=r"config.init_from: no config.json in .*train it first"):
        complete(config)
    (tmp_path / "config.json").write_text('{"model": {"pairs": true}}')
    with pytest.raises(UserError, match=r"config.json: not a config of this version \(.*pairs"):
        complete(config)


def test_every_field_that_holds_a_path_is_known():
    """A field that is empty by default, as a path is, stands in PATHS or here."""
    empty = {field for field, value in flatten(to_dict(paper())) if value is None}
    assert empty | {"data.dir"} == {*PATHS, "eval.data"}


@pytest.mark.parametrize("field", PATHS)
def test_a_path_in_the_home_folder(monkeypatch, field):
    monkeypatch.setenv("HOME", "/home/me")
    for path, expected in (("~/x", "/home/me/x"), ("~", "/home/me"), ("a~b/~", "a~b/~"), ("/x", "/x")):
        assert lookup(complete(override(paper(), {field: path})), field) == expected
    assert complete(override(paper(), {"pretrained": "hub:a/b~c"})).pretrained == "hub:a/b~c"


@pytest.mark.parametrize(
    "flags,told",
    [
        (["--config=~/mine.py", "--workdir=run", "--config.data.root=~/gone"], "error: {home}/gone: no data set found"),
        (["--config", "~/mine.py", "--workdir=~/mine.py"], "error: --workdir={home}/mine.py: found a file"),
        (["--mode=evaluate", "--workdir=~/gone"], "error: --workdir: no config.json in {home}/gone"),
    ],
)
def test_flags_with_a_path_in_the_home_folder(command, flags, told):
    """Bash leaves `~` behind an equals sign as it is."""
    text = TINY.read_text().replace('data: str = "synthetic_pedestrians"', 'data: str = "reid_folder"')
    (command.folder / "mine.py").write_text(text)
    done = command(*flags, env={"HOME": str(command.folder)})
    assert done.returncode == 2 and done.stderr.startswith(told.format(home=command.folder)), done.stderr
    assert [path.name for path in command.folder.iterdir()] == ["mine.py"]


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
    before, found = to_dict(config), with_eval_dataset(config)
    assert (found.data.name, found.data.options.to_dict()) == (other, options)
    assert to_dict(config) == before and found.data.height == config.data.height
    config.eval.data = "nowhere"
    with pytest.raises(UserError, match=r"data set 'nowhere' is unknown"):
        with_eval_dataset(config)


def test_fine_tuning_keeps_the_pair_stage_and_its_fields_unless_told(tmp_path):
    first = load("synthetic")
    assert to_dict(after(tmp_path, first, "finetune"))["model"] == to_dict(first)["model"]
    baseline = load("synthetic", "baseline")
    assert after(tmp_path, baseline, "finetune").model.pair_stage == "none"
    pairs = after(tmp_path, baseline, "finetune", "pairs").model
    assert pairs.pair_stage == "conditional" and pairs.pair.clue_weight == 0.9
    with pytest.raises(UserError, match="expected plain or pairs"):
        load("finetune", "other")
