"""Backbones by name: what the registry refuses, and that one of the user's own trains."""

import sys
import types

import documents
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_training

from cacenet_jax import experiment
from cacenet_jax.data.batch import Batch
from cacenet_jax.errors import UserError
from cacenet_jax.models import backbones
from cacenet_jax.models.scoring import feature_maps
from cacenet_jax.run.validation import validate


class Patches(nn.Module):
    """8 x 8 patches to channels, of pixels from -1 to 1."""

    width: int = 6
    last_stride: int = 1
    dtype: type = jnp.float32
    axis_name: str | None = None

    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)

    @property
    def channels(self):
        return self.width

    @staticmethod
    def torch_name(path):
        raise ValueError(f"{path!r} has no published weights")

    @nn.compact
    def __call__(self, x_BHWC, *, train=False):
        size = (8 * self.last_stride, 8 * self.last_stride)
        x_BHWC = nn.Conv(self.width, size, strides=size, padding="VALID", use_bias=False, dtype=self.dtype)(x_BHWC)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name)
        return nn.relu(norm(x_BHWC))


@pytest.fixture
def patches(monkeypatch):
    monkeypatch.setattr(backbones, "NAMES", dict(backbones.NAMES))
    backbones.register("patches", Patches)


def config_of(backbone, **fields):
    return tiny_training.tiny_config(backbone=backbone, backbone_fields=fields)


def test_all_have_what_the_interface_asks_for():
    assert {"resnet50", "resnet_tiny", "efficientnet_lite0", "efficientnet_lite2"} <= set(backbones.NAMES)
    for name in backbones.NAMES:
        backbone = backbones.build(name, last_stride=2)
        assert isinstance(backbone, backbones.Backbone)
        assert len(backbone.pixel_mean) == len(backbone.pixel_std) == 3


def test_one_of_the_users_own_trains_and_describes(patches):
    config = config_of("patches", width=5)
    validate(config)
    net = experiment.read(config).network.build(4)
    assert isinstance(net.backbone, Patches) and net.backbone.channels == 5
    optimizer = optax.sgd(0.1)
    state = tiny_training.state_of(net, optimizer)
    images = np.random.default_rng(0).integers(0, 256, (8, *tiny_training.SHAPE, 3), np.uint8)
    step = jax.jit(tiny_training.step_of(config, optimizer, augmentation=experiment.read(config).augmentation()))
    new, metrics = step(state, Batch(images, tiny_training.LABELS))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    before, after = state.params["backbone"]["Conv_0"]["kernel"], new.params["backbone"]["Conv_0"]["kernel"]
    assert np.abs(after - before).max() > 0
    variables = {"params": new.params, "batch_stats": new.batch_stats}
    maps = feature_maps(net, variables, jnp.asarray(images), flip=False)
    pixels = jnp.asarray(images, jnp.float32) / 127.5 - 1
    expected = net.apply(variables, pixels, train=False, method="maps")
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_training_sees_the_pixels_that_the_backbone_asks_for(patches):
    augmentation_of = lambda name: experiment.read(config_of(name)).augmentation()
    assert augmentation_of("patches").mean == (0.5, 0.5, 0.5)
    assert augmentation_of("efficientnet_lite0").std == pytest.approx((128 / 255,) * 3)
    assert augmentation_of("resnet18").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("efficientnet_lite0", {"width": 8}, "'efficientnet_lite0' has no field width; fields are .*head"),
        ("efficientnet_lite0", {"non_local": True}, "'efficientnet_lite0' has no field non_local"),
        ("resnet18", {"head": False}, "model.backbone_fields.head: backbone 'resnet18' has no field head"),
        ("resnet18", {"axis_name": "i"}, "sets axis_name of its backbone; leave it out and set config.devices"),
        ("resnet18", {"dtype": "bfloat16"}, "leave it out and set config.model.dtype"),
    ],
)
def test_fields_that_cannot_be_are_refused_in_a_line(name, fields, message):
    with pytest.raises(UserError, match=message) as error:
        validate(config_of(name, **fields))
    assert "\n" not in str(error.value)


