# SPDX-License-Identifier: Apache-2.0
"""Collects the counters of worker processes for as long as these live.

CounterReport ──▶ NodeCounters
session closed, process exited  ──▶ its open connections count as closed: the kernel reset them
session closed, process running ──▶ it reconnects and continues to report
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import Final

import structlog

from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.messages import CounterAck, CounterReport
from ztunnel.telemetry.node_counters import NodeCounters

MAX_INSTANCES = 1024  # worker processes of a node that are tracked at a time
RETRY_INTERVAL_S = 10.0  # until a process that could not be opened is tried again
_EXITED: Final = -1
_UNKNOWN: Final = -2  # the agent was out of descriptors or memory

log = structlog.get_logger()


class CounterCollector(SessionObserver):
    """One per agent. Its methods are called from the agent's event loop."""

    def __init__(self, counters: NodeCounters) -> None:
        self._counters = counters
        self._instances: dict[Session, int] = {}  # of open sessions
        self._pidfds: dict[int, int] = {}  # by instance; or _EXITED, _UNKNOWN
        self._pids: dict[int, int] = {}  # of the instances that are _UNKNOWN

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handler of `CounterReport`."""
        handlers.register(CounterReport, self._collect)

    def _collect(self, session: Session, report: CounterReport, fds: list[int]) -> None:
        """Count a worker's report. A session may report for one instance only."""
        if self._bind(session, report.instance):
            self._counters.apply(report)
        session.send(CounterAck(report.seq))

    def closed(self, session: Session) -> None:
        """All reports of the session are read. Finish its worker if the process has exited."""
        instance = self._instances.pop(session, None)
        if instance is None or instance in self._instances.values():
            return
        self._watch(instance)

    def _watch(self, instance: int) -> None:
        """Finish a worker without a session once its process has exited."""
        if instance not in self._pidfds or instance in self._instances.values():
            return
        pidfd = self._pidfds[instance]
        if pidfd == _UNKNOWN:
            pidfd = self._pidfds[instance] = _pidfd(self._pids[instance])
        if pidfd == _UNKNOWN:
            asyncio.get_running_loop().call_later(RETRY_INTERVAL_S, self._watch, instance)
        elif pidfd == _EXITED or _has_exited(pidfd):
            self._finish(instance)
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._process_exited, instance)

    def close(self) -> None:
        """Close all pidfds."""
        for instance in list(self._pidfds):
            self._close_pidfd(instance)

    def _bind(self, session: Session, instance: int) -> bool:
        """Bind the session to the instance; False if it is not allowed to report for it."""
        if self._instances.setdefault(session, instance) != instance:
            session.close("reports counters of two workers")
            return False
        if instance not in self._pidfds:
            if len(self._pidfds) >= MAX_INSTANCES:
                session.close("too many workers")
                return False
            self._pidfds[instance] = _pidfd(session.peer.pid)
            self._pids[instance] = session.peer.pid
        return True

    def _process_exited(self, instance: int) -> None:
        if instance in self._instances.values():  # it reconnected: `closed` follows
            asyncio.get_running_loop().remove_reader(self._pidfds[instance])
        else:
            self._finish(instance)

    def _finish(self, instance: int) -> None:
        self._close_pidfd(instance)
        self._counters.worker_exited(instance)
        log.info("worker counters closed", instance=instance)

    def _close_pidfd(self, instance: int) -> None:
        pidfd = self._pidfds.pop(instance)
        del self._pids[instance]
        if pidfd >= 0:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)


def _pidfd(pid: int) -> int:
    """A descriptor that becomes readable when the process exits; or _EXITED, _UNKNOWN."""
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):  # ValueError: pid 0, a process that is hidden from us
        return _EXITED
    except OSError as error:
        log.warning("worker process not opened, will retry", pid=pid, error=str(error))
        return _UNKNOWN


def _has_exited(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
