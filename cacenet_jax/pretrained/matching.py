"""Matching of arrays from a weights file to network parameters, with all mismatches reported in one error."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from cacenet_jax.errors import UserError, printable

# Prefixes that training scripts and compilers add to the parameter names of a backbone; they may be nested.
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "base.", "model.", "resnet.")
# Arrays that are not loaded: classifiers of other data sets, and a counter of training steps.
_CLASSIFIERS = ("fc.", "classifier.", "head.")
_COUNTER = "num_batches_tracked"
_SHOWN = 8  # maximum number of names per kind in a message
NAME_LENGTH = 120  # characters of a name in a message
_MAX_PARTS = 32  # of a name, between dots


class Mismatches(NamedTuple):
    """Differences between the arrays of a source and the parameters of a target network.

    Attributes:
        missing: names in the target only.
        unexpected: names in the source only.
        shapes: (name, source shape, target shape) of arrays with different shapes.
        broken: names of arrays with unusable values, with the reason.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    broken: list[str]

    def summary(self) -> str:
        """Return the counts as one phrase, empty if everything matches."""
        sizes = (len(self.missing), len(self.unexpected), len(self.shapes), len(self.broken))
        counts = zip(sizes, ("missing", "not expected", "of another shape", "unusable"), strict=True)
        return ", ".join(f"{count} {kind}" for count, kind in counts if count)

    def lines(self, source_name: str, target_name: str) -> list[str]:
        """Return one line per kind of mismatch, with the first few names."""
        shapes = [f"{name} {_shown(source)} against {target}" for name, source, target in self.shapes]
        kinds = {
            f"missing in {source_name}": self.missing,
            f"not in {target_name}": self.unexpected,
            f"of another shape in {source_name} than in {target_name}": shapes,
            f"unusable in {source_name}": self.broken,
        }
        return [f"  {kind} ({len(names)}): {listed(names)}" for kind, names in kinds.items() if names]


class MatchedWeights(NamedTuple):
    """Variables of a network loaded from a file.

    Attributes:
        variables: `params` and `batch_stats` (if the network has any), float32.
        num_loaded: number of loaded arrays.
        ignored: names in the file that were not loaded (classifiers, counters, arrays outside the network).
        added: names of optional layers that are absent from the file and keep their initial values.
    """

    variables: dict[str, Any]
    num_loaded: int
    ignored: list[str]
    added: list[str]


def listed(names: Sequence[str]) -> str:
    """Format the first few names and the number of remaining ones."""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name, NAME_LENGTH) for name in names[:_SHOWN]) + more


