# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands and options, from the click commands themselves.

What a program says at the end of its ``--help``, under titles of its own ("Exit status:", "Examples:"), is taken apart
into `epilog`, so that a page can have it where manual pages have such things.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping

import click

from . import roff

_EXTRA = re.compile(r"\s*\[([^]]+)\]$")
_NUMBER = r"(-?[\d.]+)"
_BOUNDS = re.compile(rf"{_NUMBER}<=x<={_NUMBER}|x>={_NUMBER}|x<={_NUMBER}")
_STATUS = re.compile(r"(\d+)\s+(.+)")
_ABOUT = re.compile(r"[\w-]+:")
"""Words that begin with the name of the command that they are about."""
_HELP = frozenset(("-h", "--help"))


def context(command: click.Command, program: str) -> click.Context:
    """Make the context that click wants for describing *command* of *program*."""
    return click.Context(command, info_name=program, resilient_parsing=True, **command.context_settings)


def options(command: click.Command, ctx: click.Context, *, with_help: bool) -> list[str]:
    """Write the options of *command*; ``--help`` only *with_help*."""
    made = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if record is None or (_HELP & set(parameter.opts) and not with_help):
            continue
        flags, words = record
        said = getattr(parameter, "help", None) or ""
        made += roff.tagged(_flags(flags), roff.sentences(f"{said} {_extra(words[len(said) :])}"))
    return made


def _flags(record: str) -> str:
    """Write the left side of click's help: options bold, their values in italics."""
    words = (roff.bold(word) if word.startswith("-") else _value(word) for word in re.split(r",? ", record))
    return ", ".join(words).replace(", /, ", " | ").replace(r", \fI", r" \fI").replace(", [", " [")


def _value(word: str) -> str:
    """Write a value: one of several words that are meant as they are, or what stands for something."""
    if re.fullmatch(r"[\[{].*\|.*[]}]", word):
        return f"[{'|'.join(map(roff.bold, word[1:-1].split('|')))}]"
    return word if word == "/" else roff.italic(word)


def _extra(words: str) -> str:
    """Put what click adds in brackets, such as ``[default: system; 1<=x<=64]``, in words."""
    match = _EXTRA.search(words)
    bounded, said = [], []
    for extra in match[1].split("; ") if match else []:
        name, colon, value = extra.partition(": ")
        if bounds := _BOUNDS.fullmatch(extra):
            low, high, least, most = bounds.groups()
            bounded.append(f"From {low} to {high}." if low else f"At least {least}." if least else f"At most {most}.")
        elif colon:
            said.append(f"{'Environment' if name == 'env var' else name.capitalize()}: {value}.")
        else:
            said.append(f"{extra.capitalize()}.")
    return " ".join(bounded + said)


def usage(command: click.Command, ctx: click.Context, name: str = "") -> str:
    """Write how *command* is called: its *name*, options and arguments."""
    pieces = command.collect_usage_pieces(ctx)
    return " ".join([roff.bold(name), *map(_piece, pieces)]) if name else " ".join(map(_piece, pieces))


def _piece(piece: str) -> str:
    if piece == "[OPTIONS]":
        return r"[\fIOPTION\fR...]"
    if piece.startswith("{"):
        return f"{{{'|'.join(map(roff.bold, piece[1:-1].split('|')))}}}"
    return re.sub(r"[A-Za-z_]+", lambda match: roff.italic(match[0]), piece)


def _metavars(command: click.Command, ctx: click.Context) -> set[str]:
    """Find the words of the usage that stand for something."""
    return set(re.findall(r"\b[A-Z][A-Z_]+\b", " ".join(command.collect_usage_pieces(ctx)))) - {"OPTIONS"}


def commands(group: click.Group, ctx: click.Context, sections: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Write all commands of *group*, by section."""
    made = []
    for title, names in sections.items():
        made.append(f".SS {roff.quoted(title)}")
        for name in names:
            command = group.get_command(ctx, name)
            if command is None:
                raise LookupError(f"{ctx.info_name} has no command {name}")
            below = click.Context(command, info_name=name, parent=ctx, resilient_parsing=True)
            said = inspect.cleandoc(command.help or "").partition("\f")[0]
            body = roff.prose(said, _metavars(command, below)) + options(command, below, with_help=False)
            made += roff.tagged(usage(command, below, name), body)
    return made


def epilog(command: click.Command) -> dict[str, list[str]]:
    """Take apart what *command* says at the end of its help: by title, the lines below it."""
    found = {}
    for paragraph in re.split(r"\n\s*\n", (command.epilog or "").strip("\n")):
        title, colon, rest = paragraph.removeprefix("\b\n").partition(":")
        if colon:
            lines = textwrap.dedent(rest.strip("\n") if rest.startswith("\n") else rest.strip()).splitlines()
            found[title.strip()] = lines
    return found


def exit_status(command: click.Command) -> list[str]:
    """Write the exit status from the epilog of *command*."""
    entries: list[list[str]] = []
    for said in epilog(command).get("Exit status", []):
        if match := _STATUS.match(said):
            entries.append([match[1], match[2]])
        elif entries:
            entries[-1][1] += f" {said.strip()}"
    made = []
    for number, words in entries:
        said = words if _ABOUT.match(words) else words[:1].upper() + words[1:]
        made += roff.terse(roff.bold(number), roff.sentences(f"{said}."), 4)
    return made


def examples(command: click.Command) -> list[str]:
    """Write the examples from the epilog of *command*."""
    return roff.verbatim(epilog(command).get("Examples", []))
