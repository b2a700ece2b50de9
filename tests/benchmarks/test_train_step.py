"""The benchmark of the training step measures the paper's step, splits it into its parts, and can fail."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import problem, profiling, step_parts, train_step
from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.train_step import loss_terms

ROOT = Path(__file__).parents[2]
TINY = problem.Size("resnet_tiny", batch=8, height=32, width=16, embed_dim=8, identities=8)
OPTIONS = ["--backbone=resnet_tiny", "--batch=8", "--height=32", "--width=16", "--embed-dim=8", "--identities=8"]


def test_the_problem_is_what_the_papers_config_builds():
    config = paper()
    settings = experiment.read(config)
    net = settings.network.build(problem.IDENTITIES, "data")
    ours = problem.network(problem.Size(), "data")
    for field in CACENet.__dataclass_fields__.keys() - {"parent", "name"}:
        assert getattr(ours, field) == getattr(net, field), field
    assert settings.loss == problem.WEIGHTS
    assert settings.augmentation() == problem.AUGMENT
    size = problem.Size()
    assert (size.height, size.width) == (config.data.height, config.data.width)
    assert size.batch == config.data.num_ids * config.data.images_per_id


def test_the_optimiser_is_the_papers():
    params = {"intra_weight": jnp.ones(3), "head": {"kernel": jnp.full((2, 2), 2.0)}}
    grads = jax.tree.map(lambda x: 0.1 * x + 1, params)
    theirs, ours = experiment.read(paper()).optimizer(steps_per_epoch=808), problem.optimizer()
    states = theirs.init(params), ours.init(params)
    for _ in range(3):
        expected, first = theirs.update(grads, states[0], params)
        found, second = ours.update(grads, states[1], params)
        states = first, second
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_nothing_is_imported_that_a_bare_machine_lacks():
    lacking = ("grain", "tensorflow_datasets", "array_record", "cv2", "orbax", "tensorboardX", "torch")
    code = f"""
import sys
for name in {lacking}: sys.modules[name] = None  # an import of it now fails
import benchmarks.train_step, benchmarks.scaling
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_parts_add_up_to_the_step(one_block):
    state, batch = problem.state_of(TINY), step_parts.on_device(problem.batch_of(TINY))
    net, index = problem.network(TINY), jnp.arange(TINY.batch)
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    def maps_of(params):
        tree = variables | {"params": params}
        return net.apply(tree, batch.images, train=True, method="maps", mutable=["batch_stats"])[0]

    def total(params):
        (individual, grid), _ = net.apply(
            variables | {"params": params}, batch.images, train=True, mutable=["batch_stats"]
        )
        return sum(loss_terms(net, individual, grid, batch.labels, index, problem.WEIGHTS).values())

    names = {"individual": ["individual_head"], "backbone": ["backbone"]}
    names["pairs"] = [name for name in state.params if name not in ("individual_head", "backbone")]
    own = {part: {name: state.params[name] for name in chosen} for part, chosen in names.items()}
    loss, expected = jax.jit(jax.value_and_grad(total))(state.params)
    maps = jax.jit(maps_of)(state.params)
    stats, others = state.batch_stats, own["individual"] | own["pairs"]
    pair_loss, (pair_grads, to_maps_1) = jax.jit(step_parts.pair_stage(net, batch.labels))(
        own["pairs"], maps, own["individual"], stats
    )
    individual_loss, (individual_grads, to_maps_2) = jax.jit(step_parts.individual(net, batch.labels))(
        own["individual"], maps, own["pairs"], stats
    )
    trunk = jax.jit(step_parts.backbone(net))
    _, (trunk_grads,), _ = trunk(own["backbone"], others, stats, batch.images, to_maps_1 + to_maps_2)
    assert float(pair_loss + individual_loss) == pytest.approx(float(loss), rel=1e-5)
    found = {**pair_grads, **individual_grads, **trunk_grads}
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    close = lambda f, e: np.testing.assert_allclose(np.asarray(f), np.asarray(e), rtol=1e-3, atol=1e-5 * scale)
    jax.tree.map(close, found, dict(expected))


