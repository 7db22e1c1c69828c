"""What docs/serve.md and the Dockerfile say: every block runs against a server, every option and path is there."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import openai
import pytest

from plait.cli import command

from .conftest import HTTP, KEY, Running, png, wav

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_python_blocks_run_as_they_stand(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = openai.OpenAI, []

    def client(**_: Any) -> openai.OpenAI:
        made.append(real(base_url=f"{server.base}/v1", api_key=KEY))
        return made[-1]

    monkeypatch.setattr(openai, "OpenAI", client)
    names = {name: base64.b64encode(data).decode() for name, data in (("encoded_png", png()), ("encoded_wav", wav()))}
    space: dict[str, Any] = {**names, "print": lambda *_, **__: None}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(block, space)
    made[0].close()
    assert len(blocks) == 2 and len(space["texts"].data) == 2 and len(space["mixed"].data) == 1
    assert len(space["short"].data[0].embedding) == 64 and space["answer"].choices[0].message.content


def test_the_lines_of_the_shell_name_verbs_and_options_that_exist() -> None:
    lines = re.findall(r"plait (\w+)((?: [^\n&#`]+)?)", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)))
    assert {verb for verb, _ in lines} == {"serve", "models", "get"}
    for verb, rest in lines:
        known = {option for one in command(verb).params for option in one.opts}
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known, (verb, option)


def test_the_rule_stands_on_the_first_page_and_in_the_api(server: Running) -> None:
    rule = "each element of `input` is one vector"
    api = HTTP.get(f"{server.base}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert rule in PAGE[:300].lower() and rule in str(api["components"]["schemas"]["EmbeddingsBody"]).lower()
    assert all(api["components"]["schemas"][name]["examples"] for name in ("ChatBody", "EmbeddingsBody", "RerankBody"))


def test_the_dockerfile_is_well_formed_and_copies_what_exists() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    known = {"FROM", "WORKDIR", "COPY", "ARG", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
    assert {step for step, _ in steps} <= known and steps[0][0] == "FROM"
    assert [value for step, value in steps if step == "USER"] == ["plait"]  # not root
    for value in (value for step, value in steps if step == "COPY" and "--from" not in value):
        assert all((ROOT / name).exists() for name in value.split()[:-1])
