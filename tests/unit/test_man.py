# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages are whole (each option, command, key and member is in them) and are proper roff."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from doorbelld import errors
from doorbelld.ctl.app import SECTIONS
from doorbelld.ctl.app import program as doorbellctl
from doorbelld.devices.image import ImageUnavailable
from doorbelld.main import main as doorbelld
from doorbelld.vhost.errors import NotConnected, NotRunning
from hypothesis import given
from hypothesis import strategies as st
from support.needs import require

ROOT = Path(__file__).parents[2]
CHANGING = {
    *("PeerCount", "ClearPolicy", "MaxAbsent", "MaxPeers", "StallTimeoutUSec", "RelayRate"),
    *("PollUSec", "State", "Reason", "Fault", "Error", "ConfigSpace", "MemoryRegions"),
    *(f"Frontend{what}" for what in ("Pid", "Uid", "Gid", "VmName", "Unit", "Since")),
    *(f"Acked{what}" for what in ("Features", "FeatureNames", "ProtocolFeatures", "ProtocolFeatureNames")),
    *(f"Client.{what}" for what in ("Id", "Size", "Since", "Reconnect")),
    *(f"FlatDevice.{what}" for what in ("IvPosition", "MemorySize", "Since")),
}
"""Properties that tell of their changes; some do so on one interface only."""
MAN = ROOT / "packaging" / "man"
sys.path.insert(0, str(MAN))

from manpages import commands, interfaces, keys, pages, roff  # noqa: E402

MACROS = {"TH", "SH", "SS", "PP", "TP", "RS", "RE", "EX", "EE", "B", "I", "BR", "BI", "IR", "RB", "nf", "fi"}
SETTINGS = {"nr", "nh", "ad"}
GLYPH = re.compile(r"\\(?:\((rs|aq|ga|ha|ti|dq|->)|\[u([0-9A-F]{4,6})\]|(-)|[&~]|f[BIRP]|(e))")
GLYPHS = {"rs": "\\", "aq": "'", "ga": "`", "ha": "^", "ti": "~", "dq": '"', "->": "→"}
GROFF = ("-ww", "-man", "-Tutf8", "-P-cbu")
"""Every warning; characters as they are, without what makes them bold."""
TIMEOUT = 60

