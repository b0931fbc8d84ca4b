"""MkDocs hook: pages of the site that are files of the repository, so that each text exists once.

Relative links in such a file point into the repository. A link to another page of the site is kept; any other becomes
the plain name of the file, since the site does not carry the repository's files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "model-card.md": "models/weights/MODEL_CARD.md",
    "protocol.md": "stream/protocol.md",
    "security.md": "SECURITY.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages; MkDocs calls this once with the files of the docs folder."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=page_text(source)))
    return files


def page_text(source: str) -> str:
    """The Markdown of a repository file with its links made right for the site."""
    pages = {path: page for page, path in PAGES.items()}
    folder = posixpath.dirname(source)

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        page = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"[{match['text']}]({page}{match['anchor'] or ''})" if page else match["text"]

    return _LINK.sub(link, (ROOT / source).read_text(encoding="utf-8"))
