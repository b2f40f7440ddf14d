# SPDX-License-Identifier: Apache-2.0
"""The sandbox of a pod: its network, mount and UTS namespaces, held by a pause process.

    <node cgroup>/kubepods/pod<uid>/pause/      sleep infinity: holds the namespaces
    <state>/pods/<uid>/sandbox.json             for removal after the object was deleted
                      /mounts                   more files of the host, mounted in the pod
                      /overlays                 directories of the host with more mount points
                      /volumes/
                      /etc/…                    mounted over the host's files in the pod
                      /<container>.log, /<container>/

Containers join these namespaces. Pods share the host's file system: the lab isolates networks only.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ztunnel.lab.cluster.pod_fields import is_host_network, pod_ips
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses, links, netns
from ztunnel.lab.network.addresses import Node
from ztunnel.lab.objects import Object, write_atomically
from ztunnel.lab.runtime import cgroups, envoy, process, volumes
from ztunnel.lab.runtime.images import hostname

PAUSE = "pause"
STOP_GRACE_S = 5.0  # between SIGTERM and SIGKILL; shorter than in Kubernetes (30)

_START_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.005

# A bind mount over a symlinked /etc/resolv.conf (systemd-resolved) affects only this namespace.
_PAUSE_SCRIPT = """\
set -eu
while IFS="\t" read -r lower added; do
  mount -t overlay -o "ro,lowerdir=$added:$lower" overlay "$lower"
done <"$1/overlays"
for file in resolv.conf hosts hostname nsswitch.conf; do
  if [ -e "/etc/$file" ]; then mount --bind "$1/etc/$file" "/etc/$file"; fi
done
while IFS="\t" read -r source target; do mount --bind "$source" "$target"; done <"$1/mounts"
hostname "$2"
exec sleep infinity
"""


@dataclass(frozen=True)
class Sandbox:
    """Identifies a pod's sandbox. `netns` is the node's for a host-network pod."""

    uid: str
    node: str
    netns: str
    host_network: bool

    def cgroup(self, names: LabNames) -> Path:
        return names.pod_cgroup(self.node, self.uid)

    def pause_pid(self, names: LabNames) -> int | None:
        return cgroups.main_pid(self.cgroup(names) / PAUSE)

    def enter_argv(self, names: LabNames, directory: str = "/") -> list[str]:
        """The command prefix that joins the pod's namespaces."""
        pid = self.pause_pid(names)
        if pid is None:
            raise LabError(
                f"the sandbox of pod {self.uid} does not exist; hint: `ztctl lab up --name "
                f"{names.name}` creates the pod anew"
            )
        return ["nsenter", "--target", str(pid), "--net", "--mount", "--uts", f"--wd={directory}"]


def describe(names: LabNames, pod: Object) -> Sandbox:
    """The sandbox of a bound pod, whether it exists or not."""
    metadata, node = pod["metadata"], pod["spec"]["nodeName"]
    host_network = is_host_network(pod)
    pod_netns = (
        names.node_netns(node)
        if host_network
        else names.pod_netns(metadata["namespace"], metadata["name"])
    )
    return Sandbox(metadata["uid"], node, pod_netns, host_network)


def is_alive(names: LabNames, sandbox: Sandbox) -> bool:
    """Whether the pause process runs in the pod's named network namespace."""
    pid = sandbox.pause_pid(names)
    if pid is None or not netns.is_live(sandbox.netns):
        return False
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(netns.path_of(sandbox.netns)).st_ino
    except FileNotFoundError:
        return False


def create(names: LabNames, node: Node, pod: Object) -> Sandbox:
    """Create the pod's network and start its pause process. Raises LabError."""
    sandbox = describe(names, pod)
    directory = names.pod_dir(sandbox.uid)
    (directory / "etc").mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "sandbox.json", json.dumps(asdict(sandbox)))
    for name, text in _etc_files(pod):
        (directory / "etc" / name).write_text(text)
    _write_mounts(pod, directory)
    if not sandbox.host_network:
        links.create_pod(names, node, sandbox.netns, sandbox.uid, pod_ips(pod))
    _start_pause(names, sandbox, hostname(pod))
    return sandbox


def _write_mounts(pod: Object, directory: Path) -> None:
    """Write the lists of mounts, and create their mount points."""
    lines = []
    found = volumes.mounts(pod)
    for source, target in envoy.mounts(pod, directory):
        target.parent.mkdir(exist_ok=True)
        target.touch()
        lines.append(f"{source}\t{target}\n")
    for volume, path in found:
        lines.append(f"{volumes.directory_of(directory, volume)}\t{path}\n")
    (directory / "mounts").write_text("".join(lines))
    overlays = volumes.missing_parents(directory, [mount.path for mount in found])
    (directory / "overlays").write_text("".join(f"{a}\t{b}\n" for a, b in overlays))


def _start_pause(names: LabNames, sandbox: Sandbox, host: str) -> None:
    directory = names.pod_dir(sandbox.uid)
    cgroup, log = sandbox.cgroup(names) / PAUSE, directory / "pause.log"
    private = ["unshare", "--mount", "--propagation", "slave", "--uts", "--"]
    script = ["sh", "-c", _PAUSE_SCRIPT, PAUSE, str(directory), host]
    process.spawn([*netns.enter_argv(sandbox.netns), *private, *script], cgroup, log)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _is_pausing(cgroup):
        if not process.is_running(cgroup) or time.monotonic() > deadline:
            raise LabError(f"cannot create the sandbox of pod {sandbox.uid}: {process.tail(log)}")
        time.sleep(_POLL_INTERVAL_S)


def _is_pausing(cgroup: Path) -> bool:
    """Whether the script has finished: then `sleep` is the only process."""
    pids = cgroups.pids(cgroup)
    try:
        return len(pids) == 1 and Path(f"/proc/{pids[0]}/comm").read_text() == "sleep\n"
    except OSError:
        return False


def destroy(names: LabNames, sandbox: Sandbox, grace_s: float = STOP_GRACE_S) -> None:
    """Stop the pod's processes and remove its namespace. Idempotent."""
    cgroup = sandbox.cgroup(names)
    for container in cgroup.glob("*/") if cgroup.exists() else ():
        if container.name != PAUSE:
            cgroups.terminate(container, grace_s)
    cgroups.remove(cgroup)
    if not sandbox.host_network:
        netns.remove(sandbox.netns)
    shutil.rmtree(names.pod_dir(sandbox.uid), ignore_errors=True)


def recorded(names: LabNames) -> Iterator[Sandbox]:
    """All sandboxes in the state directory."""
    for path in sorted((names.state / "pods").glob("*/sandbox.json")):
        yield Sandbox(**json.loads(path.read_text()))


def _etc_files(pod: Object) -> Iterator[tuple[str, str]]:
    namespace, host = pod["metadata"]["namespace"], hostname(pod)
    domains = f"{namespace}.svc.cluster.local svc.cluster.local cluster.local"
    server = addresses.DNS_ADDRESSES[0]
    yield "resolv.conf", f"nameserver {server}\nsearch {domains}\noptions ndots:5\n"
    entries = "".join(f"{ip}\t{host}\n" for ip in pod_ips(pod))
    yield "hosts", f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{entries}"
    yield "hostname", f"{host}\n"
    # The host's may use systemd-resolved through a unix socket, which network namespaces share.
    yield "nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
