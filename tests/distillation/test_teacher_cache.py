"""The teacher's taps kept in files: equal numbers, and an answer to everything that can be wrong with files."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mokd_det.classification import ClassificationBatch, ImageClassifier
from mokd_det.data.sampling import SampleKey
from mokd_det.data.view_key import view_key
from mokd_det.distillation import (
    OFD,
    Combined,
    Distiller,
    HungarianTokenMatching,
    LogitDistillation,
    MaskedKD,
    MoKD,
    NoDistillation,
    NormDirection,
    TeacherCache,
)
from mokd_det.distillation.tap_entries import all_finite, decode_rows, encode_rows
from mokd_det.distillation.tap_store import RowKey, TapStore
from mokd_det.distillation.taps import TapSource
from mokd_det.engine import AtomicCheckpointer
from mokd_det.errors import CacheError, ConfigError
from mokd_det.layers.tap_point import FeatureMap
from tests.classification.toy import ToyCnn, toy_batch
from tests.distillation.cached_views import (
    OrderedLoader,
    distiller,
    keyed_batch,
    rank_worker,
    shuffled_loader,
    trainer,
)
from tests.engine.helpers import differences, snapshot
from tests.engine.toy import toy_item
from tests.forks import spawn

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def flat(taps: Any) -> dict[str, Tensor]:
    """Every tensor of the taps by a name."""
    found = {}
    for name, value in taps.items():
        if not isinstance(value, list):
            found[name] = value
            continue
        for level in value:
            found[f"{name}{level.stride}"] = level.tensor
            if level.padding_mask is not None:
                found[f"{name}{level.stride} mask"] = level.padding_mask
    return found


def assert_same(first: Any, second: Any, **tolerance: float) -> None:
    first, second = flat(first), flat(second)
    assert set(first) == set(second)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, **{"rtol": 0, "atol": 0, **tolerance})


# --- rows ------------------------------------------------------------------------------------------------------


def some_taps(batch: int) -> dict[str, Any]:
    masks = torch.rand(batch, 3, 5) > 0.5
    return {
        "maps": [
            FeatureMap(torch.randn(batch, 4, 3, 5), masks, 8),
            FeatureMap(torch.randn(batch, 4, 1, 2), None, 16),
        ],
        "tokens": torch.randn(batch, 7, 3),
        "head": torch.randn(2, batch, 7, 3),
        "vectors": torch.randn(batch, 9),
    }


def test_rows_give_back_what_they_were_made_from_in_any_order() -> None:
    taps = some_taps(3)
    rows = encode_rows(taps, torch.float32)
    assert rows.dtype == torch.uint8 and rows.shape[0] == 3 and rows.shape[1] % 64 == 0
    assert_same(decode_rows(rows, CPU, torch.float32), taps)
    order = torch.tensor([2, 0])
    swapped = decode_rows(rows[order], CPU, torch.float64)
    assert torch.equal(swapped["head"], taps["head"][:, order].double())
    assert torch.equal(swapped["maps"][0].padding_mask, taps["maps"][0].padding_mask[order])
    assert [level.stride for level in swapped["maps"]] == [8, 16] and swapped["maps"][1].padding_mask is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_in_half_precision_are_rounded_once(dtype: torch.dtype) -> None:
    taps = some_taps(2)
    rounded = decode_rows(encode_rows(taps, dtype), CPU, torch.float32)
    assert torch.equal(rounded["tokens"], taps["tokens"].to(dtype).float())
    assert_same(decode_rows(encode_rows(rounded, dtype), CPU, torch.float32), rounded)


def test_a_number_too_large_for_the_type_is_named() -> None:
    taps = {"taps/neck": torch.full((1, 2, 3), 7e4)}
    with pytest.raises(CacheError, match=r"'taps/neck' reaches 7e\+04.*float16.*precision=bfloat16"):
        encode_rows(taps, torch.float16)
    encode_rows(taps, torch.bfloat16)


def test_infinite_numbers_pass_through() -> None:
    taps = {"neck": torch.tensor([[[torch.inf, torch.nan]]])}
    found = decode_rows(encode_rows(taps, torch.float16), CPU, torch.float32)["neck"]
    assert torch.equal(found.isnan(), taps["neck"].isnan()) and found[0, 0, 0] == torch.inf
    assert not all_finite(taps) and all_finite(some_taps(1))


def test_rows_of_different_contents_make_no_batch() -> None:
    with_mask, without = some_taps(1), some_taps(1)
    without["maps"][0] = FeatureMap(without["maps"][0].tensor, None, 8)
    rows = [encode_rows(taps, torch.float32) for taps in (with_mask, without)]
    length = min(r.shape[1] for r in rows)
    with pytest.raises(CacheError, match="depend on more than the image"):
        decode_rows(torch.cat([r[:, :length] for r in rows]), CPU, torch.float32)


# --- training --------------------------------------------------------------------------------------------------


def test_training_with_a_float32_cache_is_bit_equal_to_training_without(folder: str) -> None:
    live = trainer(distiller())
    cached = trainer(distiller(TeacherCache(folder, precision="float32")))
    for run in (live, cached):
        run.train(0, 8)
    assert differences(snapshot(live), {**snapshot(cached)}) == []
    assert live.module.teacher.calls == 8 and cached.module.teacher.calls == 2


def test_views_that_take_turns_in_shuffled_batches(folder: str) -> None:
    live = trainer(distiller(), shuffled_loader(views=2))
    cached = trainer(distiller(TeacherCache(folder, precision="float32")), shuffled_loader(views=2))
    for run in (live, cached):
        run.train(0, 12)
    assert cached.module.teacher.calls == 4, "two views of eight images, four at a time"
    for name, value in live.module.state_dict().items():
        # an image's sums may be ordered otherwise at another place of the batch
        torch.testing.assert_close(cached.module.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_with_a_cache_that_knows_more_is_bit_equal(folder: str, tmp_path: Path) -> None:
    whole = trainer(distiller(TeacherCache(folder)))
    whole.train(0, 5)
    second = str(tmp_path / "second")
    first = trainer(distiller(TeacherCache(second)))
    first.train(0, 1)
    first.iter = 0
    AtomicCheckpointer(first.module.student, str(tmp_path), trainer=first, method=first.module.method).save(
        "model_0000000", iteration=0
    )
    # goes on a little before it is killed: what it adds is after the checkpoint
    first.train(1, 2)
    resumed = trainer(distiller(TeacherCache(second)))
    checkpointer = AtomicCheckpointer(
        resumed.module.student, str(tmp_path), trainer=resumed, method=resumed.module.method
    )
    checkpointer.resume()
    resumed.train(1, 5)
    assert resumed.module.teacher.calls == 0
    assert differences(snapshot(whole), snapshot(resumed)) == []


def test_reading_and_computing_give_the_same_rounded_numbers(folder: str) -> None:
    batch = OrderedLoader().batches[0]
    cache = TeacherCache(folder, precision="float16")
    model = distiller(cache)
    computed = model.prepare_batch(batch).teacher_taps
    read = model.prepare_batch(batch).teacher_taps
    assert model.teacher.calls == 1
    assert_same(computed, read)
    exact = distiller().prepare_batch(batch).teacher_taps
    assert_same(exact, read, rtol=2**-11, atol=1e-7)
    assert not torch.equal(exact["neck"], read["neck"])
    assert model.double().prepare_batch(batch).teacher_taps["neck"].dtype == torch.float64


def test_the_cache_follows_mixed_precision(folder: str) -> None:
    batch = OrderedLoader().batches[0]
    model = distiller(TeacherCache(folder, precision="float32"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached = model.prepare_batch(batch).teacher_taps
        live = distiller().prepare_batch(batch).teacher_taps
    assert cached["neck"].dtype == torch.float32 and torch.equal(cached["neck"], live["neck"].float())
    facts = json.loads(Path(folder, "cache.json").read_text())
    assert facts["the precision of the teacher's forward"] == "float32, autocast bfloat16"


def test_a_hungarian_matching_gets_the_predictions_from_the_cache(folder: str) -> None:
    batch = OrderedLoader().batches[0]
    taps = {"neck": "neck"}
    prediction_taps = {
        "logits": {"path": "decoder.1", "channels": 12, "num_tokens": 5, "num_levels": 1},
        "boxes": {"path": "box", "channels": 4, "num_tokens": 5},
    }
    prediction_taps = {
        name: {"student": {**tap, "channels": min(8, tap["channels"])}, "teacher": tap}
        for name, tap in prediction_taps.items()
    }
    models = [
        distiller(
            cache,
            taps=taps,
            token_matching=HungarianTokenMatching(cost_class=0.0),
            prediction_taps=prediction_taps,
        ).eval()
        for cache in (None, TeacherCache(folder, precision="float32"))
    ]
    for _ in range(2):
        live, cached = (model.prepare_batch(batch) for model in models)
        assert set(cached.teacher_predictions) == {"logits", "boxes"}
        assert_same(live.teacher_predictions, cached.teacher_predictions)
        assert_same(live.teacher_taps, cached.teacher_taps)


# --- padding ---------------------------------------------------------------------------------------------------


def test_an_image_is_kept_apart_by_the_size_it_is_padded_to(folder: str) -> None:
    small, large = torch.full((3, 32, 32), 90.0), torch.full((3, 48, 32), 10.0)
    model, live = distiller(TeacherCache(folder, precision="float32")), distiller()
    for images in ([small], [small, large], [small], [large, small]):
        keyed = keyed_batch(images)
        for item in keyed:
            item["view_key"] = view_key(SampleKey(0, int(item["image"] is large), 0), item["image"])
        assert_same(live.prepare_batch(keyed).teacher_taps, model.prepare_batch(keyed).teacher_taps)
    assert model.teacher.calls == 2
    alone, padded = (live.prepare_batch(keyed_batch(images)) for images in ([small], [small, large]))
    assert not torch.equal(alone.teacher_taps["neck"][0], padded.teacher_taps["neck"][0]), "it sees padding"


def test_what_is_missing_of_a_batch_is_computed_at_the_batchs_padded_size(folder: str) -> None:
    images = [torch.rand(3, *size) * 255 for size in ((32, 64), (48, 32), (32, 32), (16, 16))]
    batch = keyed_batch(images)
    model, live = distiller(TeacherCache(folder, precision="float32")), distiller()
    model.prepare_batch([batch[0], batch[1], batch[2]])
    model.prepare_batch([batch[0], batch[1]])
    sizes: list[int] = []
    model.teacher.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    found = model.prepare_batch(batch).teacher_taps
    assert sizes == [3], "the missing image and the two that make the padded size"
    assert_same(live.prepare_batch(batch).teacher_taps, found, rtol=1e-5, atol=1e-6)
    assert model.prepare_batch(batch) is not None and sizes == [3]


# --- stale -----------------------------------------------------------------------------------------------------


def stale_message(folder: str, change: dict[str, Any]) -> str:
    batch = OrderedLoader().batches[0]
    distiller(TeacherCache(folder)).prepare_batch(batch)
    precision = change.pop("precision", "float16")
    weights = change.pop("weights", None)
    facts = change.pop("facts", None)
    model = distiller(TeacherCache(folder, precision=precision), **change)
    if weights is not None:
        model.teacher.queries.data += weights
    with pytest.raises(CacheError) as caught:
        model.open_teacher_cache(facts)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": 1e-6}, "the digest of the teacher's weights was "),
        ({"precision": "float32"}, "model.teacher_cache.precision was float16 and is float32"),
        ({"taps": {"neck": "neck"}}, f"model.taps.head was {TapSource('head')} and is absent"),
        (
            {"teacher_precision": "bfloat16"},
            "the precision of the teacher's forward was float32 and is float32, autocast bfloat16",
        ),
        ({"facts": {"dataloader.train.seed": "1"}}, "dataloader.train.seed was absent and is 1"),
    ],
)
def test_a_stale_cache_is_refused_with_what_differs(folder: str, change: dict[str, Any], named: str) -> None:
    message = stale_message(folder, change)
    assert f"the teacher cache '{folder}' was made for something else: " in message
    assert named in message and "Delete the folder" in message and "overwrite=True" in message


def test_a_stale_cache_can_be_replaced(folder: str) -> None:
    batch = OrderedLoader().batches[0]
    distiller(TeacherCache(folder)).prepare_batch(batch)
    changed = distiller(TeacherCache(folder, overwrite=True))
    changed.teacher.queries.data += 1
    live = copy.deepcopy(changed.teacher)
    changed.prepare_batch(batch)
    assert changed.teacher.calls == live.calls + 1, "nothing of the old one is used"
    again = distiller(TeacherCache(folder, overwrite=True))
    again.teacher.queries.data += 1
    again.prepare_batch(batch)
    assert again.teacher.calls == 0, "what fits is kept"


def test_a_cache_without_its_description_or_with_a_broken_one(folder: str) -> None:
    distiller(TeacherCache(folder)).prepare_batch(OrderedLoader().batches[0])
    file = Path(folder, "cache.json")
    file.write_text("{")
    with pytest.raises(CacheError, match="cannot be read"):
        distiller(TeacherCache(folder)).open_teacher_cache()
    file.unlink()
    with pytest.raises(CacheError, match="says what it was made for, is missing"):
        distiller(TeacherCache(folder)).open_teacher_cache()
    distiller(TeacherCache(folder, overwrite=True)).open_teacher_cache()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be used \(Not a directory|cannot be used \(File exists"):
        distiller(TeacherCache(str(tmp_path / "file" / "cache"))).open_teacher_cache()


def test_other_pixels_under_a_known_key_are_an_error(folder: str) -> None:
    model = distiller(TeacherCache(folder))
    batch = OrderedLoader().batches[0]
    model.prepare_batch(batch)
    image, view, _ = batch[1]["view_key"]
    other = 255 - batch[1]["image"]
    changed = [batch[0], {**batch[1], "image": other, "view_key": view_key(SampleKey(0, image, view), other)}]
    with pytest.raises(CacheError, match=rf"image {image}, view {view}, made from other pixels"):
        model.prepare_batch(changed)


# --- files -----------------------------------------------------------------------------------------------------


def filled(folder: str, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    """A batch, and its taps as they went into the cache."""
    batch = OrderedLoader().batches[0]
    return batch, distiller(TeacherCache(folder, **options)).prepare_batch(batch).teacher_taps


@pytest.mark.parametrize("damage", ["a bit", "the end", "the file"])
def test_damaged_rows_are_computed_anew_and_said(
    folder: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch, taps = filled(folder)
    rows = Path(folder, "0000.rows")
    content = bytearray(rows.read_bytes())
    if damage == "a bit":
        content[len(content) // 3] ^= 1
        rows.write_bytes(content)
    elif damage == "the end":
        rows.write_bytes(content[: len(content) // 3])
    else:
        rows.unlink()
    model = distiller(TeacherCache(folder))
    with caplog.at_level(logging.WARNING):
        assert_same(taps, model.prepare_batch(batch).teacher_taps, rtol=1e-3, atol=1e-6)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == {"a bit": 1, "the end": 3, "the file": 4}[damage]
    assert all("are damaged in" in text and "computed anew" in text for text in said)
    assert model.teacher.calls == 1
    model.prepare_batch(batch)
    assert model.teacher.calls == 1, "they were added again"
    fresh = distiller(TeacherCache(folder))
    assert_same(taps, fresh.prepare_batch(batch).teacher_taps, rtol=1e-3, atol=1e-6)


def test_a_damaged_record_hides_one_image(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    batch, taps = filled(folder)
    index = Path(folder, "0000.index")
    content = bytearray(index.read_bytes())
    content[len(content) // 4 + 3] ^= 8
    index.write_bytes(content)
    model = distiller(TeacherCache(folder))
    with caplog.at_level(logging.WARNING):
        assert_same(taps, model.prepare_batch(batch).teacher_taps, rtol=1e-3, atol=1e-6)
    assert "record 1 of" in caplog.text and model.teacher.calls == 1


def test_what_a_kill_left_behind_is_swept_away(folder: str) -> None:
    batch, taps = filled(folder)
    rows, index = Path(folder, "0000.rows"), Path(folder, "0000.index")
    sizes = rows.stat().st_size, index.stat().st_size
    for file in (rows, index):
        with file.open("ab") as handle:
            handle.write(b"x" * 37)
    model = distiller(TeacherCache(folder))
    assert_same(taps, model.prepare_batch(batch).teacher_taps)
    other = OrderedLoader().batches[1]
    first = model.prepare_batch(other).teacher_taps
    assert (rows.stat().st_size, index.stat().st_size) == (2 * sizes[0], 2 * sizes[1])
    fresh = distiller(TeacherCache(folder))
    assert_same(first, fresh.prepare_batch(other).teacher_taps)
    assert fresh.teacher.calls == 0


def row_of(number: int) -> Tensor:
    return torch.full((1, 2**14), number % 251, dtype=torch.uint8)


class Killed(BaseException):
    """What ends a process in the middle of a write, as far as its files can tell."""


@pytest.mark.parametrize("moment", [0, 1], ids=["in the rows", "in the index"])
def test_a_kill_within_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    store = TapStore(tmp_path, limit=2**20)
    keys = [RowKey(number, 0, 1, 1) for number in range(4)]
    store.write(keys[:2], [0] * 2, torch.cat([row_of(0), row_of(1)]))
    write, calls = os.write, []

    def killed(file: int, content: Any) -> int:
        calls.append(file)
        if len(calls) <= moment:
            return write(file, content)
        write(file, content[: len(content) // 3])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", killed)
        with pytest.raises(Killed):
            store.write(keys[2:], [0] * 2, torch.cat([row_of(2), row_of(3)]))
    # Seen by another process before the writer of the shard comes back.
    for number, key in enumerate(keys):
        assert (key in TapStore(tmp_path, limit=0)) is (number < 2)
    again = TapStore(tmp_path, limit=2**20)
    del store
    again.write(keys[2:], [0] * 2, torch.cat([row_of(2), row_of(3)]))
    last = TapStore(tmp_path, limit=0)
    for number, key in enumerate(keys):
        row = last.read(key)
        assert row is not None and torch.equal(row, row_of(number)[0])


def write_for_ever(store: TapStore, told: int) -> None:
    """Add rows in threes, and tell the parent each time."""
    number = len(store)
    while True:
        keys = [RowKey(number + place, 0, 1, 1) for place in range(3)]
        store.write(keys, [0] * 3, torch.cat([row_of(key.image) for key in keys]))
        os.write(told, b"x")
        number += 3


def test_sigkill_at_any_moment_leaves_only_whole_rows(tmp_path: Path) -> None:
    known = 0
    for attempt in range(8):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(TapStore(tmp_path, limit=2**40), told)
            finally:
                os._exit(1)
        os.read(ready, 1)
        time.sleep(0.004 * attempt)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, "it was still writing"
        os.close(ready)
        os.close(told)
        store = TapStore(tmp_path, limit=0)
        assert len(store) > known
        known = len(store)
        for number in range(known):
            row = store.read(RowKey(number, 0, 1, 1))
            assert row is not None and torch.equal(row, row_of(number)[0])
    assert [file.name for file in tmp_path.glob("*.rows")] == ["0000.rows"], "the dead writer's lock is gone"


def test_a_full_disk_ends_the_adding_and_not_the_training(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = distiller(TeacherCache(folder, precision="float32"))
    first, second = OrderedLoader().batches
    model.prepare_batch(first)
    size = Path(folder, "0000.rows").stat().st_size
    write = os.write

    def full(file: int, content: Any) -> int:
        if len(content) > 100:
            return write(file, content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING):
        found = [model.prepare_batch(second).teacher_taps for _ in range(2)]
    assert caplog.text.count("cannot be written to (No space left on device)") == 1
    assert_same(distiller().prepare_batch(second).teacher_taps, found[1])
    assert Path(folder, "0000.rows").stat().st_size == size


def test_the_limit_is_kept_and_said_once(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    loader = OrderedLoader()
    filled(folder + "_measured", precision="float32")
    batch_bytes = sum(f.stat().st_size for f in Path(folder + "_measured").glob("0000.*"))
    limit = 1.5 * batch_bytes
    model = distiller(TeacherCache(folder, limit_gib=limit / 2**30, precision="float32"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for batch in loader.batches:
                taps = model.prepare_batch(batch).teacher_taps
    assert_same(distiller().prepare_batch(loader.batches[1]).teacher_taps, taps)
    assert model.teacher.calls == 3, "the first batch is there, the second is computed each time"
    assert sum(f.stat().st_size for f in Path(folder).glob("0000.*")) <= limit
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "limit reached (model.teacher_cache.limit_gib) after 4 images" in said[0]
    mixed = [*loader.batches[1][:2], *loader.batches[0][:2]]
    assert_same(
        distiller().prepare_batch(mixed).teacher_taps,
        model.prepare_batch(mixed).teacher_taps,
        rtol=1e-5,
        atol=1e-6,
    )
    smaller = distiller(TeacherCache(folder, limit_gib=1e-9, precision="float32"))
    smaller.prepare_batch(loader.batches[0])
    assert smaller.teacher.calls == 0, "what is there is used whatever the limit"


# --- several processes -----------------------------------------------------------------------------------------


def test_two_runs_share_a_directory(folder: str) -> None:
    first, second = (distiller(TeacherCache(folder, precision="float32")) for _ in range(2))
    batches = OrderedLoader().batches
    taps = [first.prepare_batch(batches[0]).teacher_taps, second.prepare_batch(batches[1]).teacher_taps]
    assert sorted(file.name for file in Path(folder).glob("*.rows")) == ["0000.rows", "0001.rows"]
    assert_same(taps[1], first.prepare_batch(batches[1]).teacher_taps)
    assert_same(taps[0], second.prepare_batch(batches[0]).teacher_taps)
    assert first.teacher.calls == second.teacher.calls == 1


@pytest.mark.slow
def test_two_ranks_train_as_without_a_cache_and_read_each_others_rows(tmp_path: Path) -> None:
    spawn(rank_worker, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in ranks[0]["student"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, ranks[1]["student"][name]), name
    assert [rank["calls"] for rank in ranks] == [2, 2], "an epoch is two steps; the other two epochs are read"
    assert ranks[0]["shards"] == 2


# --- what can have no cache ------------------------------------------------------------------------------------


def test_methods_whose_teacher_depends_on_more_than_the_image_are_refused(folder: str) -> None:
    cache = TeacherCache(folder)
    with pytest.raises(ConfigError, match=r"cannot be used with MaskedKD: its teacher sees what the student"):
        distiller(cache, MaskedKD())
    with pytest.raises(ConfigError, match=r"cannot be used with OFD: its teacher normalises by the batch"):
        distiller(cache, OFD(batch_statistics_teacher=True))
    both = Combined({"ofd": OFD(batch_statistics_teacher=True), "kd": MoKD()})
    with pytest.raises(ConfigError, match=r"cannot be used with Combined: its teacher normalises"):
        distiller(cache, both)
    assert not OFD().teacher_sees_batch and not Combined({"kd": MoKD()}).teacher_sees_batch
    with pytest.raises(ConfigError, match="NoDistillation runs no teacher"):
        distiller(cache, NoDistillation())
    assert not Path(folder).exists()


def test_batches_that_do_not_say_what_they_show(folder: str) -> None:
    model = distiller(TeacherCache(folder))
    for views in (None, 1):
        batch = next(iter(shuffled_loader(views=views)))
        if views is None:
            with pytest.raises(CacheError, match=r"set dataloader\.train\.views=1"):
                model.prepare_batch(batch)
        else:
            model.prepare_batch(batch)
    with pytest.raises(CacheError, match=r"dataloader\.train\.views"):
        model.prepare_batch(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision='int8' is not one of 'float16', 'bfloat16', 'float32'"),
        ({"limit_gib": 0}, "limit_gib=0: must be above 0"),
        ({"directory": ""}, "directory is empty"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TeacherCache(**{"directory": "somewhere", **options})


# --- the rest --------------------------------------------------------------------------------------------------


def labelled_batch(first: int) -> ClassificationBatch:
    batch = toy_batch([toy_item(index, size=16) for index in range(first, first + 4)])
    keys = [view_key(SampleKey(0, first + i, 0), image) for i, image in enumerate(batch.images)]
    return ClassificationBatch(**{**vars(batch), "view_keys": keys})


def test_classifiers(folder: str) -> None:
    torch.manual_seed(0)
    models = [ImageClassifier(ToyCnn(), num_classes=5) for _ in range(2)]
    method = Combined({"kd": MoKD(), "kl": LogitDistillation()}, {"kd": ["pooled"], "kl": ["logits"]})
    cache = TeacherCache(folder, precision="float32")
    model = Distiller(*models, method, {"pooled": "pooled", "logits": "logits"}, teacher_cache=cache)
    batch = labelled_batch(0)
    live = model._prepare(batch, None).teacher_taps
    for _ in range(2):
        found = model.prepare_batch(batch).teacher_taps
        assert_same(live, found)
    cut = batch.select([3, 1])
    assert len(cut) == 2 and cut.names == [batch.names[3], batch.names[1]] and cut.epoch == batch.epoch
    assert torch.equal(cut.images, batch.images[[3, 1]]) and cut.negatives is None
    joined = ClassificationBatch(
        **{
            **vars(batch),
            "images": torch.cat([batch.images[:2], labelled_batch(4).images[:2]]),
            "view_keys": [*batch.view_keys[:2], *labelled_batch(4).view_keys[:2]],
        }
    )
    expected = model._prepare(joined, None).teacher_taps
    assert_same(expected, model.prepare_batch(joined).teacher_taps, rtol=1e-5, atol=1e-6)
    assert sum(model(model.prepare_batch(joined)).values()).isfinite()


def test_numbers_that_are_not_finite_are_handed_on_and_not_kept(folder: str) -> None:
    model = distiller(TeacherCache(folder))
    batch = OrderedLoader().batches[0]
    model.teacher.stem.bias.data[0] = torch.nan
    assert model.prepare_batch(batch).teacher_taps["neck"].isnan().any()
    model.prepare_batch(batch)
    assert model.teacher.calls == 2 and not list(Path(folder).glob("*.rows"))


def test_the_pass_before_the_training_is_not_kept(folder: str) -> None:
    method = NormDirection(num_classes=5)
    torch.manual_seed(0)
    models = [ImageClassifier(ToyCnn(), num_classes=5) for _ in range(2)]
    cache = TeacherCache(folder)
    model = Distiller(*models, method, {"pooled": "pooled"}, teacher_cache=cache)
    model.prepare_method([toy_batch([toy_item(index, size=16) for index in range(10)])])
    assert not Path(folder).exists()


def test_copies_open_the_cache_themselves(folder: str) -> None:
    model = distiller(TeacherCache(folder))
    batch = OrderedLoader().batches[0]
    taps = model.prepare_batch(batch).teacher_taps
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls = other.teacher.calls
        assert_same(taps, other.prepare_batch(batch).teacher_taps)
        assert other.teacher.calls == calls


def test_diagnostics(folder: str) -> None:
    model = distiller(TeacherCache(folder))
    assert not any("teacher_cache" in name for name in model.diagnostics())
    batch = OrderedLoader().batches[0]
    for _ in range(4):
        model.prepare_batch(batch)
    numbers = model.diagnostics()
    assert numbers["distill/teacher_cache/found"] == 0.75
    size = sum(f.stat().st_size for f in Path(folder).glob("0000.*"))
    assert numbers["distill/teacher_cache/gib"] == size / 2**30
    assert model.diagnostics()["distill/teacher_cache/found"] == 0.0
