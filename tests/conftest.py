# SPDX-License-Identifier: Apache-2.0
"""With ZTUNNEL_COMPILED=yes the tests see the hot modules compiled, else always their sources."""

from __future__ import annotations

import os

from ztunnel import compiled

if os.environ.get(compiled.VARIABLE) == "yes":
    compiled.use()


def pytest_report_header() -> str:
    """Which of the two it is."""
    return f"hot modules: {'compiled' if compiled.in_use() else 'sources'}"
