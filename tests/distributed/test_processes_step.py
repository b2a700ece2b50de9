"""Two processes with four devices each compute the training step of one device."""

import pickle
import sys

import jax
import numpy as np
import pytest
from agreement import ACROSS, assert_same, assert_same_float64, on_one, start
from command import ROOT, Command, free_address
from tiny_training import tiny_config


@pytest.fixture(scope="module")
def two_by_four(tmp_path_factory, request):
    """Results of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("steps")
    command = Command(folder, request.config.cache.mkdir("xla"))
    worker, address = str(ROOT / "tests/step_worker.py"), free_address()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Command, "environment", _four_devices(Command.environment))
        done = command.together(*[(sys.executable, worker, address, "2", str(i), str(folder)) for i in range(2)])
    for process in done:
        assert process.returncode == 0, process.stderr
    return [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(2)]


def _four_devices(environment):
    def changed(self):
        # The same XLA optimisation level as the reference; the test process itself uses a lower one.
        ours = {"JAX_NUM_CPU_DEVICES": "4", "XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        return {**environment(self), **ours}

    return changed


@pytest.mark.parametrize(("dtype", "mode"), ACROSS)
def test_two_processes_of_four_devices_agree_with_one(two_by_four, dtype, mode):
    """Loss, gradients and statistics of one global batch, each leaf to 1e-10 in float64 and 1e-5 in float32."""
    config = tiny_config(dtype)
    with jax.enable_x64(dtype == "float64"):
        before, expected = start(config, dtype, True), on_one(config, dtype)
        result = two_by_four[0]["results"][dtype, mode]
        if dtype == "float64":
            assert result[1]["loss"].dtype == np.float64
            assert_same_float64(result, expected, before)
        else:
            assert_same(result, expected, before, 1e-5)


@pytest.mark.parametrize(("dtype", "mode"), ACROSS)
def test_both_processes_hold_bit_identical_results(two_by_four, dtype, mode):
    one, two = (jax.tree.leaves(report["results"][dtype, mode]) for report in two_by_four)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_processes_exchange_strings_and_numbers(two_by_four):
    for report in two_by_four:
        assert [process for process, _ in sorted(report["layout"])] == [0] * 4 + [1] * 4
        assert report["greetings"] == ["process 0", "process 1"]
        assert report["number"] == 0.1
    assert [report["writer"] for report in two_by_four] == [True, False]
