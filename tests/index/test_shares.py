"""An index made by two processes: each embeds its share, and the index is that of one."""

import os

import numpy as np
from own_images import images, picture
from tiny_index import NAMES, assert_same, content


def test_two_processes_make_the_index_of_one(command, network, reid, photographs, tmp_path):
    words = ("--mode=index", f"--workdir={network.workdir}", f"--images={photographs}", "--index=shared.lance")
    first, second = command.pair(*words)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "25 images; 25 added, 0 changed, 0 removed, 0 unchanged;" in first.stdout and " images;" not in second.stdout
    shared, alone = reid.open_index(tmp_path / "shared.lance"), reid.index(photographs, tmp_path / "alone.lance")
    assert_same(shared, alone)
    assert shared.version > alone.version + 1  # each process wrote its share, then they were joined

    before = content(shared)
    images(photographs, ["new/1.png", "new/2.png", "new/3.png"])
    os.remove(photographs / NAMES[0])
    (photographs / NAMES[1]).write_bytes(picture("another"))
    for name in ("broken.jpg", "too/broken.png", NAMES[5]):
        (photographs / name).parent.mkdir(exist_ok=True)
        (photographs / name).write_bytes(b"no image")
    first, second = command.pair(*words)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (
        "26 images; 3 added, 1 changed, 2 removed, 22 unchanged, 3 left out;" in first.stdout
        and " images;" not in second.stdout
    )
    assert all(f"left out {name}" in first.stdout for name in ("broken.jpg", "too/broken.png", NAMES[5]))
    shared = reid.open_index(tmp_path / "shared.lance")
    assert_same(shared, reid.index(photographs, tmp_path / "anew.lance"))
    assert content(shared)[NAMES[2]]["embedding"] == before[NAMES[2]]["embedding"]
    assert np.isfinite(shared.embeddings()).all()


def test_both_processes_end_with_the_line_of_a_mistake(command, network, photographs):
    words = ("--mode=index", f"--workdir={network.workdir}", "--images=nowhere", "--index=none.lance")
    done = command.pair(*words)
    assert [process.returncode for process in done] == [2, 2]
    lines = [line for process in done for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert any("nowhere" in line for line in lines)
    assert not (command.folder / "none.lance").exists()
