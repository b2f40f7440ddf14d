# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab`: the command line of `ztunnel.lab.Lab`."""

from __future__ import annotations

import click

from ztctl.commands.lab.apply import apply
from ztctl.commands.lab.certificate import certificate
from ztctl.commands.lab.delete import delete
from ztctl.commands.lab.down import down
from ztctl.commands.lab.exec import exec_
from ztctl.commands.lab.kill import kill
from ztctl.commands.lab.label import label
from ztctl.commands.lab.logs import logs
from ztctl.commands.lab.restart import restart
from ztctl.commands.lab.start import start
from ztctl.commands.lab.status import status
from ztctl.commands.lab.up import up


@click.group()
def lab() -> None:
    """Run a small cluster on this machine, without Kubernetes.

    Nodes and pods are network namespaces, and containers are programs of this machine. Each node
    runs the real agent and proxy. The commands need root.

    \b
    Examples:
      ztctl lab up                                   # two nodes and the demo: client, my-app
      ztctl lab exec client -- curl -s http://my-app
      ztctl lab status
      ztctl lab label ns default istio.io/dataplane-mode-    # unenroll the namespace
      ztctl lab down
    """


_COMMANDS = (
    *(up, down, status, exec_, apply, delete, label, certificate),
    *(logs, restart, kill, start),
)
for command in _COMMANDS:
    lab.add_command(command)
