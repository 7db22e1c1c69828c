"""A chat template that does not end, or is wrong, is one line."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from plait.generation.templates import write_chat

from ..fuzzing import within

TALK = [{"role": "user", "content": "hello"}]


class Processor:
    """As those of transformers: the template is rendered in jinja's sandbox."""

    def __init__(self, template: str) -> None:
        self.template = template

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return render_jinja_template([messages], chat_template=self.template)[0][0]


WRONG = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "too large a range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% for %}",
    "types": "{{ messages + 1 }}",
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("template", WRONG.values(), ids=WRONG)
def test_a_wrong_template_is_one_line(template: str) -> None:
    with within(), pytest.raises(ValueError, match="expected a chat template") as error:
        write_chat(Processor(template), TALK)
    assert "\n" not in str(error.value)


def test_a_template_is_written_and_leaves_no_trace() -> None:
    before = sys.gettrace()
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert write_chat(Processor(template), TALK) == "<user>hello"
    assert sys.gettrace() is before
