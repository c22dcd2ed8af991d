"""Frames of video files, cameras and streams."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from mokd_det.errors import ConfigError, DatasetError

__all__ = ["VIDEO_CODECS", "FrameSource", "VideoWriter", "open_camera", "open_video"]

VIDEO_CODECS = {"mp4": "mp4v", "webm": "VP80", "avi": "MJPG"}
"""File types that OpenCV's own build can write, with the codec of each."""

_USUAL_RATE = 25.0


@dataclass
class FrameSource:
    """An opened video or camera, by its file or what it was called.

    Attributes:
        size: (width, height) in pixels.
        rate: frames per second.
        announced: frames that the file says it has; None: unknown.
        live: whether time passes while a frame is looked at, as with a camera.
    """

    path: str
    size: tuple[int, int]
    rate: float
    announced: int | None
    live: bool
    _capture: cv2.VideoCapture

    @property
    def name(self) -> str:
        """For messages."""
        return f"{'camera' if self.live else 'video'} {self.path}"

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) RGB, until the end; the source is closed afterwards."""
        try:
            while True:
                good, frame = self._capture.read()
                if not good:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()


def open_video(path: str | os.PathLike[str]) -> FrameSource:
    """Open a video file.

    Raises:
        DatasetError: the file is missing or cannot be decoded.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise DatasetError(f"video {name} does not exist")
    capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise DatasetError(f"video {name} cannot be decoded")
    return _source(capture, name, live=False)


def open_camera(camera: str) -> FrameSource:
    """Open a camera of this machine by its number, or what OpenCV opens by name (a device file, a URL).

    Raises:
        ConfigError: it cannot be opened.
    """
    capture = cv2.VideoCapture(int(camera) if camera.isdigit() else camera)
    if not capture.isOpened():
        found = sorted(path.name for path in Path("/dev").glob("video*"))
        there = f"this machine has {', '.join(found)}" if found else "this machine has no /dev/video*"
        raise ConfigError(f"camera {camera!r} cannot be opened; {there}")
    return _source(capture, camera, live=True)


def _source(capture: cv2.VideoCapture, path: str, live: bool) -> FrameSource:
    width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    rate = capture.get(cv2.CAP_PROP_FPS)
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    # Cameras, and containers without an index, answer with 0, -1 or not at all.
    return FrameSource(
        path,
        (width, height),
        rate if 0 < rate < 1000 else _USUAL_RATE,
        frames if frames > 0 and not live else None,
        live,
        capture,
    )


class VideoWriter:
    """A video file, written inside a ``with`` block, that appears under its name when it is complete.

    The first frame decides on the size. A live video keeps the pace of the clock: a frame is repeated until the next
    one has been looked at, or left out where they come faster than they are shown.
    """

    def __init__(
        self, path: Path, rate: float, *, live: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The path's suffix, one of :data:`VIDEO_CODECS`, decides on codec and container; ``rate`` are frames per
        second, ``clock`` tells seconds, from any origin."""
        self.path, self.rate, self.live = path, rate, live
        self._clock = clock
        # OpenCV goes by the suffix, so it must stay the last part of the name.
        self._partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
        self._writer: cv2.VideoWriter | None = None
        self._start = 0.0
        self._written = 0

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, uint8 (H, W, 3) RGB of the size of the first one.

        Raises:
            ConfigError: the file cannot be written.
        """
        if self._writer is None:
            size = (frame.shape[1], frame.shape[0])
            name = VIDEO_CODECS[self.path.suffix[1:]]
            codec = cv2.VideoWriter.fourcc(*name)
            self._writer = cv2.VideoWriter(str(self._partial), cv2.CAP_FFMPEG, codec, self.rate, size)
            if not self._writer.isOpened():
                raise ConfigError(f"video {self.path} cannot be written: OpenCV cannot open the codec {name}")
            self._start = self._clock()
        times = 1
        if self.live:
            times = max(int((self._clock() - self._start) * self.rate) + 1 - self._written, 0)
        for _ in range(times):
            self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            self._written += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the file. An interrupted video is complete up to there; after an error there is none."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if kind is None or issubclass(kind, KeyboardInterrupt):
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)
