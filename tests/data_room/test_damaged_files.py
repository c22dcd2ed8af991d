"""Any damage to a file: the collecting checks never fail, and find an error exactly where loading finds one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mokd_det.data import CocoFormatSource, check_dataset, load_coco_format, report_as_json, report_as_text
from mokd_det.errors import DatasetError
from tests.data_room.conftest import CONTENT, SIZES

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 60),
    st.sampled_from([10**30, -(10**19), 2**63, 2**62]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["", "a", "7", "../x", "/etc/hosts", "im10.png", "sub/..", "\x00", "ü"]),
    st.lists(st.one_of(st.integers(-50, 50), st.floats(), st.none(), st.text(max_size=2)), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)

DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["images", "annotations", "categories"]),
        st.integers(0, 3),
        st.sampled_from(["id", "image_id", "category_id", "bbox", "iscrowd", "file_name", "width", "name"]),
        st.one_of(st.just("remove"), st.just("whole entry"), ODD_VALUES),
        ODD_VALUES,
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    for id_, (width, height) in SIZES.items():
        Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(root / f"im{id_}.png")
    return root


def damaged(damage: list[tuple[str, int, str, Any, Any]]) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    for section, index, key, action, value in damage:
        entries = content[section]
        index %= len(entries)
        if isinstance(action, str) and action == "whole entry":
            entries[index] = value
        elif isinstance(entries[index], dict):
            if isinstance(action, str) and action == "remove":
                entries[index].pop(key, None)
            else:
                entries[index][key] = action
    return content


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE)
def test_collecting_agrees_with_loading(folder: Path, damage: list[tuple[str, int, str, Any, Any]]) -> None:
    file = folder / "damaged.json"
    file.write_text(json.dumps(damaged(damage)))
    source = CocoFormatSource(None, str(file), str(folder))
    report = check_dataset(source, image_check="list")
    assert report_as_text(report)
    assert json.dumps(report_as_json(report), allow_nan=False)
    if report.errors:
        with pytest.raises(DatasetError) as error:
            load_coco_format(source)
        assert str(file) in str(error.value)
    else:
        records = load_coco_format(source)
        assert len(records) == report.statistics.images
        boxes = sum(len(record["annotations"]) for record in records)
        assert boxes == report.statistics.boxes + report.statistics.crowds
