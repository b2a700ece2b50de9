"""Part labels: from records, from files, through augmentation; and one clear line where they are missing."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.data.augment import Augment, augment_one
from cacenet_jax.data.builders import Records, Split
from cacenet_jax.data.part_labels import PartLabels
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.subsets import all_records
from cacenet_jax.errors import UserError

LABELS = np.array([[0, 1], [2, 31]], np.uint8)


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def split_of(names, parts):
    class Source:
        def __len__(self):
            return len(names)

        def __getitem__(self, i):
            pixels = np.full((4, 2, 3), 7 * i, np.uint8)
            return {"image": png(pixels), "name": names[i].encode(), "parts": parts[i]}

    count = len(names)
    parts = [parts] * count if isinstance(parts, bytes) else parts
    return Split(Records(Source()), np.arange(count), np.zeros(count, int), list(names))


def test_labels_of_a_record_are_brought_to_the_images_size_without_new_values():
    found = PartLabels().read(png(LABELS), "a.jpg", 4, 6)
    np.testing.assert_array_equal(found, np.repeat(np.repeat(LABELS, 2, axis=0), 3, axis=1))


def test_labels_come_from_the_file_of_the_images_name(tmp_path):
    (tmp_path / "train").mkdir()
    cv2.imwrite(str(tmp_path / "train" / "0001_c1.png"), LABELS)
    labels = PartLabels(str(tmp_path))
    np.testing.assert_array_equal(labels.read(b"", "train/0001_c1.jpg", 2, 2), LABELS)
    labels.check({"train": split_of(["train/0001_c1.jpg"], b"")})


def test_labels_are_the_fourth_channel_of_a_batch():
    batches = evaluation_batches(
        all_records(split_of(["a", "b", "c"], png(LABELS))), height=4, width=2, batch_size=2, parts=PartLabels()
    )
    images, _ = next(batches)
    assert images.shape == (2, 4, 2, 4)
    assert images[1, 0, 0, 0] == 7
    np.testing.assert_array_equal(images[1, ..., 3], np.repeat(LABELS, 2, axis=0))


def test_augmentation_moves_labels_with_the_pixels_and_clears_them_where_it_erases():
    rows, columns = np.mgrid[:16, :8]
    place = (1 + rows * 8 + columns).astype(np.uint8)  # every pixel and its label say where they come from
    image = np.stack([place, place, place, place], axis=-1)
    seen = set()
    for seed in range(12):
        out = np.asarray(augment_one(jax.random.key(seed), jnp.asarray(image), Augment(pad=2, erase=0.5)))
        red = np.round((out[..., 0] * 0.229 + 0.485) * 255).astype(int)
        label = out[..., 3].astype(int)
        differ = red != label
        assert (label[differ] == 0).all()  # erased: the mean pixel, 124, whose label is nobody's
        assert set(red[differ].tolist()) <= {124}
        seen |= {"erased"} if differ.any() else {"kept"}
        seen |= {"mirrored" if (np.diff(label[8][label[8] > 0]) < 0).any() else "straight"}
    assert seen == {"erased", "kept", "mirrored", "straight"}


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (png(np.full((2, 2, 3), 9, np.uint8)), r"a.jpg: found shape \(2, 2, 3\) of uint8, expected an 8-bit PNG"),
        (png(np.full((2, 2), 32, np.uint8)), "a.jpg: found label 32, expected"),
        (b"nothing", "a.jpg: found no image, expected"),
        (b"", r"a.png: found no part labels \(No such file or directory\)"),
    ],
)
def test_broken_labels_are_one_line(tmp_path, encoded, words):
    with pytest.raises(UserError, match=words):
        PartLabels(str(tmp_path)).read(encoded, "a.jpg", 2, 2)


def test_data_without_labels_is_refused_before_training(tmp_path):
    unlabelled = split_of(["a.jpg", "b.jpg"], b"")
    with pytest.raises(
        UserError, match=r"2 of the 2 images of the train split: found no part labels.*first a\.jpg.*config.data.parts"
    ):
        PartLabels().check({"train": unlabelled})
    with pytest.raises(UserError, match=r"a\.png: found no such label file, for 2 of the 2 images of the query split"):
        PartLabels(str(tmp_path)).check({"query": unlabelled})
    PartLabels().check({"train": split_of(["a.jpg"], png(LABELS))})


def test_every_image_is_checked_for_labels_in_its_record_or_a_file(tmp_path):
    half = split_of(["a.jpg", "b.jpg", "c.jpg"], [png(LABELS), b"", b""])
    with pytest.raises(UserError, match=r"2 of the 3 images of the train split.*first b\.jpg"):
        PartLabels().check({"train": half})
    cv2.imwrite(str(tmp_path / "b.png"), LABELS)
    with pytest.raises(UserError, match=r"c\.png: found no such label file, for 1 of the 3 images"):
        PartLabels(str(tmp_path)).check({"train": half})
    cv2.imwrite(str(tmp_path / "c.png"), LABELS)
    PartLabels(str(tmp_path)).check({"train": half})
