"""Queries read themselves and the features that are there, and nothing else."""

import pytest
import torch

from plait.nn.abstractor import AbstractorLayer
from plait.nn.attention import attention_function

ATTEND = attention_function("eager")


def layer(**options) -> AbstractorLayer:
    torch.manual_seed(0)
    return AbstractorLayer(8, 2, 12, eps=1e-6, **options).eval()


def test_features_that_are_masked_might_as_well_be_absent() -> None:
    module = layer()
    queries, features = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    both = module(queries, features, ATTEND, feature_mask=mask)
    alone = [module(queries[i : i + 1], features[i : i + 1, mask[i]], ATTEND) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))


def test_queries_read_one_another_whatever_is_masked() -> None:
    module = layer()
    queries, features = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    mask = torch.zeros(1, 5, dtype=torch.bool)
    before = module(queries, features, ATTEND, feature_mask=mask)
    assert torch.equal(before, module(queries, torch.randn(1, 5, 8), ATTEND, feature_mask=mask))
    changed = queries.clone()
    changed[0, 2] = torch.randn(8)
    assert not torch.allclose(before[0, 0], module(changed, features, ATTEND, feature_mask=mask)[0, 0])


def test_positions_go_into_queries_and_keys_alone() -> None:
    """With one key everything is read whole, whatever its position says."""
    module = layer()
    queries, features = torch.randn(1, 1, 8), torch.randn(1, 0, 8)
    tables = torch.randn(1, 8), torch.randn(0, 8)
    assert torch.equal(module(queries, features, ATTEND), module(queries, features, ATTEND, tables))
    features = torch.randn(1, 4, 8)
    moved = module(queries, features, ATTEND, (torch.randn(1, 8), torch.randn(4, 8)))
    assert not torch.allclose(moved, module(queries, features, ATTEND))


@pytest.mark.parametrize("masked", [False, True])
def test_dropout_acts_in_training_alone(masked) -> None:
    module = layer(dropout=0.5)
    queries, features = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    mask = torch.tensor([[True, True, True, False, False]]) if masked else None
    still = module(queries, features, ATTEND, feature_mask=mask)
    assert torch.equal(still, module(queries, features, ATTEND, feature_mask=mask))
    module.train()
    torch.manual_seed(1)
    runs = torch.stack([module.attend_to(queries, features, ATTEND, None, mask) for _ in range(400)])
    assert not torch.equal(runs[0], runs[1])
    mean = module.eval().attend_to(queries, features, ATTEND, None, mask)
    torch.testing.assert_close(runs.mean(0), mean, atol=0.2, rtol=0)