def test_resnet_50_has_the_operations_it_is_known_for():
    # 4.09 G multiply-adds at 224 x 224 (He et al.: 3.8 G, of the version with the stride in the 1x1 convolution), less the
    # classifier's 2 M; three times forward for training, 2 operations each, less the gradient to the images.
    size = problem.Size(batch=8, height=224, width=224)
    flops = step_parts.analytic_flops(size)
    last_stage = 14 * 14 * (1024 * 512 + 9 * 512**2 + 512 * 2048 + 1024 * 2048 + 2 * (2 * 512 * 2048 + 9 * 512**2))
    stride_2 = (
        7 * 7 * (9 * 512**2 + 512 * 2048 + 1024 * 2048 + 2 * (2 * 512 * 2048 + 9 * 512**2)) + 14 * 14 * 1024 * 512
    )
    forward = flops["backbone"] / 8 / 6 + 112 * 112 * 49 * 3 * 64 / 3 - last_stage + stride_2
    assert forward == pytest.approx(4.087e9, rel=2e-3)
    assert flops["bare Gram"] == 6 * (8 * 14 * 14) ** 2 * 2048


@pytest.mark.slow
def test_it_measures_and_fails_past_a_bound(one_block, tmp_path, capsys):
    result = tmp_path / "torch.json"
    seconds = {"literal eager": {"median": 5.0}, "literal compiled": {"median": 4.0}, "exact eager": {"median": 1.0}}
    result.write_text(json.dumps({"torch": "0", "size": TINY._asdict() | {"small": False}, "seconds": seconds}))
    options = ["--repeats=1", "--check", "--max-pair=0", "--min-steps=0", f"--out={tmp_path}"]
    code = train_step.main([*OPTIONS, *options, "--torch", str(result), str(tmp_path / "none.json")])
    text = capsys.readouterr().out
    assert code == 1
    assert "check: steps/s" in text and "pair stage over bare Gram" in text and "no such file" in text
    found = json.loads((tmp_path / "train_step_float32.json").read_text())
    assert found["seconds"].keys() == {
        "step",
        "bare step",
        "step without pairs",
        "bare Gram",
        "large product",
        *train_step.SHARES,
    }
    assert found["torch_over_ours"] == pytest.approx(4.0 / found["seconds"]["bare step"]["median"])
    assert [row["part"] for row in found["parts"]][-1] == "rest"
    shares = [float(row["of step"].split()[0]) for row in found["parts"] if row["of step"]]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_results_of_another_size_are_not_compared(tmp_path, capsys):
    result = tmp_path / "torch.json"
    size = TINY._asdict() | {"batch": 16}
    result.write_text(json.dumps({"torch": "0", "size": size, "seconds": {"literal eager": {"median": 5.0}}}))
    assert train_step.torch_ratio(train_step.Report("x", None), TINY, 1.0, [str(result)]) is None
    assert "another size" in capsys.readouterr().out


def test_an_impossible_batch_is_said():
    with pytest.raises(SystemExit, match="multiple of 4"):
        train_step.main(["--batch=6"])


def trace_of(folder, events):
    path = folder / "plugins" / "x.trace.json.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events}, file)


def test_kernels_of_a_gpu_trace_are_summed_and_gaps_are_seen(tmp_path):
    name = lambda kind, pid, tid, text: {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": text}}
    span = lambda pid, tid, ts, dur, text: {"ph": "X", "pid": pid, "tid": tid, "ts": ts, "dur": dur, "name": text}
    trace_of(
        tmp_path,
        [
            name("process_name", 1, 0, "/device:GPU:0"), name("process_name", 2, 0, "/host:CPU"),
            name("thread_name", 1, 14, "Stream #14(Compute)"), name("thread_name", 1, 15, "Stream #15(MemcpyH2D)"),
            name("thread_name", 1, 99, "XLA Modules"), name("thread_name", 2, 1, "python"),
            span(1, 14, 0, 40, "gemm_1"), span(1, 14, 50, 20, "gemm_2"), span(1, 14, 90, 10, "fusion.7"),
            span(1, 15, 60, 20, "copy"), span(1, 99, 0, 100, "jit_step"), span(2, 1, 0, 500, "python"),
        ],
    )  # fmt: skip
    events = profiling.events_of(str(tmp_path))
    assert profiling.busy_share(events) == pytest.approx(0.8)  # 0-40, 50-80, 90-100
    rows = profiling.longest(events, calls=2, count=2)
    assert [(row["kernel"], row["ms"], row["launches"]) for row in rows] == [("gemm", 0.03, 1), ("copy", 0.01, 0.5)]


def test_a_real_trace_lists_operations(tmp_path):
    x = jnp.ones((200, 200))
    product = jax.jit(lambda x: jnp.sin(x) @ x)
    found, text = profiling.profile(lambda: product(x), str(tmp_path), calls=3)
    assert 0 < found["busy"] <= 1 and found["kernels"]
    assert "3 calls" in text and found["kernels"][0]["kernel"] in text
