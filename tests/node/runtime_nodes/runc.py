#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""runc for CRI-O on nodes that may not lower OOM scores and may have no hugetlb controller.

Does what containerd's restrict_oom_score_adj and tolerate_missing_hugetlb_controller do.
"""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path


def restrict(config: Path) -> None:
    """Remove what such a node does not support from the specification of a container."""
    wanted = json.loads(config.read_text())
    own = int(Path("/proc/self/oom_score_adj").read_text())
    process = wanted["process"]
    process["oomScoreAdj"] = max(process.get("oomScoreAdj", own), own)
    wanted["linux"].get("resources", {}).pop("hugepageLimits", None)
    config.write_text(json.dumps(wanted))


for option, value in pairwise(sys.argv):
    if option == "--bundle":
        restrict(Path(value, "config.json"))
os.execvp("runc", ["runc", *sys.argv[1:]])
