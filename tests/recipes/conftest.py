"""The tiny world of data and models, made once for the tests of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tiny_world import write_data, write_models


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data and the models."""
    return write_data(tmp_path_factory.mktemp("data")), write_models(tmp_path_factory.mktemp("models"))
