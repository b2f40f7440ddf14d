# SPDX-License-Identifier: Apache-2.0
"""Starts modules of this installation as processes that may run as root.

`python -m` prepends the working directory to the import path, and PYTHONPATH does so from any
directory: a user who may write there could plant a module that root imports.
"""

from __future__ import annotations

import sys


def python_argv(module: str, *arguments: str) -> list[str]:
    """The command line of `module`, which imports from this interpreter's installation only."""
    return [sys.executable, "-P", "-I", "-m", module, *arguments]
