"""A user's own images as they lie: manifests of any program, folders of people, test sets alone, splits on request."""

import json
import pathlib
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from own_images import LABELS, PLAIN, ROWS, images, load, manifest, mistake, picture, plain

from cacenet_jax.data.builders import SPLITS, TEST_SPLITS, open_split, prepare
from cacenet_jax.data.images import decode
from cacenet_jax.data.subsets import all_records


def video(path: pathlib.Path, frames: int) -> pathlib.Path:
    """Write a video of noise."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 32))
    for i in range(frames):
        writer.write(np.random.default_rng(i).integers(0, 256, (32, 64, 3), np.uint8))
    writer.release()
    return path


# -- Manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_manifest_of_any_program(tmp_path, separator, encoding):
    if encoding == "utf-16-le":  # only with a byte order mark is it known to be UTF-16
        root = manifest(tmp_path / "mine", ROWS, separator, encoding, before="\ufeff")
    else:
        root = manifest(tmp_path / "mine", ROWS, separator, encoding)
    assert load(root, tmp_path) == LABELS


def test_a_manifest_of_crops_elsewhere_is_a_training_set(tmp_path):
    """As --mode=group writes it: absolute paths, boxes in one image, no split; identity and camera for pid and camid."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    photograph = tmp_path / "elsewhere" / "both.png"
    photograph.parent.mkdir()
    cv2.imwrite(str(photograph), pixels[..., ::-1])
    lines = [f"{photograph},{identity},3,{x},0,{x + 3},8,,{identity}" for identity, x in ((0, 0), (1, 3), (0, 6))]
    lines.append(f"{images(tmp_path / 'elsewhere', ['whole.png']) / 'whole.png'},1,,,,,,,1")
    file = tmp_path / "groups" / "groups.csv"
    file.parent.mkdir()
    file.write_text("\n".join(["path,identity,camera,x1,y1,x2,y2,frame,group", *lines]) + "\n")
    prepared = prepare("reid_folder", root=str(file), data_dir=str(tmp_path / "out"), needs=("train",), progress=False)
    records = open_split(prepared, "train").records
    assert [(r["name"], r["pid"], r["camid"]) for r in records] == [
        (f"{photograph}#0,0,3,8", 0, 3), (f"{photograph}#3,0,6,8", 1, 3), (f"{photograph}#6,0,9,8", 0, 3),
        (str(photograph.with_name("whole.png")), 1, -1),
    ]  # fmt: skip
    for record, x in zip(records, (0, 3, 6)):
        np.testing.assert_array_equal(decode(record["image"], 8, 3, ""), pixels[:, x : x + 3])
    file.write_text("path,identity,box\n" + f'{photograph},0,"20,0,30,8"\n{photograph},1,"0,0,3,8"\n')
    text = mistake(file, tmp_path, needs=("train",))
    assert "both.png: found the box 20,0,30,8 outside an image of 9 x 8 pixels" in text


def test_a_manifest_in_a_folder_names_no_file_outside_it(tmp_path):
    outside = images(tmp_path / "elsewhere", ["a.png", "b.png"])
    root = tmp_path / "mine"
    root.mkdir()
    (root / "manifest.csv").write_text(f"path,pid,split\n{outside / 'a.png'},0,train\n../elsewhere/b.png,1,train\n")
    text = mistake(root, tmp_path, needs=("train",))
    assert text.count("expected one inside this folder") == 2


def test_frames_of_a_video_are_images(tmp_path):
    file = video(tmp_path / "street.avi", 4)
    (tmp_path / "m.csv").write_text(
        "path,identity,frame,box\n" + "".join(f'{file.name},{i % 2},{i},"0,0,32,16"\n' for i in range(4))
    )
    records = load(tmp_path / "m.csv", tmp_path, needs=("train",))["train"]
    assert [(name, pid) for name, pid, _ in records] == [(f"street.avi@{i}#0,0,32,16", i % 2) for i in range(4)]
    (tmp_path / "m.csv").write_text("path,identity,frame\nstreet.avi,0,0\nstreet.avi,1,99\n")
    assert "found no frame 99 in the video" in mistake(tmp_path / "m.csv", tmp_path, needs=("train",))
    root = tmp_path / "zip"
    root.mkdir()
    (root / "manifest.csv").write_text("path,identity,frame,split\nstreet.avi,0,0,train\nstreet.avi,1,1,train\n")
    shutil.copy(file, root)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    assert "found a video in an archive, expected one on disk" in mistake(archive, tmp_path, needs=("train",))


