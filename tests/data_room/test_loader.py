"""Loaders: batches are pure functions of seed, position and rank, and errors arrive as what they are."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import pickle
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, instantiate
from omegaconf import ListConfig, OmegaConf

from mokd_det.data import (
    DetrDatasetMapper,
    build_test_loader,
    build_train_loader,
    detr_train_augmentation,
    register_coco_format,
)
from mokd_det.data.sampling import EpochBatches, drawn, sample_rng
from mokd_det.data.stream import build_share_loader
from mokd_det.errors import ConfigError, DatasetError

RECORDS = [{"image_id": i, "annotations": [{"iscrowd": 0}] if i % 3 else []} for i in range(23)]


def draw(record):
    """A mapper that shows all three generators' state."""
    return {
        "image_id": record["image_id"],
        "python": random.random(),
        "numpy": float(np.random.uniform()),  # noqa: NPY002
        "torch": float(torch.rand(())),
    }


def fail_on_seven(record):
    if record["image_id"] == 7:
        raise DatasetError("image 7 is broken")
    return record


def crash_on_seven(record):
    if record["image_id"] == 7:
        raise RuntimeError("a bug")
    return record


def take(loader, count):
    return list(itertools.islice(loader, count))


def ids(batches):
    return [[sample["image_id"] for sample in batch] for batch in batches]


def train_loader(mapper=draw, total_batch_size=4, **options):
    return build_train_loader(RECORDS, mapper, total_batch_size, **options)


def test_an_epoch_shows_distinct_records_and_the_next_one_another_order():
    loader = train_loader()
    assert (loader.batch_size, loader.batches_per_epoch) == (4, 5)
    first, second = (
        list(itertools.chain(*ids(batches))) for batches in np.split(np.array(take(loader, 10)), 2)
    )
    assert len(set(first)) == 20 and len(set(second)) == 20
    assert first != second and first != sorted(first)


def test_every_record_is_shown_sooner_or_later():
    assert set(itertools.chain(*ids(take(train_loader(), 25)))) == set(range(23))


def test_number_of_workers_changes_nothing():
    alone = take(train_loader(num_workers=0), 7)
    assert take(train_loader(num_workers=2), 7) == alone
    assert take(train_loader(num_workers=1), 7) == alone


@pytest.mark.parametrize("start", [1, 4, 5, 13])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_start_from_equals_skipping(start, num_workers):
    expected = take(train_loader(), start + 3)[start:]
    loader = train_loader(num_workers=num_workers)
    loader.start_from(start)
    assert take(loader, 3) == expected


def test_each_iteration_starts_anew():
    loader = train_loader()
    one, two = iter(loader), iter(loader)
    assert next(one) == next(two)
    assert next(one) == next(two)
    assert ids([next(one)]) != ids(take(loader, 1))


def test_seed_decides_order_and_augmentation():
    assert take(train_loader(seed=1), 5) == take(train_loader(seed=1), 5)
    one, two = take(train_loader(seed=1), 5), take(train_loader(seed=2), 5)
    assert ids(one) != ids(two)
    assert {s["numpy"] for b in one for s in b}.isdisjoint(s["numpy"] for b in two for s in b)


def test_no_two_samples_share_random_numbers():
    samples = [sample for batch in take(train_loader(num_workers=2), 12) for sample in batch]
    for key in ("python", "numpy", "torch"):
        assert len({sample[key] for sample in samples}) == len(samples)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_split_the_batch_of_a_single_process(world_size):
    alone = take(train_loader(), 6)
    ranks = [take(train_loader(rank=rank, world_size=world_size), 6) for rank in range(world_size)]
    assert [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)] == alone


def test_two_ranks_are_disjoint_and_cover_the_epoch():
    records = RECORDS[:20]
    shares = [
        set(itertools.chain(*ids(take(build_train_loader(records, draw, 4, rank=rank, world_size=2), 5))))
        for rank in range(2)
    ]
    assert shares[0].isdisjoint(shares[1])
    assert shares[0] | shares[1] == set(range(20))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(num_workers):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = states()
    take(train_loader(num_workers=num_workers), 3)
    assert states() == before


