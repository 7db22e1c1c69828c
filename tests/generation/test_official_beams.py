"""The old beam search, spelled out with lists, finds what both Owls find where they are official."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationMixin

from ..models.mplug_owl import tiny as owl
from ..models.mplug_owl2 import tiny as owl2

END, LIMIT = 1, 6


def plain_search(model, batch, uncounted: int, beams: int, penalty: float, stop: bool | str) -> list[list[int]]:
    """Every hypothesis of one prompt, best first: no cache, no tensors of beams, rules as in the module's docstring."""
    prompt = batch["input_ids"].shape[1]
    media = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
    running, ended = [(0.0, [])], []

    def score(total: float, ids: int) -> float:
        return total / (ids + prompt - uncounted) ** penalty

    for step in range(LIMIT):
        candidates = []
        for total, new in running:
            ids = torch.cat([batch["input_ids"], torch.tensor([new], dtype=torch.long)], dim=1)
            logs = model(ids, torch.ones_like(ids), **media).logits[0, -1].log_softmax(-1)
            candidates += [(total + float(x), [*new, i]) for i, x in enumerate(logs)]
        candidates = sorted(candidates, reverse=True)[: 2 * beams]
        ended += [(score(total, step), new) for total, new in candidates[:beams] if new[-1] == END]
        ended = sorted(ended, reverse=True)[:beams]
        running = [c for c in candidates if c[1][-1] != END][:beams]
        if len(ended) == beams:
            ids = LIMIT if stop == "never" and penalty > 0 else step + 1
            if stop is True or ended[-1][0] >= score(candidates[0][0], ids):
                return [new for _, new in ended]
    ended += [(score(total, LIMIT), new) for total, new in running]
    return [new for _, new in sorted(ended, reverse=True)[:beams]]


def official(family: str, favoured: float):
    """A model whose end is likely, a prompt with an image, and how much of it the old search does not count."""
    tiny = owl if family == "owl" else owl2
    model, processor = tiny.model_and_processor(official=True)
    model.get_output_embeddings().weight.data.mul_(0.3)
    model.get_output_embeddings().register_forward_hook(
        lambda m, i, out: out + favoured * torch.eye(out.shape[-1])[END]
    )
    text = "<image>ab" if family == "owl" else "<|image|>ab"
    images = owl.images(1) if family == "owl" else owl2.images()[:1]
    batch = processor(text=text, images=images)
    length = batch["input_ids"].shape[1]
    per_image = 4  # three queries and the end vector
    return model, batch, length - 1 if family == "owl" else per_image - 1


@pytest.mark.parametrize("stop", [True, False, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("family", ["owl", "owl2"])
@torch.no_grad()
def test_official_beams_are_those_of_the_old_rules(family, penalty, stop) -> None:
    seen = set()
    for favoured in (1.0, 2.5, 4.0):
        model, batch, uncounted = official(family, favoured)
        expected = plain_search(model, batch, uncounted, 3, penalty, stop)
        found = model.generate(
            **batch, num_beams=3, num_return_sequences=3, max_new_tokens=LIMIT, do_sample=False, early_stopping=stop,
            length_penalty=penalty, eos_token_id=END, pad_token_id=0,
        )[:, batch["input_ids"].shape[1] :]  # fmt: skip
        answers = [row[: row.index(END) + 1] if END in row else row for row in found.tolist()]
        assert answers == expected
        seen |= {len(answer) for answer in answers}
    assert len(seen) > 1, "all hypotheses have one length, which tests no rule about lengths"


@pytest.mark.parametrize("family", ["owl", "owl2"])
@torch.no_grad()
def test_beams_are_those_of_transformers_unless_official(family, monkeypatch) -> None:
    """The search of today runs on transformers' own rules: its hooks, taken out of the class, change no id."""
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": LIMIT, "do_sample": False}
    options |= {"eos_token_id": END, "pad_token_id": 0, "length_penalty": 1.0}
    differs = False
    for favoured in (1.0, 2.5, 4.0):
        model, batch, _ = official(family, favoured)
        old = model.generate(**batch, **options).tolist()
        model.config.official = False
        new = model.generate(**batch, **options).tolist()
        differs |= old != new
        with monkeypatch.context() as patch:
            for hook in ("_update_finished_beams", "_check_early_stop_heuristic"):
                owner = next(kind for kind in type(model).__mro__ if hook in vars(kind))
                if owner is not GenerationMixin:
                    patch.delattr(owner, hook)
            assert model.generate(**batch, **options).tolist() == new
    assert differs, "both searches find the same, which tells them not apart"
