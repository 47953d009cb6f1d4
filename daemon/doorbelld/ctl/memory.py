# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands on shared memory: read, write, clear. They go through the daemon, so they work from anywhere D-Bus does.

The memory is a region's, or that of the region which a client or a flat device joined.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from .arguments import Number, complete_one_of, kind_option_of, region_argument
from .session import Daemon, Session, json_option, pass_session, plural

_CHUNK = 1 << 20
_LINE = 16
_WITH_MEMORY = ("region", "client", "flat")


@click.command()
@click.argument("name", shell_complete=complete_one_of(*_WITH_MEMORY))
@click.argument("offset", type=Number())
@click.argument("length", type=Number())
@click.option("--raw", is_flag=True, help="The bytes as they are, instead of a dump.")
@kind_option_of(*_WITH_MEMORY)
@json_option
@pass_session
def read(session: Session, name: str, offset: int, length: int, raw: bool, kind: str | None) -> None:
    r"""Read LENGTH bytes at OFFSET of a region's memory and print a dump.

    NAME is a region, or a client or a flat device: then it is the memory of the region that this has joined. Numbers
    may be decimal, hexadecimal (0x1000) or have a unit (4K). In a dump, * stands for lines that are like the one
    before.

    \b
    Examples:
      doorbellctl read demo 0 256
      doorbellctl read demo 0x1000 4K --raw > page
    """

    async def fetch(daemon: Daemon) -> tuple[str, bytes]:
        found, _ = await daemon.find(name, kind, _WITH_MEMORY)
        pieces = []
        for start in range(offset, offset + length, _CHUNK) or [offset]:
            wanted = min(_CHUNK, offset + length - start)
            pieces.append(bytes(await daemon.call_one(found, name, "ReadMemory", "tu", start, wanted)))
        return found, b"".join(pieces)

    found, data = session.run(fetch)
    if session.json:
        session.emit({found: name, "offset": offset, "length": len(data), "hex": data.hex()})
    elif raw:
        sys.stdout.buffer.write(data)
    else:
        for line in dump(data, offset):
            click.echo(line)


def dump(data: bytes, offset: int) -> Iterator[str]:
    """Write *data*, found at *offset*, as ``hexdump -C`` does."""
    last, skipping = b"", False
    for start in range(0, len(data), _LINE):
        line = data[start : start + _LINE]
        if line == last:
            if not skipping:
                yield "*"
            skipping = True
            continue
        last, skipping = line, False
        left, right = line[:8].hex(" "), line[8:].hex(" ")
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        yield f"{offset + start:08x}  {left:<23}  {right:<23}  |{text}|"
    yield f"{offset + len(data):08x}"


@click.command()
@click.argument("name", shell_complete=complete_one_of(*_WITH_MEMORY))
@click.argument("offset", type=Number())
@click.argument("text")
@click.option("--hex", "in_hex", is_flag=True, help="TEXT is bytes in hexadecimal, such as 'de ad be ef'.")
@kind_option_of(*_WITH_MEMORY)
@json_option
@pass_session
def write(session: Session, name: str, offset: int, text: str, in_hex: bool, kind: str | None) -> None:
    r"""Write TEXT (or standard input, for -) at OFFSET of a region's memory.

    NAME is a region, a client or a flat device, as for read. What is written is the text's bytes and nothing after
    them: no line break, no zero. Nobody is rung.

    \b
    Examples:
      doorbellctl write demo 0 hello
      doorbellctl write demo 0x100 'de ad be ef' --hex
      doorbellctl write demo 4K - < page
    """
    if in_hex:
        try:
            data = bytes.fromhex(text)
        except ValueError:
            cure = "write two digits for each byte, such as 'de ad be ef'"
            raise click.BadParameter(f"{text!r} is not hexadecimal; {cure}", param_hint="TEXT") from None
    else:
        data = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")

    async def store(daemon: Daemon) -> str:
        found, _ = await daemon.find(name, kind, _WITH_MEMORY)
        for start in range(0, len(data), _CHUNK) or [0]:
            piece = data[start : start + _CHUNK]
            await daemon.call_one(found, name, "WriteMemory", "tay", offset + start, piece)
        return found

    found = session.run(store)
    words = f"wrote {plural(len(data), 'byte')} at {offset} of {name}"
    session.done(words, **{found: name}, offset=offset, length=len(data))


@click.command()
@region_argument
@click.option("--force", is_flag=True, help="Clear it though peers are connected.")
@json_option
@pass_session
def clear(session: Session, region: str, force: bool) -> None:
    r"""Set all of a region's memory to zero.

    Memory outlives its guests, and some guests take what they find in it for their own. Nobody can join meanwhile.
    With clear = "when-empty" in its configuration, a region does it by itself when the last peer has left.

    \b
    Examples:
      doorbellctl clear demo
      doorbellctl clear demo --force
    """

    async def work(daemon: Daemon) -> None:
        from ..bus.library import Variant

        await daemon.call_region(region, "Clear", "a{sv}", {"force": Variant("b", force)})

    session.run(work)
    session.done(f"cleared the memory of {region}", region=region)
