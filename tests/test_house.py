"""The rules that keep the layout, on the package; and each checker on a sample that breaks its rule."""

from pathlib import Path

import house
import pytest
from house import Source

import cacenet_jax

PACKAGE = Path(cacenet_jax.__file__).parent


@pytest.fixture(scope="module")
def sources():
    return house.read(PACKAGE)


@pytest.mark.parametrize(
    "rule",
    [
        house.top_level,
        house.long_modules,
        house.lone_modules,
        house.package_docstrings,
        house.docstring_openings,
        house.variable_names,
        house.config_dicts,
        house.stage_kinds,
    ],
    ids=lambda rule: rule.__name__,
)
def test_package_keeps(rule, sources):
    violations = rule(sources)
    assert not violations, "\n" + "\n".join(violations)


def test_top_level_counts_modules_and_not_packages():
    ten = [Source(f"m{i}.py", "") for i in range(10)]
    beside = [Source("__init__.py", ""), Source("data/__init__.py", ""), Source("data/a.py", "")]
    assert house.top_level([*ten, *beside]) == []
    (violation,) = house.top_level([*ten, *beside, Source("utils.py", "")])
    assert violation.startswith("11 modules at the top level") and "utils.py" in violation


def test_a_long_module_is_named_with_its_length():
    assert house.long_modules([Source("losses.py", "x = 1\n" * 350)]) == []
    assert house.long_modules([Source("losses.py", "x = 1\n" * 351)]) == [
        "losses.py:351: 351 lines; above 350 split it"
    ]


def test_a_folder_of_one_module_is_a_module():
    lone = [Source("index/__init__.py", '"""An index."""'), Source("index/search.py", "")]
    assert house.lone_modules(lone) == ["index/ holds search.py alone; make it a module"]
    assert house.lone_modules([*lone, Source("index/build.py", "")]) == []
    nested = [
        Source("a/__init__.py", ""),
        Source("a/b/__init__.py", ""),
        Source("a/b/c.py", ""),
        Source("a/b/d.py", ""),
    ]
    assert house.lone_modules(nested) == ["a/ holds b alone; make it a module"]


def test_a_package_says_what_it_holds():
    missing, empty = Source("data/pipeline.py", ""), Source("data/__init__.py", "import jax\n")
    top = Source("__init__.py", '"""The package."""')
    for broken in ([top, missing], [top, missing, empty]):
        (violation,) = house.package_docstrings(broken)
        assert violation.startswith("data/__init__.py:1: no docstring")
    assert house.package_docstrings([top, missing, Source("data/__init__.py", '"""Data sets."""')]) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('"""What a batch holds."""', 1),
        ('def f():\n    """Whether f holds."""', 1),
        ('class A:\n    """A."""\n    async def g(self):\n        """\n        What: g.\n        """', 3),
    ],
)
def test_docstrings_that_open_with_what_or_whether(text, line):
    (violation,) = house.docstring_openings([Source("m.py", text)])
    assert violation.startswith(f"m.py:{line}: docstring opens with 'Wh")


def test_docstrings_that_only_mention_them():
    good = '"""Whatever remains."""\ndef f():\n    """Return what a batch holds."""\ndef g():\n    "What" + str()\n'
    assert house.docstring_openings([Source("m.py", good)]) == []


@pytest.mark.parametrize(
    "text",
    [
        "found = 1",
        "a, found = 1, 2",
        "found: int = 1",
        "if (found := f()): pass",
        "for how in x: pass",
        "with f() as how: pass",
        "def f(how): pass",
        "f = lambda *, how: how",
        "def f(**how): pass",
        "[how for how in x]",
        "def found(): pass",
        "self.found = 1",
        "class A:\n    how: str",
        "match x:\n    case [found]: pass",
        "try: pass\nexcept E as found: pass",
    ],
)
def test_every_way_to_bind_a_barred_name(text):
    violations = house.variable_names([Source("m.py", text)])
    assert violations and all("name the thing" in violation for violation in violations)


def test_barred_names_in_text_are_no_variables():
    text = "raise E(f'found {x}')  # how it was found\nf(how=1)\nfounded = shown = 1\n"
    assert house.variable_names([Source("m.py", text)]) == []


@pytest.mark.parametrize(
    "text",
    [
        "from ml_collections import ConfigDict",
        "import ml_collections\ndef f(config: ml_collections.ConfigDict): pass",
        "from ml_collections.config_dict import FrozenConfigDict as Config",
    ],
)
def test_a_config_is_known_in_few_modules(text):
    (violation,) = house.config_dicts([Source("retrieval/metrics.py", text)])
    assert violation.startswith("retrieval/metrics.py:") and "names ConfigDict" in violation
    allowed = [Source(path, text) for path in ("config.py", "experiment.py", "run/workdir.py")]
    assert house.config_dicts(allowed) == []


STAGES = [
    Source("models/pair_stages/__init__.py", "class Registry:\n    names: list\n"),
    Source("models/pair_stages/base.py", "class PairStage:\n    embed_dim: int\n"),
    Source(
        "models/pair_stages/evidence.py", "class Evidence:\n    embed_dim: int\n    regions_R: object\n    items: int\n"
    ),
    Source("models/pair_stages/conditional/pair.py", "class Terms:\n    clues: object\nkind = x == 'evidence'\n"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("if config.pair_stage == 'evidence': pass", "compares with the pair stage 'evidence'"),
        ("x = 'conditional' != self.pair_stage", "compares with the pair stage 'conditional'"),
        ("x = name in ('none', 'evidence')", "compares with the pair stage 'evidence'"),
        ("match name:\n    case 'evidence': pass", "compares with the pair stage 'evidence'"),
        ("isinstance(stage, Evidence)", "tests for Evidence"),
        ("isinstance(stage, int | evidence.Evidence)", "tests for Evidence"),
        ("issubclass(cls, (Terms, int))", "tests for Terms"),
        ("type(stage) is Evidence", "tests for Evidence"),
        ("match stage:\n    case Evidence(): pass", "tests for Evidence"),
        ("if terms.clues is None: pass", "reads .clues, a field of models/pair_stages/conditional/pair.py"),
        ("x = getattr(stage, 'embed_dim') or stage.regions_R", "reads .regions_R"),
    ],
)
def test_every_way_to_ask_for_the_kind_of_a_stage(text, message):
    (violation,) = house.stage_kinds([*STAGES, Source("train_step.py", text)])
    assert message in violation and violation.startswith("train_step.py:") and "base.py" in violation


def test_what_is_no_question_for_the_kind_of_a_stage():
    text = """
import cacenet_jax.models.pair_stages.evidence
stage = registry["evidence"](channels=64)  # a name is handed on
if stage is None or stage.embed_dim == 768: pass  # a network without pairs; a field of the interface
for key in fields.items(): pass  # a method of a dictionary
isinstance(stage, PairStage)
if ranking == "conditional": pass  # the ranking by pairs alone
class Sampler:
    def f(self): return self.clues  # of its own
sampler.clues = 1
"""
    assert house.stage_kinds([*STAGES, Source("train_step.py", text)]) == []
