"""Searches of an index: the numbers of Retriever.rank, by Python, command and export."""

import csv
import json
import os

import numpy as np
import pytest
from browser import chromium, parsed
from command_in_process import run_main
from own_images import images
from tiny_index import NAMES

from cacenet_jax.errors import UserError
from cacenet_jax.index.table import Table


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
