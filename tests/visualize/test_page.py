"""The page: read by html.parser, and shown by a real browser where there is one."""

import numpy as np
import pytest
from browser import chromium, parsed
from matplotlib.figure import Figure

from cacenet_jax.visualize.page import Case, Facts, html
from cacenet_jax.visualize.ranked_lists import Change, ShownList
from cacenet_jax.visualize.style import png

METRICS = {"mAP": 0.4321, "rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "mINP": 0.1}
RESULTS = {"individual": METRICS, "mixed": {**METRICS, "mAP": 0.9876}, "step": 7, "num_query": 5, "num_gallery": 60}
FACTS = Facts("a <data> & set", 7, "mixed", "0.5 of the pair distance", 50, True, "correspondence attention")
RIGHT = (np.array([False, True, False]), np.array([True, False, True]))


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 12, 3), np.uint8)


def case(name, has_maps=True):
    pictures = [picture(i) for i in range(3)]
    lists = [ShownList("individual", 0.25, pictures, RIGHT[0]), ShownList("mixed", 0.5, pictures, RIGHT[1])]
    image = png(Figure(figsize=(7, 1)))
    return Case(name, 3, picture(9), lists, (8, 4), image if has_maps else None, image, image)


@pytest.fixture
def path(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(
        html([case("0001_c3.png"), case("<0002>", False)], Change(3, 1, 1, 0.0123), FACTS, RESULTS), "utf-8"
    )
    return page


def check(shown):
    """What every reader of the page must find."""
    one_query = [f"{rank} {'✓' if right else '✗'}" for rights in RIGHT for rank, right in enumerate(rights, 1)]
    assert [text for _, text in shown.items] == 2 * one_query
    assert [kind == "right" for kind, _ in shown.items] == ["✓" in text for _, text in shown.items]
    assert all(alt and width > 0 for alt, width in shown.images)
    alts = [alt for alt, _ in shown.images]
    assert len(alts) == (1 + 6 + 2) + (1 + 6 + 1)
    assert alts[:3] == ["Query 1", "Rank 1: another person", "Rank 2: same person"]
    for words in ("a <data> & set", "<0002>, camera 3", "43.21", "98.76", "3 rose, 1 fell, 1 stayed", "+1.23 points",
                  "25.0 → 50.0, better", "step 7", "no conditional map"):  # fmt: skip
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
    (tmp_path / "page.html").write_text(html([case("x")], Change(1, 0, 0, 0.1), FACTS, None), "utf-8")
    assert "--mode=evaluate" in parsed(tmp_path / "page.html").text


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\udcff"


def test_every_name_is_escaped(tmp_path):
    facts = Facts(HOSTILE, 7, HOSTILE, HOSTILE, 50, True, HOSTILE)
    lists = [ShownList(HOSTILE, 0.25, [picture(i) for i in range(3)], RIGHT[0])] * 2
    results = {"individual": {"mAP": HOSTILE}, "mixed": HOSTILE, "step": HOSTILE, "mix": HOSTILE, "num_query": HOSTILE}
    text = html([case("x")._replace(name=HOSTILE, lists=lists)], Change(1, 0, 0, 0.1), facts, results)
    (tmp_path / "hostile.html").write_text(text, "utf-8")
    plain = html(
        [case("x")], Change(1, 0, 0, 0.1), facts._replace(data="", ranking="", distance="", learned=""), RESULTS
    )
    assert "<script" not in text and "onerror=alert(1)>" not in text
    assert text.count("<img") == plain.count("<img")
    shown = parsed(tmp_path / "hostile.html").text
    # In the title, heading, paragraph (twice), name of the query, two lists, caption and the line of the evaluation (three).
    assert shown.count("<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;?") >= 9
