"""One query's lists: the images of the ranking in its order, and clear words for a query that is not there."""

from runpy import run_path

import numpy as np
import pytest
from command import TINY
from matplotlib.colors import to_hex

from cacenet_jax import experiment
from cacenet_jax.data.builders import TEST_SPLITS, open_split
from cacenet_jax.data.subsets import all_records
from cacenet_jax.errors import UserError
from cacenet_jax.evaluate import Rankable
from cacenet_jax.retrieval.rankings import LabelledSet, Settings
from cacenet_jax.train import Trained, prepare_data
from cacenet_jax.visualize import browse
from cacenet_jax.visualize.style import RIGHT, WRONG


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """Tiny people, ranked by embeddings and pair distances that are random."""
    config = run_path(str(TINY))["get_config"]()
    config.data.dir = str(tmp_path_factory.mktemp("prepared"))
    settings = experiment.read(config)
    prepared = prepare_data(settings.data, TEST_SPLITS)
    rng = np.random.default_rng(0)

    def labelled(name):
        images = all_records(open_split(prepared, name))
        embedding = rng.normal(size=(len(images.pids), 3)).astype(np.float32)
        return LabelledSet(embedding / np.linalg.norm(embedding, axis=1, keepdims=True), images.pids, images.camids)

    query, gallery = labelled("query"), labelled("gallery")
    pair_QG = rng.random((len(query.pids), len(gallery.pids))).astype(np.float32)
    rescore = lambda order_QK: np.take_along_axis(pair_QG, order_QK, axis=1)
    with pytest.MonkeyPatch.context() as patch:
        trained = Trained(settings, None, 0, None, prepared)
        everything = Settings(top_k=len(gallery.pids), mix=0.5)
        patch.setattr(browse, "describe", lambda *arguments: Rankable(query, gallery, rescore, everything))
        return browse.rank(trained, length=5), 1 - query.embedding @ gallery.embedding.T, pair_QG


def panels(drawn):
    """The pictures of a figure and the colours of their frames."""
    shown = [panel for panel in drawn.axes if panel.images]
    frames = [panel.spines["left"] for panel in shown[1:]]
    return [np.asarray(panel.images[0].get_array()) for panel in shown], [to_hex(x.get_edgecolor()) for x in frames]


@pytest.mark.parametrize("q", [0, 7])
def test_list_holds_the_nearest_images_in_their_order(ranked, q):
    ranked, individual_QG, pair_QG = ranked
    weights = {"individual": 0.0, "conditional": 1.0, "mixed": 0.5}
    assert list(ranked.lists) == list(weights)
    query, gallery = ranked.query, ranked.gallery
    decode = lambda subset, i: browse.read(ranked.settings, subset, np.array([i]))[0]
    for name, weight in weights.items():
        distance = weight * pair_QG[q] + (1 - weight) * individual_QG[q]
        seen = [
            g for g in sorted(range(len(distance)), key=lambda g: distance[g])
            if not (gallery.pids[g] == query.pids[q] and gallery.camids[g] == query.camids[q])
        ]  # fmt: skip
        drawn = browse.ranked_list(ranked, q, name)
        pictures, colours = panels(drawn)
        assert len(pictures) == 1 + 5
        for picture, expected in zip(pictures, [decode(query, q), *(decode(gallery, g) for g in seen[:5])]):
            np.testing.assert_array_equal(picture, expected)
        assert [c.upper() for c in colours] == [RIGHT if gallery.pids[g] == query.pids[q] else WRONG for g in seen[:5]]
        texts = [text.get_text() for text in drawn.texts]
        for g in seen[:5]:
            words = [
                f"{x:.4f}" for x in (individual_QG[q, g], pair_QG[q, g], (individual_QG[q, g] + pair_QG[q, g]) / 2)
            ]
            place = texts.index(words[0])
            assert texts[place : place + 3] == words  # then the lines of its name
            assert "".join(texts[place + 3 : place + 6]).startswith(gallery.split.names[g][:12])
        assert f"query {query.split.names[q]}" in texts
        hits = [rank for rank, g in enumerate(seen, start=1) if gallery.pids[g] == query.pids[q]]
        precision = 100 * sum((i + 1) / rank for i, rank in enumerate(hits)) / len(hits)
        assert f"{name}, average precision {precision:.1f}" in texts


def test_all_rankings_where_none_is_named(ranked):
    drawn = browse.ranked_list(ranked[0], 3)
    titles = [text.get_text() for text in drawn.texts if ", average precision" in text.get_text()]
    assert [title.split(",")[0] for title in titles] == ["individual", "conditional", "mixed"]


def test_what_is_not_there_is_one_line(ranked):
    with pytest.raises(UserError, match=r"query: found 8, expected 0 to 7; choose one of the 8 queries"):
        browse.ranked_list(ranked[0], 8)
    with pytest.raises(UserError, match="query: found -1"):
        browse.ranked_list(ranked[0], -1)
    with pytest.raises(UserError, match="ranking: found 'best', expected one of individual, conditional, mixed"):
        browse.ranked_list(ranked[0], 0, "best")
