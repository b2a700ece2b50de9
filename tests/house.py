"""Checkers of the layout rules that no linter knows; test_house.py runs them on the package and on broken samples.

A checker takes the sources of a package and returns one line for each violation: file, line, rule and remedy.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

MAX_TOP_LEVEL = 10
MAX_LINES = 350
STAGES = "models/pair_stages"

# Where a ConfigDict may be named: fields and their check, the reading of them, and the functions that a mode calls.
CONFIG_MODULES = (
    "config.py", "experiment.py", "main.py", "train.py", "evaluate.py", "retriever.py", "run/", "reproduce/",
    "export/run.py", "export/inference.py", "visualize/report.py", "visualize/browse.py",
    "decide/compare.py", "decide/calibrate.py", "find/", "serve/run.py",
)  # fmt: skip

# Rankings, one of which has the name of a stage.
RANKINGS = {"individual", "conditional", "mixed"}

BARRED_OPENINGS = ("What", "Whether")
BARRED_NAMES = ("found", "how")


@dataclass(frozen=True)
class Source:
    """A module: its path below the package, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    def at(self, line: int, message: str) -> str:
        return f"{self.path}:{line}: {message}"


def read(package: Path) -> list[Source]:
    """All modules of a package on disk, sorted by path."""
    return [Source(path.relative_to(package).as_posix(), path.read_text()) for path in sorted(package.rglob("*.py"))]


def top_level(sources: Sequence[Source]) -> list[str]:
    """At most ten modules at the top of the package, beside __init__ and the packages."""
    names = [source.path for source in sources if "/" not in source.path and source.path != "__init__.py"]
    if len(names) <= MAX_TOP_LEVEL:
        return []
    return [f"{len(names)} modules at the top level ({', '.join(names)}); at most {MAX_TOP_LEVEL}: give one a folder"]


def long_modules(sources: Sequence[Source]) -> list[str]:
    """Modules that want to be two."""
    sizes = [(source, source.text.count("\n")) for source in sources]
    return [
        source.at(lines, f"{lines} lines; above {MAX_LINES} split it") for source, lines in sizes if lines > MAX_LINES
    ]


def lone_modules(sources: Sequence[Source]) -> list[str]:
    """Folders with a single module or folder beside __init__."""
    members: dict[str, set[str]] = {}
    for source in sources:
        *folders, name = source.path.split("/")
        for depth, child in enumerate([*folders[1:], name] if folders else []):
            members.setdefault("/".join(folders[: depth + 1]), set()).add(child)
    return [
        f"{folder}/ holds {(names - {'__init__.py'} or {'nothing'}).pop()} alone; make it a module"
        for folder, names in sorted(members.items())
        if len(names - {"__init__.py"}) < 2
    ]


def package_docstrings(sources: Sequence[Source]) -> list[str]:
    """Every folder of modules has an __init__.py that says what lives there."""
    inits = {source.path: source for source in sources if source.path.split("/")[-1] == "__init__.py"}
    folders = {parent for source in sources for parent in map(str, PurePosixPath(source.path).parents)}
    paths = ["__init__.py" if folder == "." else f"{folder}/__init__.py" for folder in sorted(folders)]
    return [
        f"{path}:1: no docstring; say what the package holds and in which order to read it"
        for path in paths
        if path not in inits or not ast.get_docstring(inits[path].tree)
    ]


def docstring_openings(sources: Sequence[Source]) -> list[str]:
    """Docstrings open with a noun phrase or an imperative."""
    violations = []
    for source in sources:
        for node in source.nodes:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "").split(maxsplit=1)
                if words and words[0].rstrip(",.:;") in BARRED_OPENINGS:
                    message = f"docstring opens with {words[0]!r}; use a noun phrase or an imperative (Return, Compute)"
                    violations.append(source.at(getattr(node, "lineno", 1), message))
    return violations


