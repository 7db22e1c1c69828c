"""What the site does to the pages: links to files of the repository lead there, and the README is the first page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([^)\s#]+)(#[^)\s]*)?\)")
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
    """Links that leave docs/ go to the repository."""
    depth = page.file.src_uri.count("/")

    def led(found: re.Match[str]) -> str:
        if found[1].count("../") <= depth:  # a page of the site, from a folder of it
            return found[0]
        return f"]({config['repo_url']}/blob/main/{found[2]}{found[3] or ''})"

    return OUTSIDE.sub(led, markdown)
