# SPDX-License-Identifier: Apache-2.0
"""Settings of every test run.

With ZTUNNEL_COMPILED=yes the hot modules are tested compiled, otherwise always as sources. The
file limit is raised as the processes under test raise theirs. SIGTERM and SIGHUP end a run as
Ctrl-C does, so that fixtures remove labs, cgroups and namespaces.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from functools import partial
from types import FrameType

import hypothesis
import pytest

from ztunnel import compiled
from ztunnel.datapath import requirements

END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

_, _hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # a login starts with 1,024
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard_limit, _hard_limit))
if os.environ.get(compiled.VARIABLE) == "yes":
    compiled.load()
# An example that is slow on a busy machine is no failure.
hypothesis.settings.register_profile("ztunnel", deadline=None)
hypothesis.settings.load_profile("ztunnel")


def pytest_report_header() -> str:
    """State which form of the hot modules is tested."""
    return f"hot modules: {'compiled' if compiled.is_loaded() else 'sources'}"


def pytest_configure(config: pytest.Config) -> None:
    _handle_end_signals()
    if config.getoption("numprocesses", None):  # the process that starts the workers of xdist
        _keep_bpffs_mounted(config)


def _keep_bpffs_mounted(config: pytest.Config) -> None:
    """Mount the bpffs for all workers: the first one to end would unmount that of the others."""
    if os.geteuid() == 0 and not requirements.bpffs_mount().mounted:
        point = str(requirements.BPFFS)
        subprocess.run(["mount", "-t", "bpf", "bpf", point], check=True)
        config.add_cleanup(partial(_unmount, point))


def _unmount(point: str) -> None:
    subprocess.run(["umount", point], check=True)


def _handle_end_signals() -> None:
    """Handle the end signals in this process only.

    Processes that a test forks own no fixtures and just exit.
    """
    for number in END_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _end)
            os.register_at_fork(after_in_child=partial(signal.signal, number, signal.SIG_DFL))


def _end(number: int, _: FrameType | None) -> None:
    """Raise KeyboardInterrupt, on which pytest runs all teardowns; ignore further signals."""
    for each in END_SIGNALS:
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt(signal.Signals(number).name)
