"""What the site does to pages: files of the repository are named, not linked; README and its like are pages too."""

from __future__ import annotations

import re
from os.path import normpath
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:\.\./)+)([^)\s#]+)(?:#[^)\s]*)?\)")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)")


PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "benchmarks.md": "benchmarks/README.md"}
"""Pages of the site that stand elsewhere in the repository."""


def on_files(files: Any, config: Any) -> Any:
    """Add `PAGES`, their links as they are from docs/; links to these files lead to the pages."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        folder = Path(source).parent

        def led(found: re.Match[str], folder: Path = folder) -> str:
            return f"]({_from_docs(found[1], folder)})"

        text = LINK.sub(led, (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def _from_docs(link: str, folder: Path = Path()) -> str:
    """A link of a file in `folder` of the repository, as a page of docs/ has it."""
    path, mark, anchor = link.partition("#")
    place = normpath(folder / path).replace("\\", "/")
    page = next((page for page, source in PAGES.items() if source == place), None)
    return (page or (place.removeprefix("docs/") if place.startswith("docs/") else f"../{place}")) + mark + anchor


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that leave docs/ become words: the site does not know where the repository is shown."""
    depth = page.file.src_uri.count("/")

    def led(found: re.Match[str]) -> str:
        own = next((one for one, source in PAGES.items() if source == found[3]), None)
        if own is not None and found[2].count("../") == depth + 1:
            return f"[{found[1]}]({'../' * depth}{own})"
        if found[2].count("../") <= depth:  # a page of the site, from a folder of it
            return found[0]
        words = found[1].strip("`")
        return f"`{found[3]}`" if words in found[3] else f"{found[1]} (`{found[3]}`)"

    return OUTSIDE.sub(led, markdown)