def match_weights(
    arrays: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    torch_name: Callable[[Sequence[str]], str],
    source_name: str,
    target_name: str,
    may_lack: Sequence[str] = (),
    unused: Sequence[str] = (),
) -> MatchedWeights:
    """Convert arrays with PyTorch names and layouts to the variables of a network.

    Kernels are converted from OIHW to HWIO (depthwise (C, 1, k, k) to (k, k, 1, C)), matrices from (out, in) to
    (in, out), and all floating-point types to float32.

    Args:
        arrays: arrays by name, from `reading.read`; names may share any prefix.
        like: `params` and `batch_stats` of the network, as arrays or `jax.ShapeDtypeStruct`s.
        torch_name: function that maps a path in one of these collections to its name in a state dict.
        source_name: name of the file, for error messages.
        target_name: name of the network, for error messages.
        may_lack: substrings that identify optional layers, which keep the values in `like` if absent from the file.
        unused: prefixes of additional names to ignore, besides common classifiers.

    Raises:
        UserError: arrays are missing, unexpected, of another shape, not floating point or not finite; all are listed.
    """
    ours = {
        (collection, *path): leaf
        for collection, tree in like.items()
        for path, leaf in traverse_util.flatten_dict(tree).items()
    }
    names = {path: torch_name(path[1:]) for path in ours}
    prefix = _prefix(arrays, names.values(), source_name)
    inside = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    outside = [name for name in arrays if not name.startswith(prefix)]
    ignored = [
        n
        for n in inside
        if n not in names.values() and (n.startswith((*_CLASSIFIERS, *unused)) or n.endswith(_COUNTER))
    ]

    absent = [part for part in may_lack if not any(part in name for name in inside)]
    added = [path for path, name in names.items() if any(part in name for part in absent)]
    wanted = {path: name for path, name in names.items() if path not in added}
    mismatches = Mismatches(
        missing=sorted(name for name in wanted.values() if name not in inside),
        unexpected=sorted(prefix + n for n in inside if n not in set(wanted.values()) and n not in ignored),
        shapes=[],
        broken=[],
    )
    loaded: dict[tuple[str, ...], Any] = {}
    for path, name in sorted(wanted.items(), key=lambda item: item[1]):
        if name not in inside:
            continue
        x, shape = inside[name], _torch_shape(path, ours[path].shape)
        if len(shape) == 2 and x.shape == (*shape, 1, 1):  # a 1x1 convolution in the file, a matrix in the network
            x = x[..., 0, 0]
        if x.shape != shape:
            mismatches.shapes.append((name, x.shape, shape))
        elif not np.issubdtype(x.dtype, np.floating):
            mismatches.broken.append(f"{name} of type {x.dtype}")
        elif not np.isfinite(x).all():
            mismatches.broken.append(f"{name} with NaN or infinity")
        else:
            loaded[path] = np.array(_from_torch(path, x), np.float32, order="C")
    if mismatches.summary():
        raise UserError(
            f"config.pretrained: found {source_name}, which does not fit {target_name} ({mismatches.summary()}), expected "
            "weights of that backbone; choose another file or config.model.backbone\n"
            + "\n".join(mismatches.lines("the file", target_name))
        )
    num_loaded = len(loaded)
    loaded |= {path: ours[path] for path in added}
    return MatchedWeights(
        traverse_util.unflatten_dict(loaded), num_loaded, ignored + outside, [names[path] for path in added]
    )


def _prefix(names: Iterable[str], expected: Iterable[str], source_name: str) -> str:
    """Return the prefix, possibly empty, under which most of the expected names occur in a file.

    Any prefix is accepted under which at least half of them occur, if it is the only one with as many.
    """
    expected, names = set(expected), list(names)
    matches: dict[str, int] = {"": 0}
    for name in names:
        prefix = ""
        while True:
            matches[prefix] = matches.get(prefix, 0) + (name.removeprefix(prefix) in expected)
            longer = [p for p in _PREFIXES if name.startswith(prefix + p)]
            if not longer:
                break
            prefix += longer[0]
    usual = max(matches, key=lambda prefix: matches[prefix])
    others: dict[str, int] = {}
    for name in names:
        parts = name.split(".", _MAX_PARTS)
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in expected:
                prefix = ".".join(parts[:i]) + "."
                others[prefix] = others.get(prefix, 0) + 1
    most = max(others.values(), default=0)
    if most <= matches[usual] or 2 * most < len(expected):
        return usual
    best = [prefix for prefix, count in others.items() if count == most]
    if len(best) > 1:
        raise UserError(
            f"config.pretrained: found {source_name} with {len(best)} networks, whose names begin with {listed(best)}, "
            "expected one; save one of them alone, under names without that beginning"
        )
    return best[0]


def _shown(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= _SHOWN else f"of {len(shape)} dimensions"


def _torch_shape(path: Sequence[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return tuple(shape[axis] for axis in (3, 2, 0, 1))
    return shape[::-1] if len(shape) == 2 and path[-1] == "kernel" else tuple(shape)


def _from_torch(path: Sequence[str], x: np.ndarray) -> np.ndarray:
    if x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    return x.T if x.ndim == 2 and path[-1] == "kernel" else x