def test_a_manifest_with_the_separator_in_a_line_of_its_own(tmp_path):
    assert load(manifest(tmp_path / "mine", ROWS, ";", before="sep=;\r\n"), tmp_path) == LABELS


def test_empty_cells_at_the_ends_of_lines_do_not_count(tmp_path):
    rows, columns = [(*row, "", "") for row in ROWS], ("path", "pid", "camid", "split", "", "")
    assert load(manifest(tmp_path / "mine", rows, ";", columns=columns), tmp_path) == LABELS


def test_floats_of_a_column_with_a_gap_are_integers(tmp_path):
    rows = [(path, f"{pid}.0", f"{camid}.0", split) for path, pid, camid, split in ROWS]
    rows[1] = (rows[1][0], rows[1][1], "", "train")
    labels = LABELS | {"train": [("a/1.png", 3, 1), ("a/2.png", 4, -1)]}
    assert load(manifest(tmp_path / "mine", rows), tmp_path) == labels  # and -1.0 is junk


@pytest.mark.parametrize("cut,missing", [(1, "split is missing"), (2, "camid, split are missing")])
def test_a_line_without_all_cells_is_named_with_them(tmp_path, cut, missing):
    text = mistake(manifest(tmp_path / "mine", [*ROWS[:2], ROWS[2][:-cut], *ROWS[3:]]), tmp_path)
    assert f"manifest.csv line 4: found {4 - cut} cells, expected 4: {missing}" in text


def test_a_line_with_too_many_cells_is_named(tmp_path):
    text = mistake(manifest(tmp_path / "mine", [*ROWS[:3], (*ROWS[3], "more")]), tmp_path)
    assert "line 5: found 5 cells, expected 4; quote" in text


def test_a_cell_without_end_is_named(tmp_path):
    root = manifest(tmp_path / "mine", ROWS)
    (root / "manifest.csv").write_text('path,pid,split\na/1.png,1,train\n"' + "x" * 200_000)
    text = mistake(root, tmp_path)
    assert "manifest.csv line " in text and "field larger than field limit" in text and "\n" not in text


def test_an_empty_split_is_called_empty(tmp_path):
    text = mistake(manifest(tmp_path / "mine", [*ROWS[:3], (*ROWS[3][:3], "")]), tmp_path)
    assert "line 5: found an empty split, expected train, query or gallery" in text and "\n" not in text


def test_all_mistakes_of_a_manifest_are_told_at_once(tmp_path):
    rows = [*ROWS, ("f.png", "", "1", "train"), ("g.heic", "7", "1", "train"), ("h.png", "7", "1", "test")]
    root = manifest(tmp_path / "mine", [*rows, ("i.png", "", "1", "tset")])
    (root / "a/1.png").unlink()
    lines = mistake(root, tmp_path).splitlines()
    assert [line.split(": ")[0].rpartition(" ")[2] for line in lines] == ["2", "7", "8", "9", "10", "10"]
    for line, words in zip(lines, ("1.png does not exist", "empty pid", "g.heic", "'test'", "empty pid", "'tset'")):
        assert words in line
    many = manifest(tmp_path / "many", [(f"{i}.png", "", "1", "train") for i in range(30)])
    lines = mistake(many, tmp_path).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 20 more"


# -- Folders ----------------------------------------------------------------------------------------------------------


def of_people(root, people=("0001", "0002", "0003"), name="{number:04d}.png"):
    """A folder for each person, with images that are numbered in it."""
    return images(
        root, [f"{split}/{person}/{name.format(number=n)}" for split in SPLITS for person in people for n in (1, 2)]
    )


def test_a_folder_for_each_person(tmp_path, capsys):
    splits = load(of_people(tmp_path / "mine"), tmp_path, progress=True)
    for split in SPLITS:
        assert splits[split] == [(f"{pid:04d}/{n:04d}.png", pid, -1) for pid in (1, 2, 3) for n in (1, 2)]
    assert "note: " in (told := capsys.readouterr().err) and "identity=name" in told