def test_fields_of_a_config_reach_the_backbone():
    config = config_of("efficientnet_lite1", head=False, drop_connect=0.1, last_stride=2)
    validate(config)
    backbone = experiment.read(config).network.build(4).backbone
    assert (backbone.head, backbone.drop_connect, backbone.last_stride, backbone.channels) == (False, 0.1, 2, 320)


def test_build_names_what_exists():
    with pytest.raises(UserError, match=r"config.model.backbone: found 'vgg', expected one of .*efficientnet_lite0"):
        backbones.build("vgg")


def test_a_class_is_found_where_it_can_be_imported(monkeypatch):
    monkeypatch.setattr(backbones, "NAMES", dict(backbones.NAMES))
    monkeypatch.setitem(sys.modules, "my_networks", types.SimpleNamespace(Patches=Patches, number=3))
    config = config_of("my_networks:Patches", width=7)
    validate(config)
    assert experiment.read(config).network.build_backbone() == Patches(width=7)
    for name, message in {
        "my_networks:Other": "expected a class that can be imported",
        "no_such_module:Patches": "No module named 'no_such_module'",
        "my_networks:number": "expected a class that derives from flax.linen.Module, and number is none",
        "my_networks:": "expected one of resnet_tiny",
    }.items():
        with pytest.raises(UserError, match=message):
            validate(config_of(name))


def test_a_class_that_is_no_backbone_is_refused_with_what_it_lacks(monkeypatch):
    monkeypatch.setattr(backbones, "NAMES", dict(backbones.NAMES))

    class Bare(nn.Module):
        dtype: type = jnp.float32

    with pytest.raises(UserError, match="expected axis_name too"):
        backbones.register("bare", Bare)

    class Half(nn.Module):
        dtype: type = jnp.float32
        axis_name: str | None = None
        last_stride: int = 1

    backbones.register("half", Half)
    with pytest.raises(UserError, match=r"a Half without .*channels, .*torch_name"):
        backbones.build("half")


@pytest.mark.parametrize("drop", [1.0, -0.1, "a"])
def test_a_share_of_blocks_that_cannot_be_left_out_is_refused(drop):
    config = config_of("efficientnet_lite0", drop_connect=drop)
    with pytest.raises(
        UserError, match=r"found drop_connect=.*, expected 0 or more and less than 1; change config.model"
    ):
        experiment.read(config).network.build(4)


def test_drop_connect_draws_anew_in_each_step(monkeypatch):
    """The training step hands the backbone a key of its own, from the run's seed and the step."""
    seen = tiny_training.tiny_config(backbone="drawing")
    monkeypatch.setattr(backbones, "NAMES", dict(backbones.NAMES))

    class Drawing(Patches):
        @nn.compact
        def __call__(self, x_BHWC, *, train=False):
            maps_BHWC = Patches(self.width, self.last_stride, self.dtype, self.axis_name)(x_BHWC, train=train)
            if train:
                maps_BHWC *= jax.random.uniform(self.make_rng("drop_connect"), (len(x_BHWC), 1, 1, 1))
            return maps_BHWC

    backbones.register("drawing", Drawing)
    seen.model.pair_stage = "none"
    optimizer = optax.sgd(0.0)
    state = tiny_training.state_of(experiment.read(seen).network.build(4), optimizer)
    step = jax.jit(tiny_training.step_of(seen, optimizer))
    losses = [float(step(state.replace(step=np.asarray(i)), tiny_training.batch_of())[1]["loss"]) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_class_of_the_page_is_a_backbone(monkeypatch):
    monkeypatch.setattr(backbones, "NAMES", dict(backbones.NAMES))
    (example,) = documents.blocks(documents.ROOT / "docs/backbone.md")
    names = {"__name__": "my_networks"}
    exec(example.code, names)
    backbones.register("example", names["Patches"])
    backbone = backbones.build("example", width=5, last_stride=2, dtype=jnp.float32, axis_name=None)
    shape = jax.eval_shape(lambda: backbone.init_with_output(jax.random.key(0), jnp.zeros((2, 64, 32, 3)))[0]).shape
    assert shape == (2, 4, 2, backbone.channels) == (2, 4, 2, 5)
