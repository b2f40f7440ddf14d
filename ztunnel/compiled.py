# SPDX-License-Identifier: Apache-2.0
"""The hot modules of the data plane as machine code: the same sources, compiled by mypyc.

    scripts/setup   ─▶ <venv>/.../ztunnel-compiled/<digest>/ztunnel/hbone/reader.*.so, ...
    ztunnel proxy   ─▶ use(): is there a directory for the digest of these sources? import from it

The digest is of all sources that compiled code was checked against, so what was compiled from
others is never found: then, and where nothing was compiled, the sources themselves are imported.
Nothing else differs. Decision 0017 says why.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

VARIABLE = "ZTUNNEL_COMPILED"  # no: never; yes: fail if there is none for these sources
PACKAGE = Path(__file__).parent
ROOT = Path(sysconfig.get_path("platlib")) / "ztunnel-compiled"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
GROUP = "zt_compiled"  # mypyc puts all code in one library, and a shim for each module beside it

# No module with msgspec structs or dataclasses: mypyc ignores their options.
HOT = tuple(
    f"ztunnel.{name}"
    for name in (
        "datapath.sockopt",
        "hbone.connection",
        "hbone.connection_state",
        "hbone.frame_handlers",
        "hbone.errors",
        "hbone.flow_control",
        "hbone.frames",
        "hbone.headers",
        "hbone.rate_limit",
        "hbone.peer_settings",
        "hbone.frame_reader",
        "hbone.streams",
        "mesh.address",
        "mesh.address_index",
        "mesh.headers.forwarded",
        "mesh.routing.inbound",
        "mesh.routing.outbound",
        "mesh.state",
        "proxy.io.buffers",
        "proxy.io.connector",
        "proxy.conntrack.admission",
        "proxy.handlers.inbound",
        "proxy.io.listener",
        "proxy.io.event_loop",
        "proxy.handlers.outbound",
        "proxy.handlers.outbound_connection",
        "proxy.handlers.outbound_hbone",
        "proxy.handlers.outbound_passthrough",
        "proxy.tunnel.connection_plan",
        "proxy.local_pod",
        "proxy.tunnel.pool",
        "proxy.tunnel.relay",
        "proxy.conntrack.tracker",
        "proxy.io.sockets",
        "proxy.io.socket_pool",
        "proxy.tls.session",
        "proxy.agent_link.same_node_reporter",
        "proxy.tunnel.interfaces",
        "proxy.tunnel.keepalive",
        "proxy.tunnel.send_queue",
        "proxy.tunnel.tunnel",
        "proxy.tunnel.write_coalescer",
        "telemetry.access_log",
        "telemetry.worker_counters",
    )
)
# All that hot modules may import: their types are compiled in.
_LAYERS = ("mesh", "hbone", "dns", "ipc", "datapath", "identity", "telemetry", "proxy")


class CompiledError(Exception):
    """Compiled modules were asked for and can't be used; the text says why, and the mend."""


class _Finder(MetaPathFinder):
    """Imports what is in one directory, and only that."""

    def __init__(self, directory: Path) -> None:
        self._files = {name: module_file(directory, name) for name in (*HOT, f"{GROUP}__mypyc")}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = self._files.get(name)
        if file is None:
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, str(file))
        return importlib.util.spec_from_file_location(name, file, loader=loader)


def module_file(directory: Path, name: str) -> Path:
    """Where a compiled module is."""
    return directory / f"{name.replace('.', '/')}{SUFFIX}"


def digest(package: Path = PACKAGE) -> str:
    """What the sources of a copy of this package are called, for this Python on this machine."""
    found = hashlib.sha256(f"{sys.version} {SUFFIX}".encode())
    files = [package / "compiled.py"]
    for layer in _LAYERS:
        files += sorted((package / layer).rglob("*.py"))
    for file in files:
        content = file.read_bytes()
        found.update(f"\n{file.relative_to(package)} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()[:32]


def current() -> Path | None:
    """The directory of what was compiled from these very sources."""
    directory = ROOT / digest()
    return directory if directory.is_dir() else None


def use() -> bool:
    """Import hot modules compiled from now on, if they can be; says whether.

    Raises CompiledError when the environment insists on it in vain.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish == "no":
        return False
    if in_use():
        return True
    directory = current()
    if directory is None:
        if wish == "yes":
            raise CompiledError(f"nothing in {ROOT} is of these sources; mend: scripts/setup")
        return False
    if early := sorted(name for name in HOT if name in sys.modules):
        if wish == "yes":
            raise CompiledError(f"imported as source before: {', '.join(early)}")
        return False
    sys.meta_path.insert(0, _Finder(directory))
    return True


def in_use() -> bool:
    """Whether this process imports hot modules compiled."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)
