# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the machine code of the data plane's hot modules, compiled from them by mypyc.

    scripts/setup ─▶ ztunnel.compiling ─▶ <venv>/.../ztunnel-compiled/<digest>/ztunnel/hbone/*.so
    ztunnel proxy ─▶ load(): import the hot modules from the directory of the present digest, if any

The digest covers all sources that the machine code depends on. Machine code of other sources is
therefore never found, and the sources are interpreted instead; they behave the same. Decision 0017
has the reasons.
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

VARIABLE = "ZTUNNEL_COMPILED"  # "no": never use them; "yes": fail without them
PACKAGE = Path(__file__).parent
ROOT = Path(sysconfig.get_path("platlib")) / "ztunnel-compiled"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
GROUP = "zt_compiled"  # of the library with all code; each module is a stub beside it

# Modules without msgspec structs and dataclasses: mypyc ignores their options.
HOT = tuple(
    f"ztunnel.{name}"
    for name in (
        "datapath.sockopt",
        "hbone.buffer_budget",
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
        "mesh.headers.proxy_protocol",
        "mesh.routing.inbound",
        "mesh.routing.outbound",
        "mesh.routing.waypoints",
        "mesh.state",
        "proxy.io.buffers",
        "proxy.io.connector",
        "proxy.conntrack.admission",
        "proxy.handlers.inbound",
        "proxy.handlers.inbound_stream",
        "proxy.io.listener",
        "proxy.io.event_loop",
        "proxy.handlers.outbound",
        "proxy.handlers.outbound_connection",
        "proxy.handlers.outbound_hbone",
        "proxy.handlers.outbound_passthrough",
        "proxy.handlers.waypoint_handover",
        "proxy.handlers.waypoint_header",
        "proxy.handlers.waypoint_probe",
        "proxy.handlers.waypoint_retry",
        "proxy.tunnel.connection_plan",
        "proxy.local_pod",
        "proxy.tunnel.pool",
        "proxy.tunnel.socket_relay",
        "proxy.tunnel.stream_relay",
        "proxy.conntrack.tracker",
        "proxy.io.sockets",
        "proxy.io.socket_pool",
        "proxy.tls.session",
        "proxy.agent_link.same_node_reporter",
        "proxy.tunnel.interfaces",
        "proxy.tunnel.keepalive",
        "proxy.tunnel.send_queue",
        "proxy.tunnel.state",
        "proxy.tunnel.tunnel",
        "proxy.tunnel.tunnel_streams",
        "proxy.tunnel.write_coalescer",
        "telemetry.access_log",
        "telemetry.worker_counters",
    )
)
# The packages that hot modules may import: the machine code depends on their types.
_LAYERS = ("mesh", "hbone", "dns", "ipc", "datapath", "identity", "telemetry", "proxy")


class CompiledError(Exception):
    """ZTUNNEL_COMPILED=yes cannot be met; the text has the reason and a hint."""


class _Finder(MetaPathFinder):
    """Finds the compiled modules of one directory."""

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
    """The path of a compiled module."""
    return directory / f"{name.replace('.', '/')}{SUFFIX}"


def digest(package: Path = PACKAGE) -> str:
    """The digest of a copy of this package's sources, and of the Python that runs here."""
    found = hashlib.sha256(f"{sys.version} {SUFFIX}".encode())
    files = [package / "compiled.py"]
    for layer in _LAYERS:
        files += sorted((package / layer).rglob("*.py"))
    for file in files:
        content = file.read_bytes()
        found.update(f"\n{file.relative_to(package)} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()[:32]


def available() -> Path | None:
    """The directory of the modules compiled from the present sources, if there is one."""
    directory = ROOT / digest()
    return directory if directory.is_dir() else None


def load() -> bool:
    """Import compiled modules from now on, if they are available; whether they are.

    Raises CompiledError if ZTUNNEL_COMPILED=yes and they cannot be used.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting == "no":
        return False
    if is_loaded():
        return True
    directory = available()
    if directory is None:
        if setting == "yes":
            raise CompiledError(f"{ROOT} has none of these sources; hint: run scripts/setup")
        return False
    if imported := sorted(name for name in HOT if name in sys.modules):
        if setting == "yes":
            raise CompiledError(f"already imported as source: {', '.join(imported)}")
        return False
    sys.meta_path.insert(0, _Finder(directory))
    return True


def is_loaded() -> bool:
    """Whether this process imports compiled modules."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)
