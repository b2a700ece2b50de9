"""The page of an index: the numbers of the index, marks that last, and nothing that it should not give or keep."""

import csv
import html
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from browser import chromium
from command import ROOT
from own_images import images, load, picture
from PIL import Image
from serving import SCRIPT, Client, multipart, served
from tiny_index import NAMES

from cacenet_jax.serve.guard import MAX_BODY

ALL = sorted([*NAMES, SCRIPT])


def text(answer):
    """The text of a page, without its style."""
    page = re.sub(r"<style>.*?</style>", "", answer.content.decode(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def distances(answer):
    """(name, individual, pair, mixed) of each match of a page, as it shows them."""
    items = re.findall(r"<li[^>]*>(?:(?!</li>).)*individual(?:(?!</li>).)*</li>", answer.content.decode(), re.DOTALL)
    found = []
    for item in items:
        name = html.unescape(re.search(r'alt="([^"]*)"', item)[1])
        numbers = {kind: re.search(rf"{kind} (-?\d\.\d{{4}})", item) for kind in ("individual", "pair", "mixed")}
        found.append((name, *(match and float(match[1]) for match in numbers.values())))
    return found


def expected(result):
    """The same of a result of `Index.search`."""
    rounded = lambda x: None if np.isnan(x) else float(f"{x:z.4f}")
    return [(m.id, rounded(m.individual), rounded(m.pair), rounded(m.mixed)) for m in result]


def test_the_photographs_of_the_index(client, index):
    answer = client.get("/")
    shown = [html.unescape(name) for name in re.findall(r'class="name">([^<]*)<', answer.content.decode())]
    assert answer.status == 200 and shown == ALL and "1 to 26 of 26" in text(answer)
    filtered = client.get("/", where="path LIKE 'front%'")
    assert f"1 to {sum(name.startswith('front') for name in ALL)} of" in text(filtered)
    later = client.get("/", start="20")
    assert "21 to 26 of 26" in text(later) and "Previous" in text(later)
    picture_of = client.get("/image", id=SCRIPT)
    assert picture_of.headers["Content-Type"] == "image/webp"
    assert Image.open(io.BytesIO(picture_of.content)).size == (96, 192)


@pytest.mark.parametrize("name", [NAMES[2], SCRIPT, NAMES[-2]])
def test_a_search_shows_the_numbers_of_the_index(client, index, place, name):
    answer = client.get("/search", id=name, k=9)
    assert answer.status == 200
    assert distances(answer) == expected(index.search(place / "photographs" / name, 9))
    filtered = client.get("/search", id=name, k=5, where="path LIKE 'front%'")
    assert distances(filtered) == expected(index.search(place / "photographs" / name, 5, where="path LIKE 'front%'"))


def test_uploads_are_searched_and_not_kept(client, index, files_of):
    before = files_of()
    queries = [("a.png", picture("one")), ("<b>.png", picture("two"))]
    rolled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
        noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
        large = io.BytesIO()
        Image.fromarray(noise).save(large, "PNG")
        assert len(large.getvalue()) > 1 << 20 and client.upload([("large.png", large.getvalue())], k=3).status == 200
    assert not rolled  # nothing was written to a disk
    answer = client.upload(queries, k=7)
    pixels = [np.asarray(Image.open(io.BytesIO(content))) for _, content in queries]
    assert answer.status == 200, text(answer)
    assert distances(answer) == expected(index.search(pixels, 7))
    assert answer.content.decode().count("Lines between the query and match") == 4
    assert "not kept" in text(answer) and "/mark" not in answer.content.decode().replace("/marks", "")
    assert files_of() == before


def test_why_shows_the_comparison(client, index, place):
    answer = client.get("/why", query=NAMES[1], match=SCRIPT)
    comparison = index.reid.compare(*(place / "photographs" / name for name in (NAMES[1], SCRIPT)))
    assert f"individual {comparison.individual:z.4f}" in text(answer) and f"{comparison.mixed:z.4f}" in text(answer)
    assert "not calibrated" in text(answer) and answer.content.decode().count("<img") == 2 + 1 + 6


def test_every_link_and_image_of_the_pages_is_answered(client):
    seen, todo = set(), ["/", "/search?id=" + "front%2F01.png&k=3", "/marks"]
    while todo and len(seen) < 60:
        path = todo.pop(0)
        seen.add(path)
        answer = client.get(path)
        assert answer.status == 200, path
        if answer.headers["Content-Type"].startswith("text/html"):
            page = answer.content.decode()
            assert "<script" not in page.lower() and "alert(1)" not in page.replace("&lt;script&gt;alert(1)", "")
            links = [html.unescape(link) for link in re.findall(r'(?:href|src)="(/[^"]*)"', page)]
            todo += [link for link in dict.fromkeys(links) if link not in seen and link not in todo]
    assert len(seen) == 60


@pytest.mark.parametrize(
    ("path", "values", "status", "message"),
    [
        ("/search", {"id": "../run/config.json"}, 404, "expected a photograph of the index"),
        ("/image", {"id": "/etc/passwd"}, 404, "expected a photograph of the index"),
        ("/image", {}, 404, "id: found ''"),
        ("/why", {"query": NAMES[0], "match": "x' OR '1'='1"}, 404, "match: found"),
        ("/search", {"id": NAMES[0], "k": "many"}, 400, "k: found 'many', expected a number from 1 to 100"),
        ("/search", {"id": NAMES[0], "k": "101"}, 400, "k: found '101'"),
        ("/search", {"id": NAMES[0], "where": "nothing = <b>"}, 400, "--where=nothing = <b>: not understood"),
        ("/", {"where": "1; DROP TABLE photographs"}, 400, "not understood"),
        ("/", {"start": "-1"}, 400, "start: found '-1'"),
        ("/../../etc/passwd", {}, 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_one_line(client, index, path, values, status, message):
    answer = client.get(path, **values)
    assert answer.status == status and message in text(answer)
    assert "<b>" not in answer.content.decode() and len(index) == 26


def broken_images():
    whole = picture("whole")
    large = io.BytesIO()
    Image.new("L", (9000, 9000)).save(large, "PNG")
    half = io.BytesIO()
    Image.new("L", (5000, 5000)).save(half, "PNG")
    return [
        ([], "image: found no file"), ([("a.png", b"")], "a.png: found 0 bytes"),
        ([("<i>.txt", b"hello")], "<i>.txt: found 5 bytes that are not an image"),
        ([("a.png", whole[:-20])], "a.png: found a broken image"),
        ([("bomb.png", large.getvalue())], "bomb.png: found an image of 81,000,000 pixels"),
        ([("a.svg", b"<svg onload=alert(1)>")], "not an image"),
        ([(f"{i}.png", whole) for i in range(11)], "Too many files"),
        ([(f"{i}.png", half.getvalue()) for i in range(3)], "image: found images of more than 64,000,000 pixels together"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(8))
def test_wrong_uploads_are_one_line(client, files_of, number):
    files, message = broken_images()[number]
    before = files_of()
    answer = client.upload(files)
    assert answer.status == 400 and message in text(answer), text(answer)
    assert "<i>" not in answer.content.decode() and "<svg" not in answer.content.decode() and files_of() == before


def test_large_requests_are_refused_before_they_are_read(client):
    answer = client.ask("POST", "/search", headers={"Content-Length": str(MAX_BODY + 1)})
    assert answer.status == 413 and b"more than 32 MiB" in answer.content
    body, kind = multipart([("a.png", b"0" * (MAX_BODY + 1))])
    chunked = client.ask("POST", "/search", iter([body[i : i + 2**20] for i in range(0, len(body), 2**20)]), kind)
    assert chunked.status == 413 and b"more than 32 MiB" in chunked.content
    assert client.get("/").status == 200


def test_other_hosts_and_pages_are_refused(client, index):
    assert client.get("/", {"Host": f"evil.example:{client.port}"}).status == 400
    values = {"query": NAMES[0], "match": NAMES[1], "same": "1"}
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert client.post("/mark", headers, **values).status == 403
        assert client.upload([("a.png", picture("a"))], headers).status == 403
    assert index.marks.all() == []
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and "frame-ancestors 'none'" in policy
    assert client.get("/mark").status == 405
    for host in (
        "localhost:80",
        "127.0.0.5",
        "[::1]:80",
        "192.168.1.7",
    ):  # no site can resolve to these by a name of its own
        assert client.get("/", {"Host": host}).status == 200, host
    with served(index, ("Camera-Room.local",)) as port:
        assert Client(port).get("/", {"Host": "camera-room.local:8000"}).status == 200
        refused = Client(port).get("/", {"Host": "evil.example", "Origin": "http://evil.example"})
        assert refused.status == 400 and b"'evil.example', expected an IP address or the name" in refused.content


def test_ten_clients_at_once_get_what_one_gets(client, index, place):
    queries = ALL[:10]
    alone = [expected(index.search(place / "photographs" / name, 6)) for name in queries]
    barrier = threading.Barrier(10)

    def search(name):
        barrier.wait()
        return [distances(client.get("/search", id=name, k=6)) for _ in range(3)]

    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(search, queries))
    assert together == [[one] * 3 for one in alone]


def test_marks_become_a_manifest_that_trains(client, index, place, tmp_path):
    right = [(NAMES[0], NAMES[1]), (NAMES[1], SCRIPT), (NAMES[4], NAMES[6])]
    for query, match in right:
        answer = client.post(
            "/mark", {"Origin": f"http://127.0.0.1:{client.port}"}, query=query, match=match, same="1", k=26
        )
        assert answer.status == 303 and "k=26" in answer.headers["Location"]
        path, anchor = answer.headers["Location"].split("#")
        page = client.get(path).content.decode()
        assert f'id="{anchor}"' in page and page.count('aria-pressed="true"') >= 1 and ">clear</button>" in page
    client.post("/mark", query=NAMES[0], match=NAMES[8], same="0")
    client.post("/mark", query=NAMES[10], match=NAMES[12], same="1")
    client.post("/mark", query=NAMES[12], match=NAMES[10], same="")
    for values, message in (
        ({"query": NAMES[0], "match": NAMES[0], "same": "1"}, "the query itself"),
        ({"query": NAMES[0], "match": NAMES[1], "same": "2"}, "same: found another value"),
    ):
        assert message in text(client.post("/mark", **values))
    answer = client.get("/marks.csv")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
    groups = {}
    for row in rows:
        groups.setdefault(row["identity"], set()).add(os.path.relpath(row["path"], place / "photographs"))
    assert sorted(groups.values(), key=len) == [{NAMES[4], NAMES[6]}, {NAMES[0], NAMES[1], SCRIPT}]
    assert "4 marks. 5 photographs of 2 people" in text(client.get("/marks"))
    (tmp_path / "marks.csv").write_bytes(answer.content)
    records = load(tmp_path / "marks.csv", tmp_path, needs=("train",))["train"]
    assert len(records) == 5 and len({pid for _, pid, _ in records}) == 2
    client.post("/mark", query=NAMES[0], match=SCRIPT, same="0")
    assert "Contradictions" in text(client.get("/marks"))
    assert len(list(csv.DictReader(io.StringIO(client.get("/marks.csv").content.decode())))) == 2
    page = client.get("/marks").content.decode()
    assert page.count(">clear</button>") == len(index.marks) == 5
    index.marks.set(NAMES[4], "gone.png", True)
    assert "1 photograph with an identity left the index" in text(client.get("/marks"))
    for mark in index.marks.all():
        answer = client.post("/mark", query=mark.first, match=mark.second, same="", start="0")
        assert answer.status == 303 and answer.headers["Location"] == "/marks?start=0"
    assert index.marks.all() == [] and "0 marks. 0 photographs of 0 people" in text(client.get("/marks"))


def test_the_page_shows_what_another_process_adds(client, place, index):
    images(place / "photographs", ["zz/new.png"])
    other = index.reid.open_index(index.place)  # sees what it did not write itself as late as another process does
    try:
        other.update(place / "photographs")
        other.marks.set(NAMES[0], "zz/new.png", True)
        time.sleep(6)
        assert "of 27" in text(client.get("/")) and client.get("/image", id="zz/new.png").status == 200
        assert "1 mark. 2 photographs of 1 person" in text(client.get("/marks"))
        other.marks.set(NAMES[0], "zz/new.png", None)
    finally:
        os.remove(place / "photographs/zz/new.png")
        index.update(place / "photographs")
    (place / "photographs/gone.png").write_bytes(picture("gone"))
    index.update(place / "photographs")
    os.remove(place / "photographs/gone.png")
    assert client.get("/image", id="gone.png").status == 400 and client.get("/").status == 200
    index.update(place / "photographs")


def test_pages_fit_a_screen_and_a_phone_and_work_by_keyboard(client, tmp_path):
    address = f"http://127.0.0.1:{client.port}"
    with chromium(tmp_path / "profile") as browser:
        for path in ("/", "/search?id=front/01.png&k=9", "/why?query=front/01.png&match=front/03.png", "/marks"):
            for width in (1280, 390):
                shown, too_wide = browser.visit(address + path, width)
                assert too_wide <= 0, (path, width)
                assert (
                    all(pixels > 0 for _, pixels in shown.images) or path == "/"
                )  # there some load when they are seen
        browser.visit(address + "/")
        browser.run("document.querySelector('ol.matches a').focus()")
        assert "/search?id=" in browser.press("\ue007")
        browser.run("document.querySelector('.mark button').focus()")
        browser.press("\ue004")
        assert browser.run("return document.activeElement.textContent") == "wrong"
        browser.press("\ue007")
        assert browser.run("return document.querySelectorAll('[aria-pressed=true]').length") == 1
        browser.visit(address + "/")
        assert "Marks (1)" in browser.visit(address + "/marks")[0].text


def test_the_command_serves_until_it_is_stopped(place, index, tmp_path):
    words = ["--mode=serve", f"--workdir={place / 'run'}", f"--index={index.place}"]
    start = [sys.executable, "-W", "ignore", "-m", "cacenet_jax.main", *words]
    with subprocess.Popen(
        [*start, "--port=0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        try:
            line = one.stdout.readline()
            port = int(re.search(r"26 photographs: http://127\.0\.0\.1:(\d+)/", line)[1])
            assert "26 of 26" in text(Client(port).get("/"))
            other = subprocess.run([*start, f"--port={port}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
            assert other.returncode == 2 and f"--port={port}: cannot be used (Address already in use)" in other.stderr
        finally:
            one.send_signal(signal.SIGINT)
        assert one.wait(60) in (0, 130) and "Traceback" not in one.stderr.read()
