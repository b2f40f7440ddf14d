# SPDX-License-Identifier: Apache-2.0
"""How a command fails: one line that says what was tried, what was found, what to do.

The exit codes are part of the interface; `ztctl --help` lists them.
"""

from __future__ import annotations

import click

FAILED = 1  # the command failed, or a required check did
USAGE = 2  # click's own
NOTHING_THERE = 3


class CommandError(click.ClickException):
    """Ends the command with `Error: <message>`."""

    exit_code = FAILED


class NotReachableError(CommandError):
    """No installation here, or nobody answers at its socket."""

    exit_code = NOTHING_THERE
