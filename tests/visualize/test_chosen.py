"""Images chosen by name: exactly those that are meant, or one line that says which names are wrong."""

import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.visualize.chosen import Place, chosen_pair, chosen_queries

QUERY = ["b/7_c1.jpg", "a/7_c2.jpg", "a/8, left.jpg", "record-12", "b/bad\udcff.jpg", "a/9_c1.jpg"]
GALLERY = ["b/7_c3.jpg", "b/7_c1.jpg", "a/9_c2.jpg", "b/9_c2.jpg", "a/8_c9.jpg"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a/7_c2.jpg", [1]),
        ("record-12,b/7_c1.jpg", [3, 0]),  # in the order in which they are named
        ("7_c2.jpg, 7_c1", [1, 0]),  # without folders, and without the ending
        ("a/8, left.jpg,a/9_c1.jpg", [2, 5]),  # a comma in a name
        ("b/bad?.jpg", [4]),  # as the page shows it
        ("b/bad\\xff.jpg", [4]),  # as messages show it
        ("record-12,,record-12,", [3]),
    ],
)
def test_queries_are_those_that_are_named(text, expected):
    assert chosen_queries(text, QUERY, GALLERY).tolist() == expected


def test_unknown_names_are_told_together_with_close_ones():
    with pytest.raises(UserError) as error:
        chosen_queries("a/7_c9.jpg,record-12,zebra,a/9_c2.jpg", QUERY, GALLERY)
    line = str(error.value)
    assert line.startswith("config.visualize.queries: found 'a/7_c9.jpg' (close: 'a/7_c2.jpg'")
    assert (
        "'zebra'" in line and "'a/9_c2.jpg' (a gallery image" in line and "record-12" not in line.split("expected")[0]
    )
    assert "expected names of the 6 query images" in line and len(line.splitlines()) == 1


def test_a_name_of_several_images_is_refused_with_all_of_them():
    names = [f"{folder}/001.jpg" for folder in "abcde"]
    with pytest.raises(UserError, match=r"'001.jpg' \(5 images: 'a/001.jpg', 'b/001.jpg', 'c/001.jpg', ...\)"):
        chosen_queries("001.jpg", names, [])


def test_a_pair_is_taken_from_queries_and_gallery():
    assert chosen_pair("a/7_c2.jpg,a/8_c9.jpg", QUERY, GALLERY) == (Place("query", 1), Place("gallery", 4))
    assert chosen_pair("a/8_c9.jpg,b/9_c2.jpg", QUERY, GALLERY) == (Place("gallery", 4), Place("gallery", 3))
    assert chosen_pair("record-12,a/8, left.jpg", QUERY, GALLERY) == (Place("query", 3), Place("query", 2))
    # In both splits: the first image as a query, the second one in the gallery.
    assert chosen_pair("b/7_c1.jpg,b/7_c1.jpg", QUERY, GALLERY) == (Place("query", 0), Place("gallery", 1))


def test_a_pair_is_two_images():
    for text, count in (("a/7_c2.jpg", 1), ("a/7_c2.jpg,record-12,a/8_c9.jpg", 3)):
        with pytest.raises(UserError, match=f"config.visualize.pair: found {count} image.*, expected two"):
            chosen_pair(text, QUERY, GALLERY)
    with pytest.raises(UserError, match=r"config.visualize.pair: found 'zebra', 'x', expected names of two of the 11"):
        chosen_pair("zebra,x", QUERY, GALLERY)
    with pytest.raises(UserError, match=r"'9_c2.jpg' \(2 images: 'a/9_c2.jpg', 'b/9_c2.jpg'\)"):
        chosen_pair("record-12,9_c2.jpg", QUERY, GALLERY)


def test_close_names_among_many_take_little_time():
    names = [f"{i:04}_c{i % 6}s1_{i:06}_00.jpg" for i in range(5_000)]
    with pytest.raises(UserError, match=r"close: '0077_c5s1_000077_00.jpg'"):
        chosen_queries("0077_c5s1_000077_0.jpg", names, names)
    assert chosen_queries("0077_c5s1_000077_00", names, names).dtype == np.int64
