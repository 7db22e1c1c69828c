"""The verb `plait chat`: a conversation in the terminal, or from a pipe, one question per line."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    ModelArgument,
    json_option,
    raise_limits,
)

if TYPE_CHECKING:
    from plait.chat import Chat

HELP = "/image FILE and /video FILE show something with the next question, /new begins again, /exit or Ctrl-D ends"
COMMANDS = ("/image", "/video", "/new", "/exit", "/help")
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that would move the cursor or change the terminal; an answer may hold any."""


def chat(
    model: ModelArgument,
    *,
    image: Annotated[list[Path] | None, typer.Option(help="shown with the first question; repeatable")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="shown with the first question; repeatable")] = None,
    system: Annotated[
        str | None, typer.Option(help="what the conversation begins with; the model's own words without it")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of an answer", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; demos use 0.2 and 0.7", min=0)] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(help="sample among tokens of this probability together; all tokens without it")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="pictures that a video becomes, else the model's own", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    as_json: Annotated[bool, json_option("print one JSON object per answer")] = False,
    limits: LimitOption = None,
) -> int:
    """Talk with a model about images, videos and text; Ctrl-C stops an answer, Ctrl-D ends the chat."""
    raise_limits(limits)
    for path in [*(image or ()), *(video or ())]:
        if not path.is_file():
            raise ValueError(f"expected a file to show, got {path}: no such file")
    import torch

    from plait.chat import Chat

    torch.manual_seed(seed)  # sampling draws from torch's own generator
    talk = Chat(
        model, device, dtype, adapter, system=system, num_frames=frames, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p,
    )  # fmt: skip
    return converse(talk, list(image or ()), list(video or ()), as_json=as_json)


def converse(talk: Chat, images: list[Path], videos: list[Path], *, as_json: bool = False) -> int:
    """Read questions from standard input until it ends. Errors end the chat where nobody is there to correct them."""
    is_person = sys.stdin.isatty()
    shown: dict[str, list[Path]] = {"image": images, "video": videos}
    if is_person:
        print(HELP)
    while (line := _read(is_person)) is not None:
        try:
            if line.startswith("/"):
                if _command(line, talk, shown) == "/exit":
                    return 0
            elif line:
                _say(talk, line, shown, is_person, as_json)
                shown = {"image": [], "video": []}  # the conversation holds them from here on
        except (ValueError, OSError) as error:
            if not is_person:
                raise
            print(f"plait: {' '.join(str(error).split())}", file=sys.stderr)
    if is_person:
        print()
    return 0


def _read(is_person: bool) -> str | None:
    """The next line without blanks around it, None at the end; Ctrl-C at the prompt drops the line."""
    while True:
        try:
            return input("you: " if is_person else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not is_person:
                raise
            print("\n(Ctrl-D or /exit ends the chat)")


def _command(line: str, talk: Chat, shown: dict[str, list[Path]]) -> str:
    """Do what a line with a slash says; returns its first word."""
    name, *files = shlex.split(line)
    if name in ("/image", "/video"):
        if not files:
            raise ValueError(f"expected a file behind {name}, got none")
        for file in files:
            if not Path(file).is_file():
                raise ValueError(f"expected a file to show, got {file}: no such file")
        shown[name[1:]] += [Path(file) for file in files]
    elif name == "/new":
        talk.clear()
        shown["image"], shown["video"] = [], []
    elif name == "/help":
        print(HELP)
    elif name != "/exit":
        raise ValueError(f"expected one of {', '.join(COMMANDS)}, got {name}")
    return name


def _say(talk: Chat, question: str, shown: dict[str, list[Path]], is_person: bool, as_json: bool) -> None:
    """Print an answer as it is written. Closing the stream, as an interrupt does, stops the model too."""
    said = ""
    stream: Any = talk.stream(question, images=shown["image"], videos=shown["video"])
    try:
        with closing(stream):
            for piece in stream:
                said += piece
                if not as_json:
                    print(piece.translate(CONTROLS) if is_person else piece, end="", flush=True)
    except KeyboardInterrupt:
        if not is_person:
            raise
        print(" (stopped)", end="")
    if as_json:
        print(json.dumps({"question": question, "answer": said}, ensure_ascii=False), flush=True)
    else:
        print(flush=True)
