"""--mode=calibrate: from labelled images to a file that belongs to one network."""

import json
import shutil

import numpy as np
import pytest
from command_in_process import run_main
from tiny_workdir import workdir

import cacenet_jax as cace
from cacenet_jax import experiment
from cacenet_jax.decide.calibrate import calibrate
from cacenet_jax.errors import UserError
from cacenet_jax.export import run as export
from cacenet_jax.train import cut_training, prepare_data


@pytest.fixture(scope="module")
def calibrated(made, tmp_path_factory):
    """A copy of the workdir with a calibration, and the lines that were printed."""
    run = shutil.copytree(made.run, tmp_path_factory.mktemp("calibrated") / "run")
    done = run_main(
        run.parent, "--mode=calibrate", "--workdir=run", f"--images={made.images}/manifest.csv", "--prior=0.2",
        f"--check={made.images}/manifest.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_the_command_tells_what_it_learnt_and_how_well(calibrated):
    run, told = calibrated
    assert (
        "calibration on manifest.csv: 8 people, 48 images; matching pairs of two cameras; probabilities assume that 20 %"
        in told
    )
    for kind in ("individual", "pair", "mixed"):
        assert f"\n{kind}: 144 matching and " in told
    assert told.count("expected calibration error") == 6 and told.count("95 % interval") == 6
    assert told.count("false-match rate 0.001: not known from 2,016 other pairs; 10,000 are needed") == 3
    assert "open set, mixed distance: 48 queries of people not used to fit" in told
    assert "% of absent people answered unknown" in told and "check on manifest.csv: 8 people" in told
    assert (run / "calibration.json").is_file() and "calibration.json: used by" in told


def test_python_reads_what_the_command_wrote(calibrated, made):
    reid = cace.load(calibrated[0])
    assert reid.calibration.data == "manifest.csv" and reid.calibration.prior == 0.2
    assert set(reid.calibration.curves) == {"individual", "pair", "mixed"}
    images = sorted(made.images.glob("*.png"))
    same, other = reid.compare(images[0], images[3]), reid.compare(images[0], images[30])
    assert same.probability == reid.calibration.probability(same.mixed, "mixed")
    assert 0 <= other.probability < same.probability <= 1
    assert reid.compare(images[0], images[3], prior=0.01).probability < same.probability
    assert cace.load(made.run).calibration is None


def test_a_search_tells_the_share_that_its_probabilities_assume(calibrated, made, tmp_path):
    reid = cace.load(calibrated[0])
    index = reid.index(made.images, tmp_path / "images.lance")
    query = next(made.images.glob("*.png"))
    own, rare = index.search(query, 5), index.search(query, 5, prior=0.01)
    assert "Probabilities assume that 20 % of the images looked at" in repr(own) and "that 1 % of" in repr(rare)
    for match, other in zip(own, rare, strict=True):
        assert match.probability == reid.calibration.probability(match.mixed, "mixed")
        assert other.probability == reid.calibration.probability(match.mixed, "mixed", 0.01) < match.probability
    with pytest.raises(UserError, match="prior"):
        index.search(query, 5, prior=1.0)
    assert len(repr(reid.calibration)) < 120


@pytest.mark.slow
def test_an_export_carries_it(calibrated, made, tmp_path):
    run = shutil.copytree(calibrated[0], tmp_path / "run")
    folder = shutil.move(export.export(made.config, run), tmp_path / "export")
    exported, reid = cace.load(folder), cace.load(run)
    assert exported.network.fingerprint == reid.network.fingerprint
    assert exported.calibration == reid.calibration
    images = sorted(made.images.glob("*.png"))
    ours, theirs = (r.compare(images[0], images[3]) for r in (reid, exported))
    assert theirs.probability == pytest.approx(ours.probability, abs=1e-5)
    calibrate(None, str(folder), str(made.images / "manifest.csv"), None, 0.5)  # and can be given another
    assert cace.load(folder).calibration.prior == 0.5
    assert exported.calibration.prior == 0.2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "network",
            "0123456789abcdef",
            "found a calibration of other weights .0123456789abcdef., expected one of these",
        ),
        (
            "mix",
            0.3,
            "found a calibration for the weight 0.3 of the pair distance, expected one for config.eval.mix=0.7",
        ),
        ("flip", False, "found a calibration for config.eval.flip=False, expected one for True"),
        ("curves", {}, "calibration.json: found no calibration"),
    ],
)
def test_a_calibration_of_another_network_is_refused(calibrated, made, tmp_path, field, value, message):
    run = shutil.copytree(calibrated[0], tmp_path / "run")
    values = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps(values | {field: value}))
    image = next(made.images.glob("*.png"))
    with pytest.raises(UserError, match=message):
        cace.load(run).compare(image, image)
    with pytest.raises(UserError, match=message):
        export.export(made.config, run)


