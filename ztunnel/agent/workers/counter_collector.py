# SPDX-License-Identifier: Apache-2.0
"""Keeps what workers count, for as long as they live: implements `workers.Book`.

Counted --> ledger --> totals
process dead --> what it had counted and not told is taken from its remains
session over, process dead --> what it had open is closed: the kernel has reset it
session over, process lives --> it dials again, and goes on counting
"""

from __future__ import annotations

import asyncio
import os
import select

import structlog

from ztunnel.agent.workers.session import Session
from ztunnel.ipc.messages import CounterReport
from ztunnel.telemetry.counter_memory import CheckpointError, Reader
from ztunnel.telemetry.node_counters import Ledger

MOST_INSTANCES = 1024  # worker processes of a node that may be known at a time

log = structlog.get_logger()


class CounterCollector:
    """One per agent; called from its event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._of: dict[Session, int] = {}  # live sessions → instance
        self._process: dict[int, int] = {}  # instance → pidfd
        self._remains: dict[int, Reader] = {}  # by instance

    def counted(self, session: Session, told: CounterReport) -> None:
        """Count what a worker tells; a session speaks for one instance only."""
        if self._is_known(session, told.instance):
            self._ledger.take(told.instance, told.number, told.rows, told.dns)

    def remains(self, session: Session, instance: int, fd: int) -> None:
        """Keep hold of what a worker leaves behind when it is killed."""
        if not self._is_known(session, instance) or instance in self._remains:
            return
        try:
            self._remains[instance] = Reader(fd)
        except CheckpointError as error:
            session.close(f"its remains can't be read: {error}")

    def _is_known(self, session: Session, instance: int) -> bool:
        """Whether the session may speak for this worker, which is known from now on."""
        if self._of.setdefault(session, instance) != instance:
            session.close("speaks for two workers")
            return False
        if instance not in self._process:
            if len(self._process) >= MOST_INSTANCES:
                session.close("too many workers")
                return False
            self._process[instance] = _pidfd(session.peer.pid)
        return True

    def hung_up(self, session: Session) -> None:
        """The last of it is read: if its process is dead, so are its connections."""
        instance = self._of.pop(session, None)
        if instance is None or instance in self._of.values():
            return
        process = self._process[instance]
        if process < 0 or _is_over(process):
            self._forget(instance)
        else:
            asyncio.get_running_loop().add_reader(process, self._died, instance)

    def close(self) -> None:
        """Let go of what refers to processes."""
        for instance in list(self._process):
            self._release(instance)

    def _died(self, instance: int) -> None:
        if instance in self._of.values():  # it came back: its session ends by itself
            asyncio.get_running_loop().remove_reader(self._process[instance])
        else:
            self._forget(instance)

    def _forget(self, instance: int) -> None:
        if instance in self._remains:
            told = self._ledger.told(instance)
            self._ledger.take(instance, told + 1, self._remains[instance].rows(told))
        self._release(instance)
        self._ledger.gone(instance)
        log.info("worker's counts closed", instance=instance)

    def _release(self, instance: int) -> None:
        remains = self._remains.pop(instance, None)
        if remains is not None:
            remains.close()
        process = self._process.pop(instance)
        if process >= 0:
            asyncio.get_running_loop().remove_reader(process)
            os.close(process)


def _pidfd(pid: int) -> int:
    """A descriptor that becomes readable when the process ends; -1 when it has, or is not seen."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _is_over(process: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))