def test_sample_rng_restores_after_an_error():
    random.seed(6)
    before = random.getstate()
    with pytest.raises(KeyError), sample_rng(0, 1):
        random.random()
        raise KeyError
    assert random.getstate() == before


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "build",
    [
        train_loader,
        lambda mapper, num_workers: build_test_loader(RECORDS, mapper, batch_size=2, num_workers=num_workers),
    ],
    ids=["train", "test"],
)
def test_dataset_error_keeps_class_and_message(build, num_workers):
    with pytest.raises(DatasetError) as error:
        take(build(fail_on_seven, num_workers=num_workers), 20)
    assert str(error.value) == "image 7 is broken"


def test_batches_before_the_broken_one_still_arrive():
    expected = take(train_loader(lambda record: record), 25)
    broken = next(k for k, batch in enumerate(ids(expected)) if 7 in batch)
    stream = iter(train_loader(fail_on_seven, num_workers=2))
    assert [next(stream) for _ in range(broken)] == expected[:broken]
    with pytest.raises(DatasetError):
        next(stream)


def test_bugs_of_a_mapper_are_not_dressed_as_data_errors():
    with pytest.raises(RuntimeError, match="a bug"):
        take(train_loader(crash_on_seven), 20)


def test_mapper_that_returns_nothing():
    with pytest.raises(DatasetError, match="the mapper returned nothing for record"):
        take(train_loader(lambda record: None), 1)


def test_filter_empty_on_records():
    shown = set(itertools.chain(*ids(take(train_loader(filter_empty=True), 12))))
    assert shown == {i for i in range(23) if i % 3}


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"total_batch_size": 24}, DatasetError, "has 23 images, fewer than one batch .total_batch_size=24"),
        ({"total_batch_size": 0}, ConfigError, "total_batch_size=0: must be a positive multiple"),
        (
            {"total_batch_size": 3, "world_size": 2, "rank": 0},
            ConfigError,
            r"multiple of the number of processes \(2\)",
        ),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"num_workers": -1}, ConfigError, "num_workers=-1"),
    ],
)
def test_impossible_settings(options, error, message):
    with pytest.raises(error, match=message):
        train_loader(**options)


def test_negative_start():
    with pytest.raises(ConfigError, match="first batch is -1"):
        train_loader().start_from(-1)


def test_empty_data():
    with pytest.raises(DatasetError, match="the data set is empty"):
        build_train_loader([], draw, 1)
    with pytest.raises(DatasetError, match="no image with boxes"):
        build_train_loader([{"image_id": 1, "annotations": []}], draw, 1, filter_empty=True)


def test_records_are_serialised_and_not_shared_with_the_mapper():
    def spoil(record):
        record["annotations"].clear()
        return record

    records = [{"image_id": i, "annotations": [i]} for i in range(4)]
    take(build_train_loader(records, spoil, 2), 4)
    assert [record["annotations"] for record in records] == [[0], [1], [2], [3]]
    loader = build_train_loader(records, spoil, 2)
    assert [len(s["annotations"]) for b in take(loader, 4) for s in b] == [0] * 8


def test_samples_can_be_sent_to_spawned_workers():
    loader = train_loader(lambda record: record["image_id"])
    again = pickle.loads(pickle.dumps(loader))
    assert take(again, 3) == take(loader, 3)


def test_positions_count_all_ranks():
    stream = EpochBatches(10, 4, seed=0, rank=1, world_size=2)
    assert [[key.position for key in batch] for batch in take(stream, 3)] == [[2, 3], [6, 7], [10, 11]]


def test_test_loader_shows_each_record_once_in_order():
    loader = build_test_loader(RECORDS, lambda record: record, batch_size=4, num_workers=2)
    assert len(loader) == 6
    assert list(itertools.chain(*ids(loader))) == list(range(23))
    assert ids(loader) == ids(loader)


def test_test_loader_settings():
    with pytest.raises(ConfigError, match="batch_size=0"):
        build_test_loader(RECORDS, draw, batch_size=0)
    with pytest.raises(ConfigError, match="num_workers=-2"):
        build_test_loader(RECORDS, draw, num_workers=-2)


@pytest.fixture
def names(coco_files):
    files = coco_files()
    for name in ("tiny_one", "tiny_two"):
        register_coco_format(name, files.json_file, files.image_root)
    return ["tiny_one", "tiny_two"]


def test_registered_names_and_lists_of_them(names):
    assert build_train_loader(names[0], draw, 1).batches_per_epoch == 3
    assert build_train_loader(names, draw, 1).batches_per_epoch == 6
    assert build_train_loader(ListConfig(names), draw, 1).batches_per_epoch == 6
    assert len(build_test_loader(names[0], draw)) == 3