def test_the_command_refuses_it_too_and_what_needs_none_works(calibrated, made, tmp_path):
    run = shutil.copytree(calibrated[0], tmp_path / "run")
    (run / "calibration.json").write_text("{}")
    image = next(made.images.glob("*.png"))
    done = run_main(tmp_path, "--mode=compare", "--workdir=run", str(image), str(image))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--mode=calibrate again, or remove it" in done.stderr
    assert cace.load(run).embed(image).shape == (1, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--workdir=run",),
            "an imported network, whose training people are not known; name labelled photographs with",
        ),
        (("--workdir=run", "--images=none.csv"), "--images=none.csv: cannot be read"),
        (("--workdir=run", "--images=few.csv"), "found 2 identities, expected at least 4"),
        (("--workdir=run", "--images=few.csv", "--prior=0"), "prior: found 0, expected a share"),
        (("--workdir=run", "--check=few.csv"), "run: found no calibration to check, expected one"),
        (("--workdir=nowhere", "--images=few.csv"), "--workdir=nowhere: found no folder, expected one for the calib"),
        (("--workdir=photographs", "--images=few.csv"), "found a folder without config.json or manifest.json"),
        (("--workdir=run", "--config.eval.top_k=none"), "--config.eval.top_k=none"),
        (("--workdir=run", "x.jpg"), "argument 'x.jpg': no flag"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(made, words, message):
    folder = made.run.parent
    (folder / "few.csv").write_text(
        "path,identity\nphotographs/person0_camera0_0.png,a\nphotographs/person1_camera0_0.png,b\n"
    )
    done = run_main(folder, "--mode=calibrate", *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (made.run / "calibration.json").exists()


@pytest.mark.slow
def test_the_validation_split_of_a_run_is_what_it_was_not_trained_on(tmp_path):
    fields = {"data.val_share": 0.5, "data.num_ids": 2, "data.dir": str(tmp_path / "data")}
    data = experiment.read(workdir(tmp_path / "other", **fields)[1]).data
    cut = cut_training(data, prepare_data(data, ("train",)))
    _, config = workdir(tmp_path / "run", cut.train.summary(), **fields)
    calibration = calibrate(config, str(tmp_path / "run"), None, None, None)
    assert calibration.data == "the validation split of synthetic_pedestrians"
    assert (calibration.num_identities, calibration.num_images, calibration.cross_camera) == (4, 24, True)
    curve = cace.load(tmp_path / "run").calibration.curves["mixed"]
    assert curve.num_other == 24 * 18  # every image with every one of other people
    record = json.loads((tmp_path / "run/data.json").read_text())
    (tmp_path / "run/data.json").write_text(json.dumps(record | {"sha256": "of others"}))
    with pytest.raises(UserError, match="found other training images than those of the run"):
        calibrate(config, str(tmp_path / "run"), None, None, None)
    config.data.val_share = 0.0
    with pytest.raises(
        UserError, match=r"config.data.val_share: found 0, expected people held out from training to calib"
    ):
        calibrate(config, str(tmp_path / "run"), None, None, None)


def test_the_check_is_on_the_people_of_the_other_manifest(calibrated, made, tmp_path, capsys):
    """Other pictures of nobody in particular: the error is large, and it is told."""
    other = shutil.copytree(made.images, tmp_path / "other")
    random = np.random.default_rng(0)
    lines = (other / "manifest.csv").read_text().splitlines()
    shuffled = random.permutation([line.split(",")[0] for line in lines[1:]])
    rows = [",".join([name, *line.split(",")[1:]]) for name, line in zip(shuffled, lines[1:])]
    (other / "manifest.csv").write_text("\n".join([lines[0], *rows]))
    calibrate(made.config, str(calibrated[0]), None, str(other / "manifest.csv"), None)
    told = capsys.readouterr().out
    before, after = (
        float(text.split("check on")[1].split("mixed: expected calibration error ")[1].split(";")[0])
        for text in (calibrated[1], told)
    )
    assert "calibration on manifest.csv" not in told and after > 0.05 and after > 3 * before
