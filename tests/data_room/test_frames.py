"""Video files and streams, and which files a user's folders hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mokd_det.data.frames import VideoWriter, open_camera, open_video
from mokd_det.data.input_files import find_input_files
from mokd_det.errors import ConfigError, DatasetError


def grey(value: int, height: int = 36, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def write(path: Path, values: list[int], **options: object) -> Path:
    with VideoWriter(path, 8.0, **options) as writer:
        for value in values:
            writer.write(grey(value))
    return path


def levels(path: Path) -> list[float]:
    return [float(frame.mean()) for frame in open_video(path).frames()]


@pytest.mark.parametrize("suffix", ["mp4", "webm", "avi"])
def test_what_is_written_can_be_read(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", [20, 90, 160, 230])
    source = open_video(path)
    assert (source.size, source.rate, source.live) == ((64, 36), pytest.approx(8.0, abs=0.01), False)
    assert source.announced == 4 and source.name == f"video {path}"
    assert levels(path) == pytest.approx([20, 90, 160, 230], abs=6)


def test_colours_stay_red_green_and_blue(tmp_path):
    frame = np.zeros((48, 96, 3), np.uint8)
    for channel in range(3):
        frame[:, 32 * channel : 32 * channel + 32, channel] = 255
    with VideoWriter(tmp_path / "a.mp4", 5.0) as writer:
        writer.write(frame)
    (found,) = open_video(tmp_path / "a.mp4").frames()
    assert [int(found[24, x].argmax()) for x in (16, 48, 80)] == [0, 1, 2]


def test_a_live_video_keeps_the_pace_of_the_clock(tmp_path):
    now = [50.0]
    path = tmp_path / "live.mp4"
    with VideoWriter(path, 10.0, live=True, clock=lambda: now[0]) as writer:
        for value, seconds in ((30, 0.3), (120, 0.01), (125, 0.01), (210, 0.28)):
            writer.write(grey(value))
            now[0] += seconds
    # at 0, 0.3, 0.31 and 0.32 s, in tenths of a second; two come too soon to be shown
    assert levels(path) == pytest.approx([30, 120, 120, 120], abs=8)


def test_nothing_is_left_of_a_failed_video_and_all_of_an_interrupted_one(tmp_path):
    for error, left in ((OSError, []), (KeyboardInterrupt, ["a.mp4"])):
        with pytest.raises(error), VideoWriter(tmp_path / "a.mp4", 5.0) as writer:
            writer.write(grey(100))
            raise error
        assert [path.name for path in tmp_path.iterdir()] == left
    with VideoWriter(tmp_path / "without_frames.mp4", 5.0):
        pass
    assert not (tmp_path / "without_frames.mp4").exists()


def test_a_video_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.mp4 does not exist"):
        open_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DatasetError, match=r"text\.mp4 cannot be decoded"):
        open_video(tmp_path / "text.mp4")
    with pytest.raises(ConfigError, match="camera '98' cannot be opened; this machine has"):
        open_camera("98")


def test_a_stream_is_live(tmp_path):
    path = write(tmp_path / "a.avi", [10, 20])
    source = open_camera(str(path))
    assert (source.live, source.announced, source.name) == (True, None, f"camera {path}")
    assert len(list(source.frames())) == 2


def make(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def test_files_and_folders_each_once_and_by_name(tmp_path):
    make(tmp_path / "a", "b.JPG", "a.png", "c.txt", "clip.mp4")
    make(tmp_path / "a" / "deeper", "d.png")
    found = find_input_files([tmp_path / "a" / "b.JPG", tmp_path / "a"])
    assert [(file.path.name, file.output_name) for file in found] == [("b.JPG", "b"), ("a.png", "a")]
    found = find_input_files([tmp_path / "a"], kinds=("image", "video"))
    assert [(file.path.name, file.kind) for file in found] == [
        ("a.png", "image"), ("b.JPG", "image"), ("clip.mp4", "video")
    ]  # fmt: skip


def test_equal_names_do_not_overwrite_each_other(tmp_path):
    make(tmp_path / "a", "x.png", "x.jpg", "y.png", "x_png.bmp")
    make(tmp_path / "b", "x.png")
    found = find_input_files([tmp_path / "a", tmp_path / "b"])
    assert [f"{file.path.parent.name}/{file.path.name}:{file.output_name}" for file in found] == [
        "a/x.jpg:x_jpg", "a/x.png:x_png_2", "a/x_png.bmp:x_png", "a/y.png:y", "b/x.png:x_png_3"
    ]  # fmt: skip


def test_what_is_nothing_to_look_at_is_named(tmp_path):
    make(tmp_path / "a", "c.txt", "clip.mp4")
    for given, message in (
        (["nowhere"], "there is no file or folder 'nowhere'"),
        ([tmp_path / "a"], "has no image directly in it"),
        ([tmp_path / "a" / "clip.mp4"], "is no image, going by its name"),
        ([], "nothing to look at"),
    ):
        with pytest.raises(DatasetError, match=message):
            find_input_files(given)
