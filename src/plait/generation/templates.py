"""The chat template of a processor, run within bounds: it is a program that came with the model.

messages -> write_chat(processor, messages) -> the text that the model reads

transformers runs templates in jinja's sandbox, which keeps them from files and from Python, but not from running for
ever.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

SECONDS = 2.0
"""What a template may take; the published ones take milliseconds."""


def write_chat(processor: Any, messages: Sequence[Any]) -> str:
    """The conversation as one text that ends where the answer begins.

    processor: with `apply_chat_template`; messages: of the conversation, as transformers takes them. Raises ValueError
    for a template that is wrong, takes too long or writes no text.
    """
    from jinja2 import TemplateError

    until, before = time.monotonic() + SECONDS, sys.gettrace()

    def watch(frame: Any, event: str, value: Any) -> Any:
        # A template becomes Python lines, which a trace sees one by one; a single line cannot loop in it.
        if time.monotonic() > until:
            raise TimeoutError(f"more than {SECONDS:g} s")
        return watch

    sys.settrace(watch)
    try:
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TimeoutError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        reason = " ".join(f"{error!s:.200}".split()) or type(error).__name__
        raise ValueError(f"expected a chat template that can be written, got {reason}; pass another model") from error
    finally:
        sys.settrace(before)
    if not isinstance(text, str):
        raise ValueError(f"expected text from the chat template, got {type(text).__name__}; pass another model")
    return text
