"""The page: read by html.parser, and shown by a real browser where there is one."""

import numpy as np
import pytest
from browser import chromium, parsed
from matplotlib.figure import Figure

from cacenet_jax.visualize.page import Case, Drawn, Facts, PairCase, html
from cacenet_jax.visualize.ranked_lists import Change, ShownList
from cacenet_jax.visualize.scores import Compared, Scores
from cacenet_jax.visualize.style import png

METRICS = {"mAP": 0.4321, "rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "mINP": 0.1}
RESULTS = {"individual": METRICS, "mixed": {**METRICS, "mAP": 0.9876}, "step": 7, "num_query": 5, "num_gallery": 60}
FACTS = Facts("a <data> & set", 7, "mixed", "0.5 of the pair distance", 50, True, "correspondence attention")
NAMES = ["0002_c1s1_000451_03.jpg", "an/<other>.png", "x" * 90]
SCORES = [Scores(0.1111, 0.2222, 0.3333), Scores(0.4444, float("nan"), float("nan")), Scores(0.5555, 0.6666, 0.7777)]
FIGURE = Drawn(png(Figure(figsize=(7, 1))), png(Figure(figsize=(2, 3))))
RIGHT = (np.array([False, True, False]), np.array([True, False, True]))


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 12, 3), np.uint8)


def case(name, has_maps=True):
    pictures = [picture(i) for i in range(3)]
    lists = [
        ShownList("individual", 0.25, pictures, RIGHT[0], NAMES, SCORES),
        ShownList("mixed", 0.5, pictures, RIGHT[1], NAMES, SCORES),
    ]
    compared = [Compared(NAMES[i], bool(RIGHT[0][i]), f"rank {i + 1} → 9", SCORES[i]) for i in range(3)]
    return Case(name, 3, picture(9), lists, compared, (8, 4), FIGURE if has_maps else None, FIGURE, FIGURE.png)


def pair_case(names=("a.png", "<b>.png"), has_maps=True):
    pixels = np.stack([picture(1), picture(2)])
    return PairCase(names, pixels, False, Scores(0.1234, 1.5, 0.8117), FIGURE if has_maps else None, FIGURE.png)


@pytest.fixture
def path(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(
        html([case("0001_c3.png"), case("<0002>", False)], Change(3, 1, 1, 0.0123), FACTS, RESULTS, FIGURE), "utf-8"
    )
    return page


def check(shown):
    """What every reader of the page must find."""
    one_query = [
        f"{rank} {'✓' if right else '✗'} {words} {name}"
        for rights, kind in zip(RIGHT, (0, 2))
        for rank, (right, words, name) in enumerate(zip(rights, [one.words()[kind] for one in SCORES], NAMES), 1)
    ]
    assert [" ".join(text.split()) for _, text in shown.items] == 2 * one_query
    assert [kind == "right" for kind, _ in shown.items] == ["✓" in text for _, text in shown.items]
    assert all(alt and width > 0 for alt, width in shown.images)
    alts = [alt for alt, _ in shown.images]
    assert len(alts) == (1 + 6 + 2) + (1 + 6 + 1) + 1
    assert alts[-1] == "Learning curves against the training step"
    assert alts[:3] == ["Query 1", "Rank 1: another person", "Rank 2: same person"]
    for words in ("a <data> & set", "<0002>, camera 3", "43.21", "98.76", "3 rose, 1 fell, 1 stayed", "+1.23 points",
                  "25.0 → 50.0, better", "step 7", "no conditional map", "0.5555 0.6666 0.7777",
                  "an/<other>.png ✓ same 2 → 9 0.4444 – –",
                  "below each image its mixed distance", "changed most"):  # fmt: skip
        assert words in shown.text, words


def test_parser_finds_every_image_rank_and_mark(path):
    check(parsed(path))


def test_browser_shows_every_image_rank_and_mark(path, tmp_path):
    with chromium(tmp_path / "profile") as browser:
        for width in (1280, 390):
            shown, wider = browser.show(path, width)
            check(shown)
            assert wider <= 0  # on a phone the page itself does not scroll sideways


def test_without_results_the_page_says_how_to_get_them(tmp_path):
    (tmp_path / "page.html").write_text(html([case("x")], Change(1, 0, 0, 0.1), FACTS, None, None), "utf-8")
    shown = parsed(tmp_path / "page.html")
    assert "--mode=evaluate" in shown.text
    assert "Learning curves None: metrics.jsonl" in shown.text and "Learning curves" not in str(shown.images)


def test_chosen_queries_and_a_chosen_pair(tmp_path):
    page = html([case("x")], Change(1, 0, 0, 0.1), FACTS, RESULTS, FIGURE, pair_case(), chosen=True)
    (tmp_path / "page.html").write_text(page, "utf-8")
    shown = parsed(tmp_path / "page.html")
    assert "chosen by name" in shown.text and "changed most" not in shown.text
    assert "Chosen pair: ✗ another person" in shown.text and "A and B 0.1234 1.5000 0.8117" in shown.text
    assert [" ".join(text.split()) for _, text in shown.items][:2] == ["A: a.png", "B: <b>.png"]
    assert [alt for alt, _ in shown.images][:4] == [
        "Image A", "Image B", "Maps of both images, as heat maps on them", "Lines between the two images",
    ]  # fmt: skip
    alone = html([], None, FACTS, RESULTS, None, pair_case(has_maps=False))
    (tmp_path / "page.html").write_text(alone, "utf-8")
    shown = parsed(tmp_path / "page.html")
    assert "rose" not in shown.text and "Query" not in shown.text and "no conditional map" in shown.text
    assert [alt for alt, _ in shown.images] == ["Image A", "Image B", "Lines between the two images"]


def test_a_query_without_a_match_says_so(tmp_path):
    lists = [shown._replace(ap=float("nan")) for shown in case("x").lists]
    page = html([case("x")._replace(lists=lists)], Change(1, 0, 0, 0.1), FACTS, RESULTS, None, chosen=True)
    assert "Query 1: no match in the gallery</h2>" in page and "nan" not in page.split("<body>")[1].split("src=")[0]


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\udcff"


def test_every_name_is_escaped(tmp_path):
    facts = Facts(HOSTILE, 7, HOSTILE, HOSTILE, 50, True, HOSTILE)
    lists = [ShownList(HOSTILE, 0.25, [picture(i) for i in range(3)], RIGHT[0], [HOSTILE] * 3, SCORES)] * 2
    others = [Compared(HOSTILE, None, HOSTILE, SCORES[0])]
    pair = pair_case([HOSTILE] * 2)
    results = {"individual": {"mAP": HOSTILE}, "mixed": HOSTILE, "step": HOSTILE, "mix": HOSTILE, "num_query": HOSTILE}
    hostile = case("x")._replace(name=HOSTILE, lists=lists, compared=others)
    text = html([hostile], Change(1, 0, 0, 0.1), facts, results, None, pair)
    (tmp_path / "hostile.html").write_text(text, "utf-8")
    plain = html(
        [case("x")], Change(1, 0, 0, 0.1), facts._replace(data="", ranking="", distance="", learned=""), RESULTS, None,
        pair_case(),
    )  # fmt: skip
    assert "<script" not in text and "onerror=alert(1)>" not in text
    assert text.count("<img") == plain.count("<img")
    shown = parsed(tmp_path / "hostile.html").text
    # In the title, heading, paragraph (twice), name of the query, two lists and their six names, a row of the table (twice),
    # the pair (twice), two captions and the line of the evaluation (three).
    assert shown.count("<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;?") >= 20
