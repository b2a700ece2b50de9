"""A backbone that compiles in a second, in place of a ResNet."""

import pytest
from tiny_training import OneBlock

from benchmarks import problem


class Block(OneBlock):
    """`OneBlock` with what the benchmarks ask a ResNet for."""

    width: int = 6
    cpu_stem: bool = False


@pytest.fixture
def one_block(monkeypatch):
    """Every network of the benchmarks has one block."""
    network = problem.network

    def small(size, axis_name=None, pairs=True):
        net = network(size, axis_name, pairs)
        backbone = Block(dtype=net.dtype, axis_name=axis_name)
        stage = net.pair_stage and net.pair_stage.clone(channels=backbone.channels)
        return net.clone(backbone=backbone, pair_stage=stage)

    monkeypatch.setattr(problem, "network", small)
