"""mPLUG-Owl on one's own rows: what `plait.recipes.finetune_talk` needs of the family."""

from __future__ import annotations

from functools import partial

from plait.recipes import mplug_owl
from plait.recipes import mplug_owl_rows as rows
from plait.recipes.finetune_talk import Talker

JOBS = Talker(
    load=mplug_owl.loaded,
    decode=lambda sample, rng: sample,
    collate=rows.collate,
    measured=partial(rows.collate, training=False),
    objective=mplug_owl.answer_loss,
    save=mplug_owl.save,
).jobs()
