from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "goldens"
COPIES = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The golden cases: the complete ones beside the checkout where they are, else the copies."""
    return SHARED if SHARED.is_dir() else COPIES


@pytest.fixture(scope="session")
def copies() -> Path:
    """The golden cases inside the checkout, without recordings and merges."""
    return COPIES
