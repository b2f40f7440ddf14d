# SPDX-License-Identifier: Apache-2.0
"""Runs on a node like an agent: the namespaces that both methods of pod discovery find.

# JSON by method and UID: an inode, "node", or null
python -m tests.node.runtime_nodes.discover UID...
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path

from ztunnel.agent.pods.cgroup_discovery import CgroupDiscovery
from ztunnel.agent.pods.cri_discovery import AUTO, CriDiscovery, runtime_dialer
from ztunnel.agent.pods.enroller import PodDiscovery
from ztunnel.agent.pods.netns_finder import HostNamespaceError
from ztunnel.datapath.requirements import mounts

TIMEOUT_S = 60.0  # seconds for the response of the runtime


def by_cgroup(uids: list[str]) -> dict[str, int | str | None]:
    """As on a node whose runtime cannot be queried."""
    # as with `--cgroup`: discovery cannot guess it in a cgroup namespace
    finder = CgroupDiscovery(next(mount.point for mount in mounts() if mount.kind == "cgroup2"))
    finder.refresh(uids)
    return {uid: _inode(finder, uid) for uid in uids}


def by_runtime(uids: list[str]) -> dict[str, int | str | None]:
    """As on a node where no pod has a cgroup."""
    answered = threading.Event()
    with tempfile.TemporaryDirectory() as empty:
        root = Path("/")
        finder = CriDiscovery(
            runtime_dialer(AUTO, root), CgroupDiscovery(Path(empty)), answered.set, host=root
        )
        finder.refresh(uids)
        assert answered.wait(TIMEOUT_S), finder.view()
        assert finder.view()["responds"], finder.view()
        found = {uid: _inode(finder, uid) for uid in uids}
        finder.close()
    return found


def _inode(finder: PodDiscovery, uid: str) -> int | str | None:
    try:
        found = finder.open(uid)
    except HostNamespaceError:
        return "node"
    if found is None:
        return None
    inode = found.inode[1]
    found.close()
    return inode


if __name__ == "__main__":
    print(json.dumps({"cgroup": by_cgroup(sys.argv[1:]), "runtime": by_runtime(sys.argv[1:])}))
