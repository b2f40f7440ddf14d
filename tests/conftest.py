# SPDX-License-Identifier: Apache-2.0
"""With ZTUNNEL_COMPILED=yes the tests see the hot modules compiled, else always their sources.

They hold as many sockets as the processes do that they play, which raise their limit as well.
"""

from __future__ import annotations

import os
import resource

from ztunnel import compiled

_, _most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a login's first limit is 1,024
resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _most))
if os.environ.get(compiled.VARIABLE) == "yes":
    compiled.use()


def pytest_report_header() -> str:
    """Which of the two it is."""
    return f"hot modules: {'compiled' if compiled.in_use() else 'sources'}"
