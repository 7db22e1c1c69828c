"""The verb `plait ui`: a page in the browser over an index, a chat and an assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait.cli.options import DeviceOption, DtypeOption, LimitOption, raise_limits
from plait.errors import UsageError, import_extra


def ui(
    *,
    index: Annotated[Path | None, typer.Option(help="index to search; none without it")] = None,
    chat: Annotated[str | None, typer.Option(help="model that talks; none without it")] = None,
    assist: Annotated[
        str | None, typer.Option(help="model that captions, answers, grounds or classifies; none without it")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen at; the page asks for no key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 7860,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    limits: LimitOption = None,
) -> None:
    """Open a page in the browser: search, chat, and questions about images, until Ctrl-C."""
    raise_limits(limits)
    if not (index or chat or assist):
        raise UsageError("expected something to show, got none; pass --index, --chat or --assist")
    import_extra("gradio")  # before models are loaded, which may take minutes
    from plait.assistant import Assistant
    from plait.chat import Chat
    from plait.cli.search import opened_with
    from plait.ui.page import Held, launch

    held = Held(
        None if index is None else opened_with(index, None, device, None),
        None if chat is None else Chat(chat, device=device, dtype=dtype),
        None if assist is None else Assistant(assist, device=device, dtype=dtype),
    )
    launch(held, host=host, port=port or _free(host))


def _free(host: str) -> int:
    """A port that nobody listens at."""
    from plait.cli.serve import listening

    with listening(host, 0) as place:
        return place.getsockname()[1]
