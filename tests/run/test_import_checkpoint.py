"""The authors' checkpoints: names, number of identities, mismatches told together, a workdir that can be evaluated."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from released import golden_config, golden_network, maker, released_name, state_dict
from safetensors.numpy import save_file

from cacenet_jax import experiment
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError
from cacenet_jax.pretrained.networks import RELEASED, recognise
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.import_checkpoint import import_checkpoint, network_variables


def released_variables(net, arrays, there):
    return network_variables(net, *recognise(arrays, there), there)


def test_names_of_the_whole_network_are_those_of_the_release():
    """ResNet-50 with non-local blocks: what a state dict of the authors holds, counters aside."""
    net = experiment.read(golden_config(backbone="resnet50")).network.build(751)
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)
    like = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)
    found = {released_name(path) for tree in like.values() for path in traverse_util.flatten_dict(tree)}
    blocks = {name.rsplit(".", 2)[0] for name in found if "non_local" in name}
    assert blocks == {f"resnet.layer{i}.non_local_block" for i in ("2.2", "3.4", "4.1")}
    inside = {f"{layer}.{kind}" for layer in ("g", "theta", "phi", "W") for kind in ("weight", "bias")}
    assert {name.split("non_local_block.")[1] for name in found if "non_local" in name} == inside
    rest = {name for name in found if not name.startswith("resnet.")}
    norm = {f"embedding_layer.1.{what}" for what in ("weight", "bias", "running_mean", "running_var")}
    assert rest == norm | {
        "gemp.p", "embedding_layer.0.weight", "fc_layer.2.weight", "pair_fc_layer.2.weight",
        "pair_graph.y.weight", "pair_graph.g.weight", "pair_graph.o.weight",
    }  # fmt: skip
    assert "resnet.layer4.0.downsample.1.running_var" in found and len(found) == 318 - 53 + 24 + 11


@pytest.mark.parametrize("prefix", ["", "module."])
def test_file_is_taken_with_or_without_what_data_parallel_puts_before(prefix):
    arrays = {prefix + name: x for name, x in state_dict().items()}
    arrays[prefix + "resnet.bn1.num_batches_tracked"] = np.asarray(3)
    layout, plain = recognise(arrays, "FILE")
    assert layout is RELEASED and layout.identities(plain) == maker().IDENTITIES
    params = released_variables(golden_network(), arrays, "FILE")["params"]
    expected = maker().weight("pair_graph.o.weight", (maker().CHANNELS, maker().CHANNELS // 16, 1, 1))
    np.testing.assert_array_equal(params["pair_graph"]["o"]["kernel"], expected[..., 0, 0].T.astype(np.float32))
    np.testing.assert_array_equal(params["gemp"]["p"], np.float32([2.6]))


def test_every_mismatch_is_told_at_once():
    arrays = state_dict()
    del arrays["gemp.p"], arrays["pair_graph.g.weight"]
    arrays["embedding_layer.0.weight"] = arrays["embedding_layer.0.weight"][:-1]
    arrays["fc_layer.2.bias"] = np.zeros(5)
    arrays["resnet.bn1.bias"] = np.full(8, np.nan)
    with pytest.raises(UserError) as error:
        released_variables(golden_network(), arrays, "FILE")
    text = str(error.value)
    for name in ("gemp.p", "pair_graph.g.weight", "embedding_layer.0.weight", "fc_layer.2.bias", "resnet.bn1.bias"):
        assert name in text, name
    assert "(11, 256, 1, 1) against (12, 256)" in text and "FILE" in text


def test_files_and_configs_of_another_kind_are_refused():
    without = {name: x for name, x in state_dict().items() if "non_local" not in name}
    with pytest.raises(UserError, match=r"does not fit .*\(24 missing\)(.|\n)*resnet.layer2.0.non_local_block.W.bias"):
        released_variables(golden_network(), without, "FILE")
    backbone = {name: x for name, x in state_dict().items() if name.startswith("resnet.")}
    with pytest.raises(UserError, match=r"found FILE without embedding layer and classifier of a known network"):
        recognise(backbone, "FILE")
    with pytest.raises(UserError, match=r"a network with conditional_head/.*expected .*market1501.py:released"):
        released_variables(golden_network(pair={"shared_encoder": False}), state_dict(), "FILE")
    with pytest.raises(UserError, match=r"a network with conditional_head/.*expected .*market1501.py:released"):
        released_variables(golden_network(pair_stage="conditional", pooling="mean"), state_dict(), "FILE")
    with pytest.raises(UserError, match=r"config.pretrained: not given"):
        import_checkpoint(golden_config(), "nowhere")


def test_import_writes_a_workdir_that_is_loaded_again(tmp_path, monkeypatch, capsys):
    net = golden_network()
    monkeypatch.setattr(experiment.Network, "build", lambda network, num_identities: net)  # stages that no name has
    save_file(
        {f"module.{name}": x.astype(np.float32) for name, x in state_dict().items()}, tmp_path / "net.safetensors"
    )
    config = golden_config()
    config.pretrained, config.devices = str(tmp_path / "net.safetensors"), 1
    state = import_checkpoint(config, tmp_path / "run")
    assert "of 5 identities" in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path / "run", create=False)
    assert checkpoints.num_identities() == 5 and checkpoints.steps() == [1]
    loaded = checkpoints.load(1, state, replicated_sharding(global_mesh(1)))
    checkpoints.close()
    expected = released_variables(net, state_dict(), "FILE")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected["params"])
    jax.tree.map(np.testing.assert_array_equal, loaded.batch_stats, expected["batch_stats"])
    assert json.loads((tmp_path / "run/data.json").read_text())["imported"] == "net.safetensors"
    with pytest.raises(UserError, match=r"run: found a network there already, expected none; choose a new --workdir"):
        import_checkpoint(config, tmp_path / "run")
    config.model.dropout = 0.3
    with pytest.raises(UserError, match=r"found a run of another config \(model.dropout: 0.0 -> 0.3\)"):
        import_checkpoint(config, tmp_path / "run")
