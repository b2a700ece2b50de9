"""torchreid's checkpoints of complete networks: recognition, import, embeddings in memory and from the workdir."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from command_in_process import run_main
from flax import traverse_util
from own_images import picture
from safetensors.numpy import save_file

import cacenet_jax as cace
from cacenet_jax import experiment
from cacenet_jax.data.builders import available
from cacenet_jax.errors import UserError
from cacenet_jax.models import backbones
from cacenet_jax.pretrained.networks import TORCHREID, fields_of, recognise
from cacenet_jax.run.choices import override
from cacenet_jax.run.published import config_of
from cacenet_jax.run.validation import validate

OSNETS = [name for name in backbones.NAMES if name.startswith("osnet")]
IDENTITIES = 7
PUBLISHED = [("market1501", "587,127 parameters of 751"), ("msmt17", "735,897 parameters of 1041")]
WEIGHTS = os.environ.get("CACENET_TORCHREID_WEIGHTS")  # a folder with the published files


def marks(identities):
    """Arrays that decide the config."""
    arrays = {"conv1.conv.weight": np.zeros((16, 3, 7, 7)), "conv1.bn.running_mean": np.zeros(16)}
    return arrays | {"fc.0.weight": np.zeros((12, 128)), "classifier.weight": np.zeros((identities, 12))}


def network(backbone):
    """A network of the packaged config with another backbone, and its variables' shapes by torchreid's names."""
    config = override(config_of(marks(IDENTITIES), "FILE.pth"), {"model.backbone": backbone})
    net = experiment.read(config).network.build(IDENTITIES)
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)
    like = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)
    flat = {path: x.shape for tree in like.values() for path, x in traverse_util.flatten_dict(tree).items()}
    return net, {TORCHREID.torch_name(net.backbone.torch_name, path): (path, shape) for path, shape in flat.items()}


def state_dict(backbone, seed=0):
    """Random arrays in torchreid's layout, with its counters."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, (path, shape) in network(backbone)[1].items():
        torch_shape = tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else shape[::-1]
        scale = 1 / np.sqrt(max(np.prod(torch_shape[1:]), 1))
        x = rng.uniform(0.5, 1.5, torch_shape) if path[-1] in ("scale", "var") else rng.normal(0, scale, torch_shape)
        arrays[name] = x.astype(np.float32)
    return arrays | {"conv1.bn.num_batches_tracked": np.asarray(3)}


@pytest.mark.parametrize("backbone", OSNETS)
def test_the_backbone_is_read_from_the_file(backbone):
    _, shapes = network(backbone)
    arrays = {f"module.{name}": np.zeros([shape[i] for i in (3, 2, 0, 1)] if len(shape) == 4 else shape[::-1])
              for name, (_, shape) in shapes.items()}  # fmt: skip
    layout, plain = recognise(arrays, "FILE")
    assert layout is TORCHREID and layout.identities(plain) == IDENTITIES
    assert fields_of(layout, plain, "FILE") == {"model.backbone": backbone, "model.embed_dim": 12}


@pytest.mark.parametrize(
    ("identities", "name"),
    [(702, "dukemtmc_reid"), (751, "market1501"), (1041, "msmt17"), (4101, "msmt17"), (IDENTITIES, "market1501")],
)
def test_the_data_set_is_that_with_as_many_training_identities(identities, name):
    """A run on Market-1501 that starts from a network of MSMT17 may hold out validation identities."""
    config = config_of(marks(identities), "FILE.pth")
    assert config.data.name == name and name in available()
    validate(override(config, {"pretrained": ""}))


def test_a_backbone_that_is_not_known_is_told():
    arrays = {
        "fc.0.weight": np.zeros((4, 4)),
        "classifier.weight": np.zeros((4, 4)),
        "layer1.0.conv1.weight": np.ones(3),
    }
    with pytest.raises(
        UserError, match=r"found FILE, a checkpoint of torchreid with a backbone that is not known here"
    ):
        fields_of(*recognise(arrays, "FILE"), "FILE")


@pytest.mark.slow
def test_a_checkpoint_becomes_a_workdir_and_is_loaded_in_memory(tmp_path):
    """Under any name, without --config; both have its arrays, and the ReLU belongs to the embedding."""
    arrays = state_dict("osnet_x0_25")
    save_file(arrays, tmp_path / "best.pth.tar-60")
    small = ("--config.data.height=64", "--config.data.width=32", "--config.eval.flip=False")
    words = ("--mode=import", "--config.pretrained=best.pth.tar-60", *small)
    done = run_main(tmp_path, *words, "--workdir=osnet")
    assert done.returncode == 0 and f"of {IDENTITIES} identities" in done.stdout, done.stderr
    images = []
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(f"{i}.png"))
        images.append(tmp_path / f"{i}.png")
    embedding = cace.load(tmp_path / "osnet").embed(images)
    assert embedding.shape == (3, 12) and (embedding >= 0).all() and (embedding == 0).any()
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-6)
    in_memory, trained = cace.load(tmp_path / "best.pth.tar-60"), cace.load(tmp_path / "osnet")
    assert in_memory.image_size == (256, 128) and trained.image_size == (64, 32)
    jax.tree.map(np.testing.assert_array_equal, in_memory._variables, trained._variables)


def test_what_does_not_fit_is_told(tmp_path):
    arrays = state_dict("osnet_x0_25")
    del arrays["fc.0.bias"]
    save_file(arrays, tmp_path / "cut.safetensors")
    words = ("--mode=import", "--config.pretrained=cut.safetensors", "--workdir=osnet")
    done = run_main(tmp_path, *words)
    assert done.returncode == 2 and "missing in the file (1): fc.0.bias" in done.stderr, done.stderr
    done = run_main(tmp_path, "--config=configs/market1501.py", *words)
    assert (
        done.returncode == 2
        and "which a checkpoint of torchreid lacks, expected --config=configs/osnet.py" in done.stderr
    )
    assert not (tmp_path / "osnet").exists()
    done = run_main(tmp_path, "--mode=import", "--workdir=osnet")
    assert done.returncode == 2 and "config.pretrained: not given, expected the checkpoint to import" in done.stderr


@pytest.mark.skipif(
    not WEIGHTS, reason="CACENET_TORCHREID_WEIGHTS does not name a folder of torchreid's published files"
)
@pytest.mark.parametrize(("name", "sizes"), PUBLISHED)
def test_published_checkpoints(tmp_path, name, sizes):
    file = Path(WEIGHTS) / f"osnet_x0_25_{name}.pth"
    done = run_main(tmp_path, "--mode=import", f"--config.pretrained={file}", "--workdir=osnet")
    assert done.returncode == 0 and sizes in done.stdout, done.stdout + done.stderr
    assert json.loads((tmp_path / "osnet/config.json").read_text())["data"]["name"] == name
    (tmp_path / "a.png").write_bytes(picture("a.png"))
    embedding = cace.load(tmp_path / "osnet").embed(tmp_path / "a.png")
    assert embedding.shape == (1, 512) and (embedding >= 0).all()
