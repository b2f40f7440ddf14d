# SPDX-License-Identifier: Apache-2.0
"""Which nodes a command looks at: this machine's own, a lab's, a cluster's, given directories."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ztctl.errors import CommandError, NotReachableError

RUN_DIR = Path("/run/ztunnel")
PIN_DIR = Path("/sys/fs/bpf/ztunnel")
LAB_STATE = Path("/run/ztunnel-lab")


@dataclass(frozen=True)
class Installation:
    """One node's directories. `lab` is empty outside of labs, `pod` outside of clusters."""

    node: str
    run_dir: Path
    pin_dir: Path
    lab: str = ""
    pod: str = ""


@dataclass(frozen=True)
class Selection:
    """What the options say; None where they say nothing."""

    lab: str | None = None
    node: str | None = None
    run_dir: Path | None = None
    pin_dir: Path | None = None
    kubeconfig: Path | None = None
    kube_context: str | None = None
    via: str | None = None  # a `ways.Via`

    @property
    def names_cluster(self) -> bool:
        """Whether a cluster was asked for: an option says so, not what lies about."""
        return self.kubeconfig is not None or self.kube_context is not None

    def find(self) -> list[Installation]:
        """The nodes meant, at least one. Raises CommandError."""
        if self.names_cluster:
            return self._of_cluster()
        if self.run_dir or self.pin_dir:
            return [self._given()]
        if self.lab is not None:
            return self._of_lab(self.lab)
        if RUN_DIR.exists() or PIN_DIR.exists():
            return [Installation(self.node or _this_node(), RUN_DIR, PIN_DIR)]
        return self._of_lab(_only_lab())

    def _given(self) -> Installation:
        base = Installation(self.node or _this_node(), RUN_DIR, PIN_DIR)
        if self.lab is not None:
            base = self._of_lab(self.lab)[0]
        return replace(
            base, run_dir=self.run_dir or base.run_dir, pin_dir=self.pin_dir or base.pin_dir
        )

    def _of_cluster(self) -> list[Installation]:
        from ztctl import cluster  # noqa: PLC0415  only when a cluster is meant
        from ztctl.transport import socket_proxy  # noqa: PLC0415  only when a cluster is meant
        from ztctl.transport.base import Via  # noqa: PLC0415
        from ztunnel.kube.client.access import Access  # noqa: PLC0415

        kubeconfig = self.kubeconfig or cluster.default_kubeconfig()
        access = Access(kubeconfig, self.kube_context)
        return socket_proxy.installations(access, self.node, Via(self.via or Via.AUTO))

    def _of_lab(self, lab: str) -> list[Installation]:
        nodes = lab_nodes(lab)
        if not nodes:
            raise NotReachableError(
                f"lab {lab!r} has no node here; bring it up: ztctl lab up --name {lab}"
            )
        if self.node is not None:
            nodes = [each for each in nodes if each.node == self.node]
        if not nodes:
            have = ", ".join(each.node for each in lab_nodes(lab))
            raise CommandError(f"lab {lab!r} has no node {self.node!r}; it has {have}")
        return nodes


def lab_nodes(lab: str) -> list[Installation]:
    """The nodes of a lab, by what they left on this machine: pins or run directories."""
    from ztunnel.lab import LabError  # noqa: PLC0415  only when a lab is meant
    from ztunnel.lab.names import LabNames  # noqa: PLC0415

    try:
        names = LabNames(lab, Path("/"))
    except LabError as error:
        raise CommandError(str(error)) from error
    prefix = names.pin_dir("").name
    found = {path.name.removeprefix(prefix) for path in names.pin_dirs()}
    found |= {path.parent.name for path in names.state.glob("*/agent.sock")}
    return [
        Installation(node, names.run_dir(node), names.pin_dir(node), lab) for node in sorted(found)
    ]


def _only_lab() -> str:
    labs = sorted(path.parent.name for path in LAB_STATE.glob("*/lab.json"))
    if len(labs) == 1:
        return labs[0]
    if labs:
        raise CommandError(f"several labs run here: {', '.join(labs)}; choose one with --lab NAME")
    raise NotReachableError(
        f"no ztunnel here: neither {RUN_DIR} nor {PIN_DIR} nor a lab; "
        "start the agent, bring a lab up (ztctl lab up), or name --run-dir and --pin-dir"
    )


def _this_node() -> str:
    return os.uname().nodename
