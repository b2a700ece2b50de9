"""--mode=compare: the numbers, the sentence, and the page that shows why."""

import json
import shutil

import numpy as np
import pytest
from browser import chromium, parsed
from command_in_process import run_main
from tiny_workdir import workdir

import cacenet_jax as cace
from cacenet_jax.decide.calibrate import calibrate
from cacenet_jax.export import run as export
from cacenet_jax.visualize import why

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def compared(made, tmp_path_factory):
    """A folder with a calibrated workdir, two photographs of one person, and what the command printed and wrote."""
    folder = tmp_path_factory.mktemp("compared")
    run = shutil.copytree(made.run, folder / "run")
    calibrate(made.config, str(run), str(made.images / "manifest.csv"), None, None)
    shutil.copy(made.images / "person2_camera0_0.png", folder / "a.png")
    shutil.copy(made.images / "person2_camera1_2.png", folder / "<b> & c.png")
    done = run_main(folder, "--mode=compare", "--workdir=run", "a.png", "<b> & c.png", "--output=out/page")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_command_prints_what_python_computes(compared):
    folder, told = compared
    reid = cace.load(folder / "run")
    comparison = reid.compare(folder / "a.png", folder / "<b> & c.png")
    (ranked,) = reid.rank(folder / "a.png", [folder / "<b> & c.png"])
    for kind in ("individual", "pair", "mixed"):
        distance = getattr(comparison, kind)
        assert distance == pytest.approx(getattr(ranked[0], kind), abs=1e-6)
        (line,) = (line for line in told.splitlines() if line.startswith(kind))
        assert line.split()[1] == f"{distance:.4f}" and line.split()[-1] == f"{reid.calibration.threshold(kind):.4f}"
    assert comparison.mixed == pytest.approx(0.7 * comparison.pair + 0.3 * comparison.individual, abs=1e-6)
    assert "they match" in told and "is below" in told and "does not carry over to another" in told
    numbers = json.loads((folder / "out/page/compare.json").read_text())
    assert numbers["images"] == ["a.png", "<b> & c.png"] and numbers["probability"] == comparison.probability


def check(shown):
    alts = [alt for alt, _ in shown.images]
    maps = [
        f"Image {letter}: {title}"
        for letter, other in ("AB", "BA")
        for title in ("its own map", f"given image {other}", "change")
    ]
    assert alts == ["Image A", "Image B", "Lines between image A and image B", *maps]
    assert all(width > 0 for _, width in shown.images)
    for words in ("A: a.png", "B: <b> & c.png", "Do these two images show one person?", "Probability that both show one",
                  "they match", "manifest.csv", "does not carry over", "The wider and more opaque a line"):  # fmt: skip
        assert words in shown.text, words


def test_the_page_shows_the_images_the_answer_and_why(compared):
    check(parsed(compared[0] / "out/page/compare.html"))
    assert (compared[0] / "out/page/correspondences.png").read_bytes()[:4] == b"\x89PNG"


def test_a_browser_shows_all_of_it_at_both_widths(compared, tmp_path):
    with chromium(tmp_path / "profile") as browser:
        for width in WIDTHS:
            shown, wider = browser.show(compared[0] / "out/page/compare.html", width)
            check(shown)
            assert wider <= 0


def test_maps_depend_on_the_other_image(compared):
    reid = cace.load(compared[0] / "run")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 32, 16, 3), np.uint8)
    one, other = (why.draw(reid, pixels[[0, i]]) for i in (1, 2))
    np.testing.assert_array_equal(one.maps[0].own_HW3.shape, (32, 16, 3))
    assert (one.maps[0].given_HW3 != other.maps[0].given_HW3).any()
    swapped = why.draw(reid, pixels[[1, 0]])
    for image in (0, 1):
        for drawn, again in zip(one.maps[image], swapped.maps[1 - image]):
            np.testing.assert_array_equal(drawn, again)
    assert one.scales == pytest.approx(swapped.scales)


def test_without_a_calibration_the_distances_stand_alone(made, tmp_path):
    images = [str(made.images / f"person{i}_camera0_0.png") for i in (0, 1)]
    done = run_main(made.run.parent, "--mode=compare", "--workdir=run", *images, f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "not calibrated" in done.stdout and "--mode=calibrate" in done.stdout and "Probability" not in done.stdout
    text = parsed(tmp_path / "compare.html").text
    assert "not calibrated" in text and " % " not in text
    assert json.loads((tmp_path / "compare.json").read_text())["probability"] is None


def test_an_export_has_distances_and_says_why_there_is_nothing_to_draw(compared, made, tmp_path):
    run = shutil.copytree(compared[0] / "run", tmp_path / "run")
    shutil.move(export.export(made.config, run), tmp_path / "export")
    images = [str(compared[0] / name) for name in ("a.png", "<b> & c.png")]
    done = run_main(tmp_path, "--mode=compare", "--workdir=export", *images, "--output=out")
    assert done.returncode == 0, done.stderr
    ours, theirs = (text.splitlines()[2:6] for text in (compared[1], done.stdout))
    assert ours == theirs  # four digits
    shown = parsed(tmp_path / "out/compare.html")
    assert len(shown.images) == 2 and "An export holds the network as functions" in shown.text
    assert not (tmp_path / "out/correspondences.png").exists()


def test_a_network_without_a_pair_stage_has_one_distance(made, tmp_path):
    workdir(tmp_path / "run", **{"model.pair_stage": "none"})
    images = [str(made.images / f"person{i}_camera0_0.png") for i in (0, 1)]
    done = run_main(tmp_path, "--mode=compare", "--workdir=run", *images, "--output=out")
    assert done.returncode == 0, done.stderr
    assert "individual" in done.stdout and "mixed" not in done.stdout and "pair  " not in done.stdout
    shown = parsed(tmp_path / "out/compare.html")
    assert len(shown.images) == 2 and "no pair stage" in shown.text
    comparison = cace.load(tmp_path / "run").compare(*images)
    assert np.isnan(comparison.pair) and comparison.mixed == comparison.individual and comparison.probability is None


def test_the_prior_is_that_of_the_question(compared):
    told = run_main(compared[0], "--mode=compare", "--workdir=run", "a.png", "<b> & c.png", "--prior=0.001").stdout
    assert "given 0.1 % matching pairs" in told and "--output=DIR writes a page" in told
    assert "given as many matching pairs as others" in compared[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.png",), "found 1 images, expected two"),
        (("a.png", "a.png", "a.png"), "found 3 images, expected two"),
        (("a.png", "none.png"), "none.png: found no file that can be read"),
        (("a.png", "run/config.json"), "run/config.json: found"),
        (("a.png", "a.png", "--prior=2"), "prior: found 2"),
        (("a.png", "a.png", "--output=a.png"), "found a file, a.png, expected a folder"),
        (("a.png", "a.png", "--workdir=nowhere"), "nowhere: found no folder, expected the workdir of a run"),
    ],
)
def test_mistakes_are_one_line(compared, words, message):
    done = run_main(compared[0], "--mode=compare", "--workdir=run", *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
