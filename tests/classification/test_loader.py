"""The classification loader: batches are pure functions of seed, position and rank; targets, mixing, negatives."""

from __future__ import annotations

import itertools
import multiprocessing
import random

import numpy as np
import pytest
import timm.data
import torch
from detectron2.config import LazyCall, instantiate
from omegaconf import OmegaConf
from PIL import Image

from mokd_det.classification import (
    ArrayDataset,
    ClassificationBatch,
    DigitImages,
    build_classification_test_loader,
    build_classification_train_loader,
)
from mokd_det.classification.mixing import LabelMixer
from mokd_det.classification.negatives import NegativeSampler
from mokd_det.data.sampling import EpochBatches, batch_rng
from mokd_det.errors import ConfigError, DatasetError

SIZE, CLASSES = 23, 3
LABELS = np.arange(SIZE) % CLASSES
DATA = ArrayDataset(
    "toy", list("abc"), LABELS, np.arange(SIZE, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
)


def draw(image: Image.Image) -> torch.Tensor:
    """A transform that shows the image and all three generators' state."""
    values = [image.getpixel((0, 0))[0], random.random(), np.random.uniform()]  # noqa: NPY002
    return torch.tensor([*values, float(torch.rand(()))]).repeat(3, 1, 1)


class Fragile(ArrayDataset):
    """The toy data set with a broken image."""

    def read(self, index: int) -> Image.Image:
        if index == 7:
            raise DatasetError("image 7 is broken")
        return super().read(index)


FRAGILE = Fragile("fragile", list("abc"), LABELS, DATA.images)


def loader(dataset=DATA, transform=draw, total_batch_size=4, **options):
    return build_classification_train_loader(dataset, transform, total_batch_size, **options)


def take(stream, count: int) -> list[ClassificationBatch]:
    return list(itertools.islice(stream, count))


def same(one: ClassificationBatch, two: ClassificationBatch) -> bool:
    tensors = ("images", "targets", "labels", "indices")
    equal = all(torch.equal(getattr(one, name), getattr(two, name)) for name in tensors)
    negatives = (one.negatives is None) == (two.negatives is None)
    if one.negatives is not None and two.negatives is not None:
        negatives = torch.equal(one.negatives, two.negatives)
    return equal and negatives and list(one.names) == list(two.names) and one.epoch == two.epoch


EVERYTHING = dict(
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem"), label_smoothing=0.1, negatives=5, seed=3
)


@pytest.mark.parametrize(
    "options", [{}, EVERYTHING, {"repeated_augmentation": 3}], ids=["plain", "all", "repeated"]
)
def test_workers_and_restarts_change_nothing(options):
    expected = take(loader(**options), 8)
    assert not same(expected[0], expected[5])
    for start, workers in ((0, 2), (3, 0), (6, 1)):
        other = loader(num_workers=workers, **options)
        other.start_from(start)
        found = take(other, 8 - start)
        assert all(same(one, two) for one, two in zip(expected[start:], found, strict=True))


def test_a_batch_says_what_it_holds():
    batches = take(loader(), 12)
    for k, batch in enumerate(batches):
        assert len(batch) == 4 and batch.images.shape == (4, 3, 1, 4)
        assert batch.epoch == k / 5
        assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()
        assert batch.labels.tolist() == (batch.indices % CLASSES).tolist()
        assert batch.targets.tolist() == batch.labels.tolist() and batch.targets.dtype == torch.int64
        assert list(batch.names) == [f"toy, image {i}" for i in batch.indices.tolist()]
        assert batch.negatives is None
    first = torch.cat([batch.indices for batch in batches[:5]]).tolist()
    second = torch.cat([batch.indices for batch in batches[5:10]]).tolist()
    assert len(set(first)) == len(set(second)) == 20 and first != second
    assert loader().num_classes == CLASSES and loader().batches_per_epoch == 5


def test_every_showing_has_random_numbers_of_its_own():
    batches = take(loader(num_workers=2), 12)
    for number in (1, 2, 3):
        values = torch.cat([batch.images[:, 0, 0, number] for batch in batches]).tolist()
        assert len(set(values)) == len(values)


def test_kept_views_are_the_same_batches():
    asked = [take(loader(views=2, negatives=3, keep_views=keep), 20) for keep in (False, True)]
    for plain, kept in zip(*asked, strict=True):
        assert torch.equal(plain.images, kept.images) and torch.equal(plain.negatives, kept.negatives)
        assert plain.view_keys == kept.view_keys and plain.epoch == kept.epoch
    read = []
    counting = loader(transform=lambda image: read.append(1) or draw(image), views=2, keep_views=True)
    take(counting, 20)
    assert len(read) == len({key[:2] for batch in asked[0] for key in batch.view_keys}) < 20 * 4


def test_loading_leaves_the_global_generators_alone():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    random.seed(5)
    before = states()
    take(loader(**EVERYTHING), 3)
    assert states() == before


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_split_the_batch_of_a_single_process(world_size):
    alone = take(loader(), 6)
    ranks = [take(loader(rank=rank, world_size=world_size), 6) for rank in range(world_size)]
    for k, batch in enumerate(alone):
        parts = [shares[k] for shares in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert [part.epoch for part in parts] == [batch.epoch] * world_size


# Repeated augmentation


def test_repeats_stand_in_a_row_and_ranks_take_turns():
    one = list(itertools.islice(EpochBatches(10, 4, seed=0, repeats=3), 2))
    records = [key.record for batch in one for key in batch]
    assert records[0] == records[1] == records[2] != records[3] == records[4] == records[5]
    ranks = [
        list(itertools.islice(EpochBatches(10, 4, seed=0, rank=rank, world_size=2, repeats=3), 2))
        for rank in (0, 1)
    ]
    for k, batch in enumerate(one):
        assert ranks[0][k] == batch[0::2] and ranks[1][k] == batch[1::2]
    assert len({key.position for batch in one for key in batch}) == 8


def test_repeats_follow_timms_sampler():
    """Each rank's share of an epoch, given the same permutation, is that of DeiT's sampler."""
    size, world_size, total = 512, 2, 32
    order = [key.record for batch in itertools.islice(EpochBatches(size, total, seed=1), 16) for key in batch]
    for rank in range(world_size):
        theirs = timm.data.distributed_sampler.RepeatAugSampler(
            range(size), world_size, rank, shuffle=False, num_repeats=3
        )
        ours = EpochBatches(size, total, seed=1, rank=rank, world_size=world_size, repeats=3)
        found = [key.record for batch in itertools.islice(ours, ours.batches_per_epoch) for key in batch]
        assert found == [order[i] for i in theirs]


def test_repeats_show_a_share_of_the_records_per_epoch():
    stream = EpochBatches(20, 4, seed=0, repeats=3)
    shown = {key.record for batch in itertools.islice(stream, stream.batches_per_epoch) for key in batch}
    assert stream.batches_per_epoch == 5 and len(shown) == 7
    with pytest.raises(ConfigError, match="repeats=0"):
        loader(repeated_augmentation=0)


# Targets and mixing


def test_smoothed_targets():
    (batch,) = take(loader(label_smoothing=0.3), 1)
    expected = torch.full((4, 3), 0.1)
    expected[torch.arange(4), batch.labels] = 0.8
    torch.testing.assert_close(batch.targets, expected)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixed_images_and_targets_agree(mode):
    """Mixed pixels tell the weight: image i is λ of its own value and 1 - λ of its partner's."""

    def flat(image):
        return torch.full((3, 8, 8), image.getpixel((0, 0))[0] / 255.0)

    mixup = dict(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode)
    shares = []
    for batch in take(loader(transform=flat, total_batch_size=6, mixup=mixup, seed=1), 9):
        own = batch.indices / 255.0
        other = own.flip(0)
        weight = (batch.images.mean((1, 2, 3)) - other) / (own - other)
        one_hot = torch.nn.functional.one_hot(batch.labels, CLASSES).float()
        expected = weight[:, None] * one_hot + (1 - weight[:, None]) * one_hot.flip(0)
        torch.testing.assert_close(batch.targets, expected, atol=2e-4, rtol=0)
        assert batch.labels.tolist() == (batch.indices % CLASSES).tolist()
        shares += weight.tolist()
    assert len({round(share, 4) for share in shares}) > 5


def test_mixing_is_timms_under_a_seed_of_the_batch():
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    settings = dict(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem")
    mixer = LabelMixer(3, 4, seed=5, mixup=settings, label_smoothing=0.1)
    theirs = timm.data.Mixup(**settings, label_smoothing=0.1, num_classes=3)
    found = {position: mixer(images.clone(), labels, position) for position in (0, 4, 8)}
    for position, (mixed, targets) in found.items():
        with batch_rng(5, position):
            expected, expected_targets = theirs(images.clone(), labels)
        assert torch.equal(mixed, expected) and torch.equal(targets, expected_targets)
    assert not torch.equal(found[0][0], found[4][0]) and not torch.equal(found[4][0], found[8][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_batch_size": 5}, "an even number of images per process, not 5.*change total_batch_size"),
        ({"total_batch_size": 6, "world_size": 2, "rank": 0}, "per process, not 3"),
        ({"mixup": dict(mixup_alfa=1.0)}, "mixup has no 'mixup_alfa'; it takes mixup_alpha, cutmix_alpha"),
        ({"mixup": dict(num_classes=3)}, "mixup has no 'num_classes'"),
        ({"mixup": dict(mixup_alpha=0.0)}, "mixes nothing"),
        ({"mixup": dict(mode="half")}, "mixup.mode is 'half'"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"negatives": -1}, "negatives=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"keep_views": True}, "keep_views=True keeps the views of each image; set views"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        loader(**{"mixup": dict(mixup_alpha=0.8), **options})


def test_an_odd_batch_is_fine_without_mixing():
    assert len(take(loader(total_batch_size=5), 1)[0]) == 5


# Negatives


def test_negatives_are_of_other_classes_and_without_repetition():
    for batch in take(loader(negatives=15, num_workers=2), 10):
        assert batch.negatives.shape == (4, 15) and batch.negatives.dtype == torch.int64
        for label, row in zip(batch.labels.tolist(), batch.negatives.tolist(), strict=True):
            assert all(LABELS[position] != label for position in row)
            assert len(set(row)) == 15


def test_negatives_repeat_only_where_there_are_too_few():
    sampler = NegativeSampler(LABELS, 40, seed=0)
    drawn = sampler.draw(1, 0)
    assert len(drawn) == 40 and set(LABELS[drawn]) <= {0, 2}


def test_negatives_are_uniform_over_all_other_images():
    labels = np.array([0, 0, 1, 2, 2, 2, 1])
    sampler = NegativeSampler(labels, 1, seed=0)
    drawn = np.array([sampler.draw(2, position)[0] for position in range(4000)])
    counts = np.bincount(drawn, minlength=7)
    assert counts[3:6].sum() == 0
    assert counts[[0, 1, 2, 6]] == pytest.approx([1000] * 4, rel=0.12)
    assert np.array_equal(sampler.draw(0, 9), sampler.draw(0, 9))


def test_negatives_need_another_class():
    one = ArrayDataset("one", ["a", "b"], [0, 0], np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(ConfigError, match="has one class only"):
        loader(one, total_batch_size=2, negatives=1)


# Mistakes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_arrives_as_what_it_is(num_workers):
    with pytest.raises(DatasetError) as error:
        take(loader(FRAGILE, num_workers=num_workers), 20)
    assert str(error.value) == "image 7 is broken"
    with pytest.raises(DatasetError, match=r"^image 7 is broken$"):
        list(build_classification_test_loader(FRAGILE, draw, 4, num_workers))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: image, "the transform made Image of toy, image"),
        (lambda image: torch.zeros(3, 4, 4, dtype=torch.uint8), r"made torch.uint8 \(3, 4, 4\) of toy"),
        (lambda image: torch.zeros(1, 4, 4), r"made torch.float32 \(1, 4, 4\)"),
        (
            lambda image: torch.zeros(3, 4, 4 + image.getpixel((0, 0))[0] % 2),
            "images of different sizes: .* it must crop or resize to one",
        ),
    ],
)
def test_transforms_that_make_something_else(transform, message):
    with pytest.raises(ConfigError, match=message):
        take(loader(transform=transform), 3)


def test_fewer_images_than_a_batch():
    with pytest.raises(DatasetError, match="has 23 images, fewer than one batch"):
        loader(total_batch_size=24)


# Evaluation


def test_the_test_loader_shows_each_image_once_in_order():
    stream = build_classification_test_loader(DATA, draw, batch_size=5, num_workers=2)
    batches = list(stream)
    assert len(stream) == 5 == len(batches)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(23))
    assert torch.equal(batches[4].targets, batches[4].labels) and len(batches[4]) == 3
    with pytest.raises(ConfigError, match="batch_size=0"):
        build_classification_test_loader(DATA, draw, batch_size=0)


# timm's augmentation


@pytest.mark.parametrize(
    "augmentation",
    [
        dict(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel", interpolation="bicubic"),
        dict(auto_augment="3a", color_jitter=0.3, interpolation="bicubic"),
    ],
    ids=["DeiT", "3-Augment"],
)
def test_timms_augmentation_is_the_same_in_workers_and_after_a_restart(augmentation):
    transform = timm.data.create_transform(32, is_training=True, **augmentation)
    data = DigitImages("val")
    expected = take(loader(data, transform, 8), 4)
    other = loader(data, transform, 8, num_workers=2)
    other.start_from(1)
    assert all(same(one, two) for one, two in zip(expected[1:], take(other, 3), strict=True))
    assert len({batch.images.sum().item() for batch in expected}) == 4


def test_lazy_config_builds_loaders():
    config = OmegaConf.create(flags={"allow_objects": True})
    config.train = LazyCall(build_classification_train_loader)(
        dataset=LazyCall(DigitImages)(split="train", size=16),
        transform=LazyCall(timm.data.create_transform)(
            input_size=16,
            is_training=True,
            scale=(0.7, 1.0),
            color_jitter=None,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
        total_batch_size=4,
        mixup=dict(mixup_alpha=0.0, cutmix_alpha=1.0, cutmix_minmax=(0.2, 0.8)),
        label_smoothing=0.1,
    )
    config.test = LazyCall(build_classification_test_loader)(
        dataset=LazyCall(DigitImages)(split="val", size=16),
        transform=LazyCall(timm.data.create_transform)(input_size=16),
        batch_size=7,
    )
    (batch,) = take(instantiate(config.train), 1)
    assert batch.images.shape == (4, 3, 16, 16) and batch.targets.shape == (4, 10)
    assert next(iter(instantiate(config.test))).images.shape == (7, 3, 16, 16)
