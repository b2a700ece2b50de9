"""Scoring from pixels to metrics: the same for any batch, device, chunk and process, and compiled once."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from command import PATIENCE, ROOT
from tiny_retrieval import applied, plain_distance
from tiny_scoring import NUM_GALLERY, NUM_QUERY, run, score_state, split, state, tiny_config

from cacenet_jax import evaluate
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.distributed.device_map import global_mesh
from cacenet_jax.errors import UserError
from cacenet_jax.models.pixels import normalise_images
from cacenet_jax.models.scoring import scoring
from cacenet_jax.retrieval import extract, rescore
from cacenet_jax.retrieval import rankings as evaluation
from cacenet_jax.retrieval.metrics import evaluate_ranking
from cacenet_jax.retrieval.rescore import Rescorer
from cacenet_jax.retrieval.term_store import Store, storage_dtype
from cacenet_jax.retrieval.verification import line, verification

STREAMED = 1e-5  # GiB, about ten images


@pytest.fixture
def seen(monkeypatch):
    """Candidates and scores of each call of the re-scorer."""
    calls = []
    score = Rescorer.__call__

    def watched(self, candidates):
        scores = score(self, candidates)
        calls.append((self.plan, candidates.copy(), scores))
        return scores

    monkeypatch.setattr(Rescorer, "__call__", watched)
    return calls


def test_result_is_that_of_the_plain_pair_distance(seen):
    """No store, no groups, no composed constants: one pair after another by the network itself."""
    config = tiny_config(map_dtype="float32", flip=False)
    found = run(config)
    (plan, candidates, scores), (net, values) = seen[0], state()
    assert plan.location == "device"
    variables = jax.tree.map(jax.numpy.asarray, {"params": values.params, "batch_stats": values.batch_stats})
    described = []
    for part, count in ((split(NUM_QUERY, 1), NUM_QUERY), (split(NUM_GALLERY, 2), NUM_GALLERY)):
        images, _ = next(evaluation_batches(part, height=6, width=4, batch_size=count))
        maps = applied(net, variables, normalise_images(jax.numpy.asarray(images)), train=False, method="maps")
        described.append(applied(net, variables, maps, method="describe"))
    query, gallery = described
    cosine = 1 - np.asarray(query.embedding) @ np.asarray(gallery.embedding).T
    np.testing.assert_array_equal(candidates, np.argsort(cosine, axis=1, kind="stable")[:, :10])
    take = lambda tree, index: jax.tree.map(lambda x: x[index], tree)
    pair = jax.jit(jax.vmap(lambda u, v: net.apply(variables, u, v, method=plain_distance), (None, 0)))
    expected = [pair(take(query.terms, q), take(gallery.terms, row)) for q, row in enumerate(candidates)]
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert found["conditional"] != found["individual"] != found["mixed"]


# The clue distance ends in a fourth root, which enlarges rounding errors.
@pytest.mark.parametrize(("map_dtype", "clue_weight", "tolerance"), [("bfloat16", 0.0, 3e-6), ("float32", 0.3, 1e-5)])
def test_ranks_do_not_depend_on_how_they_are_computed(seen, tmp_path, map_dtype, clue_weight, tolerance):
    cases = [
        {},
        {"batch_size": 5},
        {"batch_size": 64, "pairs_per_call": 7},
        {"pairs_per_call": 1},
        {"memory_gib": STREAMED},
        {"memory_gib": STREAMED, "batch_size": 3, "pairs_per_call": 5},
        {"memory_gib": 4 * STREAMED},
        {"devices": 1},
        {"devices": 1, "memory_gib": STREAMED},
        {"devices": 2, "batch_size": 7},
    ]
    if clue_weight:  # where the work is cut differently; what is cut has been seen without it
        cases = [cases[0], cases[5], cases[9]]
    results, places = [], set()
    for case in cases:
        config = tiny_config(tmp_path, map_dtype=map_dtype)
        config.devices = case.pop("devices", 0)
        config.eval.update(case)
        results.append(run(config, {"clue_weight": clue_weight}))
        plan, candidates, scores = seen[-1]
        places.add(plan.location)
        np.testing.assert_array_equal(candidates, seen[0][1])
        np.testing.assert_allclose(scores, seen[0][2], atol=tolerance, err_msg=str(case))
        assert results[-1] == results[0], case
    assert {"device", "file"} <= places
    assert not list(tmp_path.iterdir())


def test_another_state_compiles_nothing():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    before, after = state(), state(factor=1.3)  # a network built anew, as a validation may
    for fields in ({}, {"memory_gib": STREAMED}):
        config = tiny_config(batch_size=13, **fields)  # of no other test
        compiled.clear()
        first = score_state(config, *before)
        assert compiled
        compiled.clear()
        second = score_state(config, *after)
        assert first != second and not compiled


def test_networks_with_equal_fields_share_their_functions():
    (net, _), (again, _), (other, _) = state(), state(), state({"clue_weight": 0.0})
    assert scoring(net, True, "bfloat16") is scoring(again, True, "bfloat16")
    assert scoring(net, True, "bfloat16") is not scoring(other, True, "bfloat16")


def test_without_pairs_nothing_is_stored_and_nothing_compared(monkeypatch):
    made = []
    monkeypatch.setattr(Store, "__init__", lambda self, *_: made.append(self))
    found = run(tiny_config(), {"stage": None})
    assert not made and "conditional" not in found and found["num_query"] == NUM_QUERY


def test_no_room_on_the_disk_is_known_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "extract", None)
    with pytest.raises(UserError, match=r"config\.data\.dir"):
        run(tiny_config(tmp_path / "gone", memory_gib=STREAMED))


def with_head(**kernel):
    """The network with another kernel of the individual head."""
    net, values = state()
    head = values.params["individual_head"]
    changed = {**head, "conv": {"kernel": np.full_like(head["conv"]["kernel"], **kernel)}}
    return net, values.replace(step=np.int32(7), params={**values.params, "individual_head": changed})


def test_embeddings_that_are_not_finite_are_named():
    with pytest.raises(
        UserError, match=r"evaluation of step 7: found 21 of 21 embeddings.*not finite, first that of 0,"
    ):
        score_state(tiny_config(), *with_head(fill_value=np.nan))


def test_equal_embeddings_are_named(monkeypatch):
    caught = []
    monkeypatch.setattr(evaluate.logging, "warning", lambda text, *words: caught.append(text % words))
    score_state(tiny_config(), *state())
    assert not caught
    score_state(tiny_config(), *with_head(fill_value=0.0))
    assert len(caught) == 1
    assert caught[0].startswith("evaluation of step 7: all 50 gallery images have the same embedding")


def test_flip_averages_maps_whose_positions_match():
    """A map is the image's pixels: after mirroring back, averaging changes nothing but the product channel's sums."""
    flipped, plain = (run(tiny_config(flip=flip, map_dtype="float32")) for flip in (True, False))
    assert flipped == plain


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/tiny_scoring.py"), address, "2", str(i), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        logs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], logs
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first == second and first["devices"] == 8
    expected = json.loads(json.dumps(run(tiny_config())))
    assert first["results"][0] == expected
    expected.pop("mAP_by_mix")
    assert first["results"][1] == expected
    assert evaluation.METRICS == tuple(expected["mixed"])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators_from_a_cpu(platform):
    """So that those paths cannot rot unseen."""
    net, values = state()
    functions = scoring(net, True, "bfloat16")
    variables = {"params": values.params, "batch_stats": values.batch_stats}
    constants = jax.eval_shape(functions.compose, variables)
    mesh = global_mesh(1)
    images = jax.ShapeDtypeStruct((8, 6, 4, 3), np.uint8)
    describe = extract._compile_step(functions.describe, mesh).trace((variables, constants), images)
    found = describe.out_info.terms
    terms = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), storage_dtype(x.dtype)), found)
    types = tuple(np.dtype(x.dtype) for x in jax.tree.leaves(found))
    indices = (jax.ShapeDtypeStruct((1, 4), np.int32), jax.ShapeDtypeStruct((1, 4, 5), np.int32))
    score = rescore._compile_step(functions.distance, types, mesh, True).trace(constants, terms, terms, *indices)
    for traced in (describe, score):
        assert "stablehlo" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_verification_and_the_trapezoid_form_are_of_the_individual_distance():
    result = run(tiny_config(flip=False, verification=True), mixes=())["verification"]
    net, values = state()
    variables = {"params": values.params, "batch_stats": values.batch_stats}
    parts = split(NUM_QUERY, 1), split(NUM_GALLERY, 2)
    embedded = []
    for part in parts:
        images, _ = next(evaluation_batches(part, height=6, width=4, batch_size=len(part.indices)))
        maps = applied(net, variables, normalise_images(jax.numpy.asarray(images)), train=False, method="maps")
        embedded.append(np.asarray(applied(net, variables, maps, method="describe").embedding))
    labels = (parts[0].pids, parts[1].pids, parts[0].camids, parts[1].camids)
    cosine = 1 - embedded[0] @ embedded[1].T
    expected = evaluate_ranking(cosine, *labels, ap="trapezoid")["mAP_trapezoid"]
    assert result["mAP_trapezoid"] == pytest.approx(expected, abs=1e-6)
    assert expected < evaluate_ranking(cosine, *labels)["mAP"]
    assert f"mAP of the trapezoid form {100 * expected:.2f}" in line(result)
    assert result["roc_auc"] == pytest.approx(verification(lambda a, b: cosine[a:b], *labels)["roc_auc"], abs=1e-6)
