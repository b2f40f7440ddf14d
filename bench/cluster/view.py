# SPDX-License-Identifier: Apache-2.0
"""The cost of one kind of object in the view of an agent: memory and CPU with and without it.

    python bench/scale.py --keep DIR                    # once: the recording
    python bench/cluster/view.py --replay DIR [--kind ServiceAccount] [--rounds 3]

A process lists and watches everything that an agent does, then its usage is measured; rounds with
and without the kind alternate. Needs no kernel, workers or root.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.cluster.agent_process import NODE
from bench.cluster.recording import Replay
from ztunnel.kube.client.access import Access
from ztunnel.kube.sources.api_server import ApiServerSource, watched_resources
from ztunnel.kube.view.cluster_view import ClusterView

SETTLE_S = 2.0  # seconds after the last list


async def look(kubeconfig: Path, without: str) -> dict[str, float]:
    """Follow the server; print resident MB and CPU seconds once everything is listed."""
    kinds = [kind for kind in watched_resources(NODE) if kind.kind != without]
    source = ApiServerSource(Access(kubeconfig), kinds, ClusterView("td", "c"), lambda: None)
    following = asyncio.create_task(source.run())
    wanted = {kind.kind for kind in kinds if not kind.optional}
    while any(source.view()["lists"][kind] == 0 for kind in wanted) or not source.synced.is_set():
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_S)
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    following.cancel()
    return {"mb": round(resident / 1024, 1), "cpu_s": round(time.process_time(), 2)}


def measured(kubeconfig: Path, without: str) -> Any:
    argv = [sys.executable, __file__, "--look", str(kubeconfig), "--kind", without]
    output = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(output.splitlines()[-1])  # after its log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replay", type=Path, metavar="DIR", help="a recording of bench/scale.py")
    parser.add_argument("--kind", default="ServiceAccount")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.look is not None:
        print(json.dumps(asyncio.run(look(args.look, args.kind))))
        return
    if args.replay is None:
        raise SystemExit("view: needs --replay")
    results: dict[str, list[Any]] = {"with": [], "without": []}
    with (
        tempfile.TemporaryDirectory(prefix="zt-view-") as made,
        Replay(args.replay, Path(made) / "replay", NODE) as replay,
    ):
        for _ in range(args.rounds):
            results["with"].append(measured(replay.kubeconfig, ""))
            results["without"].append(measured(replay.kubeconfig, args.kind))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
