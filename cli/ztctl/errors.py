# SPDX-License-Identifier: Apache-2.0
"""Exit codes of ztctl and the exceptions that select them.

The exit codes are part of the interface; `ztctl --help` lists them. A message states what failed,
what was found, and after `hint: ` what to do.
"""

from __future__ import annotations

import click

EXIT_FAILED = 1  # the command failed, or a required check did
EXIT_USAGE = 2  # click's own, and errors of commands whose result is the exit code
EXIT_NOT_REACHABLE = 3


class CommandError(click.ClickException):
    """Ends the command with `Error: <message>`."""

    exit_code = EXIT_FAILED


class NotReachableError(CommandError):
    """No installation was found, or its agent or API server does not answer."""

    exit_code = EXIT_NOT_REACHABLE


class QuestionError(CommandError):
    """There is no result: of commands that report one by EXIT_FAILED."""

    exit_code = EXIT_USAGE
