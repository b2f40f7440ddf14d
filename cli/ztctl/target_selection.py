# SPDX-License-Identifier: Apache-2.0
"""Selects the nodes that a command reads, from its options and from what runs on this machine.

--kubeconfig, --context  the agents of a cluster
--run-dir, --pin-dir     one node, by its directories
--lab                    the nodes of a lab
none of these            this machine's installation, otherwise its only lab
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ztctl import targets
from ztctl.errors import CommandError, NotReachableError
from ztctl.targets import Target, TransportKind


@dataclass(frozen=True)
class TargetSelection:
    """The options of a command that select nodes; None for each that is not set."""

    lab: str | None = None
    node: str | None = None
    run_dir: Path | None = None
    pin_dir: Path | None = None
    kubeconfig: Path | None = None
    kube_context: str | None = None
    transport: TransportKind | None = None

    @property
    def is_cluster(self) -> bool:
        """Whether an option selects a cluster. A kubeconfig in its default place does not."""
        return self.kubeconfig is not None or self.kube_context is not None

    def resolve(self) -> list[Target]:
        """The selected nodes, at least one. Raises CommandError."""
        if self.is_cluster:
            return self._in_cluster()
        if self.run_dir or self.pin_dir:
            return [self._by_directories()]
        if self.lab is not None:
            return self._in_lab(self.lab)
        if targets.RUN_DIR.exists() or targets.PIN_DIR.exists():
            return [self._this_machine()]
        return self._in_lab(_only_lab())

    def _this_machine(self) -> Target:
        return Target(self.node or os.uname().nodename, targets.RUN_DIR, targets.PIN_DIR)

    def _by_directories(self) -> Target:
        base = self._this_machine() if self.lab is None else self._in_lab(self.lab)[0]
        return replace(
            base, run_dir=self.run_dir or base.run_dir, pin_dir=self.pin_dir or base.pin_dir
        )

    def _in_cluster(self) -> list[Target]:
        from ztctl.cluster.api_client import (  # noqa: PLC0415  large libraries
            default_kubeconfig,
        )
        from ztctl.transport import socket_proxy  # noqa: PLC0415
        from ztunnel.kube.client.access import Access  # noqa: PLC0415

        access = Access(self.kubeconfig or default_kubeconfig(), self.kube_context)
        transport = self.transport or TransportKind.AUTO
        return socket_proxy.open_targets(access, self.node, transport)

    def _in_lab(self, lab: str) -> list[Target]:
        nodes = lab_targets(lab)
        if not nodes:
            raise NotReachableError(
                f"lab {lab!r} has no node on this machine; hint: ztctl lab up --name {lab}"
            )
        if self.node is None:
            return nodes
        selected = [target for target in nodes if target.node == self.node]
        if not selected:
            names = ", ".join(target.node for target in nodes)
            raise CommandError(f"lab {lab!r} has no node {self.node!r}; hint: it has {names}")
        return selected


def lab_targets(lab: str) -> list[Target]:
    """The nodes of a lab that have pins or an agent socket on this machine."""
    from ztunnel.lab import LabError  # noqa: PLC0415  only for labs
    from ztunnel.lab.names import LabNames  # noqa: PLC0415

    try:
        names = LabNames(lab, Path("/"))
    except LabError as error:
        raise CommandError(str(error)) from error
    prefix = names.pin_dir("").name
    nodes = {path.name.removeprefix(prefix) for path in names.pin_dirs()}
    nodes |= {path.parent.name for path in names.state.glob("*/agent.sock")}
    return [Target(node, names.run_dir(node), names.pin_dir(node), lab) for node in sorted(nodes)]


def _only_lab() -> str:
    labs = sorted(path.parent.name for path in targets.LAB_STATE_DIR.glob("*/lab.json"))
    if len(labs) == 1:
        return labs[0]
    if labs:
        raise CommandError(
            f"several labs run on this machine: {', '.join(labs)}; hint: select one with --lab NAME"
        )
    raise NotReachableError(
        f"no ztunnel on this machine: neither {targets.RUN_DIR} nor {targets.PIN_DIR} nor a lab "
        "exists; hint: start the agent, run `ztctl lab up`, or set --run-dir and --pin-dir"
    )
