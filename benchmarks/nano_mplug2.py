"""What the shipped `nano-mplug2` says of drawings of a style that it never saw: the table of its card.

python benchmarks/nano_mplug2.py -> results/nano_mplug2.json: per task the share of right answers, beside the commonest
answer of the training questions and the same questions without their picture.
"""

from __future__ import annotations

import numpy as np
from measure import write

from plait.models import shipped
from plait_studies.mplug2 import measures
from plait_studies.mplug2 import training as small


def measure() -> dict[str, dict[str, float]]:
    """Task -> right answers, written freely for captions and else chosen, and the two ways to do without looking."""
    place = shipped("nano-mplug2")
    assert place is not None
    model, processor = small.load(place, "answer").float().eval(), small.load_processor(place)
    found = {}
    for task in ("caption", *small.STILL_TASKS, *small.CLIP_TASKS):
        examples = measures.held_out(task)
        allowed = [measures.choices(example) for example in examples]
        training = small.drawings().examples(task, "train", measures.PRIOR_EXAMPLES, seed=1)

        def hits(view: measures.View, examples=examples, allowed=allowed) -> list[float]:
            if not allowed[0]:
                said = measures.written(model, processor, examples, view)
                return [measures.same(text, example, processor) for text, example in zip(said, examples, strict=True)]
            best = measures.chosen(model, processor, examples, allowed, view)
            return [float(text == example.answer) for text, example in zip(best, examples, strict=True)]

        found[task] = {
            "right": float(np.mean(hits(measures.PLAIN))),
            "picture_removed": float(np.mean(hits(measures.View(blank=True)))),
            "commonest": float(np.mean(measures.guessed(training, examples, allowed, by_question=False))),
            "questions": len(examples),
        }
    return found


if __name__ == "__main__":
    write("nano_mplug2", {"tasks": measure()})
