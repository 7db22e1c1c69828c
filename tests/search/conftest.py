"""Makes `tiny_embedders` importable for the tests beside it (and for the processes they start)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
