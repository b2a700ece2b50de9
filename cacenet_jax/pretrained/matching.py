"""Which array of a file is which parameter of a backbone, and every reason why a file does not fit, told together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from cacenet_jax.errors import UserError

# What wraps a backbone in a training script, and how often in front of one another.
_PREFIXES = ("module.", "backbone.", "base.", "model.", "resnet.")
# Not of a feature map: the classifier of another data set, and a counter that no inference reads.
_CLASSIFIERS = ("fc.", "classifier.", "head.")
_COUNTER = "num_batches_tracked"
_SHOWN = 8  # names of each kind in a message


class Misfits(NamedTuple):
    """What does not fit, of two sides that should.

    Attributes:
        missing: names that this network has and the other side lacks.
        unexpected: names that the other side has and this network lacks.
        shapes: (name, shape there, shape here).
        broken: names whose numbers cannot be taken, with the reason.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    broken: list[str]

    def summary(self) -> str:
        """Counts in one phrase, empty where everything fits."""
        names = ("missing", "not expected", "of another shape", "not to be taken")
        sizes = (len(self.missing), len(self.unexpected), len(self.shapes), len(self.broken))
        counts = zip(sizes, names, strict=True)
        return ", ".join(f"{count} {name}" for count, name in counts if count)

    def lines(self, there: str, here: str) -> list[str]:
        """A line for each kind, with its first names."""
        shapes = [f"{name} {theirs} against {ours}" for name, theirs, ours in self.shapes]
        kinds = {
            f"missing in {there}": self.missing,
            f"not in {here}": self.unexpected,
            f"of another shape in {there} than in {here}": shapes,
            f"not to be taken from {there}": self.broken,
        }
        return [f"  {what} ({len(names)}): {listed(names)}" for what, names in kinds.items() if names]


class Fitted(NamedTuple):
    """A backbone's variables out of a file.

    Attributes:
        variables: `params` and `batch_stats` (where the backbone has some) of float32.
        taken: how many arrays.
        left_out: names that were passed over: classifiers, counters, what is no part of the backbone.
        added: names that the file lacks and that keep their start: layers that the published network does not have.
    """

    variables: dict[str, Any]
    taken: int
    left_out: list[str]
    added: list[str]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def fit(
    arrays: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    torch_name: Callable[[Sequence[str]], str],
    there: str,
    here: str,
    may_lack: Sequence[str] = (),
    unused: Sequence[str] = (),
) -> Fitted:
    """The variables of a backbone, from arrays in PyTorch's names and layout.

    Kernels are OIHW there and HWIO here (depthwise ones too: (C, 1, k, k) becomes (k, k, 1, C)), matrices (out, in) there
    and (in, out) here. Half precision is widened.

    Args:
        arrays: name to array, as `reading.read` gives them; all names, or those of the backbone, may have a prefix.
        like: the backbone's `params` and `batch_stats`: arrays, or their shapes and types.
        torch_name: path in one of these collections to the name in a state dict.
        there: what to call the file in an error.
        here: what to call the backbone in an error.
        may_lack: parts of a name, of layers that keep what `like` has for them where the file has none of their kind.
        unused: how names start that are passed over, beside those of common classifiers.

    Raises:
        UserError: names everything that is missing, not expected, of another shape, not a number or not finite.
    """
    ours = {
        (collection, *path): leaf
        for collection, tree in like.items()
        for path, leaf in traverse_util.flatten_dict(tree).items()
    }
    names = {path: torch_name(path[1:]) for path in ours}
    prefix = _prefix(arrays, names.values())
    inside = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    outside = [name for name in arrays if not name.startswith(prefix)]
    passed_over = [
        n
        for n in inside
        if n not in names.values() and (n.startswith((*_CLASSIFIERS, *unused)) or n.endswith(_COUNTER))
    ]

    absent = [part for part in may_lack if not any(part in name for name in inside)]
    added = [path for path, name in names.items() if any(part in name for part in absent)]
    wanted = {path: name for path, name in names.items() if path not in added}
    misfits = Misfits(
        missing=sorted(name for name in wanted.values() if name not in inside),
        unexpected=sorted(prefix + n for n in inside if n not in set(wanted.values()) and n not in passed_over),
        shapes=[],
        broken=[],
    )
    found: dict[tuple[str, ...], Any] = {}
    for path, name in sorted(wanted.items(), key=lambda item: item[1]):
        if name not in inside:
            continue
        x, shape = inside[name], _torch_shape(path, ours[path].shape)
        if len(shape) == 2 and x.shape == (*shape, 1, 1):  # a 1x1 convolution there, a matrix here
            x = x[..., 0, 0]
        if x.shape != shape:
            misfits.shapes.append((name, x.shape, shape))
        elif not np.issubdtype(x.dtype, np.floating):
            misfits.broken.append(f"{name} of type {x.dtype}")
        elif not np.isfinite(x).all():
            misfits.broken.append(f"{name} with NaN or infinity")
        else:
            found[path] = np.array(_from_torch(path, x), np.float32, order="C")
    if misfits.summary():
        raise UserError(
            f"config.pretrained: found {there}, which does not fit {here} ({misfits.summary()}), expected that backbone's "
            "weights; choose another file or config.model.backbone\n" + "\n".join(misfits.lines("the file", here))
        )
    taken = len(found)
    found |= {path: ours[path] for path in added}
    return Fitted(traverse_util.unflatten_dict(found), taken, passed_over + outside, [names[path] for path in added])


def _prefix(names: Iterable[str], expected: Iterable[str]) -> str:
    """What stands before a backbone's names in a file: the prefix, perhaps none, with which most of them are found."""
    expected = set(expected)
    found: dict[str, int] = {"": 0}
    for name in names:
        prefix = ""
        while True:
            found[prefix] = found.get(prefix, 0) + (name.removeprefix(prefix) in expected)
            longer = [p for p in _PREFIXES if name.startswith(prefix + p)]
            if not longer:
                break
            prefix += longer[0]
    return max(found, key=lambda prefix: found[prefix])


def _torch_shape(path: Sequence[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return tuple(shape[axis] for axis in (3, 2, 0, 1))
    return shape[::-1] if len(shape) == 2 and path[-1] == "kernel" else tuple(shape)


def _from_torch(path: Sequence[str], x: np.ndarray) -> np.ndarray:
    if x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    return x.T if x.ndim == 2 and path[-1] == "kernel" else x
