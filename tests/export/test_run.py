"""--mode=export: the files, their manifest, and what happens where they cannot be."""

import dataclasses
import errno
import json
import sys

import jax
import jax.export
import numpy as np
import pytest
from command import TINY
from export_reader import read_as_a_user, readers
from safetensors.numpy import load_file

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.export import folder as files
from cacenet_jax.export import functions, run
from cacenet_jax.models import backbones


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_readme_reads_an_export_in_a_process_without_this_package(exported, tmp_path):
    found = read_as_a_user(sys.executable, readers()[0], exported, tmp_path)
    assert max(found.values()) < 1e-6, found


def test_the_manifest_says_what_is_there(exported):
    folder = exported[0]
    manifest = files.read_manifest(folder)
    listed = manifest["files"]
    assert sorted(listed) == ["check.npz", "extractor.jaxexport", "pair_scorer.jaxexport", "weights.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*listed, "manifest.json"])
    assert (manifest["step"], manifest["num_identities"], manifest["embedding"]["size"]) == (12, 8, 16)
    images = manifest["images"]
    assert (images["height"], images["width"], images["channels"]) == (32, 16, ["red", "green", "blue"])
    np.testing.assert_allclose(images["normalised"]["mean"], [123.675, 116.28, 103.53])
    assert (
        manifest["config"]["model"]["pair"] == {"clue_weight": 0.5} and manifest["versions"]["jax"] == jax.__version__
    )
    outputs = listed["extractor.jaxexport"]["outputs"]
    assert outputs["embedding"] == {"shape": ["b", 16], "dtype": "float32"}
    terms = {name: x for name, x in outputs.items() if name != "embedding"}
    assert listed["pair_scorer.jaxexport"]["inputs"]["query"] == {
        name: {"shape": x["shape"][1:], "dtype": x["dtype"]} for name, x in terms.items()
    }
    assert all(value < 1e-5 for name in listed for value in listed[name].get("largest_difference", {}).values())
    weights = load_file(folder / "weights.safetensors")
    assert weights["params/backbone/conv1/kernel"].shape == (7, 7, 3, 8)


def test_artefacts_are_of_three_platforms_and_of_any_number_of_images(exported):
    folder, _, model = exported
    extractor, scorer = (
        jax.export.deserialize(bytearray((folder / f"{name}.jaxexport").read_bytes()))
        for name in ("extractor", "pair_scorer")
    )
    assert extractor.platforms == scorer.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(5).integers(0, 256, (7, *model.image), np.uint8)
    found = extractor.call(images)
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-6)
    alone = extractor.call(images[4:5])
    np.testing.assert_allclose(alone["embedding"], found["embedding"][4:5], atol=1e-6)
    terms = {name: x for name, x in found.items() if name in model.terms}
    one = lambda i: {name: x[i] for name, x in terms.items()}
    forth, back = scorer.call(one(0), terms), scorer.call(one(3), terms)
    assert forth.shape == (7,) and abs(forth[0]) < 1e-5 < forth[3]
    np.testing.assert_allclose(forth[3], back[0], atol=1e-6)  # symmetric


@pytest.mark.parametrize("name", backbones.NAMES)
def test_an_artefact_has_no_form_of_a_cpu(name):
    config = paper()
    config.model.backbone = name
    net = experiment.read(config).network.build(8)
    plain = {field.name: field.default for field in dataclasses.fields(net.backbone) if isinstance(field.default, bool)}
    chosen = lambda net: {name for name, default in plain.items() if getattr(net.backbone, name) != default}
    forms = {name for name in chosen(net) if "cpu" in name or "matmul" in name}
    assert forms  # tests run on a CPU, for which build chooses them
    assert chosen(functions.general(net)) == chosen(net) - forms


def test_without_the_pair_stage_there_is_no_scorer_and_an_earlier_one_goes(tmp_path, export_tiny, capsys):
    workdir = tmp_path / "run"
    (workdir / "export").mkdir(parents=True)
    for name in ("pair_scorer.jaxexport", "pair_scorer.onnx", "extractor.onnx", "mine.txt"):
        (workdir / "export" / name).write_text("old")
    folder, _, model = export_tiny(workdir, pair_stage="none")
    assert model.pair_scorer is None and model.terms == {}
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["check.npz", "extractor.jaxexport", "manifest.json", "mine.txt", "weights.safetensors"]
    assert "no pair scorer: config.model.pair_stage is none" in capsys.readouterr().out