def test_folders_with_names_of_people_and_cameras_in_the_files(tmp_path):
    splits = load(of_people(tmp_path / "mine", ("ann", "bob"), "{number}_c{number}_x.png"), tmp_path, identity="folder")
    assert splits["query"] == [
        (f"{who}/{n}_c{n}_x.png", pid, n) for pid, who in enumerate(("ann", "bob")) for n in (1, 2)
    ]
    splits = load(of_people(tmp_path / "cams", ("ann", "bob"), "cam{number}/x.png"), tmp_path)
    assert [camid for _, _, camid in splits["train"]] == [1, 2, 1, 2]


def test_folders_that_agree_with_the_names_change_nothing(tmp_path):
    names = [f"{split}/{pid:04d}/{pid}_c{camid}_a.png" for split in SPLITS for pid in (1, 2) for camid in (3, 4)]
    splits = load(images(tmp_path / "mine", names), tmp_path)
    assert [row[1:] for row in splits["gallery"]] == [(1, 3), (1, 4), (2, 3), (2, 4)]


@pytest.mark.parametrize("identity,pids", [("folder", [1, 1, 2, 2]), ("name", [1, 2, 1, 2])])
def test_folders_against_names_are_the_users_choice(tmp_path, identity, pids):
    root = of_people(tmp_path / "mine", ("0001", "0002"), "{number:04d}_c1.png")
    text = mistake(root, tmp_path)
    assert "in the name of the folder or of the file (train/0001/0002_c1.png)" in text
    assert "config.data.options.identity to folder or to name" in text
    assert [pid for _, pid, _ in load(root, tmp_path, identity=identity)["train"]] == pids
    assert "expected one of auto, name, folder" in mistake(root, tmp_path, identity="both")


def test_people_in_folders_of_one_split_alone_are_not_mixed_up(tmp_path):
    names = ["train/0001/0001.png", "train/0001/0002.png", "query/0007_c1.png", "gallery/0007_c2.png"]
    text = mistake(images(tmp_path / "mine", names), tmp_path)
    assert "train/0001/0002.png" in text and "identity" in text


def test_a_file_beside_the_folders_of_people_is_named(tmp_path):
    root = images(of_people(tmp_path / "mine"), ["train/stray.png", "query/other.png"])
    lines = mistake(root, tmp_path, identity="folder").splitlines()
    assert len(lines) == 2 and "train/stray.png: found no folder of an identity" in lines[0]


@pytest.mark.parametrize(
    "name", ["{pid}_x_c{camid}.png", "{pid}_cam{camid}.png", "{pid}-C{camid}-x.png", "{pid}_camera_{camid}.png"]
)
def test_a_camera_in_another_place_is_told(tmp_path, name):
    names = [f"{split}/{name.format(pid=pid, camid=camid)}" for split in SPLITS for pid in (1, 2) for camid in (3, 4)]
    root = images(tmp_path / "mine", names)
    text = mistake(root, tmp_path)
    assert "found 12 names with a camera in a place that is not understood, first" in text
    assert names[0].split("/")[1] in text and "config.data.options.camera" in text
    splits = load(root, tmp_path, camera=r"(?i)c(?:am|amera_)?(\d)")
    assert sorted(row[1:] for row in splits["train"]) == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert {camid for _, _, camid in load(root, tmp_path, camera="none")["train"]} == {-1}


def test_a_camera_option_that_fits_nothing_is_told(tmp_path):
    root = of_people(tmp_path / "mine", name="{number:04d}_x.png")
    assert "no regular expression" in mistake(root, tmp_path, camera="(")
    assert "found 2 groups" in mistake(root, tmp_path, camera="(a)(b)")
    assert "found no camera that fits 'k(.)'" in mistake(root, tmp_path, camera="k(.)")


def test_all_names_without_an_identity_are_told_at_once(tmp_path):
    root = images(tmp_path / "mine", ["train/x.png", "train/y.png", "query/1_c1.png", "gallery/z.png"])
    lines = mistake(root, tmp_path).splitlines()
    assert len(lines) == 3 and all("found no identity in the name" in line for line in lines)


# -- Numbers ----------------------------------------------------------------------------------------------------------

LONG = [20231005123456780001 + i for i in range(4)]


