"""A directory with one table of relative positions gives each layer its own."""

from __future__ import annotations

from plait.models import shipped
from plait.models.one_peace.weights import from_directory


def test_layers_that_begin_alike_train_apart() -> None:
    place = shipped("nano")
    assert place is not None
    model = from_directory(place, per_layer_bias=True)
    for modality in ("text", "image", "audio"):
        tables = [p for name, p in model.named_parameters() if f"{modality}.bias.tables." in name]
        assert len(tables) == 4 and len({table.data_ptr() for table in tables}) == 4
