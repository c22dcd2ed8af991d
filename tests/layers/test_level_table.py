"""Sizes and first cells of feature levels."""

from __future__ import annotations

import pytest
import torch

from mokd_det.layers.level_table import level_table

CPU = torch.device("cpu")


def test_rows_are_height_width_and_first_cell() -> None:
    table = level_table([(4, 6), (2, 3), (1, 2)], CPU)
    assert table.dtype == torch.int32 and table.is_contiguous()
    assert table.tolist() == [[4, 6, 0], [2, 3, 24], [1, 2, 30]]
    assert level_table([(4, 6)], CPU, torch.int64).dtype == torch.int64


def test_numbers_that_only_int64_holds() -> None:
    assert level_table([(65536, 65536), (1, 1)], CPU, torch.int64)[1, 2] == 2**32


@pytest.mark.gpu
def test_kept_on_cuda_and_usable_for_a_backward_after_inference() -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    with torch.inference_mode():
        first = level_table([(5, 7)], cuda)
    again = level_table([(5, 7)], cuda)
    assert again is first and not again.is_inference()
    scale = torch.ones(1, 3, device=cuda, requires_grad=True)
    (scale * again).sum().backward()
    assert scale.grad is not None and scale.grad.tolist() == [[5.0, 7.0, 0.0]]