def test_what_is_not_the_model_is_not_written_and_an_earlier_export_stays(tmp_path, export_tiny, monkeypatch):
    workdir = tmp_path / "run"
    folder, _, _ = export_tiny(workdir, pair_stage="none")
    before = contents(folder)
    real = run.functions
    made = []

    def other(net, variables, *settings):
        made.append(net)
        return real(net, jax.tree.map(lambda x: x * (1 + 1e-3 * (len(made) > 1)), variables), *settings)

    monkeypatch.setattr(run, "functions", other)
    with pytest.raises(
        UserError, match=r"extractor.jaxexport: found embedding \S+ from the model's, expected at most 1e-05"
    ):
        export_tiny(workdir, pair_stage="none")
    assert len(made) == 2 and contents(folder) == before


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("platforms", "cpu,gpu", "config.export.platforms: found 'gpu', expected names of cpu, cuda, rocm, tpu"),
        ("platforms", "", "config.export.platforms: found '', expected names"),
        ("platforms", "cuda,tpu", "config.export.platforms: found 'cuda,tpu', expected cpu among them"),
        ("check_images", 0, "config.export.check_images: found 0, expected more than 0"),
    ],
)
def test_values_that_cannot_be(tmp_path, field, value, told):
    config = paper()
    config.export[field] = value
    with pytest.raises(UserError, match=told):
        run.export(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(tmp_path, export_tiny):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/export").write_text("a file")
    with pytest.raises(UserError, match="run/export: found no folder that can be written"):
        export_tiny(tmp_path / "run", pair_stage="none")


def test_what_killed_exports_left_is_removed(tmp_path, export_tiny):
    folder = tmp_path / "run/export"
    for name in (".scratch.killed", ".scratch.other", "mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "extractor.jaxexport").write_text("part of it")
    export_tiny(tmp_path / "run", pair_stage="none")
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["check.npz", "extractor.jaxexport", "manifest.json", "mine", "weights.safetensors"]


def test_an_export_in_progress_keeps_its_files_and_another_one_is_refused(tmp_path):
    with files.scratch_folder(tmp_path) as scratch:
        (scratch / "extractor.jaxexport").write_text("part of it")
        with pytest.raises(UserError, match="found another export in progress, expected none; wait for its end"):
            with files.scratch_folder(tmp_path):
                pass
        assert (scratch / "extractor.jaxexport").exists()
    with files.scratch_folder(tmp_path):  # free again
        pass
    assert not list(tmp_path.iterdir())


def test_without_locks_no_leftover_is_removed(tmp_path, monkeypatch):
    """It may be that of an export in progress."""

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (tmp_path / ".scratch.other").mkdir()
    with files.scratch_folder(tmp_path) as scratch:
        assert scratch.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [".scratch.other"]


def test_a_workdir_without_a_checkpoint_is_told_in_a_line(command):
    done = command(f"--config={TINY}", "--workdir=run", "--mode=export")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "run/checkpoints: found no complete checkpoint" in done.stderr and not (command.folder / "run").exists()


def test_a_folder_that_does_not_fit_its_manifest_is_refused(exported, tmp_path):
    for path in exported[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert files.read_manifest(tmp_path)["step"] == 12
    weights = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights[:-1] + b"x")
    with pytest.raises(UserError, match=r"weights\.safetensors: found another file, expected the one that manifest"):
        files.read_manifest(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors: found no file"):
        files.read_manifest(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    for broken, told in ((json.dumps({"format": 0}), "found format 0, expected 1"), (text[:50], "found no manifest")):
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(UserError, match=told):
            files.read_manifest(tmp_path)


VARIANTS = {
    "keypoints": {"pair_stage": "keypoints"},
    "evidence": {"pair_stage": "evidence", "pair": {"features": 8}},
    "normal, untied, correlation": {"pair": {"kind": "normal", "filters": "untied", "keys": "correlation"}},
    "released": {
        "pair_stage": "released", "pooling": "gem", "relu": True, "dropout": 0.5, "backbone": "resnet18",
        "backbone_fields": {"non_local": True, "width": 8},
    },
    "top 2": {"pair": {"alignment": "similarity", "neighbours": 2}},
    "top 9": {"pair": {"alignment": "similarity", "neighbours": 9}, "data__height": 64, "data__width": 64},
    "semantic": {"pair": {"alignment": "semantic"}},
    "part": {"pair": {"alignment": "part"}},
    "none": {"pair": {"alignment": "none"}},
    "full": {"pair": {"alignment": "full"}},
    "individual": {"pair": {"alignment": "individual"}},
    "bfloat16": {"dtype": "bfloat16"},
    "without the flip": {"eval__flip": False},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_network_is_exported(tmp_path, export_tiny, name):
    folder = export_tiny(tmp_path / "run", **VARIANTS[name])[0]
    listed = files.read_manifest(folder)["files"]
    assert {"extractor.jaxexport", "pair_scorer.jaxexport"} <= set(listed)
    shape = listed["extractor.jaxexport"]["inputs"]["images"]["shape"]
    assert shape[-1] == (4 if name == "semantic" else 3)
    with np.load(folder / "check.npz") as values:
        assert len(np.unique(values["distance"])) == 3  # the pairs of the check are not all alike
