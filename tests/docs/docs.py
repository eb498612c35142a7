#!/usr/bin/env python3
"""Runs the commands in README.md and docs/, and checks the configurations in them.

    docs.py check                   every block is run, checked, or in reviewed.toml with a reason
    docs.py session PAGE OUT        write a bash script to OUT that runs the commands of a page (tests/docs/world starts it)
    docs.py files PAGE DIR          write the blocks of a page that are files to DIR, one file each, named NUMBER.KIND
    docs.py compare PAGE DIR        compare the outputs in DIR, which the session wrote, with those that the page shows
    docs.py pages                   the pages with commands

A block is a fenced block of a page. A line in it that cannot be run, or that has to run differently, is in reviewed.toml.
"""

import collections
import dataclasses
import pathlib
import re
import shlex
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMANDS = ("shell", "sh", "console")
FILES = ("yaml", "toml", "json")
# Diagrams, and code that the compiler or shellcheck checks elsewhere.
OTHER = ("mermaid", "rust")


@dataclasses.dataclass
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def first(self):
        return self.text.split("\n", 1)[0]

    @property
    def place(self):
        return f"{self.page}:{self.line}"


def reviewed():
    with open(HERE / "reviewed.toml", "rb") as file:
        return tomllib.load(file)


def pages():
    return ["README.md", "CONTRIBUTING.md", "tests/README.md", "charts/larder/README.md",
            *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def blocks(page):
    """The fenced blocks of a page, without the indentation of their fence."""
    found, fence, lines = [], None, []
    for number, line in enumerate((ROOT / page).read_text().split("\n"), 1):
        marker = re.match(r"^(\s*)```(\S*)\s*$", line)
        if marker and fence is None:
            fence = (len(marker[1]), marker[2], number + 1)
        elif marker:
            found.append(Block(page, fence[2], fence[1], "\n".join(lines)))
            fence, lines = None, []
        elif fence is not None:
            lines.append(line[fence[0]:])
    if fence is not None:
        sys.exit(f"{page}:{fence[2]}: the block does not end")
    return found


def is_session(block):
    """A block without a language that shows commands after a prompt, with their output."""
    return block.language == "" and block.text.startswith("$ ")


def commands(block):
    """The commands of a block: its lines, joined where one continues. A loop or a here document is one command."""
    command, depth, until = [], 0, None
    for line in block.text.split("\n"):
        if is_session(block):
            if not line.startswith("$ "):
                continue
            line = line[2:]
        line = re.sub(r"^(far|near)\$ +", "", line)
        command.append(line)
        if until is not None:
            until = None if line == until else until
        elif here := re.search(r"<<'?([A-Z]+)'?", line):
            until = here[1]
        depth += len(re.findall(r"(^|; *)(for|while|if)\b|\($", line)) - len(re.findall(r"^(done|fi)\b", line))
        if re.match(r"^\(cd ", line) and not line.rstrip().endswith(")"):
            depth += 1
        if depth > 0 and re.search(r"\) >\S+$", line):
            depth -= 1
        if until is None and depth == 0 and not line.rstrip().endswith(("\\", "&&", "|")):
            yield "\n".join(command)
            command = []
    if command:
        sys.exit(f"{block.place}: the last command does not end: {command[0]}")


def runnable(block):
    """The commands that are not empty and not comments."""
    for command in commands(block):
        text = re.sub(r"\s+#.*$", "", command) if "\n" not in command else command
        if text.strip() and not text.startswith("#"):
            yield text.strip()


class Reviewed:
    """The entries of reviewed.toml. Each must be used."""

    def __init__(self):
        self.data, self.used = reviewed(), set()

    def find(self, kind, page, **keys):
        for number, entry in enumerate(self.data.get(kind, [])):
            of_page = entry["page"] == page or (isinstance(entry["page"], list) and page in entry["page"])
            if of_page and all(entry.get(key) == value for key, value in keys.items()):
                self.used.add((kind, number))
                return entry
        return None

    def unused(self):
        for kind, entries in self.data.items():
            for number, entry in enumerate(entries):
                if (kind, number) not in self.used:
                    yield f"reviewed.toml: an entry of [[{kind}]] has no block: {entry}"


def kind_of(entries, block):
    """How a block that is a file is checked."""
    if entry := entries.find("file", block.page, first=block.first):
        return entry["kind"]
    defaults = {"toml": "toml", "json": "json", "yaml": "values" if block.page == "docs/helm.md" else "larder"}
    return defaults[block.language]


def check():
    entries, problems, counts = Reviewed(), [], collections.Counter()
    for page in pages():
        if any(block.language in COMMANDS + FILES or is_session(block) for block in blocks(page)):
            if entries.find("page", page) is None:
                problems.append(f"{page}: has commands or files, but no [[page]] in reviewed.toml")
        for block in blocks(page):
            if entries.find("not-run", page, first=block.first):
                counts["blocks not run"] += 1
            elif block.language in COMMANDS or is_session(block):
                for command in runnable(block):
                    if entries.find("skip", page, line=command):
                        counts["commands not run"] += 1
                    else:
                        for kind in ("instead", "before", "fails", "alike"):
                            entries.find(kind, page, line=command)
                        counts["commands run"] += 1
            elif block.language in FILES:
                kind_of(entries, block)
                entries.find("written", page, first=block.first)
                counts["files checked"] += 1
            elif block.language in OTHER:
                counts["other blocks"] += 1
            elif entry := entries.find("shows", page, first=block.first):
                counts["outputs not compared" if "reason" in entry else "outputs compared"] += 1
            elif entries.find("written", page, first=block.first):
                counts["files checked"] += 1
            else:
                problems.append(f"{block.place}: this block is neither run nor in reviewed.toml: {block.first}")
    for kind in ("skip", "not-run", "instead", "fails"):
        for entry in entries.data.get(kind, []):
            if len(entry.get("reason", "")) < 8:
                problems.append(f"reviewed.toml: an entry of [[{kind}]] has no reason: {entry}")
    problems.extend(entries.unused())
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    if problems:
        sys.exit("\n".join(problems))


def session(page, out):
    """A bash script that runs the commands of a page, in order, in one directory. Each output goes to a file."""
    entries = Reviewed()
    settings = entries.find("page", page) or {}
    lines = [f"prepare {shlex.quote(step)}" for step in settings.get("prepare", [])]
    # A page may show a file after the command that reads it.
    for block in blocks(page):
        if entry := entries.find("written", page, first=block.first):
            lines.append(f"printf '%s\\n' {shlex.quote(block.text)} >{shlex.quote(entry['path'])}")
    number = 0
    for block in blocks(page):
        if entries.find("not-run", page, first=block.first):
            continue
        if block.language not in COMMANDS and not is_session(block):
            continue
        for command in runnable(block):
            if entries.find("skip", page, line=command):
                continue
            number += 1
            status = (entries.find("fails", page, line=command) or {}).get("status", 0)
            if before := (entries.find("before", page, line=command) or {}).get("run"):
                lines.append(before)
            run = (entries.find("instead", page, line=command) or {}).get("run", command)
            run = run.replace("OWNER", "owner").replace("…", "")
            lines.append(f"begin {shlex.quote(block.place)} {number} {status} {shlex.quote(command)}")
            # In this shell, so that variables and background jobs stay; `end` reports a wrong status.
            lines.append(f"{{ {run}\n}} >/mnt/out/out.{number} 2>&1 && STATUS=0 || STATUS=$?")
            lines.append("end")
    pathlib.Path(out).write_text("\n".join(lines) + "\n")


def files(page, directory):
    entries = Reviewed()
    for block in blocks(page):
        if block.language in FILES and not entries.find("not-run", page, first=block.first):
            path = pathlib.Path(directory) / f"{block.line}.{kind_of(entries, block)}"
            path.write_text(block.text + "\n")


def shape(text, alike):
    """The lines of an output without what differs from run to run, sorted."""
    lines = []
    for line in text.strip().split("\n"):
        for pattern, replacement in [
            *alike,
            (r"sha256[:-][0-9a-f]{64}", "DIGEST"), (r"\b[0-9a-f]{12}\b", "DIGEST"), (r"https?://[^/ ]+", "URL"),
            (r"\d{4}-\d\d-\d\d(T[\d:.]+Z)?", "TIME"), (r"\d+(\.\d+)? (bytes?|kB|MB|GB|ms|s|min)\b", "AMOUNT"),
            (r"\d+(\.\d+)?(µs|us|ms|s)\b", "AMOUNT"), (r"\b\d+\b", "N"), (r"\s+", " "),
        ]:
            line = re.sub(pattern, replacement, line)
        lines.append(line.strip())
    return sorted(lines)


def compare(page, directory):
    entries, problems, number, outputs = Reviewed(), [], 0, {}
    directory = pathlib.Path(directory)

    def differs(place, shown, actual, alike=()):
        expected, found = shape(shown, alike), shape(actual, alike)
        if expected != found:
            problems.append(f"{place}: the output has changed\n  shown:\n    " + "\n    ".join(expected)
                            + "\n  actual:\n    " + "\n    ".join(found) + "\n  verbatim:\n" + actual)

    for block in blocks(page):
        if entries.find("not-run", page, first=block.first):
            continue
        if entry := entries.find("shows", page, first=block.first):
            if "reason" not in entry:
                differs(block.place, block.text, outputs[entry["of"]], [tuple(pair) for pair in entry.get("alike", [])])
            continue
        if block.language not in COMMANDS and not is_session(block):
            continue
        shown = dict(re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", block.text, re.M)) if is_session(block) else {}
        for command in runnable(block):
            if entries.find("skip", page, line=command):
                continue
            number += 1
            outputs[command] = (directory / f"out.{number}").read_text()
            if command in shown:
                entry = entries.find("alike", page, line=command) or {}
                differs(block.place, shown[command], outputs[command], [tuple(pair) for pair in entry.get("alike", [])])
    if problems:
        sys.exit("\n".join(problems))


match sys.argv[1:]:
    case ["check"]:
        check()
    case ["pages"]:
        print("\n".join(page for page in pages() if Reviewed().find("page", page)))
    case ["session", page, out]:
        session(page, out)
    case ["files", page, out]:
        files(page, out)
    case ["compare", page, out]:
        compare(page, out)
    case _:
        sys.exit(__doc__)
