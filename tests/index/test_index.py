"""An index: equal to its images whatever happened before, and searched with the numbers of Retriever.rank."""

import csv
import json
import os
import subprocess
import sys

import cv2
import lancedb
import numpy as np
import pytest
from browser import chromium, parsed
from command import ROOT
from command_in_process import run_main
from own_images import images, picture
from tiny_index import COLUMNS, NAMES, assert_same, content

import cacenet_jax as cace
from cacenet_jax.errors import UserError
from cacenet_jax.index.opening import make_index
from cacenet_jax.index.table import Table


@pytest.fixture
def index(reid, photographs, tmp_path):
    return reid.index(photographs, tmp_path / "photographs.lance")


def test_it_holds_all_images_with_the_embeddings_of_the_network(reid, index, photographs):
    assert len(index) == len(NAMES) and sorted(content(index)) == sorted(NAMES)
    assert index.columns == COLUMNS
    ids = index.images(columns=["id"])["id"].to_pylist()
    expected = reid.embed([photographs / name for name in ids])
    np.testing.assert_allclose(index.embeddings(), expected, atol=1e-6)
    np.testing.assert_allclose(index.embeddings(ids[3:5]), expected[3:5], atol=1e-6)
    pixels = np.asarray(index.read_image("ä ö/ü.png"))
    np.testing.assert_array_equal(
        pixels, cv2.imdecode(np.frombuffer(picture("ä ö/ü.png"), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    )


@pytest.mark.parametrize("k", [3, 40])
def test_a_search_gives_the_numbers_of_rank(reid, index, photographs, k):
    query = photographs / NAMES[4]
    ids = index.images(columns=["id"])["id"].to_pylist()
    (expected,) = reid.rank(query, [photographs / name for name in ids], k=min(k, len(ids)))
    result = index.search(query, k)
    assert [match.id for match in result] == [ids[match.index] for match in expected]
    for match, other in zip(result, expected, strict=True):
        for name in ("individual", "pair", "mixed"):
            assert getattr(match, name) == pytest.approx(getattr(other, name), abs=2e-6, nan_ok=True)
    assert result[0].id == NAMES[4] and result[0].row["path"] == NAMES[4] and result.searched == len(NAMES)
    assert result[0].probability is None and result.unknown is None and "not calibrated" in repr(result)


def test_images_of_the_index_are_named_and_marked(reid, index, photographs):
    named, read = index.search(NAMES[4], 3), index.search(photographs / NAMES[4], 3)
    assert repr(named).split("\n")[1:] == repr(read).split("\n")[1:] and named.query == (NAMES[4],)
    assert named.itself == read.itself == {NAMES[4]} and f"{NAMES[4]} (the query itself)" in repr(read)
    assert index.search(np.asarray(index.read_image(NAMES[4])), 3).itself == frozenset()
    with pytest.raises(UserError, match="found no file"):
        index.search("nowhere.png", 3)
    assert "re-ranked" in repr(index.search(NAMES[4], 3, rerank="k_reciprocal")) and "re-ranked" not in repr(read)


def test_several_images_are_one_query(reid, index, photographs):
    queries = [photographs / name for name in NAMES[:3]]
    result = index.search(queries, 25)
    embedding = reid.embed(queries).astype(np.float64)
    mean = embedding.mean(axis=0) / np.linalg.norm(embedding.mean(axis=0))
    single = [index.search(query, 25, top_k=0) for query in queries]
    for match in result:
        expected = 1 - mean @ index.embeddings([match.id])[0]
        assert match.individual == pytest.approx(expected, abs=1e-5)
        if not np.isnan(match.pair):
            pairs = [reid.compare(query, photographs / match.id).pair for query in queries]
            assert match.pair == pytest.approx(np.mean(pairs), abs=1e-5)
    assert sum(not np.isnan(match.pair) for match in result) == 6
    assert all(np.isnan(match.pair) for one in single for match in one)


def test_exactly_what_changed_is_touched_and_the_index_equals_a_new_one(reid, index, photographs, tmp_path):
    before = content(index)
    images(photographs, ["new/1.png", "new/2.png"])
    os.remove(photographs / NAMES[0])
    (photographs / NAMES[1]).write_bytes(picture("another"))
    (photographs / "broken.jpg").write_bytes(b"no image")
    described = []
    describe = reid.describe
    reid.describe = lambda listed: described.extend(listed.names) or describe(listed)
    try:
        _, changes = make_index(reid, photographs, index.place)
    finally:
        del reid.describe
    assert sorted(described) == sorted([NAMES[1], "new/1.png", "new/2.png"])
    assert changes[:4] == (2, 1, 1, len(NAMES) - 2) and [name for name, _ in changes.broken] == ["broken.jpg"]
    index = reid.open_index(index.place)
    assert_same(index, reid.index(photographs, tmp_path / "anew.lance"))
    after = content(index)
    assert after[NAMES[1]]["embedding"] != before[NAMES[1]]["embedding"]
    assert after[NAMES[2]]["embedding"] == before[NAMES[2]]["embedding"]
    _, changes = make_index(reid, photographs, index.place)
    assert changes[:4] == (0, 0, 0, len(NAMES) + 1)


@pytest.mark.slow
def test_an_interrupted_update_goes_on_where_it_stopped(network, reid, photographs, tmp_path, monkeypatch):
    """kill -9 after the first version of eight images."""
    place = tmp_path / "killed.lance"
    program = (
        "import os, sys; sys.path[:0] = [sys.argv[1]]\n"
        "import cacenet_jax\n"
        "from cacenet_jax.index import table, update\n"
        "update._ROWS = 8\n"
        "upsert = table.Table.upsert\n"
        "table.Table.upsert = lambda self, rows: (upsert(self, rows), os.kill(os.getpid(), 9))\n"
        "cacenet_jax.load(sys.argv[2], batch_size=8).index(sys.argv[3], sys.argv[4])\n"
    )
    words = [sys.executable, "-c", program, str(ROOT), str(network.workdir), str(photographs), str(place)]
    assert subprocess.run(words, capture_output=True, timeout=600).returncode == -9
    stopped = reid.open_index(place)
    assert len(stopped) == 8
    first = content(stopped)
    index, changes = make_index(reid, photographs, place)
    assert changes[:4] == (len(NAMES) - 8, 0, 0, 8)
    assert all(content(index)[name]["embedding"] == row["embedding"] for name, row in first.items())
    assert_same(index, reid.index(photographs, tmp_path / "anew.lance"))


def test_a_manifest_brings_columns_boxes_and_filters(reid, tmp_path):
    images(tmp_path, ["a.png", "b.png", "c.png"])
    big = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "street.png"), big)
    (tmp_path / "manifest.csv").write_text(
        "path;camid;time;shop;box\na.png;1;10.5;north;\nb.png;2;11;south;\nc.png;2;;south;\n"
        "street.png;3;12;north;5,2,15,18\nstreet.png;3;13;;0,0,8,16\n"
    )
    index = reid.index(tmp_path / "manifest.csv", tmp_path / "m.lance")
    assert len(index) == 5 and "shop" in index.columns
    names = lambda where: index.images(where, ["id"])["id"].to_pylist()
    assert names("camera = 2 AND time > 10") == ["b.png"]
    assert names("shop = 'north'") == ["a.png", "street.png#5,2,15,18"]
    assert names("time IS NULL") == ["c.png"]
    np.testing.assert_array_equal(np.asarray(index.read_image("street.png#5,2,15,18")), big[2:18, 5:15, ::-1])
    crop = np.ascontiguousarray(big[2:18, 5:15, ::-1])
    np.testing.assert_allclose(index.embeddings(["street.png#5,2,15,18"]), reid.embed(crop), atol=1e-6)
    result = index.search(tmp_path / "a.png", 5, where="camera != 1")
    assert result.searched == 4 and "a.png" not in [match.id for match in result]
    assert {match.row["shop"] for match in result} == {"south", "north", None}
    with pytest.raises(UserError, match=r"--where=shopp = 1: not understood .*expected a condition on id, .*shop"):
        index.search(tmp_path / "a.png", where="shopp = 1")
    (tmp_path / "manifest.csv").write_text("path,camera\na.png,left\n")
    with pytest.raises(UserError, match=r"column camera: found 'left', expected numbers as in the index"):
        index.update(tmp_path / "manifest.csv")


