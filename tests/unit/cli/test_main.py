# SPDX-License-Identifier: Apache-2.0
"""Help, completion, plurals, and options that all commands share."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.cli.conftest import Ztctl
from ztctl.main import COMMANDS, cli
from ztunnel import __version__


def test_help_lists_visible_commands_and_exit_codes(ztctl: Ztctl) -> None:
    text = ztctl("--help").output
    for name, entry in COMMANDS.items():
        assert (f"  {name} " in text) is not entry.hidden
        assert (entry.summary in text) is not entry.hidden
    assert "Exit codes:" in text


@pytest.mark.parametrize("name", sorted(name for name, entry in COMMANDS.items() if entry.plural))
def test_plural_of_a_noun_is_the_same_command(ztctl: Ztctl, name: str) -> None:
    plural = cli.get_command(None, COMMANDS[name].plural)  # type: ignore[arg-type]
    assert plural is cli.get_command(None, name)  # type: ignore[arg-type]
    assert f"  {COMMANDS[name].plural} " not in ztctl("--help").output


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(ztctl: Ztctl, name: str) -> None:
    done = ztctl(name, "--help")
    assert done.exit_code == 0, done.output
    assert cli.get_command(None, name).name == name  # type: ignore[arg-type, union-attr]


def test_help_imports_no_command() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from ztctl.main import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\n"
        "loaded = {'pyroute2', 'aiohttp', 'yaml', 'ztunnel.lab', 'ztctl.resources'}\n"
        "print(sorted(loaded & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_unknown_command_is_a_usage_error(ztctl: Ztctl) -> None:
    assert ztctl("nonsense").exit_code == 2


@pytest.mark.parametrize("words", [("-o", "json", "version"), ("version", "-o", "json")])
def test_output_option_works_before_and_after_the_command(
    ztctl: Ztctl, words: tuple[str, ...]
) -> None:
    assert json.loads(ztctl(*words).output)["version"] == __version__


def test_the_later_output_option_wins(ztctl: Ztctl) -> None:
    assert ztctl("-o", "json", "version", "-o", "table").output == f"ztctl {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(ztctl: Ztctl, shell: str) -> None:
    done = ztctl("completion", shell)
    assert done.exit_code == 0
    assert "_ZTCTL_COMPLETE" in done.output


def test_bash_accepts_the_completion_script(ztctl: Ztctl) -> None:
    script = ztctl("completion", "bash").output
    done = subprocess.run(
        ["bash", "-n"], input=script, capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 0, done.stderr