def _bound_names(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """Names of variables, arguments, fields and functions that a module binds, with their lines."""
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno


def variable_names(sources: Sequence[Source]) -> list[str]:
    """Variables carry the name of the thing, not of having it."""
    return [
        source.at(line, f"{name!r} says nothing; name the thing")
        for source in sources
        for name, line in _bound_names(source.nodes)
        if name in BARRED_NAMES
    ]


def config_dicts(sources: Sequence[Source]) -> list[str]:
    """Modules that name ConfigDict are those that read a config; the others take plain arguments."""
    violations = []
    for source in sources:
        if any(
            source.path == place or (place.endswith("/") and source.path.startswith(place)) for place in CONFIG_MODULES
        ):
            continue
        lines = [line for name, line in _used_names(source.nodes) if name in ("ConfigDict", "FrozenConfigDict")]
        if lines:
            message = "names ConfigDict; take plain arguments, experiment.py reads the config"
            violations.append(source.at(min(lines), message))
    return violations


def _used_names(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    for node in nodes:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name, node.lineno
            case ast.ImportFrom(names=aliases) | ast.Import(names=aliases):
                for alias in aliases:
                    yield alias.name.split(".")[-1], node.lineno


def stage_kinds(sources: Sequence[Source]) -> list[str]:
    """Nothing outside pair_stages/ asks which pair stage it has.

    Three ways of asking are looked for: a comparison (`==`, `in`, `case`) with the name of a stage, isinstance or a
    class pattern with a class of pair_stages/, and reading a field that stages alone declare and their interface
    (base.py) does not.
    """
    stages, kinds, classes, fields = _stage_vocabulary(sources)
    violations = []
    for source in sources:
        if source in stages:
            continue
        for node in source.nodes:
            if kind := _compared(node) & (kinds if _on_a_stage(node) else kinds - RANKINGS):
                ask = f"compares with the pair stage {min(kind)!r}"
            elif cls := _tested_classes(node) & classes:
                ask = f"tests for {min(cls)}, a class of {STAGES}/"
            elif (field := _read_of_another(node)) in fields:
                ask = f"reads .{field}, a field of {fields[field]}"
            else:
                continue
            violations.append(source.at(node.lineno, f"{ask}; make it a method of the interface, {STAGES}/base.py"))
    return violations


def _stage_vocabulary(sources: Sequence[Source]) -> tuple[list[Source], set[str], set[str], dict[str, str]]:
    """Modules of pair_stages/, names of the stages, their classes, and the fields that they alone declare."""
    inside = [source for source in sources if source.path.startswith(f"{STAGES}/")]
    base = {f"{STAGES}/__init__.py", f"{STAGES}/base.py"}
    kinds = {source.path.removeprefix(f"{STAGES}/").split("/")[0].removesuffix(".py") for source in inside} - {
        "__init__", "base", "grids",
    }  # fmt: skip
    own = [source for source in inside if source.path not in base]
    classes = {node.name for source in own for node in source.nodes if isinstance(node, ast.ClassDef)}
    known = {name for source in sources if source not in own for name in _declared(source)} | _COMMON_ATTRIBUTES
    fields = {name: source.path for source in own for name in _declared(source) if name not in known}
    return inside, kinds, classes, fields


# Attributes of arrays, containers and modules that a stage may name a field after.
_COMMON_ATTRIBUTES = {name for kind in (dict, list, tuple, str, set) for name in dir(kind)} | {"dtype", "shape", "mean"}


def _declared(source: Source) -> set[str]:
    """Public annotated fields of a module's classes."""
    return {
        statement.target.id
        for node in source.nodes
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def _compared(node: ast.AST) -> set[str]:
    """String constants that a comparison or a case compares with."""
    match node:
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
        case ast.MatchValue(value=value):
            sides = [value]
        case _:
            return set()
    sides += [item for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for item in side.elts]
    return {side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)}


def _on_a_stage(node: ast.AST) -> bool:
    """Tell a comparison of a stage's name from one of a ranking's: one of its sides is called a stage or a pair."""
    return any("stage" in name or "pair" in name for name, _ in _used_names(ast.walk(node)))


def _read_of_another(node: ast.AST) -> str:
    """Attribute that an expression reads of an object other than `self`; empty for other nodes."""
    match node:
        case ast.Attribute(value=ast.Name(id="self")):
            return ""
        case ast.Attribute(attr=name, ctx=ast.Load()):
            return name
    return ""


def _tested_classes(node: ast.AST) -> set[str]:
    """Classes that an isinstance, issubclass, `type(x) is` or class pattern asks for."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
            asked: list[ast.AST] = [kinds]
        case ast.Compare(left=ast.Call(func=ast.Name(id="type")), comparators=kinds):
            asked = list(kinds)
        case ast.MatchClass(cls=cls):
            asked = [cls]
        case _:
            return set()
    return {name for tree in asked for name, _ in _used_names(ast.walk(tree))}
