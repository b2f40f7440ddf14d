# SPDX-License-Identifier: Apache-2.0
"""Reference of the BPF programs, maps and counters, from the C sources."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.docgen import facts
from scripts.docgen.markdown import ROOT, code, sentence, table

_PROGRAM = re.compile(r'^SEC\("(.+)"\)\nint (zt_\w+)\(', re.M)
_MAP = re.compile(r'ZT_MAP\("(\w+)",\s*([\w ]+),\s*([\w ]+),\s*(\w+),\s*(\w+),\s*(\w+)\)', re.S)
_STAT = re.compile(r"\bZT_STAT_(\w+)(?: = 0)?,\s*/\*(.*?)\*/", re.S)
_FIELD = re.compile(r"__u64 (\w+);\s*/\*(.*?)\*/|__u64 (\w+);", re.S)
_STRUCT = re.compile(r"^struct (zt_pod_stats|zt_udp_stats) \{(.*?)^\};", re.S | re.M)

_RING = re.compile(r"ZT_RINGBUF\((zt_\w+), (\w+)\);")

PURPOSES = {
    "connect": "Redirect TCP and connected UDP, or bypass the proxy.",
    "sendmsg": "Redirect DNS queries and carried UDP.",
    "recvmsg": "Restore the remote address of received datagrams.",
    "getpeername": "Return the original destination, or the client.",
    "getsockname": "Return the address that the app expects.",
    "getsockopt": "Answer `SO_ORIGINAL_DST` and the proxy's queries.",
    "setsockopt": "Accept the client address and token queries from the proxy.",
    "sockops": "Copy metadata to accepted sockets; track bypassed connections.",
    "sk_lookup": "Redirect inbound traffic; admit bypassed connections. One link per pod.",
}


def programs() -> str:
    """Each program with its attach point."""
    rows = []
    for path in _sources("*.c"):
        for hook, name in _PROGRAM.findall(path.read_text(encoding="utf-8")):
            purpose = PURPOSES[name.removeprefix("zt_").rstrip("46")]
            rows.append((code(name), hook, purpose, code(f"bpf/{path.name}")))
    return table(("program", "attach point", "purpose", "source"), sorted(rows))


def maps() -> str:
    """Each pinned map with its type and size."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in _sources("*.h"))
    rows = [
        (code(name), kind, " ".join(key.split()), " ".join(value.split()), code(room))
        for kind, key, value, name, room, _ in _MAP.findall(text)
    ]
    rows += [(code(name), "ringbuf", "", "", code(size)) for name, size in _RING.findall(text)]
    return table(("map", "type", "key", "value", "entries"), sorted(rows))


def counters() -> str:
    """Counters of the programs: node-wide ones and those of each pod."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in _sources("*.h"))
    rows = [
        (code(name.lower()), "node", sentence(_flat(words))) for name, words in _STAT.findall(text)
    ]
    for struct, body in _STRUCT.findall(text):
        prefix = "udp_" if struct == "zt_udp_stats" else ""
        for commented, words, bare in _FIELD.findall(body):
            name = prefix + (commented or bare)
            if not name.endswith("_ns"):
                text = sentence(_flat(words)) or facts.COUNTERS.get(name, "UNDESCRIBED counter")
                rows.append((code(facts.EXPOSED_AS.get(name, name)), "pod", text))
    return table(("counter", "scope", "meaning"), rows)


def identifiers() -> set[str]:
    """Every `zt_` name in the sources."""
    return {
        name
        for path in _sources("*.[ch]")
        for name in re.findall(r"\bzt_\w+", path.read_text(encoding="utf-8"))
    }


def _sources(pattern: str) -> list[Path]:
    return sorted((ROOT / "bpf").rglob(pattern))


def _flat(words: str) -> str:
    return " ".join(words.replace("*", " ").split())
