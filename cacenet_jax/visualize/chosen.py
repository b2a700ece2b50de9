"""Images of a test split that the user chooses by name."""

import difflib
import heapq
import posixpath
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cacenet_jax.errors import UserError, printable

_MOST = 3  # names listed of several
_COMPARED = 200  # names that are compared closely with an unknown one, those that share most of its parts


class Place(NamedTuple):
    """Place of an image in a data set.

    Attributes:
        split: "query" or "gallery".
        position: index of the image in the split.
    """

    split: str
    position: int


# Forms of a name by which an image can be chosen, the first that fits: as it is, on a page, or in a message; without
# its ending, without its folders, or without both.
_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: name.encode("utf-8", "replace").decode(),
    printable,
    posixpath.basename,
    lambda name: posixpath.splitext(name)[0],
    lambda name: posixpath.splitext(posixpath.basename(name))[0],
)


class _Names:
    """Images by name, in any of the forms."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._levels: list[dict[str, list[int]]] = []  # made when needed

    def __getitem__(self, word: str) -> list[int]:
        """Return the indices of the images that a word names, none if it names none."""
        for number, form in enumerate(_FORMS):
            if number == len(self._levels):
                level: dict[str, list[int]] = {}
                for position, name in enumerate(self.names):
                    level.setdefault(form(name), []).append(position)
                self._levels.append(level)
            if word in self._levels[number]:
                return self._levels[number][word]
        return []

    def split(self, text: str) -> list[str]:
        """Split a list at its commas, except those in names."""
        parts, words = text.split(","), []
        while parts:
            joined = (",".join(parts[:end]).strip() for end in range(len(parts), 0, -1))
            word = next((word for word in joined if word and self[word]), parts[0].strip())
            del parts[: word.count(",") + 1]
            words += [word] if word else []
        return words

    def close(self, word: str) -> list[str]:
        """Return the whole names of the images whose names, perhaps without folders, are most like a word."""
        form = str if "/" in word else posixpath.basename
        grams = lambda name: {name[i : i + 3] for i in range(len(name))}
        of_word, names = grams(word), {form(name): None for name in self.names}
        likely = heapq.nlargest(_COMPARED, names, key=lambda name: len(of_word & grams(name)))
        matches = difflib.get_close_matches(word, likely, _MOST, cutoff=0.5)
        return [self.names[self[match][0]] for match in matches]


def chosen_queries(text: str, query_names: Sequence[str], gallery_names: Sequence[str]) -> Int[np.ndarray, "n"]:
    """Return the indices of the queries that config.visualize.queries names, in its order and each once.

    Args:
        text: names, separated by commas: names of records, with or without their folders and endings.
        query_names: names of the query images.
        gallery_names: names of the gallery images, for the message.

    Raises:
        UserError: there is no query of a name, or there are several.
    """
    names, gallery = _Names(query_names), _Names(gallery_names)
    words = names.split(text)
    hint = lambda word: "a gallery image, which config.visualize.pair can name" if gallery[word] else ""
    _check("queries", names, words, f"names of the {len(query_names)} query images", hint)
    return np.array(list(dict.fromkeys(names[word][0] for word in words)), np.int64)


def chosen_pair(text: str, query_names: Sequence[str], gallery_names: Sequence[str]) -> tuple[Place, Place]:
    """Return the two images that config.visualize.pair names.

    Args:
        text: two names, separated by a comma, as in `chosen_queries`. Of images with the same name in both splits, the
            first one is the query and the second one the gallery image.
        query_names: names of the query images.
        gallery_names: names of the gallery images.

    Raises:
        UserError: there are not two names, or there is no image of a name, or there are several in a split.
    """
    splits = {"query": _Names(query_names), "gallery": _Names(gallery_names)}
    names = _Names([*query_names, *gallery_names])
    words = names.split(text)
    if len(words) != 2:
        images = "1 image" if len(words) == 1 else f"{len(words)} images"
        raise UserError(
            f"config.visualize.pair: found {images} ({_listed(words)}), expected two; name them A,B, as the page or the "
            "data set names them"
        )
    expected = f"names of two of the {len(names.names)} query and gallery images"
    unique = {word for word in words if 1 in (len(splits["query"][word]), len(splits["gallery"][word]))}
    _check("pair", names, [word for word in words if word not in unique], expected, lambda word: "")
    places = []
    for word, order in zip(words, (("query", "gallery"), ("gallery", "query"))):
        split = next(split for split in order if len(splits[split][word]) == 1)
        places.append(Place(split, splits[split][word][0]))
    return places[0], places[1]


def _check(field: str, names: _Names, words: Sequence[str], expected: str, hint: Callable[[str], str]) -> None:
    """Raise UserError, with one line on all of them, if words do not name one image each."""
    wrong = [word for word in dict.fromkeys(words) if len(names[word]) != 1]
    if not wrong:
        return
    told = []
    for word in wrong:
        if images := names[word]:
            note = f"{len(images)} images: {_listed([names.names[index] for index in images])}"
        else:
            note = hint(word) or (f"close: {_listed(close)}" if (close := names.close(word)) else "")
        told.append(_quoted(word) + (f" ({note})" if note else ""))
    example = f", for example {_quoted(names.names[0])}" if len(names.names) else ""
    raise UserError(
        f"config.visualize.{field}: found {', '.join(told)}, expected {expected}{example}; correct the names"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names[:_MOST])) + (", ..." if len(names) > _MOST else "")


def _quoted(name: str) -> str:
    return f"'{printable(name, 120)}'"
