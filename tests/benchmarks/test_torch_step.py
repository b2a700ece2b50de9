"""The PyTorch step is our step; skipped where PyTorch is not installed (the package does not need it)."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the parity of both steps is not tested")

from benchmarks import torch_model, torch_parity, torch_step  # noqa: E402


@pytest.mark.parametrize(("pairs", "chunk"), [("literal", 0), ("literal", 5), ("exact", 0)])
def test_losses_gradients_and_update_are_ours(pairs, chunk):
    for field, (value, where) in torch_parity.compare(pairs, chunk).items():
        assert value < torch_parity.TOLERANCE, f"{field} of {where}"


def test_the_parity_check_can_fail(monkeypatch, capsys):
    monkeypatch.setattr(torch_model, "ALPHA", 0.8)
    assert torch_step.main(["--parity"]) == 1
    assert "not the same step" in capsys.readouterr().out


def test_both_forms_agree_where_nodes_are_isolated():
    nodes = torch.randn(3, 6, 4, dtype=torch.float64).relu()
    nodes[1] = 0  # a map of zeros: all its nodes are isolated
    nodes[2, 2:] = 0
    weights = torch.randn(2, 4, dtype=torch.float64)
    theta = torch.randn(4, 4, dtype=torch.float64)
    found = []
    for means in (torch_model.literal_means, torch_model.exact_means):
        leaf = nodes.clone().requires_grad_()
        out = means(leaf, *weights, theta)
        (out * torch.arange(36, dtype=torch.float64).view(3, 3, 4)).sum().backward()
        assert leaf.grad.isfinite().all()
        found.append((out.detach(), leaf.grad))
    for left, right in zip(*found, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


def test_it_measures_both_forms(tmp_path):
    options = ["--small", "--device=cpu", "--batch=8", "--height=32", "--width=16", "--repeats=1", f"--out={tmp_path}"]
    for dtype in ("float32", "bfloat16"):
        assert torch_step.main([*options, f"--dtype={dtype}"]) == 0
        found = json.loads((tmp_path / f"torch_step_{dtype}.json").read_text())
        assert found["seconds"].keys() == {"literal eager", "exact eager"}
        assert found["size"]["dtype"] == dtype and found["seconds"]["literal eager"]["median"] > 0
