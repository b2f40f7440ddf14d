# SPDX-License-Identifier: Apache-2.0
"""What holds for every test.

With ZTUNNEL_COMPILED=yes the tests see the hot modules compiled, else always their sources. They
hold as many sockets as the processes do that they play, which raise their limit as well. A run
that is ended by SIGTERM or SIGHUP takes down what it made, as after Ctrl-C.
"""

from __future__ import annotations

import os
import resource
import signal
from types import FrameType

from ztunnel import compiled

ENDS = (signal.SIGTERM, signal.SIGHUP)

_, _most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a login's first limit is 1,024
resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _most))
if os.environ.get(compiled.VARIABLE) == "yes":
    compiled.use()


def pytest_report_header() -> str:
    """Which of the two it is."""
    return f"hot modules: {'compiled' if compiled.in_use() else 'sources'}"


def pytest_configure() -> None:
    """Labs, cgroups and namespaces outlive a process that just ends; fixtures take them away."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    """Pytest ends by KeyboardInterrupt in order, and a second signal must not disturb that."""
    for each in ENDS:
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt(signal.Signals(number).name)
