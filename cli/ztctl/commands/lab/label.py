# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab label`."""

from __future__ import annotations

import click

from ztctl.commands.lab.options import (
    lab_errors,
    name_option,
    namespace_option,
    print_progress,
)
from ztunnel.lab import Lab


@click.command()
@name_option
@namespace_option
@click.argument("words", nargs=-1, required=True, metavar="[KIND] NAME KEY=VALUE|KEY-...")
def label(name: str, namespace: str, words: tuple[str, ...]) -> None:
    """Set (KEY=VALUE) or remove (KEY-) labels of an object.

    Pods are enrolled or unenrolled within a second, without a restart. KIND is pod by default.

    \b
    Examples:
      ztctl lab label ns default istio.io/dataplane-mode=ambient
      ztctl lab label client istio.io/dataplane-mode=none
      ztctl lab label pod client istio.io/dataplane-mode-
    """
    targets = [word for word in words if "=" not in word and not word.endswith("-")]
    changes = [word for word in words if word not in targets]
    if not 1 <= len(targets) <= 2 or not changes:
        raise click.UsageError("expected [KIND] NAME and at least one KEY=VALUE or KEY-")
    kind = targets[0] if len(targets) == 2 else "pod"
    with lab_errors():
        Lab(name).label(kind, targets[-1], dict(map(_label_change, changes)), namespace)
    print_progress(f"{kind} {targets[-1]} labeled")


def _label_change(word: str) -> tuple[str, str | None]:
    """The key, and its new value or None."""
    key, equals, value = word.partition("=")
    return (key, value) if equals else (word.removesuffix("-"), None)
