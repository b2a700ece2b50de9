"""A few hundred faulty files of each kind, as `python -m tests.faults.fuzz` reads thousands; and that it reports faults."""

import time

import pytest
from faults import fuzz, samples

from cacenet_jax.errors import UserError


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", fuzz.READERS)
def test_faulty_files_are_read_or_refused(kind, tmp_path):
    outcome = fuzz.fuzz(kind, 300, seed=1, keep=tmp_path)
    assert not outcome.fault
    assert outcome.files == 300 and outcome.accepted >= 5 and outcome.refused >= 100


@pytest.mark.parametrize("kind", ["images", "weights"])
def test_files_without_a_fault_are_accepted(kind, tmp_path):
    accepted = 0
    for data in samples.valid(kind):
        try:
            fuzz.READERS[kind](data, tmp_path)
            accepted += 1
        except UserError:  # a pickle of another kind
            pass
    assert accepted >= len(samples.valid(kind)) - 1


def test_a_sample_depends_on_seed_and_index_alone():
    for kind in fuzz.READERS:
        assert samples.sample(kind, 3, 7) == samples.sample(kind, 3, 7)
        assert len({samples.sample(kind, seed, index) for seed in (0, 1) for index in range(8)}) > 8


def crash(data, folder):
    raise IndexError("of the reader")


def hang(data, folder):
    time.sleep(60)


def grow(data, folder):
    bytearray(b"x") * (300 << 20)


@pytest.mark.parametrize(("reader", "told"), [(crash, "IndexError: of the reader"), (hang, "more than"), (grow, "MiB")])
def test_a_crash_a_hang_and_too_much_memory_are_faults(reader, told, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1 if reader is hang else 60)
    monkeypatch.setattr(fuzz, "MIB", 300)
    outcome = fuzz.fuzz("manifests", 5, seed=0, keep=tmp_path, reader=reader)
    assert outcome.fault.startswith("FAULT in file 0 (kept as fault_manifests_0_0): ") and told in outcome.fault
    assert (tmp_path / "fault_manifests_0_0").read_bytes() == samples.sample("manifests", 0, 0)
    assert "FAULT" in outcome.line()
