"""The command line as a user types it: what is wrong is told in one line, with exit code 2, and nothing is left behind."""

import json
import os
import pty
import re
import signal
import sys
import termios
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import PATIENCE, ROOT, TINY

from cacenet_jax.errors import UserError
from cacenet_jax.main import MODES
from cacenet_jax.retrieval.metrics import check_rankable, evaluate_ranking
from cacenet_jax.run.choices import to_dict

CONFIG = f"--config={TINY}"
MARKET = (f"--config={TINY}:market1501", "--workdir=run", "--config.data.root=market", "--config.data.dir=prepared")
SYNTHETIC = (CONFIG, "--workdir=run", "--config.data.dir=prepared")
CONFIG_FILE = """from cacenet_jax.config import paper


def get_config():
    config = paper()
    {}
    return config
"""


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 16, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def market(folder: Path, *, train=range(1, 9), cameras=(1, 2), images=4) -> Path:
    """A folder in Market-1501's layout: images of the identities `train`, and of three others as query and gallery."""
    names = {"bounding_box_train": [], "query": [], "bounding_box_test": []}
    for pid in (*train, 101, 102, 103):
        for index in range(images):
            split = "bounding_box_train" if pid < 100 else "query" if index == 0 else "bounding_box_test"
            names[split].append(f"{pid:04d}_c{cameras[index % len(cameras)]}s1_{index:06d}_00.jpg")
    for split, files in names.items():
        (folder / "market" / split).mkdir(parents=True)
        for seed, name in enumerate(files):
            (folder / "market" / split / name).write_bytes(jpeg(seed))
    return folder / "market"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; locks hold nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_error(command, words, *told: str, env=None) -> None:
    """One line on stderr that tells what it should, exit code 2, no file made or changed and no work dir begun."""
    before = tree(command.folder)
    had_run = (command.folder / "run").exists()
    done = command(*words, env=env)
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("preparing ", "note: "))]
    assert len(errors) == 1 and errors[0].startswith("error: "), done.stderr
    for text in told:
        assert text in errors[0]
    assert done.returncode == 2
    assert tree(command.folder) == before
    assert (command.folder / "run").exists() == had_run


FLAGS = {
    "no config": (("--workdir=run",), ("--config: not given",)),
    "no workdir": ((CONFIG,), ("--workdir: not given",)),
    "empty workdir": ((CONFIG, "--workdir="), ("--workdir: not given",)),
    "unknown flag": ((*SYNTHETIC, "--wrkdir=x"), ("wrkdir", "workdir", "--help")),
    "unknown mode": ((*SYNTHETIC, "--mode=fly"), ("--mode", "'fly'", "train, import, evaluate")),
    "a mode of later": ((*SYNTHETIC, "--mode=distil"), ("--mode", "'distil'", "expected one of train, import")),
    "no workdir to read": (("--mode=evaluate",), ("--workdir: not given",)),
    "no run to read": (("--mode=evaluate", "--workdir=run"), ("--workdir: no config.json in run", "train it first")),
    "import without config": (("--mode=import", "--workdir=run"), ("config.pretrained: not given",)),
    "no value": ((*SYNTHETIC, "--config.model.pair.kind"), ("--config.model.pair.kind: no value",)),
    "no first stage": (
        (f"--config={ROOT}/configs/second_stage.py", "--workdir=run"), ("config.init_from: not given",),
    ),
    "a word": ((*SYNTHETIC, "train"), ("'train'", "no flag")),
    "unknown field": (
        (*SYNTHETIC, "--config.optim.learnin_rate=1"), ("--config.optim.learnin_rate", "Did you mean", "learning_rate"),
    ),
    "unknown group": ((*SYNTHETIC, "--config.optimm.name=sgd"), ("--config.optimm.name", "config.py lists the fields")),
    "a field without config": (("--config.epochs=3", "--workdir=run"), ("--config: not given",)),
    "missing config": (("--config=none.py", "--workdir=run"), ("--config", "none.py", "synthetic_ablation")),
    "no integer": ((*SYNTHETIC, "--config.epochs=2.5"), ("--config.epochs=2.5", "int")),
    "no boolean": ((*SYNTHETIC, "--config.eval.camera_filter=perhaps"), ("--config.eval.camera_filter=perhaps", "oolean")),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAGS)
