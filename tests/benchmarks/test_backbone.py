"""The benchmark of a backbone alone."""

import jax
import numpy as np
import pytest

from benchmarks import backbone
from cacenet_jax.models import backbones


def test_each_form_is_timed_under_its_name(capsys, monkeypatch):
    made = []

    def passes(module, images):
        made.append((module.matmul_1x1, module.cpu_stem))
        return {"forward": lambda: np.zeros(1), "forward and backward": lambda: np.zeros(1)}

    monkeypatch.setattr(backbone, "passes", passes)
    size = ["--backbone=resnet_tiny", "--batch=8", "--height=32", "--width=16", "--repeats=1"]
    backbone.main(size)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet_tiny, 8 images of 32 x 16, float32")
    assert [line.split("  ")[0] for line in lines[1:]] == [
        f"{form}, {what}" for form in ("fast", "plain") for what in ("forward", "forward and backward")
    ]
    assert made == [(True, True), (False, False)]
    backbone.main([*size, "--no-plain"])
    assert "plain" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_passes_are_those_of_the_network():
    images = np.random.default_rng(0).standard_normal((8, 32, 16, 3), np.float32)
    fast, plain = (
        backbone.passes(backbones.build("resnet_tiny", matmul_1x1=form, cpu_stem=form), images)
        for form in (True, False)
    )
    assert fast["forward"]().shape == (8, 2, 1, 64)
    np.testing.assert_allclose(fast["forward"](), plain["forward"](), atol=1e-4)
    ours, theirs = (jax.tree.leaves(passes["forward and backward"]()) for passes in (fast, plain))
    largest = max(float(np.abs(leaf).max()) for leaf in theirs)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3 * largest)
    assert largest > 0
