"""Every decoder reads what PIL reads, and refuses what PIL refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mokd_det.data import DetrDatasetMapper
from mokd_det.data.image_file import DECODERS, read_image
from mokd_det.errors import ConfigError, DatasetError

WIDTH, HEIGHT = 53, 41


@pytest.fixture(params=[name for name in DECODERS if name != "pil"])
def decoder(request: pytest.FixtureRequest) -> str:
    return request.param


def smooth(channels: int = 3) -> Image.Image:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (6, 7, channels), dtype=np.uint8)
    image = Image.fromarray(small if channels > 1 else small[..., 0])
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


# Pixels of these are only near PIL's: the libraries' own options decide (see read_image).
PLAIN = {
    "default.jpg": (smooth(), {}),
    "fine.jpg": (smooth(), {"quality": 98, "subsampling": 0}),
    "coarse.jpg": (smooth(), {"quality": 40, "subsampling": 2}),
    "progressive.jpg": (smooth(), {"progressive": True}),
    "grey.jpg": (smooth(1), {}),
    "upright.jpg": (smooth(), turned(1)),
}
# and these are PIL's own.
OTHERS = {
    **{f"turned{i}.jpg": (smooth(), turned(i)) for i in range(2, 9)},
    "cmyk.jpg": (smooth().convert("CMYK"), {}),
    "rgb.png": (smooth(), {}),
    "palette.png": (smooth().quantize(16), {}),
    "alpha.png": (smooth(4), {}),
    "grey.png": (smooth(1), {}),
    "one_bit.png": (smooth(1).convert("1"), {}),
    "rgb.bmp": (smooth(), {}),
}


def saved(folder: Path, name: str, image: Image.Image, options: dict[str, Any]) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_jpeg_files_are_nearly_equal(decoder: str, name: str, tmp_path: Path) -> None:
    file = saved(tmp_path, name, *PLAIN[name])
    expected, found = read_image(file, name), read_image(file, name, decoder)
    assert found.dtype == np.uint8 and found.shape == (HEIGHT, WIDTH, 3) and found.flags.c_contiguous
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 4 and difference.mean() < 0.5
    # Channels in another order, or turned over, would be far off.
    for wrong in (expected[:, ::-1], expected[::-1]):
        assert np.abs(found.astype(int) - wrong.astype(int)).mean() > 5
    if "grey" not in name:
        assert np.abs(found.astype(int) - expected[..., ::-1].astype(int)).mean() > 5


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_pils(decoder: str, name: str, tmp_path: Path) -> None:
    file = saved(tmp_path, name, *OTHERS[name])
    assert np.array_equal(read_image(file, name, decoder), read_image(file, name))


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(decoder: str, kept: float, tmp_path: Path) -> None:
    content = Path(saved(tmp_path, "whole.jpg", smooth(), {"quality": 98})).read_bytes()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match="image broken cannot be decoded"):
        read_image(str(broken), "image broken", decoder)


def test_files_that_no_decoder_takes(decoder: str, tmp_path: Path) -> None:
    deep = saved(tmp_path, "deep.png", Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)), {})
    with pytest.raises(DatasetError, match="more than 8 bits"):
        read_image(deep, "it", decoder)
    with pytest.raises(DatasetError, match="it does not exist"):
        read_image(str(tmp_path / "gone.jpg"), "it", decoder)
    head = Path(saved(tmp_path, "whole.jpg", smooth(), {})).read_bytes()[:200]
    (tmp_path / "noise.jpg").write_bytes(head + b"\x00" * 500 + b"\xff\xd9")
    with pytest.raises(DatasetError, match="it cannot be decoded"):
        read_image(str(tmp_path / "noise.jpg"), "it", decoder)


def test_decoder_of_the_mapper(decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path, "a.jpg", smooth(), {})
    decode, used = DECODERS[decoder], []
    assert decode is not None
    monkeypatch.setitem(DECODERS, decoder, lambda content: used.append(len(content)) or decode(content))
    record = {"file_name": file, "image_id": 1, "height": HEIGHT, "width": WIDTH}
    sample = DetrDatasetMapper(is_train=False, augmentation=[], decoder=decoder)(record)
    assert sample["image"].shape == (3, HEIGHT, WIDTH) and used == [Path(file).stat().st_size]
    DetrDatasetMapper(is_train=False, augmentation=[])(record)
    assert len(used) == 1


def test_unknown_decoder() -> None:
    with pytest.raises(ConfigError, match="decoder is 'cv2'; it must be pil, opencv, torchvision"):
        DetrDatasetMapper(is_train=False, decoder="cv2")
