# SPDX-License-Identifier: Apache-2.0
"""Checks of the pages: links and anchors, reachability, and names that must exist in the code."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click

from scripts.docgen import bpf, cli, facts, metrics
from scripts.docgen.markdown import ROOT
from ztctl.main import cli as ztctl_cli
from ztunnel.main import cli as ztunnel_cli

_FENCE = re.compile(r"^( *)(```+)(\w*)\n(.*?)^\1\2\s*$", re.M | re.S)
_INLINE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.M)
_PATH = re.compile(
    r"(?<![\w./@-])((?:ztunnel|cli|tests|bpf|bench|deploy|docs|scripts|vagrant)/[\w./-]*\w/?)"
)
_GENERATED = re.compile(r"<!-- generated: .*?<!-- end generated -->", re.S)
_OPTION = re.compile(r"`[^`\n]*?(?<![\w-])(--[a-z][a-z0-9-]+)")
_METRIC = re.compile(r"\bztunnel_[a-z0-9_]+")
_BPF = re.compile(r"`(zt_[a-z0-9_]+)`")
HISTORIC = ("CHANGELOG.md", "docs/performance-2026-11.md")  # name what was


def problems() -> Iterator[str]:
    """One message for each problem of each page."""
    pages = _pages()
    for path in pages:
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT))
        for problem in (*_links(path, text), *_commands(text), *_names(text, name)):
            yield f"{name}: {problem}"
    for path in sorted((ROOT / "tests").rglob("README.md")):
        for problem in _links(path, path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(ROOT)}: {problem}"
    yield from _unreachable(pages)
    yield from _mentions()


def _pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def _targets(path: Path, text: str) -> Iterator[tuple[str, Path, str]]:
    for link in _LINK.findall(_INLINE.sub("", _FENCE.sub("", text))):
        if "://" not in link and not link.startswith("mailto:"):
            file, _, anchor = link.partition("#")
            yield link, (path.parent / file).resolve() if file else path, anchor


def _links(path: Path, text: str) -> Iterator[str]:
    for link, target, anchor in _targets(path, text):
        if not target.exists():
            yield f"dead link {link}"
        elif anchor and anchor not in _anchors(target):
            yield f"dead anchor {link}"


@cache
def _anchors(path: Path) -> frozenset[str]:
    """Anchors as GitHub makes them of headings."""
    slugs: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        slugs.append(slug if slug not in slugs else f"{slug}-{slugs.count(slug)}")
    return frozenset(slugs)


def _commands(text: str) -> Iterator[str]:
    """Commands of ours in code blocks must parse: subcommands and options exist."""
    for _, _, language, block in _FENCE.findall(text):
        if language not in ("", "sh"):
            continue
        for line in block.splitlines():
            words = re.split(r"\s[|&>;]|\s#|\\$", line.removeprefix("$ ").strip())[0]
            words = words.removeprefix(".venv/bin/").removeprefix("sudo ")
            for program, root in (("ztctl", ztctl_cli), ("ztunnel", ztunnel_cli)):
                if words.startswith(f"{program} "):
                    yield from _parse(root, words)


def _parse(command: click.Command, line: str) -> Iterator[str]:
    try:
        words = shlex.split(line)[1:]
    except ValueError:
        return
    context, known = click.Context(command), cli.options(command)
    while words:
        word = words.pop(0)
        if word == "--":
            return
        if word.startswith("-") and len(word) > 1 and word not in ("-h", "--help"):
            option = known.get(word.split("=")[0])
            if option is None:
                yield f"`{line}`: no option {word}"
                return
            if not option.is_flag and "=" not in word and words:
                words.pop(0)
        elif isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z-]*", word):
            found = command.get_command(context, word)
            if found is None:
                yield f"`{line}`: no command {word}"
                return
            command = found
            known = {**known, **cli.options(found)}


def _names(text: str, page: str) -> Iterator[str]:
    if "UNDESCRIBED" in text:
        yield "UNDESCRIBED names; hint: describe them in scripts/docgen/facts.py"
    if page in HISTORIC:
        return
    written = _GENERATED.sub("", text)
    code = [match[0] for match in (*_FENCE.finditer(written), *_INLINE.finditer(written))]
    for path in sorted(set(_PATH.findall("\n".join(code)))):
        if not (ROOT / path).exists() and path not in facts.WRITTEN_FILES:
            yield f"no file {path}"
    for option in sorted(set(_OPTION.findall(_FENCE.sub("", text))) - _options()):
        yield f"no option {option}"
    for name in sorted(set(_METRIC.findall(text))):
        if not any(name.startswith(each) or each.startswith(name) for each in metrics.names()):
            yield f"no metric {name}"
    for name in sorted(set(_BPF.findall(text)) - bpf.identifiers()):
        yield f"no BPF name {name}"


@cache
def _options() -> frozenset[str]:
    found = set(facts.FOREIGN_OPTIONS)
    commands: list[click.Command] = [ztctl_cli, ztunnel_cli]
    while commands:
        command = commands.pop()
        found |= cli.options(command).keys()
        if isinstance(command, click.Group):
            context = click.Context(command)
            names = command.list_commands(context)
            commands += filter(None, (command.get_command(context, name) for name in names))
    return frozenset(found)


def _unreachable(pages: list[Path]) -> Iterator[str]:
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        path = queue.pop()
        if path not in seen and path.suffix == ".md" and path.is_file():
            seen.add(path)
            text = path.read_text(encoding="utf-8")
            queue += [target for _, target, _ in _targets(path, text)]
    for path in pages:
        if path not in seen:
            yield f"{path.relative_to(ROOT)}: no page links to it"


def _mentions() -> Iterator[str]:
    """Pages that sources name must exist."""
    listing = subprocess.run(
        ["git", "grep", "-nIoE", r"docs/[A-Za-z0-9./_-]+\.md", "--", ":!docs", ":!*.md"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in listing.stdout.splitlines():
        file, _, page = line.split(":", 2)
        if not (ROOT / page).exists():
            yield f"{file}: names {page}, which does not exist"
