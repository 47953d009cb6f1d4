# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
r"""Writes man(7): plain text in, lines of roff out.

Text may carry the little markup of our comments and docstrings: paragraphs with empty lines between them, `` `code` ``,
and blocks that keep their lines, which are indented, or marked as such for click (a line of ``\b``). Options and
other manual pages are made bold by themselves.

Everything that people may want to copy is written so that it comes out as it was: roff makes typographic hyphens and
quotes of the plain ones. So all text is escaped in the one way, `escape`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Sequence

_ESCAPES = {
    "\\": r"\(rs",
    "-": r"\-",
    "'": r"\(aq",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
}
SETTINGS = (".nr HY 0", ".nh", ".ad l")
"""What a page begins with: words stay whole, as names and options should, and so spaces are not stretched either."""

_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z\"$/[])")
_CODE = re.compile(r"`([^`]+)`")
_BOLD = re.compile(r"(?<![\w./-])--?[A-Za-z][\w-]*|\b[A-Za-z][\w.]*(?=\(\d\))")


def escape(text: str) -> str:
    """Write *text* so that roff prints it as it is; not for the start of a line, see `line`."""
    return "".join(
        _ESCAPES.get(char, char) if " " <= char <= "~" else f"\\[u{ord(char):04X}]" if char >= "\xa0" else " "
        for char in text
    )


def line(markup: str) -> str:
    """Make a line of *markup* (escaped text) that is no request, whatever it begins with."""
    return rf"\&{markup}" if markup[:1] in (".", "'") else markup


def quoted(text: str) -> str:
    """Write *text* as one argument of a macro."""
    return '"' + escape(text).replace('"', r"\(dq") + '"'


def bold(text: str) -> str:
    """Write *text* in bold."""
    return rf"\fB{escape(text)}\fR"


def italic(text: str) -> str:
    """Write *text* in italics, as what is to be replaced."""
    return rf"\fI{escape(text)}\fR"


def inline(text: str, metavars: Collection[str] = ()) -> str:
    """Write running text: code, options and other pages in bold, each of the words *metavars* in italics."""
    made = []
    for index, part in enumerate(_CODE.split(text)):
        made.append(bold(part) if index % 2 else _marked(part, metavars))
    return "".join(made)


def _marked(text: str, metavars: Collection[str]) -> str:
    pattern = _BOLD.pattern + "".join(rf"|\b{re.escape(word)}\b" for word in sorted(metavars, key=len, reverse=True))
    made, end = [], 0
    for match in re.finditer(pattern, text):
        mark = italic if match[0] in metavars else bold
        made += [escape(text[end : match.start()]), mark(match[0])]
        end = match.end()
    return "".join([*made, escape(text[end:])])


def sentences(text: str, metavars: Collection[str] = ()) -> list[str]:
    """Write a paragraph, each sentence on a line of its own, as roff wants it."""
    found = _SENTENCE.split(" ".join(text.split()))
    return [line(inline(sentence, metavars)) for sentence in found if sentence]


def verbatim(lines: Iterable[str]) -> list[str]:
    """Write *lines* as they are, without filling, indented."""
    return [".RS 4", ".EX", *(line(escape(text.expandtabs().rstrip())) for text in lines), ".EE", ".RE"]


def prose(text: str, metavars: Collection[str] = ()) -> list[str]:
    """Write paragraphs, with ``.PP`` between them."""
    made: list[str] = []
    for paragraph in filter(None, re.split(r"\n\s*\n", textwrap.dedent(text).strip("\n"))):
        lines = paragraph.splitlines()
        gap = [".PP"] if made else []
        if lines[0] != "\b" and not all(kept.startswith("    ") for kept in lines):
            made += gap + sentences(paragraph, metavars)
            continue
        kept = lines[lines[0] == "\b" :]
        if kept[0].endswith(":") and not kept[0].startswith(" "):
            made += gap + sentences(kept.pop(0), metavars)
            gap = []
        made += gap + verbatim(textwrap.dedent("\n".join(kept)).splitlines())
    return made


def tagged(tag: str, body: Sequence[str]) -> list[str]:
    """Write an entry: *tag* (escaped) on a line of its own, *body* indented below it."""
    return [".PP", line(tag), ".RS 4", *body, ".RE"]


def terse(tag: str, body: Sequence[str], width: int) -> list[str]:
    """Write an entry of one paragraph, beside its *tag* if that is narrower than *width*."""
    return [f".TP {width}", line(tag), *body]


def tidy(lines: Iterable[str]) -> list[str]:
    """Leave out the ``.PP`` that begin no paragraph of their own: after a title, before one, and one of two."""
    made: list[str] = []
    for text in lines:
        before = made[-1] if made else ""
        if text == ".PP" and before.startswith((".SH ", ".SS ", ".PP")):
            continue
        if text.startswith((".SH ", ".SS ")) and before == ".PP":
            made.pop()
        made.append(text)
    return made
