"""What the site does to pages: files of the repository are named, not linked; the README is the first page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:\.\./)+)([^)\s#]+)(?:#[^)\s]*)?\)")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add index.md: the README, its links as they are from docs/."""
    from mkdocs.structure.files import File

    text = LINK.sub(lambda found: f"]({_from_docs(found[1])})", (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=text))
    return files


def _from_docs(link: str) -> str:
    return link.removeprefix("docs/") if link.startswith("docs/") else f"../{link}"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that leave docs/ become words: the site does not know where the repository is shown."""
    depth = page.file.src_uri.count("/")

    def led(found: re.Match[str]) -> str:
        if found[2].count("../") <= depth:  # a page of the site, from a folder of it
            return found[0]
        words = found[1].strip("`")
        return f"`{found[3]}`" if words in found[3] else f"{found[1]} (`{found[3]}`)"

    return OUTSIDE.sub(led, markdown)