def test_identities_and_cameras_of_twenty_digits_are_numbered_in_order(tmp_path, capsys):
    names = [f"train/{pid}_c{2**64 + pid}_0.png" for pid in LONG[:2]]
    names += [f"{split}/{pid}_c{2**64 + pid}_0.png" for split in TEST_SPLITS for pid in LONG[2:]]
    root = images(tmp_path / "mine", [*names, "gallery/-1_c1_0.png"])
    splits = load(root, tmp_path, progress=True)
    assert [row[1:] for row in splits["train"]] == [(0, 1), (1, 2)]  # camera 1 is the junk's 1, number 0
    assert [row[1:] for row in splits["query"]] == [row[1:] for row in splits["gallery"]] == [(2, 3), (3, 4)]
    assert f"identities such as {LONG[3]} have too many digits; numbered from 0" in capsys.readouterr().err
    rows = [(name, pid, 1, split) for name, pid, split in zip("abcd", LONG, ("train", "train", "query", "gallery"))]
    rows = [(f"{name}.png", *rest) for name, *rest in rows] + [("junk.png", -1, 1, "gallery")]
    splits = load(manifest(tmp_path / "csv", rows), tmp_path)
    assert [row[1] for split in SPLITS for row in splits[split]] == [0, 1, 2, 3]


@pytest.mark.parametrize("column", ["pid", "camid"])
def test_a_number_without_end_is_told(tmp_path, column):
    rows = [
        (*ROWS[0][:2], "9" * 5000, "train") if column == "camid" else (ROWS[0][0], "9" * 5000, "1", "train"),
        *ROWS[1:],
    ]
    text = mistake(manifest(tmp_path / "mine", rows), tmp_path)
    assert f"line 2: found a {column} of 5,000 characters, expected at most 1,000" in text and len(text) < 400


def test_a_zip_with_a_name_without_end_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr(f"train/{'9' * 5000}_c1.png", picture("x"))
    assert "found a member whose name has 5,013 characters" in mistake(tmp_path / "mine.zip", tmp_path)


def test_numbers_that_fit_stay(tmp_path):
    pids = (2**63 - 1, 2**63 - 2)
    names = [f"{split}/{pid}_c1.png" for split in SPLITS for pid in pids]
    assert {row[1] for row in load(images(tmp_path / "mine", names), tmp_path)["train"]} == set(pids)


# -- Parts of a data set ----------------------------------------------------------------------------------------------

MARKET = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


@pytest.mark.parametrize("layout", ["plain", "market", "benchmark", "manifest"])
def test_an_evaluation_set_needs_no_train_split(tmp_path, layout):
    folder_of = {"plain": str, "manifest": str}.get(layout, MARKET.get)
    root = plain(tmp_path / "mine", TEST_SPLITS, folder_of)
    if layout == "manifest":
        (root / "manifest.csv").write_text("path,pid\nquery/0007_c1.png,7\ngallery/0007_c2.png,7\n")
    name, options = ("market1501", {"check_counts": False}) if layout == "benchmark" else ("reid_folder", {})
    splits = load(root, tmp_path, needs=TEST_SPLITS, name=name, **options)
    assert [len(splits[split]) for split in SPLITS] == [0, 1, 1]
    prepared = prepare(name, root=str(root), data_dir=str(tmp_path / "out"), options=options, progress=False, needs=())
    train = open_split(prepared, "train")
    assert (len(train), len(train.records), train.names, all_records(train).labels.tolist()) == (0, 0, [], [])
    assert "split train of" in (text := mistake(root, tmp_path, name=name, **options)) and "no images" in text
    shutil.rmtree(root)
    assert load(None, tmp_path, needs=TEST_SPLITS, name=name, **options) == splits
    assert "split train of" in mistake(None, tmp_path, name=name, **options)


@pytest.mark.parametrize("layout", ["plain", "market", "benchmark", "manifest"])
def test_training_needs_train_alone(tmp_path, layout):
    folder_of = {"plain": str, "manifest": str}.get(layout, MARKET.get)
    root = plain(tmp_path / "mine", ["train"], folder_of)
    if layout == "manifest":
        (root / "manifest.csv").write_text("path,pid\ntrain/0001_c1.png,1\ntrain/0002_c1.png,2\n")
    name, options = ("market1501", {"check_counts": False}) if layout == "benchmark" else ("reid_folder", {})
    for where in (root, None):
        splits = load(where, tmp_path, needs=["train"], name=name, **options)
        assert [len(splits[split]) for split in SPLITS] == [2, 0, 0]
        assert "split query and split gallery of" in mistake(where, tmp_path, needs=TEST_SPLITS, name=name, **options)


