"""The README and the pages of `docs/`: their code, in the order in which a reader meets it.

What a page takes as given, a model of the reader's say, stands in it as a comment that begins with `<!-- given`.
What cannot run here is preceded by `<!-- not run: why -->`. Python that begins with `# NAME.py` is that file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts))
GIVEN = re.compile(r"<!-- given\n(.*?)-->", re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (.*?) -->", re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """One block of code of a page."""

    page: str
    line: int
    language: str
    """As the fence names it; "given" for what the page takes as given; "" for an indented block."""
    text: str
    not_run: str = ""
    """Why it cannot run here."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        found = FILE.match(self.text)
        return found[1] if found and self.language == "python" else None


def blocks(page: Path) -> list[Block]:
    """All blocks, in order; directives of the site, ```{name}, are none."""
    return list(_blocks(page.relative_to(ROOT).as_posix(), page.read_text()))


def _blocks(page: str, text: str) -> Iterator[Block]:
    why = ""
    for token in MarkdownIt("commonmark").parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            given, not_run = GIVEN.search(token.content), NOT_RUN.search(token.content)
            why = " ".join(not_run[1].split()) if not_run else ""
            if given:
                yield Block(page, line, "given", given[1])
        elif token.type in ("fence", "code_block"):
            if not token.info.startswith("{"):
                yield Block(page, line, token.info.strip(), token.content, why)
            why = ""


def commands(block: Block) -> list[str]:
    """The commands of a block of shell, a line each: without comments, and without the name of an environment."""
    lines = (line.split("  #")[0].strip().removeprefix("env/bin/") for line in block.text.splitlines())
    return [line for line in lines if line]
