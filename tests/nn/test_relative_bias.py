from __future__ import annotations

import pytest
import torch

from plait.nn.positions import gather_bias, image_bucket_index, image_table_rows, token_bucket_index, token_table_rows


@pytest.mark.parametrize("bucket_size", [4, 8, 16])
def test_tokens_depend_on_distance_alone(bucket_size: int) -> None:
    index = token_bucket_index(40, bucket_size)
    for shift in (1, 7):
        assert torch.equal(index[1:-shift, 1:-shift], index[1 + shift :, 1 + shift :])
    near = torch.arange(-(bucket_size // 2), bucket_size // 2 + 1)
    assert index[20, 20 - near].tolist() == (near + bucket_size - 1).tolist()


def test_a_shorter_sequence_is_the_corner_of_a_longer_one() -> None:
    assert torch.equal(token_bucket_index(9, 8), token_bucket_index(60, 8)[:9, :9])


def test_positions_beyond_the_longest_share_the_last_row() -> None:
    index = token_bucket_index(1300, 16)
    assert index.max() == token_table_rows(16) - 1
    assert set(index[1:, 1][1100:].tolist()) == {2 * 16 - 2}
    assert set(index[1, 1:][1100:].tolist()) == {0}


@pytest.mark.parametrize("index, rows", [(token_bucket_index(6, 8), 18), (image_bucket_index(3), 28)])
def test_cls_has_the_last_three_rows(index: torch.Tensor, rows: int) -> None:
    assert index[0, 0] == rows - 1
    assert set(index[1:, 0].tolist()) == {rows - 2}
    assert set(index[0, 1:].tolist()) == {rows - 3}
    assert index[1:, 1:].max() < rows - 3
    assert index.min() >= 0


def test_patches_depend_on_both_offsets() -> None:
    index = image_bucket_index(3)[1:, 1:].view(3, 3, 3, 3)
    assert len(index.unique()) == image_table_rows(3) - 3
    assert index[0, 0, 1, 2] == index[1, 0, 2, 2]
    assert index[0, 0, 1, 2] != index[0, 0, 2, 1]


def test_bias_is_one_matrix_per_head() -> None:
    table = torch.arange(36.0).view(18, 2)
    bias = gather_bias(table, token_bucket_index(5, 8))
    assert bias.shape == (2, 5, 5)
    assert bias[1, 0, 0] == table[17, 1]