def test_msmt17_without_its_test_split(tmp_path):
    names = ["0000/0000_000_01_x.png", "0001/0001_000_02_x.png"]
    root = images(tmp_path / "MSMT17", [f"train/{name}" for name in names])
    (root / "list_train.txt").write_text("".join(f"{name} {pid}\n" for pid, name in enumerate(names)))
    (root / "list_val.txt").write_text("")
    splits = load(root, tmp_path, needs=["train"], name="msmt17", check_counts=False)
    assert [len(splits[split]) for split in SPLITS] == [2, 0, 0]
    (root / "list_query.txt").write_text("")  # of an incomplete copy
    assert "no data set found" in mistake(root, tmp_path, needs=["train"], name="msmt17", check_counts=False)


def test_a_test_split_beside_train_is_complete_or_told(tmp_path):
    rows = [row for row in ROWS if row[3] != "gallery"]
    text = mistake(manifest(tmp_path / "mine", rows), tmp_path, needs=["train"])
    assert "split gallery of" in text and "has no images" in text
    market = plain(tmp_path / "market", SPLITS, MARKET.get)
    assert "split query has 1 images, expected 3,368" in mistake(market, tmp_path, needs=["train"], name="market1501")


def test_msmt17_without_its_train_split(tmp_path):
    root = images(tmp_path / "MSMT17", ["test/0000/0000_000_01_x.png", "test/0000/0000_000_02_x.png"])
    for number, split in enumerate(TEST_SPLITS, 1):
        (root / f"list_{split}.txt").write_text(f"0000/0000_000_0{number}_x.png 0\n")
    splits = load(root, tmp_path, needs=TEST_SPLITS, name="msmt17", check_counts=False)
    assert [len(splits[split]) for split in SPLITS] == [0, 1, 1]
    assert "split train of" in mistake(root, tmp_path, name="msmt17", check_counts=False)
    assert "split query has 1 images, expected 11,659" in mistake(root, tmp_path, needs=TEST_SPLITS, name="msmt17")


def test_a_train_split_of_one_person_is_no_obstacle_to_an_evaluation(tmp_path):
    root = plain(tmp_path / "mine")
    (root / "train/0002_c1.png").unlink()
    assert "single identity" in mistake(root, tmp_path)
    assert len(load(root, tmp_path, needs=TEST_SPLITS)["train"]) == 1


def test_all_missing_splits_are_told_at_once(tmp_path):
    root = plain(tmp_path / "mine", ["train"])
    assert "split query and split gallery of" in mistake(root, tmp_path)
    rows = [("a.png", 1, 1, "gallery")]
    assert "split train and split query of" in mistake(manifest(tmp_path / "csv", rows), tmp_path)
    market = plain(tmp_path / "market", SPLITS, MARKET.get)
    text = mistake(market, tmp_path, name="market1501")
    for words in ("train has 2 images, expected 12,936", "query has 1 images, expected 3,368", "gallery has 1 images"):
        assert words in text


def test_a_folder_that_holds_the_zip_names_it(tmp_path):
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "people.zip", "w") as archive:
        for split in SPLITS:
            for name in PLAIN[split]:
                archive.writestr(f"{split}/{name}", picture(name))
    for name in ("reid_folder", "market1501"):
        text = mistake(tmp_path / "data", tmp_path, name=name)
        assert "no data set found, but 1 zip" in text and f"config.data.root={tmp_path}/data/people.zip" in text
    assert len(load(tmp_path / "data" / "people.zip", tmp_path)["train"]) == 2


def test_paths_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    splits = load(plain(tmp_path / "mine"), tmp_path)
    assert load("~/mine", tmp_path) == splits
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for path in (tmp_path / "mine").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    assert load("~/mine.zip", tmp_path) == splits
    rows = [(f"~/mine/{split}/{name}", name[:4], split) for split in SPLITS for name in PLAIN[split]]
    (tmp_path / "list.csv").write_text("\n".join(",".join(row) for row in [("path", "pid", "split"), *rows]))
    assert [row[1] for row in load("~/list.csv", tmp_path)["train"]] == [1, 2]
    text = (tmp_path / "list.csv").read_text().replace("~/mine/", "")
    (tmp_path / "mine" / "list.csv").write_text(text)
    assert [row[1] for row in load("~/mine", tmp_path, manifest="~/mine/list.csv")["train"]] == [1, 2]
    prepared = prepare("reid_folder", root="~/mine", data_dir="~/kept", progress=False)
    assert prepared.directory.startswith(str(tmp_path / "kept"))


