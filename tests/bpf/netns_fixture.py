# SPDX-License-Identifier: Apache-2.0
"""A node for BPF tests: a cgroup, a pin directory, the netns of a pod and that of a peer.

The test process itself joins the cgroup, so that the hooks run for its sockets.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.support.waiting import wait_until
from ztunnel.datapath import netns, requirements
from ztunnel.datapath.bpf import links, loader
from ztunnel.datapath.bpf.maps import Maps, PodEntry
from ztunnel.ipc.messages import ListenerKind

_serial = itertools.count()
POD4, POD6 = "10.98.0.1", "fd98::1"
PEER4, PEER6 = "10.98.0.2", "fd98::2"


def run(*argv: str) -> str:
    """Run a command and return its output; fails with its error output."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr or done.stdout}"
    return done.stdout


class BpfNode:
    """`pod` is enrolled and its listeners are open; `peer` is not enrolled."""

    def __init__(self) -> None:
        tag = f"{os.getpid()}x{next(_serial)}"
        self.cgroup_root = requirements.cgroup2_root()
        self.cgroup = self.cgroup_root / f"zt-test-{tag}"
        self.pin_dir = requirements.BPFFS / f"ztunnel-test-{tag}"
        self.pod_name, self.peer_name = f"ztp{tag}", f"ztq{tag}"
        self._cleanup = ExitStack()

    def __enter__(self) -> BpfNode:
        try:
            self._mount_bpffs()
            self._join_cgroup()
            self._namespaces()
            loader.load(self.cgroup, self.pin_dir)
            self._cleanup.callback(shutil.rmtree, self.pin_dir)
            self.maps = Maps(self.pin_dir)
            self._cleanup.callback(self.maps.close)
            self.enroll()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _mount_bpffs(self) -> None:
        if not requirements.bpffs_mount().mounted:
            run("mount", "-t", "bpf", "bpf", str(requirements.BPFFS))
            self._cleanup.callback(run, "umount", str(requirements.BPFFS))

    def _join_cgroup(self) -> None:
        self.cgroup.mkdir()
        self._cleanup.callback(_rmdir_when_empty, self.cgroup)
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        before = next(line[3:] for line in own.splitlines() if line.startswith("0::"))
        procs = self.cgroup_root / before.lstrip("/") / "cgroup.procs"
        (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        self._cleanup.callback(procs.write_text, str(os.getpid()))

    def _namespaces(self) -> None:
        for name in (self.pod_name, self.peer_name):
            run("ip", "netns", "add", name)
            self._cleanup.callback(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        ends = (self.pod_name, "eth0", POD4, POD6), (self.peer_name, "eth1", PEER4, PEER6)
        run(
            *("ip", "link", "add", "eth0", "netns", self.pod_name),
            *("type", "veth", "peer", "name", "eth1", "netns", self.peer_name),
        )
        for name, device, ip4, ip6 in ends:
            run("ip", "-n", name, "addr", "add", f"{ip4}/24", "dev", device)
            run("ip", "-n", name, "addr", "add", f"{ip6}/64", "dev", device, "nodad")
            run("ip", "-n", name, "link", "set", device, "up")
        self.pod = os.open(f"/run/netns/{self.pod_name}", os.O_RDONLY)
        self.peer = os.open(f"/run/netns/{self.peer_name}", os.O_RDONLY)
        self._cleanup.callback(os.close, self.pod)
        self._cleanup.callback(os.close, self.peer)
        self.cookie = netns.cookie(self.pod)

    def enroll(self) -> None:
        """Open the listeners, enroll the pod and attach sk_lookup."""
        self.listeners = netns.open_listeners(self.pod, self.maps)
        self._cleanup.callback(self.close_listeners)
        self.maps.set_listener(POD4, self.listeners[ListenerKind.INBOUND4])
        self.maps.set_listener(POD6, self.listeners[ListenerKind.INBOUND6])
        self.maps.enroll(PodEntry(self.cookie, (POD4, POD6)))
        links.attach_sk_lookup(self.pin_dir, self.pod, self.cookie)

    def enroll_peer(self) -> None:
        """Enroll the peer as a second pod of the node."""
        self.peer_listeners = netns.open_listeners(self.peer, self.maps)
        self._cleanup.callback(close_all, self.peer_listeners)
        self.peer_cookie = netns.cookie(self.peer)
        self.maps.set_listener(PEER4, self.peer_listeners[ListenerKind.INBOUND4])
        self.maps.set_listener(PEER6, self.peer_listeners[ListenerKind.INBOUND6])
        self.maps.enroll(PodEntry(self.peer_cookie, (PEER4, PEER6)))
        links.attach_sk_lookup(self.pin_dir, self.peer, self.peer_cookie)

    def close_listeners(self) -> None:
        """Close the listeners, as the exit of the proxy does."""
        close_all(self.listeners)

    def app_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0
    ) -> socket.socket:
        """An app's socket in the pod."""
        with netns.entered(self.pod):
            made = socket.socket(family, kind, proto)
        made.settimeout(5)
        return made

    def peer_socket(self, family: int = socket.AF_INET) -> socket.socket:
        """A socket of the peer."""
        with netns.entered(self.peer):
            made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(5)
        return made

    def server(
        self, family: int, address: tuple[str, int], *, in_peer: bool = False
    ) -> socket.socket:
        """An app's listener in the pod or in the peer; one on `::` accepts both families."""
        with netns.entered(self.peer if in_peer else self.pod):
            made = socket.create_server(
                address, family=family, dualstack_ipv6=address[0] == "::", backlog=128
            )
        made.settimeout(5)
        return made

    def accepted(self, kind: ListenerKind) -> socket.socket:
        """Accept the next connection at one of the proxy's listeners."""
        listener = self.listeners[kind]
        listener.settimeout(5)
        connection, _ = listener.accept()
        connection.settimeout(5)
        return connection

    def proxy_socket(self, family: int) -> socket.socket:
        """One of the proxy's sockets in the pod; `family`: 4 or 6."""
        made = netns.tcp_sockets(self.pod, family, 1, self.maps)[0]
        made.settimeout(5)
        return made


def close_all(listeners: dict[ListenerKind, socket.socket]) -> None:
    """Close a pod's listeners."""
    for sock in listeners.values():
        sock.close()


def _rmdir_when_empty(cgroup: Path) -> None:
    def gone() -> bool:
        try:
            cgroup.rmdir()
        except OSError:
            return False
        return True

    wait_until(gone, f"{cgroup} to be empty")
