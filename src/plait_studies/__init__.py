"""What shows and proves: the quick start, studies of the papers' claims, the builder of data sets.

Imports plait; plait never imports it: its verbs come through the entry points `plait.verbs`.
"""

from __future__ import annotations

from plait.cli import Verb

QUICKSTART = Verb(
    "plait_studies.quickstart:quickstart",
    "train, evaluate, index and search, one command",
    True,
    opens=False,
    examples=("plait quickstart", "plait quickstart photos/ --seeds 3"),
)
STUDY = Verb(
    "plait_studies.study:study",
    "try what a paper claims, at small scale, one command",
    opens=False,
    examples=("plait study owl2 --seeds 3", "plait study owl2 --set only=all"),
)
DATA_BUILD = Verb("plait_studies.build:build_command", "build a data set from pinned public packages")