def test_real_augmentation_is_the_same_in_workers_and_after_a_restart(names):
    def samples(num_workers, start):
        mapper = DetrDatasetMapper(
            is_train=True,
            augmentation=detr_train_augmentation(
                short_sides=(32, 48), crop_short_sides=(40,), crop_min_size=24, crop_max_size=32
            ),
        )
        loader = build_train_loader(names, mapper, 2, num_workers=num_workers, seed=3)
        loader.start_from(start)
        return [sample for batch in take(loader, 6 - start) for sample in batch]

    reference = samples(0, 0)
    assert len({tuple(sample["image"].shape) for sample in reference}) > 1
    for other in (samples(2, 0), [*reference[:4], *samples(1, 2)]):
        for one, two in zip(reference, other, strict=True):
            assert torch.equal(one["image"], two["image"])
            assert torch.equal(one["instances"].gt_boxes.tensor, two["instances"].gt_boxes.tensor)
            assert torch.equal(one["instances"].gt_classes, two["instances"].gt_classes)


def test_workers_end_with_the_error_not_with_the_garbage_collector():
    def train():
        stream = iter(train_loader(fail_on_seven, num_workers=2))
        for _ in stream:
            assert len(multiprocessing.active_children()) == 2

    gc.disable()
    try:
        with contextlib.suppress(DatasetError):
            train()
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


def test_lazy_config_builds_loaders(names):
    config = OmegaConf.create(flags={"allow_objects": True})
    config.train = LazyCall(build_train_loader)(
        dataset=names,
        mapper=LazyCall(DetrDatasetMapper)(
            is_train=True,
            augmentation=LazyCall(detr_train_augmentation)(short_sides=[32], crop_prob=0.0, flip_prob=0.0),
        ),
        total_batch_size=2,
        seed=4,
    )
    config.test = LazyCall(build_test_loader)(
        dataset=names[0], mapper=LazyCall(DetrDatasetMapper)(is_train=False, augmentation=[])
    )
    batch = next(iter(instantiate(config.train)))
    assert [min(sample["image"].shape[1:]) for sample in batch] == [32, 32]
    assert [tuple(b[0]["image"].shape) for b in instantiate(config.test)] == [
        (3, 48, 32),
        (3, 30, 40),
        (3, 24, 24),
    ]


KEPT = """
import sys
from mokd_det.data.stream import build_share_loader
sys.kept = iter(build_share_loader(list(range(8)), num_workers=2))
print(next(sys.kept))
"""


def test_a_loader_that_is_referred_to_until_the_end_does_not_keep_the_program_from_ending():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[0]\n")
    assert "Traceback" not in done.stderr


def test_torch_does_not_interrupt_the_program_at_any_line(monkeypatch):
    """Its handler of lost workers raises between any two lines; another program's handler stays."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
        assert list(build_share_loader(list(range(2)), num_workers=1)) == [[0], [1]]
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL

        # Also where a plain loader of torch has installed it before.
        monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
        list(torch.utils.data.DataLoader(list(range(2)), num_workers=1))
        assert signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL
        assert list(build_share_loader(list(range(2)), num_workers=1)) == [[0], [1]]
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL

        def own(*_: object) -> None: ...

        signal.signal(signal.SIGCHLD, own)
        assert list(build_share_loader(list(range(2)), num_workers=1)) == [[0], [1]]
        assert signal.getsignal(signal.SIGCHLD) is own
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_draws_are_nested_and_told_apart_by_their_seed():
    few, more, other = (drawn(1000, {"count": n, "seed": s}) for n, s in ((20, 3), (200, 3), (20, 4)))
    assert len(few) == len(set(few)) == 20 and few == sorted(few)
    assert set(few) < set(more) and set(few) != set(other)
    assert drawn(5, None) == drawn(5, {"count": 5}) == list(range(5))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ({"count": 6}, r"draw\.count=6: must be 1 to 5"),
        ({"count": 0}, r"draw\.count=0"),
        ({"count": 1, "seed": -1}, r"draw\.seed=-1"),
        ({"number": 1}, "must have count"),
    ],
)
def test_wrong_draws_are_named(draw, message):
    with pytest.raises(ConfigError, match=message):
        drawn(5, draw)