# -- A split by identity ----------------------------------------------------------------------------------------------


def pool(root, people=8, cameras=(1, 2, 3), folder=""):
    return images(root, [f"{folder}{pid:04d}_c{c}_{k}.png" for pid in range(people) for c in cameras for k in (0, 1)])


@pytest.mark.parametrize("layout", ["flat", "train folder", "folders of people", "manifest", "zip"])
def test_a_split_by_identity_on_request(tmp_path, layout):
    root = tmp_path / "mine"
    if layout == "folders of people":
        images(root, [f"{pid:04d}/c{c}_{k}.png" for pid in range(8) for c in (1, 2, 3) for k in (0, 1)])
    else:
        pool(root, folder="train/" if layout == "train folder" else "")
    if layout == "manifest":
        rows = [f"{path.name},{path.name[:4]},{path.name[6]}" for path in root.iterdir()]
        (root / "manifest.csv").write_text("\n".join(["path,pid,camid", *rows]))
    if layout == "zip":
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            for path in root.rglob("*.png"):
                archive.write(path, path.relative_to(root))
        root = tmp_path / "mine.zip"
    assert "test_ids" in mistake(root, tmp_path) or layout == "train folder"
    splits = load(root, tmp_path, test_ids=3)
    people = {split: {pid for _, pid, _ in splits[split]} for split in SPLITS}
    assert len(people["train"]) == 5 and people["query"] == people["gallery"] and len(people["query"]) == 3
    assert not people["train"] & people["query"]
    assert sum(map(len, splits.values())) == 8 * 6
    assert len(splits["query"]) == 3 * 3  # one image of each camera
    assert load(root, tmp_path, test_ids=3) == splits
    others = [load(root, tmp_path, test_ids=3, test_seed=seed)["query"] for seed in (1, 2, 3)]
    assert any(other != splits["query"] for other in others)


def test_the_split_is_written_down_and_found_again_without_the_images(tmp_path):
    root, options = pool(tmp_path / "mine"), {"test_ids": 3, "test_seed": 4}
    prepared = prepare("reid_folder", root=str(root), data_dir=str(tmp_path / "out"), options=options, progress=False)
    stored = json.loads((pathlib.Path(prepared.directory) / "metadata.json").read_text())
    assert stored["test_identities"] == sorted(set(open_split(prepared, "query").pids.tolist()))
    assert (stored["test_seed"], stored["options"]["test_ids"]) == (4, 3)
    shutil.rmtree(root)
    assert len(load(None, tmp_path, **options)["query"]) == 9


def test_every_query_of_the_split_has_a_match(tmp_path):
    names = ["1_c1_0", "1_c2_0", "2_c1_0", "2_c1_1", "2_c2_0", "3_c1_0", "3_c1_1", "4_c1_0", "5_c1", "5_c2", "5_c3"]
    root = images(tmp_path / "mine", [f"{name}.png" for name in names])
    text = mistake(root, tmp_path, test_ids=4)
    assert "found 4, expected 1 to 3" in text  # 3 and 4 have one camera
    splits = load(root, tmp_path, test_ids=3, needs=TEST_SPLITS)
    for _, pid, camid in splits["query"]:
        assert any(other == pid and camera != camid for _, other, camera in splits["gallery"])
    assert {pid for _, pid, _ in splits["train"]} == {3, 4}
    without = images(
        tmp_path / "no cameras", ["1_a.png", "1_b.png", "1_d.png", "2_a.png", "3_a.png", "3_b.png", "4_b.png"]
    )
    splits = load(without, tmp_path, test_ids=2)
    assert [row[0] for row in splits["query"]] == ["1_a.png", "3_a.png"]
    assert [row[0] for row in splits["gallery"]] == ["1_b.png", "1_d.png", "3_b.png"]


def test_a_test_split_is_not_cut_again(tmp_path):
    assert "found images for query or gallery" in mistake(plain(tmp_path / "mine"), tmp_path, test_ids=1)
    assert "found -1, expected" in mistake(pool(tmp_path / "pool"), tmp_path, test_ids=-1)