INTERFACES = {file.stem: ET.parse(file).getroot().find("interface") for file in interfaces.files()}
MEMBERS = [(name, item) for name, root in INTERFACES.items() for item in root if item.tag != "annotation"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build all pages as the installation does."""
    place = tmp_path_factory.mktemp("man") / "pages"
    command = [MAN / "build", sys.executable, place]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return place


def printed(markup: str) -> str:
    """Give what roff prints for *markup*."""

    def glyph(match: re.Match[str]) -> str:
        name, code, minus, backslash = match.groups()
        return GLYPHS[name] if name else chr(int(code, 16)) if code else minus or ("\\" if backslash else "")

    return GLYPH.sub(glyph, markup)


def text(page: Path) -> str:
    """Give the words of a page, line by line, without its macros."""
    lines = page.read_text().splitlines()
    return "\n".join(printed(re.sub(r"^\.(?:[A-Z]+ ?)", "", line)) for line in lines if not line.startswith('.\\"'))


def section(page: Path, title: str) -> str:
    """Give the source of one section."""
    _, _, rest = page.read_text().partition(f"\n.SH {title}\n")
    assert rest, f"{page.name} has a section {title}"
    return rest.partition("\n.SH ")[0]


# Roff


@given(st.text())
def test_escaped_text_prints_as_it_was(raw: str) -> None:
    plain = "".join(char if " " <= char <= "~" or char >= "\xa0" else " " for char in raw)
    escaped = roff.line(roff.escape(raw))
    assert escaped.isascii() and escaped[:1] not in (".", "'")
    assert printed(escaped) == plain
    assert printed(roff.quoted(raw))[1:-1] == plain and '"' not in roff.quoted(raw)[1:-1]


@given(st.text(), st.sets(st.sampled_from(["PEER", "N", "a.b"])))
def test_markup_loses_no_text(raw: str, metavars: set[str]) -> None:
    said = printed(roff.inline(raw.replace("`", ""), metavars))
    assert said == printed(roff.escape(raw.replace("`", "")))


def test_groff_prints_what_was_meant(tmp_path: Path) -> None:
    nasty = [
        ".leading dot",
        "'quote'",
        "--long-option -x",
        r"a\b\n \\",
        "`^~",
        '"double"',
        "°µ",
        ".",
        "'",
        "\\",
        "%s\\f",
    ]
    page = tmp_path / "page"
    page.write_text("\n".join(['.TH x 1 2000-01-01 "x" "x"', ".SH NAME", *roff.verbatim(nasty)]) + "\n")
    command: list[str | Path] = [require("groff", "groff-base"), *GROFF, page]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert [line.strip() for line in done.stdout.splitlines() if line.startswith(" " * 11)] == nasty
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        ("One. Two\nis long.", ["One.", "Two is long."]),
        (".dot", [r"\&.dot"]),
        ("Use `a-b`, --all or man(7).", [r"Use \fBa\-b\fR, \fB\-\-all\fR or \fBman\fR(7)."]),
        ("A well-known -x", [r"A well\-known \fB\-x\fR"]),
        ("a\n\nb", ["a", ".PP", "b"]),
        ("\b\nkept\n  in", [".RS 4", ".EX", "kept", "  in", ".EE", ".RE"]),
        ("\b\nExample:\n  x", ["Example:", ".RS 4", ".EX", "x", ".EE", ".RE"]),
        ("a\n\n    .b", ["a", ".PP", ".RS 4", ".EX", r"\&.b", ".EE", ".RE"]),
        ("ring PEER now", [r"ring \fIPEER\fR now"]),
        ("", []),
    ],
)
def test_prose(raw: str, lines: list[str]) -> None:
    assert roff.prose(raw, {"PEER"}) == lines


def test_superfluous_paragraphs_go() -> None:
    lines = [".SH A", ".PP", "a", ".PP", ".PP", "b", ".PP", ".SH B", "c"]
    assert roff.tidy(lines) == [".SH A", "a", ".PP", "b", ".SH B", "c"]


# All pages


@pytest.mark.parametrize("page", pages.PAGES)
def test_page_has_no_unescaped_trouble(built: Path, page: str) -> None:
    lines = [line for line in (built / page).read_text().splitlines() if not line.startswith('.\\" SPDX')]
    assert not [line for line in lines if not line.isascii() or "\t" in line or line != line.rstrip() or not line]
    assert not [line for line in lines if line.startswith("'")]
    assert {line.split()[0][1:] for line in lines if line.startswith(".")} <= MACROS | SETTINGS
    assert not [line for line in lines if "\\" in GLYPH.sub("", line)], "each backslash begins an escape that we mean"
    assert not [line for line in lines if re.search(r"(?<![\\\w])--\w", line)], "what may be copied has no hyphens"
    assert not [line for line in lines if re.fullmatch(r"@.*@", line)], "each part is filled in"


@pytest.mark.parametrize("page", pages.PAGES)
def test_groff_has_nothing_to_say(built: Path, page: str) -> None:
    command: list[str | Path] = [require("groff", "groff-base"), *GROFF, built / page]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert done.stderr == ""
    assert "SEE ALSO" in done.stdout
    assert "\u2010" not in done.stdout, "what looks like a hyphen is one, and can be copied"


@pytest.mark.parametrize("page", pages.PAGES)
def test_mandoc_has_nothing_to_say(built: Path, page: str) -> None:
    if (mandoc := shutil.which("mandoc")) is None:
        pytest.skip("no mandoc (Debian package mandoc); groff has looked at the page")
    command = [mandoc, "-T", "lint", "-W", "warning", built / page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("page", pages.PAGES)
def test_pages_name_each_other(built: Path, page: str) -> None:
    name, _, number = page.rpartition(".")
    assert re.search(
        rf'^\.TH "{re.escape(roff.escape(name.upper()))}" {number} \d{{4}}-\d\d-\d\d "doorbelld ',
        (built / page).read_text(),
        re.M,
    )
    assert section(built / page, "NAME").startswith(f"{roff.escape(name)} \\- ")
    see_also = section(built / page, "SEE ALSO")
    for other in pages.PAGES:
        other_name, _, other_number = other.rpartition(".")
        assert (f".BR {roff.escape(other_name)} ({other_number})" in see_also) == (other != page)


def test_all_pages_are_there_and_nothing_else(built: Path) -> None:
    assert sorted(file.name for file in built.iterdir()) == sorted(pages.PAGES)


def test_the_date_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    pages.build(tmp_path)
    for page in pages.PAGES:
        assert " 1970-01-02 " in (tmp_path / page).read_text()


def test_build_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run([MAN / "build"], capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (2, "usage: build PYTHON OUTDIR\n")


def test_a_part_that_nobody_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doorbelld.8.in").write_text("@NOTHING@\n")
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    monkeypatch.setattr(pages, "PAGES", ("doorbelld.8",))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with pytest.raises(pages.Unwritten, match="no part @NOTHING@; known are"):
        pages.build(tmp_path / "out")


# Commands and options


def entries(source: str, command: click.Command, ctx: click.Context) -> Iterator[str]:
    """Name the flags of *command* that *source* does not describe."""
    lines = source.splitlines()
    for parameter in command.get_params(ctx):
        for flag in (*parameter.opts, *parameter.secondary_opts) if isinstance(parameter, click.Option) else ():
            if not any(line.startswith(r"\fB\-") and roff.bold(flag) in line for line in lines):
                yield flag


@pytest.mark.parametrize(("page", "command"), pages.PROGRAMS.items())
def test_each_option_is_described(built: Path, page: str, command: click.Command) -> None:
    described = section(built / page, "OPTIONS")
    ctx = commands.context(command, page)
    assert list(entries(described, command, ctx)) == []
    assert {"-h", "--help"} <= {flag for parameter in command.get_params(ctx) for flag in parameter.opts}


def test_each_command_is_described_with_its_options(built: Path) -> None:
    ctx = commands.context(doorbellctl, "doorbellctl")
    described = section(built / "doorbellctl.1", "COMMANDS")
    names = doorbellctl.list_commands(ctx)
    assert sorted(name for title in SECTIONS.values() for name in title) == sorted(names)
    for name in names:
        begin = re.search(rf"^{re.escape(roff.bold(name))}(?: |$)", described, re.M)
        assert begin, f"{name} has an entry"
        own = described[begin.start() :].partition("\n.RE\n.RE\n")[0] + "\n.RE"
        command = doorbellctl.get_command(ctx, name)
        below = click.Context(command, info_name=name, parent=ctx, resilient_parsing=True)
        assert set(entries(own, command, below)) <= {"-h", "--help"}
        assert len(own.splitlines()) > 2, f"{name} says what it does"
        for argument in command.get_params(below):
            if isinstance(argument, click.Argument):
                shown = (
                    "|".join(argument.type.choices)
                    if isinstance(argument.type, click.Choice)
                    else argument.human_readable_name
                )
                assert shown.lower() in printed(own.splitlines()[0]).lower()


@pytest.mark.parametrize(("page", "command"), pages.PROGRAMS.items())
def test_what_a_program_says_at_the_end_of_its_help_is_in_its_page(
    built: Path, page: str, command: click.Command
) -> None:
    said = commands.epilog(command)
    assert set(said) <= {"Exit status", "Examples", "Which daemon"}, "a new title needs a place in the page"
    words = " ".join(text(built / page).split()).lower()
    for status in said["Exit status"]:
        assert " ".join(status.split()[1:]).lower() in words
    for example in said.get("Examples", []):
        assert " ".join(example.split()).lower() in words


@pytest.mark.parametrize(("page", "command"), pages.PROGRAMS.items())
def test_each_variable_of_an_option_is_told(built: Path, page: str, command: click.Command) -> None:
    environment = section(built / page, "ENVIRONMENT")
    for parameter in command.params:
        for variable in [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []:
            assert variable in environment


def test_options_that_the_text_names_are_there() -> None:
    others = {"--what"}  # of systemctl
    there = {flag for parameter in doorbelld.params for flag in parameter.opts}
    named = set(re.findall(r"--[a-z-]+", printed((MAN / "doorbelld.8.in").read_text())))
    assert named - others <= there


@click.command(
    context_settings={"help_option_names": ["--help"]}, epilog="\b\nExit status:\n  0  fine\n  1  not\n     fine"
)
@click.argument("what", type=click.Choice(("a", "b-c")))
@click.option("-n", "--number", type=click.IntRange(1, 9), default=3, show_default=True, metavar="N", help="How many.")
@click.option("--least", type=click.IntRange(min=2), metavar="N", help="No fewer.")
@click.option("--most", type=click.FloatRange(max=0.5), metavar="N", help="No more.")
@click.option("--on/--off", help="Whether.")
@click.option("--hidden", hidden=True)
@click.option("--must", required=True, metavar="A.B")
def example() -> None:
    """Nothing."""


def test_options_in_roff() -> None:
    made = commands.options(example, commands.context(example, "example"), with_help=False)
    entry = [line for line in made if line not in (".PP", ".RS 4", ".RE")]
    assert entry == [
        r"\fB\-n\fR, \fB\-\-number\fR \fIN\fR", "How many.", "From 1 to 9.", "Default: 3.",
        r"\fB\-\-least\fR \fIN\fR", "No fewer.", "At least 2.",
        r"\fB\-\-most\fR \fIN\fR", "No more.", "At most 0.5.",
        r"\fB\-\-on\fR | \fB\-\-off\fR", "Whether.",
        r"\fB\-\-must\fR \fIA.B\fR", "Required.",
    ]  # fmt: skip


def test_usage_in_roff() -> None:
    usage = commands.usage(example, commands.context(example, "example"), "example")
    assert usage == r"\fBexample\fR [\fIOPTION\fR...] {\fBa\fR|\fBb\-c\fR}"


def test_exit_status_in_roff() -> None:
    assert commands.exit_status(example) == [".TP 4", r"\fB0\fR", "Fine.", ".TP 4", r"\fB1\fR", "Not fine."]


# The configuration


@pytest.mark.parametrize("name", keys.TABLES)
def test_each_key_is_described(built: Path, name: str) -> None:
    page = (built / "doorbelld.toml.5").read_text()
    written = list(keys.keys(keys.TABLES[name]))
    assert [key.name for key in written] == [
        field.name.replace("_", "-") for field in dataclasses.fields(keys.TABLES[name]) if "convert" in field.metadata
    ]
    for key in written:
        assert f"\n{roff.bold(key.name)} = {roff.italic(key.type)}\n" in page
        assert keys.read_prose()[name][key.name].strip()


@pytest.mark.parametrize("name", keys.TABLES)
def test_defaults_are_what_the_daemon_takes(name: str) -> None:
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(keys.TABLES[name])}
    for key in keys.keys(keys.TABLES[name]):
        field = fields[key.name]
        if key.default:
            assert field.metadata["convert"](tomllib.loads(f"x = {key.default}")["x"]) == field.default
        else:
            assert field.default in (None, "", ()) or field.default is dataclasses.MISSING


def test_a_key_that_lacks_prose() -> None:
    prose = keys.read_prose()
    del prose["region"]["max-peers"]
    with pytest.raises(keys.Unwritten, match=r"nothing is written of region\.max-peers"):
        keys.describe("region", prose)


def test_prose_that_lacks_its_key() -> None:
    prose = keys.read_prose()
    prose["daemon"]["colour"] = "Blue."
    with pytest.raises(keys.Unwritten, match=r"there is no key daemon\.colour"):
        keys.describe("daemon", prose)


def test_a_type_that_lacks_words() -> None:
    def converted(raw: Any) -> Any:
        return raw

    @dataclasses.dataclass
    class Table:
        key: Any = dataclasses.field(default=None, metadata={"convert": converted})

    with pytest.raises(keys.Unwritten, match="converted"):
        list(keys.keys(Table))


def test_configuration_in_the_examples_is_fine() -> None:
    from doorbelld.ivshmem.spec import RegionSpec
    from doorbelld.options import parse

    page = (MAN / "doorbelld.toml.5.in").read_text()
    examples = [printed(found) for found in re.findall(r"\.EX\n(.*?)\.EE", page, re.S)]
    regions = [tomllib.loads(example)["region"] for example in examples if "[region" in example]
    assert len(regions) == 3
    for name, options in [pair for region in regions for pair in region.items()]:
        for rule in options.get("peer", []):
            rule["match"].pop("uid", None)  # of a user who need not be on this host
        for key in ("group", "backing"):  # nor need the group, nor huge pages
            options.pop(key, None)
        assert parse(RegionSpec, options, f"region.{name}", name=name).name == name


# D-Bus


@pytest.fixture(scope="module")
def dbus(built: Path) -> str:
    return (built / "org.doorbelld.Doorbell1.5").read_text()


def part(dbus: str, interface: str) -> str:
    """Give the section of *interface*."""
    return dbus.partition(f'\n.SH "{interface}"\n')[2].partition("\n.SH ")[0]


@pytest.mark.parametrize(("interface", "member"), MEMBERS, ids=lambda x: x if isinstance(x, str) else x.get("name"))
def test_each_member_is_described(dbus: str, interface: str, member: ET.Element) -> None:
    own, name = part(dbus, interface), member.get("name")
    title = {"method": "Methods", "signal": "Signals", "property": "Properties"}[member.tag]
    found = re.search(
        rf"^\\fB{name}\\fR ?\((.*)$\n\.RS 4\n((?:.*\n)*?)\.RE$", own.partition(f"\n.SS {title}\n")[2], re.M
    )
    assert found, f"{name} has an entry"
    head, body = printed(found[1]), found[2]
    assert len(body.splitlines()) > (2 if member.tag == "property" else 0), "it has a comment in the XML"
    assert not body.startswith("Access:"), "it has a comment in the XML"
    if member.tag == "property":
        assert head.startswith(f"{member.get('type')})")
        signature = f"property  *{re.escape(member.get('type', ''))}  "
        known = {name, f"{interface.rpartition('.')[2]}.{name}"}
        assert "Read\\-only." in body and ("PropertiesChanged" in body) == bool(known & CHANGING)
    else:
        for arg in member.iter("arg"):
            assert f"{arg.get('type')} {arg.get('name')}" in head
        ins = [a.get("type", "") for a in member.iter("arg") if a.get("direction") != "out"]
        outs = [a.get("type", "") for a in member.iter("arg") if a.get("direction") == "out"]
        assert ("→" in head) == bool(outs)
        cells = ["".join(ins) or "-", "".join(outs) or "-"]
        signature = f"{member.tag}  *" + " +".join(map(re.escape, cells)) + " "
    table = printed(own.partition(".EX\n")[2].partition("\n.EE")[0])
    assert re.search(rf"^\.{name} +{signature}", table, re.M)


def test_each_interface_has_a_comment_and_a_place(dbus: str) -> None:
    for name in INTERFACES:
        own = part(dbus, name)
        assert own.splitlines()[0] not in (".EX", ".PP", "Objects:")
        assert "Objects:\n\\fB/org/doorbelld/Doorbell1" in own


def test_each_error_is_described(dbus: str) -> None:
    ours = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.DoorbellError)]
    assert len(ours) > 10
    for error in (*ours, NotConnected, NotRunning, ImageUnavailable):
        assert (f"Doorbell1.Error.{error.__name__}\\fR" in dbus) == (error is not errors.DoorbellError)


def test_errors_that_comments_name_are_there() -> None:
    known = {error.__name__ for error in interfaces.known_errors()}
    for file in interfaces.files():
        for sentence in re.findall(r"Fails with(.*?)(?:\.\s|-->)", file.read_text(), re.S):
            assert set(re.findall(r"`(\w+)`", sentence)) <= known


def test_each_action_is_described(dbus: str) -> None:
    policy = ET.parse(ROOT / "dbus" / "org.doorbelld.Doorbell1.policy")
    actions = [action.get("id", "") for action in policy.getroot().iter("action")]
    assert len(actions) > 3
    for action in actions:
        assert f"\n{roff.bold(action)}\n" in dbus
    used = set(re.findall(r"Access:\\~\\fB(.*?)\\fR", dbus))
    assert used == {roff.escape(action.rpartition(".")[2]) for action in actions}


def test_members_in_the_examples_are_there(dbus: str) -> None:
    examples = printed(dbus.partition("\n.SH EXAMPLES\n")[2]).replace("\\\n", " ")
    called = re.findall(r"(org\.doorbelld\.Doorbell1\.[A-Z]\w+)[ .]+([A-Z]\w+)(?: +\"?([a-z(){}]+)\"? )?", examples)
    assert len(called) >= 5
    for interface, name, signature in called:
        (member,) = (item for item in INTERFACES[interface] if item.get("name") == name)
        if signature and member.tag == "method" and not name.startswith("Create"):
            assert signature == "".join(
                arg.get("type", "") for arg in member.iter("arg") if arg.get("direction") == "in"
            )


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("<i><!-- One. --><a/><b/></i>", ["One.", ""]),
        ("<i><!-- Old. --><!--\n  Two\n  lines. --><a/><!-- After. --></i>", ["Two\nlines."]),
        ("<i><a><!-- Within. --></a></i>", [""]),
    ],
)
def test_comments_belong_to_what_follows(xml: str, said: list[str]) -> None:
    root = ET.fromstring(xml, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))
    assert [words for _, words in interfaces._with_comments(root)] == said
