# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab apply`."""

from __future__ import annotations

from pathlib import Path

import click

from ztctl.commands.lab.options import (
    exit_with,
    files_option,
    lab_errors,
    name_option,
    print_progress,
    wait_options,
)
from ztunnel.lab import Lab


@click.command()
@files_option(required=True)
@name_option
@wait_options
def apply(files: tuple[Path, ...], name: str, wait: bool, timeout_s: float) -> None:
    """Create or update objects from manifests.

    The lab implements Namespace, Pod, Deployment, DaemonSet, Service, ServiceAccount, Secret,
    Gateway, Ingress and the ConfigMap ztunnel-lab-images. It stores other kinds, such as policies,
    for the agents.
    """
    with lab_errors():
        lab = Lab(name, progress=print_progress)
        exit_with(lab.apply(*files, wait=wait, timeout=timeout_s))