def test_mistakes_of_a_manifest_are_told_together(reid, tmp_path):
    images(tmp_path, ["a.png"])
    (tmp_path / "film.mp4").write_bytes(b"")
    (tmp_path / "m.csv").write_text(
        "path,x1,y1,x2,y2,frame\na.png,,,,,\na.png,,,,,\nno.png,,,,,\na.png,5,5,5,9,\na.png,1,2,3,,\nfilm.mp4,,,,,\n"
        "a.png,,,,,-1\n"
    )
    with pytest.raises(UserError) as caught:
        reid.index(tmp_path / "m.csv", tmp_path / "m.lance")
    lines = str(caught.value).splitlines()
    for line, text in zip(lines, ("image of line 2 again", "found no file", "the box 5,5,5,9", "found a box of", "a video "
                                  "without a frame", "found frame '-1'"), strict=True):  # fmt: skip
        assert text in line and "m.csv line " in line
    assert not (tmp_path / "m.lance").exists()
    (tmp_path / "m.csv").write_text("file name\na.png\n")
    with pytest.raises(UserError, match="in the first line, without path"):
        reid.index(tmp_path / "m.csv", tmp_path / "m.lance")


def test_another_network_other_images_and_other_folders_are_refused(network, reid, index, photographs, tmp_path):
    with pytest.raises(UserError, match=r"found an index of other weights .* make a new index"):
        cace.load(network.other).open_index(index.place)
    images(tmp_path / "others", ["x.png"])
    with pytest.raises(UserError, match=r"found an index of 25 other images"):
        reid.index(tmp_path / "others", index.place)
    with pytest.raises(UserError, match="found something else there"):
        reid.index(photographs, photographs)
    with pytest.raises(UserError, match="found no index, expected one"):
        reid.open_index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found no images \(.jpg"):
        reid.index(tmp_path / "empty", tmp_path / "e.lance")
    assert len(reid.open_index(index.place)) == len(NAMES)


def test_an_interrupted_creation_is_no_index_yet(reid, photographs, tmp_path):
    place = tmp_path / "begun.lance"
    lancedb.connect(place).create_table("photographs", data=[{"id": "a"}])  # killed before the settings
    assert len(reid.index(photographs, place)) == len(NAMES)


def test_a_search_survives_an_update_that_removes_a_match(reid, index, photographs, monkeypatch):
    closest, calls = index.closest, []

    def closest_before_an_update(*arguments):
        result = closest(*arguments)
        calls.append(result)
        if len(calls) == 1:
            os.remove(photographs / NAMES[2])
            reid.open_index(index.place).update(photographs)
            index._table.refresh()
        return result

    monkeypatch.setattr(index, "closest", closest_before_an_update)
    result = index.search(photographs / NAMES[4], 25)
    assert len(calls) == 2 and NAMES[2] in calls[0][0] and NAMES[2] not in [match.id for match in result]
    with pytest.raises(UserError, match="found no such image"):
        index.embeddings([NAMES[2]])


def test_a_second_update_at_the_same_time_is_refused(reid, index, photographs):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
         "f.write('process 7 on here'); f.flush(); print('held', flush=True); time.sleep(60)", f"{index.place}/.lock"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        holder.stdout.readline()
        with pytest.raises(UserError, match=r"another update in progress \(process"):
            index.update(photographs)
        assert index.search(photographs / NAMES[0], 1)[0].id == NAMES[0]  # searches go on
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert index.update(photographs).unchanged == len(NAMES)


def test_a_moved_folder_is_the_same(reid, index, photographs, tmp_path):
    moved = photographs.rename(tmp_path / "moved")
    _, changes = make_index(reid, moved, index.place)
    assert changes.unchanged == len(NAMES)
    assert reid.open_index(index.place).root == moved.resolve()
    assert np.asarray(reid.open_index(index.place).read_image(NAMES[3])).shape == (8, 4, 3)


def test_the_approximate_index_finds_most(reid, tmp_path):
    """Random rows with the table alone, because the product quantisation needs some hundred."""
    settings = {
        "network": reid.network.fingerprint,
        "embedding_size": 16,
        "terms": [],
        "root": ".",
        "image_size": [1, 1],
    }
    table = Table.create(str(tmp_path / "t.lance"), settings, {"camera": []})
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for start in (0, 300):
        table.upsert([{"id": f"{i:04}", "path": "", "embedding": rows[i]} for i in range(start, start + 300)])
    exact, embeddings = table.closest(rows[5], 20, None, True)
    expected = np.argsort(1 - rows @ rows[5], kind="stable")[:20]
    assert exact == [f"{i:04}" for i in expected]
    np.testing.assert_array_equal(embeddings, rows[expected])
    assert not table.has_vector_index()
    table.build_vector_index()
    assert table.has_vector_index()
    assert len(set(exact) & set(table.closest(rows[5], 20, None, False)[0])) >= 14
    assert table.closest(rows[5], 20, None, True)[0] == exact


def test_commands_and_the_export_give_the_same_numbers(network, reid, index, photographs, tmp_path):
    place, query = str(tmp_path / "cli.lance"), str(photographs / NAMES[2])
    made = run_main(
        tmp_path, "--mode=index", f"--workdir={network.workdir}", f"--images={photographs}", f"--index={place}"
    )
    assert made.returncode == 0, made.stderr
    assert "25 images; 25 added, 0 changed, 0 removed, 0 unchanged" in made.stdout
    expected = [(m.id, m.individual, m.pair, m.mixed) for m in index.search(query, 8)]
    for source in (network.workdir, network.export):
        words = [f"--workdir={source}", f"--index={place}", f"--query={query}", "--k=8", f"--output={tmp_path / 'out'}"]
        done = run_main(tmp_path, "--mode=search", *words)
        assert done.returncode == 0, done.stderr
        assert f"{query}: 8 of 25 images" in done.stdout
        found = json.loads((tmp_path / "out" / "search.json").read_text())
        for match, (name, *numbers) in zip(found["matches"], expected, strict=True):
            assert match["id"] == name and match["file"] == str(photographs.resolve() / name)
            for value, number in zip((match["individual"], match["pair"], match["mixed"]), numbers):
                assert value is None if np.isnan(number) else value == pytest.approx(number, abs=1e-5)
        shown = parsed(tmp_path / "out" / "search.html")
        photographs_shown = [alt for alt, width in shown.images if width == 96 and not alt.startswith("Map")]
        assert photographs_shown == ["Query 1", *(name for name, *_ in expected)]
        if source == network.export:
            assert len(shown.images) == 9 and "An export holds the network as functions" in shown.text
        assert "<b>" not in (tmp_path / "out" / "search.html").read_text()
        assert all(f"individual {number:z.4f}" in shown.text for _, number, *_ in expected)
        with open(tmp_path / "out" / "search.csv", newline="") as file:
            assert [row["id"] for row in csv.DictReader(file)] == [name for name, *_ in expected]


def searched(network, index, folder, query, *words):
    words = [f"--workdir={network.workdir}", f"--index={index.place}", f"--query={query}", f"--output={folder}", *words]
    done = run_main(folder.parent, "--mode=search", *words)
    assert done.returncode == 0, done.stderr
    return parsed(folder / "search.html")


def test_the_page_shows_why_for_the_best_re_scored_matches(network, index, photographs, tmp_path):
    """Six are re-scored; lines between query and match, three maps of each, and the map that hovering shows."""
    query = photographs / NAMES[2]
    names = [match.id for match in index.search(query, 8)]
    for words, count in (([], 6), (["--reasons=2"], 2), (["--reasons=0"], 0)):
        shown = searched(network, index, tmp_path / "out", query, "--k=8", *words)
        alts = [alt for alt, _ in shown.images]
        lines = [alt for alt in alts if alt.startswith("Lines")]
        assert lines == [f"Lines between the query and match {rank}" for rank in range(1, count + 1)]
        over = [alt.split("Map of ")[1].split(" given")[0] for alt in alts if alt.startswith("Map of")]
        assert over == names[:count]
        maps = [alt for alt in alts if ": " in alt]
        assert (
            len(maps) == 6 * count and maps[:2] == ["The query: its own map", "The query: given match 1"][: len(maps)]
        )
        assert ("Why" in shown.text) == (count > 0)
    with chromium(tmp_path / "profile") as browser:
        searched(network, index, tmp_path / "out", query, "--k=8")
        for width in (1280, 390):
            assert browser.show(tmp_path / "out" / "search.html", width)[1] <= 0


def test_ticks_are_where_identities_are_known(network, reid, photographs, tmp_path):
    lines = [f'"{NAMES[i]}",{identity}' for i, identity in ((0, "ann"), (1, "ann"), (2, "bob"), (3, ""), (4, "ann"))]
    (photographs / "m.csv").write_text("\n".join(["path,identity", *lines]))
    index = reid.index(photographs / "m.csv", tmp_path / "m.lance")
    shown = searched(network, index, tmp_path / "out", photographs / NAMES[0], "--k=5", "--reasons=0")
    by_name = {name: next(kind for kind, text in shown.items[1:] if name in text) for name in NAMES[:5]}
    assert by_name == {NAMES[0]: "", NAMES[1]: "right", NAMES[2]: "wrong", NAMES[3]: "", NAMES[4]: "right"}
    assert sum("the query itself" in text for _, text in shown.items) == 1
    elsewhere = images(tmp_path / "elsewhere", ["x.png"]) / "x.png"
    shown = searched(network, index, tmp_path / "out", elsewhere, "--k=5", "--reasons=0")
    assert {kind for kind, _ in shown.items} == {""} and "itself" not in shown.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--mode=search", "--index=PLACE", "--query=QUERY", "--output=o", "--reasons=-1"],
            "--reasons: found -1, expected 0",
        ),
        (["--mode=index", "--images=x"], "--index: not given"),
        (["--mode=search"], "--index, --query: not given, expected with --mode=search"),
        (["--mode=search", "--index=nowhere", "--query=a.png"], "found no index, expected one"),
        (["--mode=search", "--index=PLACE", "--query=a.png"], "a.png: found no file"),
        (["--mode=search", "--index=PLACE", "--query=QUERY", "--k=0"], "--k: found 0, expected 1 or more"),
        (["--mode=search", "--index=PLACE", "--query=QUERY", "--rerank=x"], "rerank: found 'x'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(network, index, photographs, tmp_path, words, message):
    words = [w.replace("PLACE", index.place).replace("QUERY", str(photographs / NAMES[0])) for w in words]
    done = run_main(tmp_path, f"--workdir={network.workdir}", *words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_re_ranking_orders_by_its_own_distance(index, photographs):
    result = index.search(photographs / NAMES[7], 10, rerank="k_reciprocal")
    reranked = [match.reranked for match in result]
    assert reranked == sorted(reranked) and result[0].id == NAMES[7]
    assert reranked != [match.individual for match in result]
