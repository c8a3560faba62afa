"""Frames of videos at an interval, as photos: `wsss data import` of a video or a folder of videos."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from wsss.data.dataset import walk_images
from wsss.data.files import new_folder, write_photo
from wsss.data.importing import check_places
from wsss.data.labels import check_id
from wsss.errors import UserError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".mts", ".m2ts", ".ogv",
)  # fmt: skip
"""File name endings of videos (compared in lower case)."""

EVERY = 1.0
"""Seconds between frames, unless the user says otherwise."""

SHORTEST = 0.001
"""Seconds; names of frames have milliseconds."""

MISSING_SECONDS, MISSING_SHARE = 1.0, 0.03
"""A video that ends earlier than its header says, by more than both of these, is cut off; headers are estimates."""


@dataclass(frozen=True)
class Taken:
    """What became of a video."""

    name: str
    frames: int
    """Written."""
    seconds: float
    """Time of the last frame that could be decoded."""
    told: float
    """Its length by the header, 0 if that has none."""

    @property
    def is_cut(self) -> bool:
        """Whether the end is missing."""
        return self.told - self.seconds > max(MISSING_SECONDS, MISSING_SHARE * self.told)


def videos_in(source: Path) -> list[Path]:
    """The video itself, or all below a folder, sorted."""
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    named = [
        path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
    ]
    return [path for path in named if path.is_file()]  # `import_videos` names folders after videos


def only_videos(source: Path) -> bool:
    """Whether a source is a video, or a folder with videos and without photos."""
    return bool(videos_in(source)) and (source.is_file() or not walk_images(source, nested=True))


def import_videos(source: Path, target: Path, every: float = EVERY) -> str:
    """Write frames of videos as DEST/images/<video>/<video's name>_<minutes>m<seconds>s<milliseconds>.jpg.

    Args:
        source: a video, or a folder of them.
        target: the new folder. It is complete, or it is not there.
        every: seconds between frames; the first frame is always taken.

    Returns:
        A summary for the user.

    Raises:
        UserError: a video cannot be read, there is none, or the interval is below `SHORTEST`.
    """
    check_places(source, target)
    if not (math.isfinite(every) and every >= SHORTEST):
        raise UserError(f"--every is {every:g}, but must be a number of seconds, at least {SHORTEST:g}")
    videos = videos_in(source)
    if not videos:
        raise UserError(f"{source} has no video ({', '.join(VIDEO_SUFFIXES)})")
    for path in videos:
        if next(frames(path, math.inf), None) is None:
            raise UserError(f"{path} cannot be read as a video: replace the file, or move it away")
    root = source if source.is_dir() else source.parent
    with new_folder(target) as staged:
        taken = [_write(path, path.relative_to(root).as_posix(), staged / "images", every) for path in videos]
    listed = ", ".join(f"{one.name} {one.frames} ({one.seconds:.1f} s)" for one in taken)
    cut = [
        f"warning: {one.name} cannot be decoded after {one.seconds:.1f} s, but its header says {one.told:.1f} s"
        for one in taken
        if one.is_cut
    ]
    return "\n".join(
        [
            f"{target}: {sum(one.frames for one in taken)} frames, one every {every:g} s: {listed}",
            *cut,
            f"they have no tags yet: write {target}/labels.csv (image,labels), or predict {target}/images",
            "frames of one video look alike: put each video into train.txt or val.txt as a whole",
        ]
    )


def frames(path: Path, every: float) -> Iterator[tuple[float, npt.NDArray[np.uint8] | None]]:
    """(seconds, (H, W, 3) uint8 RGB) of the first frame and of one in each interval; (seconds, None) of the others.

    Frames are upright. Ends where nothing more can be decoded.
    """
    video = cv2.VideoCapture(os.fspath(path))
    try:
        rate = video.get(cv2.CAP_PROP_FPS)
        step = 1 / rate if rate > 0 and math.isfinite(rate) else 0.001
        time, due = -step, 0.0
        while video.grab():
            said = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            time = said if said > time else time + step  # some containers give no times
            if time < due - step / 2:
                yield time, None
                continue
            whole, pixels = video.retrieve()
            if not whole:
                return
            yield time, np.ascontiguousarray(pixels[..., ::-1])
            due = (math.floor((time + step / 2) / every) + 1) * every if math.isfinite(every) else every
    finally:
        video.release()


def _write(path: Path, name: str, folder: Path, every: float) -> Taken:
    written, last = 0, 0.0
    for time, pixels in frames(path, every):
        last = time
        if pixels is not None:
            milliseconds = max(0, round(1000 * time))
            minutes, rest = divmod(milliseconds, 60_000)
            frame = f"{name}/{path.stem}_{minutes:03d}m{rest // 1000:02d}s{rest % 1000:03d}"
            write_photo(folder / f"{check_id(frame, str(path), nested=True)}.jpg", pixels)
            written += 1
    video = cv2.VideoCapture(os.fspath(path))
    count, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
    video.release()
    return Taken(name, written, last, count / rate if count > 0 and rate > 0 else 0.0)
