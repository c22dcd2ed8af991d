"""A fixed number of augmentations per image, and the keys that tell them apart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from mokd_det.classification import build_classification_train_loader
from mokd_det.classification.dataset import ArrayDataset
from mokd_det.data import build_train_loader
from mokd_det.data.sampling import EpochBatches, SampleKey
from mokd_det.data.view_key import view_key
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.guard.plain_batch import from_plain, to_plain

EPOCH = 2


def noisy(record: dict[str, Any]) -> dict[str, Any]:
    noise = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    noise[0, 0, 0] = int(np.random.randint(256))  # noqa: NPY002  (augmentations draw from it)
    return {**record, "image": noise}


def records(count: int = 8) -> list[dict[str, Any]]:
    return [{"image_id": i, "file_name": f"{i}.png", "height": 4, "width": 4} for i in range(count)]


def images(loader: Any, epochs: int) -> list[dict[int, bytes]]:
    """For every epoch: id → pixels."""
    stream = iter(loader)
    return [
        {
            item["image_id"]: item["image"].numpy().tobytes()
            for batch in itertools.islice(stream, EPOCH)
            for item in batch
        }
        for _ in range(epochs)
    ]


def loader(views: int | None, seed: int = 0, workers: int = 0) -> Any:
    return build_train_loader(
        records(), noisy, total_batch_size=4, seed=seed, views=views, num_workers=workers
    )


def test_images_return_after_as_many_epochs_as_there_are_views() -> None:
    shown = images(loader(views=3), 7)
    assert shown[0] == shown[3] == shown[6] and shown[1] == shown[4]
    assert all(len({epoch[i] for epoch in shown[:3]}) == 3 for i in range(8)), "three different ones each"
    assert len(set(shown[0].values())) == 8, "and different ones for different images"
    endless = images(loader(views=None), 3)
    assert all(len({epoch[i] for epoch in endless}) == 3 for i in range(8))
    assert images(loader(views=3, seed=1), 1) != shown[:1]


def test_views_do_not_depend_on_workers_or_on_how_many_there_are() -> None:
    shown = images(loader(views=2, workers=2), 2)
    assert shown == images(loader(views=2), 2)
    assert shown[:1] == images(loader(views=5), 1)


def test_keys_tell_image_view_and_pixels() -> None:
    stream = iter(loader(views=2))
    batches = list(itertools.islice(stream, 3 * EPOCH))
    first, second, third = (
        {item["image_id"]: item["view_key"] for batch in batches[i : i + EPOCH] for item in batch}
        for i in (0, EPOCH, 2 * EPOCH)
    )
    assert first == third and all(first[i][:2] == (i, 0) and second[i][:2] == (i, 1) for i in range(8))
    assert all(first[i][2] != second[i][2] for i in range(8))
    item = batches[0][0]
    assert item["view_key"] == view_key(SampleKey(9, item["image_id"], 0), item["image"])
    assert "view_key" not in next(iter(loader(views=None)))[0]


def test_a_digest_changes_with_pixels_type_and_shape() -> None:
    image = torch.zeros(3, 2, 4)
    other = image.clone()
    other[2, 1, 3] = 1e-6
    tensors = [image, other, image.double(), image.reshape(3, 4, 2)]
    digests = [view_key(SampleKey(0, 0, 0), tensor)[2] for tensor in tensors]
    assert len(set(digests)) == 4 and all(0 <= digest < 2**63 for digest in digests)


def test_repeated_augmentation_counts_copies() -> None:
    keys = list(itertools.islice(EpochBatches(6, 6, seed=0, repeats=3, views=4), 3))
    assert [[key.view for key in batch] for batch in keys] == [[0, 1, 2] * 2, [3, 0, 1] * 2, [2, 3, 0] * 2]
    resumed = next(iter(EpochBatches(6, 6, seed=0, repeats=3, views=4).starting_at(2)))
    assert resumed == keys[2]
    assert all(key.view is None for key in next(iter(EpochBatches(6, 6, seed=0))))


def classification_loader(views: int | None, **options: Any) -> Any:
    pixels = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
    dataset = ArrayDataset("toys", ["a", "b"], [0, 1] * 3, pixels)

    def transform(image: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 + torch.rand(())

    return build_classification_train_loader(dataset, transform, 3, views=views, **options)


def test_classification_batches_have_views_too() -> None:
    built = classification_loader(2)
    batches = list(itertools.islice(built, 8))
    shown = {}
    for number, batch in enumerate(batches):
        for image, key in zip(batch.images, batch.view_keys, strict=True):
            assert key[1] == number // 2 % 2
            assert torch.equal(shown.setdefault(key, image), image)
    assert len(shown) == 12
    assert next(iter(classification_loader(None))).view_keys is None
    kept = from_plain(to_plain(batches[0]))
    assert [tuple(key) for key in kept.view_keys] == list(batches[0].view_keys)


def test_what_views_cannot_be_combined_with() -> None:
    with pytest.raises(ConfigError, match=r"views=0: must be 1 or more, or None"):
        loader(views=0)
    with pytest.raises(ConfigError, match=r"views=1 fixes how each image looks, but mixup"):
        classification_loader(1, mixup={"mixup_alpha": 0.8})


def test_a_mapper_without_an_image_and_one_that_fails() -> None:
    def no_image(record: dict[str, Any]) -> dict[str, Any]:
        return dict(record)

    def failing(record: dict[str, Any]) -> dict[str, Any]:
        raise DatasetError("broken")

    with pytest.raises(ConfigError, match="views need a mapper that makes a tensor 'image', not NoneType"):
        next(iter(build_train_loader(records(), no_image, 4, views=1)))
    with pytest.raises(DatasetError, match="broken"):
        next(iter(build_train_loader(records(), failing, 4, views=1)))


def test_fingerprints_follow_the_images_and_not_their_place() -> None:
    def fingerprint(changed: list[dict[str, Any]]) -> str:
        return build_train_loader(changed, noisy, 4).fingerprint()

    plain = fingerprint(records())
    assert plain == fingerprint(
        [{**record, "file_name": f"elsewhere/{i}.png"} for i, record in enumerate(records())]
    )
    assert len({plain, fingerprint(records(9)), fingerprint(records()[::-1])}) == 3
    assert classification_loader(1).fingerprint() == classification_loader(2).dataset.fingerprint()
