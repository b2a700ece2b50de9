"""A trained network in use: the numbers of the evaluation from images of any kind, from a workdir and from an export."""

import dataclasses
import json
import os
import shutil
from runpy import run_path
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest
from command import TINY
from PIL import Image
from tiny_scoring import split

import cacenet_jax as cace
from cacenet_jax import evaluate, experiment, retriever
from cacenet_jax.data.images import ListedImages, batches
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError
from cacenet_jax.export import jax_artefacts
from cacenet_jax.export import run as export
from cacenet_jax.retrieval import rankings
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.workdir import claim_workdir
from cacenet_jax.train_step import create_state

TOP_K = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir, its export, images as files, and the evaluation's embeddings, distances and mixed ranking of them."""
    folder = tmp_path_factory.mktemp("retriever")
    config = run_path(str(TINY))["get_config"]()
    config.eval.top_k, config.eval.map_dtype, config.eval.mix, config.eval.camera_filter = TOP_K, "float32", 0.7, False
    settings = experiment.read(config)
    net = settings.network.build(8)
    state = jax.device_get(create_state(net, settings.optimizer(1), jax.random.key(0), (32, 16)))
    rng = np.random.default_rng(1)
    away = lambda x: np.asarray(x * rng.uniform(0.8, 1.2, x.shape) + 0.05 * rng.standard_normal(x.shape), x.dtype)
    statistics = jax.tree.map(lambda x: np.asarray(x * rng.uniform(0.8, 1.2, x.shape), x.dtype), state.batch_stats)
    state = state.replace(params=jax.tree.map(away, state.params), batch_stats=statistics)
    claim_workdir(folder / "run", to_dict(config), {})
    checkpoints = Checkpoints(folder / "run")
    checkpoints.save(1, jax.device_put(state, replicated_sharding(global_mesh(1))))
    checkpoints.close()

    subsets, paths = {"query": split(21, seed=1), "gallery": split(50, seed=2)}, {}
    for name, images in subsets.items():
        (folder / name).mkdir()
        paths[name] = [folder / name / f"{i:03}.png" for i in range(len(images.indices))]
        for path, row in zip(paths[name], images.indices):
            path.write_bytes(images.split.records[int(row)]["image"])
    described = evaluate.describe(settings, net, state, subsets["query"], subsets["gallery"])
    scores = []

    def rescore(candidates_QK):
        scores.append((candidates_QK, described.rescore(candidates_QK)))
        return scores[-1][1]

    lists = rankings.ranked_lists(*described._replace(rescore=rescore), length=len(paths["gallery"]))
    pixels, _ = next(evaluation_batches(subsets["query"], height=32, width=16, batch_size=21))
    return SimpleNamespace(
        workdir=folder / "run", export=export.export(config, folder / "run"), query=paths["query"],
        gallery=paths["gallery"], described=described, order=lists["mixed"].order_QL, scores=scores[0], pixels=pixels,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reid(trained):
    return cace.load(trained.workdir)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """From a copy of the export that lies alone."""
    return cace.load(str(shutil.copytree(trained.export, tmp_path_factory.mktemp("elsewhere") / "export")))


def columns(lists, *names):
    return tuple(np.array([[getattr(match, name) for match in ranked] for ranked in lists]) for name in names)


def test_embeddings_are_those_of_the_evaluation(trained, reid):
    embedding = reid.embed(trained.gallery)  # more than a batch, and no multiple of it
    assert len(trained.gallery) > reid.batch_size and len(trained.gallery) % reid.batch_size
    assert embedding.dtype == np.float32 and embedding.shape == (len(trained.gallery), reid.embedding_size)
    np.testing.assert_allclose(embedding, trained.described.gallery.embedding, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    assert (reid.image_size, reid.embedding_size, reid.top_k, reid.mix) == ((32, 16), 16, TOP_K, 0.7)
    assert "image_size=(32, 16), embedding_size=16, top_k=5, mix=0.7" in repr(reid)


def test_lists_and_distances_are_those_of_the_evaluation(trained, reid):
    lists = reid.rank(trained.query, trained.gallery, k=len(trained.gallery) + 7)
    index, individual, pair, mixed = columns(lists, "index", "individual", "pair", "mixed")
    np.testing.assert_array_equal(index, trained.order)
    cosine = 1 - trained.described.query.embedding @ trained.described.gallery.embedding.T
    np.testing.assert_allclose(individual, np.take_along_axis(cosine, index, axis=1), atol=1e-5)
    candidates, scores = trained.scores
    np.testing.assert_array_equal(np.sort(index[:, :TOP_K]), np.sort(candidates))
    for q, (row, expected) in enumerate(zip(candidates, scores)):
        place = [row.tolist().index(i) for i in index[q, :TOP_K]]
        np.testing.assert_allclose(pair[q, :TOP_K], expected[place], atol=1e-5)
    np.testing.assert_allclose(mixed[:, :TOP_K], 0.7 * pair[:, :TOP_K] + 0.3 * individual[:, :TOP_K], atol=1e-6)
    assert (np.diff(mixed[:, :TOP_K]) >= 0).all() and (np.diff(individual[:, TOP_K:]) >= 0).all()
    assert np.isnan(pair[:, TOP_K:]).all() and np.isnan(mixed[:, TOP_K:]).all()
    assert (index[:, :TOP_K] != np.argsort(cosine, axis=1, kind="stable")[:, :TOP_K]).any()  # re-scoring does something
    assert [ranked.query for ranked in lists] == [str(path) for path in trained.query]
    assert lists[0][0].name == str(trained.gallery[index[0, 0]])
    np.testing.assert_allclose(
        reid.distances(trained.query, trained.gallery), cosine, atol=1e-5
    )  # in the order of the gallery


def test_one_query_gives_the_list_that_it_has_among_others(trained, reid, monkeypatch):
    """Its candidates are described again, the terms of the gallery are not kept; also in temporary files."""
    allocated, whole_class = [], retriever.HostTerms
    monkeypatch.setattr(
        retriever, "HostTerms", lambda like, count, *rest: allocated.append(count) or whole_class(like, count, *rest)
    )
    together = reid.rank(trained.query, trained.gallery, k=8)
    assert allocated == [len(trained.query), len(trained.gallery)]
    allocated.clear()
    (alone,) = reid.rank(trained.query[3], trained.gallery, k=8)
    assert allocated == [1, TOP_K] and alone.query == together[3].query and len(alone) == 8
    assert [match.index for match in alone] == [match.index for match in together[3]]
    np.testing.assert_allclose(columns([alone], "pair"), columns(together[3:4], "pair"), atol=1e-6)
    monkeypatch.setattr(reid, "_network", reid._network._replace(memory_gib=0.0))
    (filed,) = reid.rank(trained.query[3], trained.gallery, k=8)
    np.testing.assert_array_equal(columns([filed], "pair", "mixed"), columns([alone], "pair", "mixed"))


def test_an_export_gives_the_same_numbers(trained, reid, exported):
    assert (exported.image_size, exported.embedding_size, exported.top_k, exported.mix) == ((32, 16), 16, TOP_K, 0.7)
    np.testing.assert_allclose(exported.embed(trained.query), reid.embed(trained.query), atol=1e-5)
    expected, found = (r.rank(trained.query, trained.gallery, k=9) for r in (reid, exported))
    names = ("index", "individual", "pair", "mixed")
    for name, ours, theirs in zip(names, columns(expected, *names), columns(found, *names)):
        np.testing.assert_allclose(theirs, ours, atol=1e-5, err_msg=name)
    assert not np.isnan(columns(found, "pair")[0][:, :TOP_K]).any()


def test_every_kind_of_image_gives_the_same_embedding(trained, reid, tmp_path):
    path, expected = trained.query[0], reid.embed(trained.query[0])
    assert expected.shape == (1, 16)
    array = cv2.imread(str(path))[..., ::-1]  # a view of negative stride
    alpha = np.concatenate([array, np.full((*array.shape[:2], 1), 7, np.uint8)], axis=-1)
    kinds = [str(path), path, array, alpha, Image.open(path), Image.fromarray(alpha)]
    np.testing.assert_allclose(reid.embed(kinds), np.repeat(expected, len(kinds), axis=0), atol=1e-6)
    np.testing.assert_allclose(reid.embed(trained.pixels), reid.embed(trained.query), atol=1e-6)  # (n, H, W, 3)
    np.testing.assert_allclose(reid.embed(jax.numpy.asarray(trained.pixels[0])), expected, atol=1e-6)
    np.testing.assert_allclose(reid.embed(path for path in trained.query[:2])[:1], expected, atol=1e-6)
    assert reid.embed([]).shape == (0, 16)

    large = cv2.resize(array, (57, 91), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "large.png"), large[..., ::-1])
    same = reid.embed([large, tmp_path / "large.png", Image.fromarray(large)])
    np.testing.assert_allclose(same, same[:1].repeat(3, axis=0), atol=1e-6)

    grey = large[..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    palette = Image.fromarray(grey).convert("RGB").quantize(256)
    kinds = [grey, grey[..., None], np.stack([grey] * 3, -1), tmp_path / "grey.png", Image.fromarray(grey)]
    same = reid.embed([*kinds, Image.fromarray(grey).convert("LA"), palette.convert("P")])
    np.testing.assert_allclose(same[:6], same[:1].repeat(6, axis=0), atol=1e-6)
    np.testing.assert_allclose(same[6], reid.embed(palette.convert("RGB"))[0], atol=1e-6)

    turned = Image.fromarray(large)
    exif = turned.getexif()
    exif[0x0112] = 6  # as a camera that was held upright records it
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = reid.embed([np.rot90(large, -1), tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    np.testing.assert_allclose(upright, upright[:1].repeat(3, axis=0), atol=1e-6)


def test_names_ties_and_tables(trained, reid):
    gallery = [trained.pixels[0], trained.pixels[1], trained.pixels[0], Image.open(trained.query[0])]
    first, second = reid.rank(trained.pixels[:2], gallery)
    assert len(first) == len(second) == 4  # fewer than k and than top_k
    assert [match.index for match in first][:3] == [0, 2, 3]  # equal images in the order of the gallery
    assert [match.name for match in first][:3] == ["gallery image 0", "gallery image 2", str(trained.query[0])]
    assert (first.query, second.query, second[0].index) == ("query 0", "query 1", 1)
    lines = str(second).splitlines()
    assert lines[0] == "query 1" and lines[1].split() == ["rank", "individual", "pair", "mixed", "name"]
    assert lines[2].split() == [
        "1",
        *(f"{x:z.4f}" for x in dataclasses.astuple(second[0])[2:]),
        "gallery",
        "image",
        "1",
    ]
    unscored = retriever.RankedList("q", (retriever.Match("a b", 4, 0.5, np.nan, np.nan),))
    assert repr(unscored).splitlines()[2].split() == ["1", "0.5000", "-", "-", "a", "b"]
    identical = retriever.RankedList("q", (retriever.Match("a", 0, -1e-9, -1e-9, -1e-9),))
    assert repr(identical).splitlines()[2].split() == ["1", "0.0000", "0.0000", "0.0000", "a"]


def test_many_images_compile_nothing_new(trained, reid):
    reid.rank(trained.query[0], trained.gallery)
    reid.embed(trained.query[:2])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    reid.embed(trained.gallery * 3)
    reid.rank(trained.query[:2], trained.gallery + trained.query)
    assert not compiled


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.jpg", r"^nowhere.jpg: found no file that can be read \(No such file.*; correct the path"),
        (os.curdir, r"^\.: found a folder, expected a file"),
        (__file__, r"found .* bytes that are not an image .*, expected JPEG, PNG, .*; convert it or leave it out"),
        (np.zeros((4, 4, 3), np.float32), r"^image 1: found values of type float32, expected uint8 pixels"),
        (
            np.zeros((3, 8, 5), np.uint8),
            r"^image 1: found an array of shape \(3, 8, 5\), expected .*; move the channels",
        ),
        (np.zeros((0, 4, 3), np.uint8), r"^image 1: found an array of shape \(0, 4, 3\)"),
        (Image.new("F", (4, 4)), r"^image 1: found an image of mode F, expected 8 or 16 bits a channel"),
    ],
)
def test_what_is_no_image_is_named(trained, reid, image, message):
    with pytest.raises(UserError, match=message):
        reid.embed([trained.query[0], image])


def test_values_that_are_no_image_are_named():
    listed = ListedImages.of([b"bytes", 3.5], "query")
    with pytest.raises(UserError, match="query 0: found a value of type bytes, expected the path of an image file"):
        next(batches(listed, (4, 2), 8))


def test_impossible_requests_are_one_line(trained, reid):
    with pytest.raises(UserError, match="found 1 queries and 0 gallery images"):
        reid.rank(trained.query[0], [])
    with pytest.raises(UserError, match="k: found 0, expected 1 or more"):
        reid.rank(trained.query[0], trained.gallery, k=0)


def test_places_that_hold_no_network_are_one_line(trained, tmp_path):
    with pytest.raises(
        UserError, match=r"nowhere: found no folder, expected the workdir of a run, the folder of an exp"
    ):
        cace.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"found a folder without config.json or manifest.json"):
        cace.load(tmp_path)
    shutil.copy(trained.workdir / "config.json", tmp_path)
    with pytest.raises(UserError, match="found no complete checkpoint, expected one; train first"):
        cace.load(tmp_path)
    with pytest.raises(UserError, match="batch_size: found 0"):
        cace.load(trained.workdir, batch_size=0)
    copy = shutil.copytree(trained.export, tmp_path / "export")
    (copy / "extractor.jaxexport").write_bytes(b"cut off")
    with pytest.raises(
        UserError, match=r"extractor.jaxexport: found another file, expected the one that manifest.json"
    ):
        cace.load(copy)


def test_an_artefact_that_does_not_run_here_is_one_line(trained, tmp_path, monkeypatch):
    (tmp_path / "broken").write_bytes(b"of another version")
    with pytest.raises(UserError, match=r"broken: found an artefact that jax \S+ cannot read"):
        jax_artefacts.load(tmp_path / "broken")
    monkeypatch.setattr(jax.export, "default_export_platform", lambda: "rocm")
    with pytest.raises(
        UserError, match=r"found an artefact for cpu, cuda, tpu, expected one for rocm; export again with"
    ):
        cace.load(trained.export)


def doctored(trained, folder, change):
    """A copy of the export whose manifest, which no hash covers, is changed."""
    copy = shutil.copytree(trained.export, folder / "doctored")
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_a_network_that_reads_part_labels_is_refused(trained, tmp_path):
    folder = doctored(trained, tmp_path, lambda manifest: manifest["images"]["channels"].append("body part"))
    with pytest.raises(UserError, match=r"found a network of 4 channels, which reads the body part of each pixel"):
        cace.load(folder)


def test_without_the_pair_stage_the_individual_distance_ranks(trained, tmp_path):
    """An export without a pair scorer."""
    reid = cace.load(doctored(trained, tmp_path, lambda m: m["files"].pop("pair_scorer.jaxexport")), batch_size=3)
    assert (reid.top_k, reid.mix, reid.batch_size) == (0, 0, 8)  # 8 devices
    ranked = reid.rank(trained.query[4], trained.gallery, k=5)[0]
    nearest = np.argsort(reid.distances(trained.query[4], trained.gallery)[0], kind="stable")[:5]
    assert [match.index for match in ranked] == nearest.tolist()
    assert all(np.isnan(match.pair) and match.mixed == match.individual for match in ranked)