def test_a_mistake_in_the_flags(command, case):
    words, told = FLAGS[case]
    check_error(command, words, *told)


CONFIG_FILES = {
    "syntax": ("def get_config(:\n", ("bad.py, line 1", "syntax")),
    "no function": ("x = 1\n", ("bad.py", "get_config")),
    "import": ("import nothing_of_the_kind\n", ("bad.py, line 1", "nothing_of_the_kind")),
    "type": (CONFIG_FILE.format("config.epochs = 'many'"), ("bad.py, line 6", "epochs", "int")),
    "field": (CONFIG_FILE.format("config.epoch = 3"), ("bad.py, line 6", "epoch", 'Did you mean "epochs"')),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_a_mistake_in_the_config_file(command, case):
    text, told = CONFIG_FILES[case]
    (command.folder / "bad.py").write_text(text)
    check_error(command, ("--config=bad.py", "--workdir=run"), *told)


VALUES = {
    "K = 1": (("--config.data.images_per_id=1",), None, ("config.data.images_per_id", "1", "at least 2")),
    "pair stage": (("--config.model.pair_stage=graph",), None, ("model.pair_stage", "graph", "conditional, released")),
    "field of another stage": (
        ("--config.model.pair.kind=normal", "--config.model.pair_stage=evidence"), None,
        ("config.model.pair.kind", "'evidence' has no field kind", "features", "set by the command line"),
    ),
    "field of a backbone": (
        ("--config.model.backbone_fields.depth=3",), None, ("backbone_fields.depth", "resnet_tiny", "set by the command"),
    ),
    "option of another data set": (
        ("--config.data.name=msmt17", "--config.data.options.seed=3"), None,
        ("data.options.seed", "msmt17: unknown option 'seed'", "train_val", "set by the command line"),
    ),
    "backbone": (("--config.model.backbone=vgg",), None, ("config.model.backbone", "vgg", "resnet50")),
    "too many devices": (("--config.devices=2",), None, ("config.devices", "2", "1 cpu device")),
    "devices that do not divide": (
        ("--config.devices=3",), {"JAX_NUM_CPU_DEVICES": "3"}, ("batch of 8", "3 devices", "num_ids"),
    ),
    "data set": (("--config.data.name=marked1501",), None, ("marked1501", "market1501")),
    "option": (("--config.data.options.num_train_ids=7",), None, ("num_train_ids", "7", "multiple")),
    "data.dir": (("--config.data.dir=a_file/prepared",), None, ("a_file/prepared", "cannot be written")),
    "workdir is a file": (("--workdir=a_file",), None, ("--workdir=a_file", "found a file")),
    "workdir below a file": (("--workdir=a_file/run",), None, ("--workdir=a_file/run", "found a file")),
    "evaluate": (("--mode=evaluate",), None, ("run/checkpoints", "no complete checkpoint", "--mode=train")),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_cannot_be(command, case):
    words, env, told = VALUES[case]
    (command.folder / "a_file").write_text("not a folder")
    check_error(command, (*SYNTHETIC, *words), *told, env=env)


def damage(folder: Path, name: str) -> None:
    path = folder / "bounding_box_train" / name
    path.write_bytes(path.read_bytes()[:-60])


def rename(folder: Path, name: str) -> None:
    (folder / "bounding_box_train" / name).rename(folder / "bounding_box_train" / "holiday.jpg")


def empty(folder: Path, name: str) -> None:
    for path in (folder / name).iterdir():
        path.unlink()


DATA = {
    "truncated": ({}, (damage, "0003_c2s1_000001_00.jpg"), ("bounding_box_train/0003_c2s1_000001_00.jpg", "broken")),
    "name": ({}, (rename, "0003_c2s1_000001_00.jpg"), ("bounding_box_train/holiday.jpg",)),
    "empty split": ({}, (empty, "query"), ("query", "no images")),
    "one identity": ({"train": (7,)}, None, ("train", "single identity", "pid 7")),
    "one camera": ({"cameras": (1,)}, None, ("test split", "same camera", "--config.eval.camera_filter=False")),
}


@pytest.mark.parametrize("case", DATA)
def test_broken_data(command, case):
    layout, harm, told = DATA[case]
    folder = market(command.folder, **layout)
    if harm:
        harm[0](folder, harm[1])
    if case == "one camera":  # the data themselves are fine and stay prepared; training does not begin
        done = command(*MARKET)
        assert done.returncode == 2 and not (command.folder / "run").exists()
        assert "step 1" not in done.stderr
    check_error(command, MARKET, *told)


def test_a_missing_data_set_says_what_was_looked_for_and_where_to_get_it(command):
    told = ("market", "does not exist", "bounding_box_train", "query", "bounding_box_test", "get Market-1501 from")
    check_error(command, MARKET, *told)
    (command.folder / "market").mkdir()
    check_error(command, MARKET, *(text for text in told if text != "does not exist"))
    check_error(command, (*MARKET, "--config.data.root="), "config.data.root", "get Market-1501 from")


def test_several_mistakes_are_reported_together(command):
    words = ("--config.epochs=0", "--config.eval.mix=2", "--config.model.pair.foo=1", "--config.data.options.nope=1")
    done = command(*SYNTHETIC, *words)
    fields = ("config.epochs: ", "config.eval.mix: ", "config.model.pair.foo: ", "config.data.options.nope: ")
    lines = done.stderr.removeprefix("error: ").splitlines()
    assert done.returncode == 2 and not (command.folder / "run").exists()
    assert all(len([line for line in lines if line.startswith(field)]) == 1 for field in fields), done.stderr


def test_a_field_of_a_choice_names_the_file_that_set_it(command):
    (command.folder / "bad.py").write_text(CONFIG_FILE.format("config.model.pair.features = 8"))
    check_error(command, ("--config=bad.py", "--workdir=run"), "config.model.pair.features", "(set by bad.py)")


def parsed(monkeypatch, *words):
    """A command line, parsed in this process with flags of its own."""
    from absl import flags
    from ml_collections import config_flags

    from cacenet_jax.run import command_line

    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    values = {"flag_values": flags.FLAGS}
    config_flags.DEFINE_config_file("config", None, "", sys_argv=command_line.CONFIG_WORDS, **values)
    for name in ("mode", "workdir"):
        flags.DEFINE_string(name, None, "", **values)
    return command_line.parse(["main", *words])


def test_fields_of_a_choice_are_set_whether_the_file_has_them_or_not(monkeypatch):
    fields = (
        "--config.model.pair.clue_weight=0", "--config.model.pair.kind", "normal",
        "--config.model.backbone_fields.non_local=true", "--config.data.options.seed=3", "--config.seed=5",
    )  # fmt: skip
    command = parsed(monkeypatch, f"--config={ROOT}/configs/synthetic.py", *fields)
    config = command.config
    assert config.model.pair.to_dict() == {
        "filters": "untied", "keys": "correlation", "clue_weight": 0, "kind": "normal",
    }  # fmt: skip
    assert config.model.backbone_fields.to_dict() == {"width": 24, "non_local": True}
    assert (config.data.options.seed, config.data.options.images_per_id, config.seed) == (3, 12, 5)
    assert command.overrides["model.pair.kind"] == "normal" and command.overrides["seed"] == 5
    assert command.source("model.pair.kind") == "the command line"
    assert command.source("model.pair.keys").endswith("configs/synthetic.py")


def test_another_choice_does_not_keep_the_fields_of_the_file(monkeypatch):
    words = (
        "--config.data.name=reid_folder", "--config.model.pair.features=8", "--config.model.pair_stage=evidence",
        "--config.model.backbone=resnet18",
    )  # fmt: skip
    config = parsed(monkeypatch, f"--config={ROOT}/configs/synthetic.py", *words).config
    assert (config.data.name, config.data.options.to_dict()) == ("reid_folder", {})
    assert (config.model.pair_stage, config.model.pair.to_dict()) == ("evidence", {"features": 8})
    assert (config.model.backbone, config.model.backbone_fields.to_dict()) == ("resnet18", {})
    same = parsed(monkeypatch, f"--config={ROOT}/configs/synthetic.py", "--config.model.pair_stage=conditional").config
    assert same.model.pair.filters == "untied"  # no other choice


def test_a_second_stage_takes_what_the_command_line_does_not_set(monkeypatch, tmp_path):
    first = parsed(monkeypatch, f"--config={ROOT}/configs/synthetic.py").config
    (tmp_path / "config.json").write_text(json.dumps(to_dict(first)))
    words = (f"--config.init_from={tmp_path}", "--config.data.height=64", "--config.data.options.images_per_id=6")
    config = parsed(monkeypatch, f"--config={ROOT}/configs/second_stage.py", *words).config
    assert (config.data.name, config.data.height, config.data.width) == ("synthetic_pedestrians", 64, 64)
    assert config.data.options.to_dict() == first.data.options.to_dict() | {"images_per_id": 6}
    assert (config.model.backbone, config.model.backbone_fields.width) == ("resnet_small", 24)
    recorded = parsed(monkeypatch, "--mode=evaluate", f"--workdir={tmp_path}", "--config.eval.top_k=7")
    assert recorded.config.eval.top_k == 7 and recorded.config.model == first.model
    assert recorded.source("model.pair.keys") == f"{tmp_path}/config.json"


def test_debug_shows_where_it_went_wrong(command):
    done = command(*SYNTHETIC, "--mode=fly", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("error: --mode")


def test_help_lists_the_flags(command):
    done = command("--help")
    assert all(flag in done.stdout for flag in ("--config", "--workdir", "--mode", "--[no]debug"))
    assert all(f"\n  {mode} " in done.stdout for mode in MODES)


@pytest.mark.slow
def test_one_camera_is_fine_without_the_filter_and_a_large_top_k_is_cut(command):
    market(command.folder, cameras=(1,))
    words = (*MARKET, "--config.eval.camera_filter=False", "--config.eval.top_k=100", "--config.epochs=2")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    results = json.loads((command.folder / "run/results.json").read_text())
    assert (results["top_k"], results["num_query"], results["num_gallery"]) == (9, 3, 9)
    # A log that can be read: nothing but our own lines, and the two warnings that these data deserve.
    lines = done.stderr.splitlines()
    warnings = [line for line in lines if line.startswith("WARNING: ")]
    assert len(warnings) == 2 and "config.eval.top_k: found 100, reduced to the 9 gallery images" in warnings[0]
    assert "market1501: 1 of 3 queries are in the gallery too" in warnings[1]
    ours = re.compile(r"preparing market1501: |note: 2 images are copies |step \d+/\d+: \d+ img/s, loss \d")
    assert all(ours.match(line) for line in lines if line not in warnings), done.stderr


@pytest.mark.slow
def test_a_workdir_of_another_config_and_a_finished_one(command):
    words = (*SYNTHETIC, "--config.epochs=2")
    assert command(*words).returncode == 0
    check_error(
        command, (*words, "--config.loss.margin=0.3", "--config.seed=5"),
        "run/config.json", "another config", "loss.margin: 0.5 -> 0.3", "seed: 0 -> 5", "--workdir",
    )  # fmt: skip
    check_error(
        command,
        (*words, "--mode=evaluate", "--config.model.pair.kind=normal"),
        "model.pair.kind: 'discrepancy' -> 'normal'",
    )
    # Its config is in the workdir.
    check_error(
        command,
        ("--mode=evaluate", "--workdir=run", "--config.model.pair.kind=normal"),
        "model.pair.kind: 'discrepancy'",
    )
    done = command("--mode=evaluate", "--workdir=run", "--config.eval.top_k=3")
    assert done.returncode == 0, done.stderr
    assert json.loads((command.folder / "run/results.json").read_text())["top_k"] == 3
    assert command("--mode=evaluate", "--workdir=run").returncode == 0
    # The finished run: evaluated again, not trained again, and with the same numbers.
    before, results = tree(command.folder), json.loads((command.folder / "run/results.json").read_text())
    done = command(*words)
    assert done.returncode == 0 and "from step 12 of 12" in done.stdout and "step 12/12" not in done.stderr
    again = json.loads((command.folder / "run/results.json").read_text())
    assert {**again, "seconds": 0} == {**results, "seconds": 0}
    after = tree(command.folder)
    kept = [name for name in before if "/checkpoints/" in name or name.endswith("metrics.jsonl")]
    assert kept and all(after[name] == before[name] for name in kept)


@pytest.mark.parametrize(("how", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_ends_with_one_line_and_keeps_the_checkpoint(command, how, code, word):
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 200))
    process = command.start(*SYNTHETIC, "--config.epochs=5000", stderr=stderr)
    os.close(stderr)
    checkpoints = command.folder / "run/checkpoints"
    deadline = time.monotonic() + PATIENCE
    shown = b""
    os.set_blocking(terminal, False)
    while not (checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())):
        shown += read(terminal)
        assert process.poll() is None and time.monotonic() < deadline, shown
        time.sleep(0.05)
    process.send_signal(signal.Signals[how])
    while process.poll() is None:
        shown += read(terminal)
        time.sleep(0.05)
    text = (shown + read(terminal)).decode()
    os.close(terminal)
    assert process.returncode == code, text
    assert "Traceback" not in text and "img/s" in text and "%|" in text  # a bar on a terminal
    saved = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    assert text.strip().splitlines()[-1] == f"{word}; the same command continues from step {saved}"
    logged = [json.loads(line)["step"] for line in (command.folder / "run/metrics.jsonl").read_text().splitlines()]
    assert saved == max(logged)  # nothing that was trained is lost


@pytest.mark.parametrize("place", ["destructor", "gc callback", "jax callback"])
def test_ctrl_c_is_heard_where_python_swallows_exceptions(command, place):
    program = (sys.executable, str(ROOT / "tests/faults/interrupted_in.py"), place)
    (done,) = command.together((*program, *SYNTHETIC, "--config.epochs=5000"))
    assert done.returncode == 130, done.stderr
    saved = max(int(path.name) for path in (command.folder / "run/checkpoints").iterdir() if path.name.isdigit())
    assert done.stderr.splitlines()[-1] == f"interrupted; the same command continues from step {saved}"
    assert 3 <= saved < 100 and "Traceback" not in done.stderr


def read(terminal: int) -> bytes:
    """What has been written to a terminal, without waiting."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nothing there, or the other end is closed
        return b""


@pytest.mark.parametrize("camera_filter", [True, False])
def test_labels_can_be_ranked_where_the_evaluator_finds_a_match(camera_filter):
    """check_rankable against the evaluator, on labels drawn so that a third of the cases has no match."""
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(300):
        sizes = (rng.integers(1, 4), rng.integers(1, 6))
        pids, camids = ([rng.integers(0, top, size) for size in sizes] for top in (5, 3))

        def refused(function, *arguments, **options) -> bool:
            try:
                function(*arguments, **options)
            except UserError:
                return True
            return False

        labels = (*pids, *camids)
        early = refused(check_rankable, *labels, camera_filter=camera_filter, where="test split")
        late = refused(evaluate_ranking, rng.random(sizes), *labels, camera_filter=camera_filter)
        assert early == late
        outcomes.append(early)
    assert 0.2 < np.mean(outcomes) < 0.8


def test_validation_that_cannot_be_ranked_is_told_before_training(command):
    folder = market(command.folder, cameras=(1, 2))
    for path in (folder / "bounding_box_train").glob("*_c2*"):
        path.unlink()
    words = (*MARKET, "--config.data.val_share=0.3")
    assert command(*words).returncode == 2  # prepares
    check_error(command, words, "validation split", "config.data.val_share", "--config.eval.camera_filter=False")
