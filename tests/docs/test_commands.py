"""The commands and the config fields that the pages name exist: each command is parsed and its config is checked."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from documents import PAGES, ROOT, prose
from safetensors.numpy import save_file

from cacenet_jax.config import paper
from cacenet_jax.data.builders import available
from cacenet_jax.data.builders.prepare import builder_class
from cacenet_jax.models import backbones, pair_stages
from cacenet_jax.run.choices import CHOICES, flatten, to_dict

_PROGRAM = re.compile(r"(?:\.venv/bin/)?(?:python -m cacenet_jax\.main|cacenet)(?= --)")
_FENCED = re.compile(r"^```(?:bash)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
# Modules of the examples' users; their classes have the fields that the page gives them.
_OF_USERS = {
    "my_networks.py": "from cacenet_jax.models.backbones.resnet import ResNet as Patches\n",
    "my_stages.py": "from cacenet_jax.models.pair_stages import PairStage\n\n\n"
    "class Stripes(PairStage, kw_only=True):\n    stripes: int = 4\n",
}
_FIELDS_OF_EXAMPLES = {"model.pair.stripes", "data.options.camera"}

# Parses the commands of a JSON list as main.py does, each in a fork, because flags are parsed once in a process.
_PARSE = """
import json, os, sys
sys.argv[0] = "cacenet"
from cacenet_jax import main
from cacenet_jax.errors import UserError
from cacenet_jax.run.command_line import READ_NETWORK, parse
from cacenet_jax.run.validation import validate

failed = {}
for text, words in json.load(sys.stdin):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            command = parse(["cacenet", *words])
            mode = main._MODE.value
            assert mode in main.MODES and main._WORKDIR.value, "no such mode, or no --workdir"
            assert len(command.words) == (2 if mode == "compare" else 0), "a word that is no flag"
            assert command.config is not None or mode in READ_NETWORK, "no config"
            main._check_reproduce(command)
            if command.config is not None:
                validate(command.config, command.source)
        except (UserError, AssertionError) as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    if error := os.read(reader, 65536).decode():
        failed[text] = error
print(json.dumps(failed))
"""


def commands() -> list[tuple[str, list[str]]]:
    """Return page and words of each command, those in fenced blocks and in the text."""
    listed = []
    for path in PAGES:
        text = path.read_text()
        lines = []
        for body in _FENCED.findall(text):
            lines += re.sub(r" *\\\n *", " ", body).splitlines()
        unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        lines += [" ".join(code.split()) for code in _INLINE.findall(unfenced)]
        for line in lines:
            if match := _PROGRAM.match(line):
                listed.append((f"{path.name}: {line}", shlex.split(line[match.end() :], comments=True)))
    return listed


@pytest.fixture
def folder(tmp_path):
    """Where the workdirs that the commands read are those of their configs, and what users write can be imported."""
    for workdir in (
        "W",
        "W2",
        "W/S",
        "W/market",
        "workdirs/synthetic",
        "workdirs/osnet",
        "workdirs/msmt17",
        "workdirs/half",
        "workdirs/mine",
    ):
        (tmp_path / workdir).mkdir(parents=True, exist_ok=True)
        config = to_dict(paper())
        config["data"]["name"], config["model"]["backbone"] = "synthetic_pedestrians", "resnet_small"
        (tmp_path / workdir / "config.json").write_text(json.dumps(config))
    published = {"conv1.conv.weight": (16, 3, 7, 7), "conv1.bn.running_mean": (16,), "fc.0.weight": (512, 128)}
    published["classifier.weight"] = (751, 512)
    weights = {name: np.zeros(shape, np.float32) for name, shape in published.items()}
    for data in ("market1501", "msmt17"):
        save_file(weights, tmp_path / f"osnet_x0_25_{data}.pth")
    for name, text in _OF_USERS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_commands(folder):
    """Every command of the pages is one that the program takes; placeholders stand for numbers."""
    numbers = {"seed=S": "seed=0", "num_processes=N": "num_processes=2", "process_id=I": "process_id=0"}
    number = lambda word: re.sub(
        "|".join(numbers), lambda match: numbers[match[0]], word.replace("weight=X", "weight=1")
    )
    given = [(text, [number(word) for word in words]) for text, words in commands()]
    assert len(given) > 25 and sum(text.startswith("README.md") for text, _ in given) >= 5
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PARSE], input=json.dumps(given), cwd=folder, check=False,
        capture_output=True, text=True, env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout)
    assert not failed, "\n".join(f"{text}\n    {error}" for text, error in failed.items())


def fields() -> set[str]:
    """Return every dotted field that a config can have, and the groups of fields."""
    known = {field for field, _ in flatten(to_dict(paper()))} | set(CHOICES.values())
    known |= {f"data.options.{option}" for name in available() for option in builder_class(name).complete_options({})}
    for backbone in backbones.NAMES:
        own = dataclasses.fields(backbones.NAMES[backbone].module)
        known |= {f"model.backbone_fields.{field.name}" for field in own}
    known |= {f"model.pair.{field}" for stage in pair_stages.STAGES for field in pair_stages.fields(stage)}
    return known | {field.rpartition(".")[0] for field in known}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_fields(path):
    """A dotted field in the text or in a command is a field of the config."""
    known, text = fields() | _FIELDS_OF_EXAMPLES, path.read_text()
    groups = "|".join(sorted({field.partition(".")[0] for field in known if "." in field}))
    named = set(re.findall(r"(?<![\w./])(?:--)?config\.((?!json|py)[a-z_]+(?:\.[a-z_0-9]+)*)", text))
    if path.parent.name != "api":  # whose headings are modules
        named |= set(re.findall(rf"(?<![\w./])((?:{groups})\.[a-z_]+(?:\.[a-z_0-9]+)*)", prose(path)))
    named = {name for name in named if not re.search(r"\.(py|json|jsonl|md|zip|csv)$", name)}
    assert named <= known, named - known
