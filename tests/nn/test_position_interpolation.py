from __future__ import annotations

import numpy as np
import pytest
import torch

from plait.nn.positions import cubic_spline_weights, geometric_offsets, resize_absolute, resize_relative


def test_the_spline_passes_through_its_points_and_reproduces_cubics() -> None:
    x = np.array([-4.0, -2.5, -1.0, 0.0, 0.5, 2.0, 5.0])
    np.testing.assert_allclose(cubic_spline_weights(x, x), np.eye(7), atol=1e-12)
    at = np.linspace(-4, 5, 40)
    cubic = np.polynomial.Polynomial([1.0, -2.0, 0.5, 0.3])
    np.testing.assert_allclose(cubic_spline_weights(x, at) @ cubic(x), cubic(at), atol=1e-10)


def test_the_spline_has_two_continuous_derivatives() -> None:
    x = np.array([0.0, 1.0, 2.5, 3.0, 4.5, 6.0, 7.0])
    values = np.random.default_rng(0).normal(size=7)
    step = 1e-3
    at = x[3] + step * np.arange(-3, 4)
    second = np.diff(cubic_spline_weights(x, at) @ values, 2) / step**2
    assert np.ptp(second) < 0.1 * np.abs(second).max() + 0.1


def test_the_spline_needs_four_points() -> None:
    with pytest.raises(ValueError, match="at least 4 points"):
        cubic_spline_weights(np.arange(3.0), np.arange(3.0))


def test_geometric_offsets_start_at_one_and_reach_the_target() -> None:
    x = geometric_offsets(31, 47)
    assert len(x) == 31
    assert (x[16], x[15], x[14]) == (1.0, 0.0, -1.0)
    assert x[-1] == pytest.approx(23, abs=1e-2)
    ratios = np.diff(x[15:])[1:] / np.diff(x[15:])[:-1]
    np.testing.assert_allclose(ratios, ratios[0])


def test_relative_tables_keep_special_rows_and_their_centre() -> None:
    table = torch.randn(7 * 7 + 3, 2)
    resized = resize_relative(table, 4, 6)
    assert resized.shape == (11 * 11 + 3, 2)
    assert torch.equal(resized[-3:], table[-3:])
    torch.testing.assert_close(resized[60], table[24])
    assert resize_relative(table, 4, 4) is table


def test_absolute_tables_keep_cls_and_constant_grids() -> None:
    table = torch.cat([torch.randn(1, 3), torch.ones(16, 3)])
    resized = resize_absolute(table, 6)
    torch.testing.assert_close(resized, torch.cat([table[:1], torch.ones(36, 3)]))
    assert resize_absolute(table, 4) is table


def test_gradients_reach_the_absolute_table() -> None:
    table = torch.randn(17, 2, requires_grad=True)
    resize_absolute(table, 5).sum().backward()
    assert table.grad is not None and (table.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    "call", [lambda: resize_relative(torch.zeros(52, 2), 5, 6), lambda: resize_relative(torch.zeros(52, 2), 4, 3)]
)
def test_tables_of_another_size_are_an_error(call) -> None:
    with pytest.raises(ValueError, match="rows and new_width"):
        call()


def test_a_table_that_is_no_square_is_an_error() -> None:
    with pytest.raises(ValueError, match="a square grid"):
        resize_absolute(torch.zeros(16, 2), 5)
