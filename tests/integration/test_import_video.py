"""`wsss data import` of videos: frames at an interval, and nothing silent about what cannot be read."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image


def film(path: Path, count: int, rate: float, kind: str = "MJPG") -> None:
    """Grey frames; frame k has the value 4 k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*kind), rate, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), (4 * number, 4 * number, 100), np.uint8))
    writer.release()


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two videos of the same name in one folder, and one below it."""
    film(tmp_path / "src" / "a.avi", 41, 10)
    film(tmp_path / "src" / "a.mp4", 30, 30, "mp4v")
    film(tmp_path / "src" / "deep" / "b c.avi", 5, 2)
    (tmp_path / "src" / "notes.txt").write_text("x")
    return tmp_path / "src"


@pytest.mark.parametrize(
    ("every", "milliseconds", "others"),
    [(1, [0, 1000, 2000, 3000, 4000], (1, 3)), (0.25, [*range(0, 4001, 250)], (4, 5))],
)
def test_frames_at_an_interval(
    films: Path, tmp_path: Path, command: Any, every: float, milliseconds: list[int], others: tuple[int, int]
) -> None:
    more = () if every == 1 else ("--every", every)
    done = command("data", "import", films, tmp_path / "out", *more)
    assert done.status == 0, done.err
    folder = tmp_path / "out" / "images"
    found = sorted((folder / "a.avi").iterdir())
    nearest = [np.ceil(one / 100 - 0.5) for one in milliseconds]  # frames are 100 ms apart
    assert [path.name for path in found] == [f"a_000m{int(k) // 10:02d}s{int(k) % 10}00.jpg" for k in nearest]
    for path, k in zip(found, nearest, strict=True):
        red, green, blue = np.array(Image.open(path)).mean((0, 1))
        assert red == pytest.approx(100, abs=4)  # RGB, not BGR
        assert (green, blue) == pytest.approx((4 * k, 4 * k), abs=4)
    assert tuple(len(list((folder / name).iterdir())) for name in ("a.mp4", "deep/b c.avi")) == others
    assert (
        f"{len(milliseconds) + sum(others)} frames, one every {every:g} s: a.avi {len(milliseconds)} (4.0 s)"
        in done.out
    )
    assert "they have no tags yet" in done.out
    assert "warning" not in done.out


def test_one_video_and_a_video_that_ends_early(films: Path, tmp_path: Path, command: Any) -> None:
    content = (films / "a.avi").read_bytes()
    (films / "a.avi").write_bytes(content[: len(content) // 2])
    done = command("data", "import", films / "a.avi", tmp_path / "out")
    assert done.status == 0, done.err
    frames = len(list((tmp_path / "out" / "images" / "a.avi").iterdir()))
    assert 1 <= frames <= 3
    assert "warning: a.avi cannot be decoded after " in done.out
    assert "but its header says 4.1 s" in done.out


def test_videos_beside_photos_are_counted_and_taken_when_asked_for(
    films: Path, tmp_path: Path, command: Any
) -> None:
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (films / name).parent.mkdir()
        Image.new("RGB", (9, 9)).save(films / name)
    (films / "deep" / "b c.avi").rename(films / "b c.avi")
    (films / "deep").rmdir()
    done = command("data", "import", films, tmp_path / "tags")
    assert done.status == 0, done.err
    assert "left out: 3 videos, such as a.avi; --format video takes their frames" in done.out
    done = command("data", "import", films, tmp_path / "frames", "--format", "video")
    assert "9 frames" in done.out


def test_folders_named_after_videos_are_no_videos(films: Path, tmp_path: Path, command: Any) -> None:
    assert command("data", "import", films / "a.avi", tmp_path / "out").status == 0
    (tmp_path / "out" / "labels.csv").write_text("image,labels\na.avi/a_000m00s000.jpg,cat\n")
    done = command("data", "import", tmp_path / "out", tmp_path / "again")
    assert done.status == 0, done.err
    assert "videos" not in done.out


def test_what_does_not_fit_is_one_sentence(films: Path, tmp_path: Path, command: Any) -> None:
    def sentence(source: Path, *words: object) -> str:
        found = str(command("data", "import", source, tmp_path / "out", *words).sentence)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        return found

    for every in (0, -1, 1e-320, "nan", "inf"):
        assert "but must be a number of seconds, at least 0.001" in sentence(films, "--every", every)
    assert "notes.txt has no video" in sentence(films / "notes.txt", "--format", "video")
    (films / "deep" / "broken.mp4").write_bytes(b"no video")
    assert "broken.mp4 cannot be read as a video: replace the file, or move it away" in sentence(films)
    Image.new("RGB", (9, 9)).save(films / "1.jpg")
    assert "--every is for videos" in sentence(films, "--every", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert "is not empty" in command("data", "import", films / "a.avi", tmp_path / "full").sentence
