# SPDX-License-Identifier: Apache-2.0
"""How components attach to the agent link: one handler per message type, observers of sessions.

A component registers its handlers in `register`; the agent registers each component once. A new
message therefore needs its definition in `ztunnel.ipc.messages` and its handler, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import msgspec

from ztunnel.ipc.messages import ToAgent

if TYPE_CHECKING:
    from ztunnel.agent.workers.session import Session


class InvalidMessageError(Exception):
    """A worker's message that no correct worker sends: its session is closed."""


M = TypeVar("M", bound=msgspec.Struct)


class MessageHandlers:
    """The table {message type: handler}.

    A handler runs in the event loop, must not block, and gets the session, the message and its
    file descriptors. The session closes the descriptors that remain in the list. A handler raises
    InvalidMessageError for what the types of the message cannot express.
    """

    def __init__(self, incoming: Any = ToAgent) -> None:
        """`incoming`: the union of the messages that the agent accepts on this link."""
        self.incoming = incoming
        self._table: dict[type, Callable[[Session, Any, list[int]], None]] = {}

    def register(self, kind: type[M], handler: Callable[[Session, M, list[int]], None]) -> None:
        """Set the handler of a message type. Raises ValueError if it has one already."""
        if kind in self._table:
            raise ValueError(f"{kind.__name__} has two handlers")
        self._table[kind] = handler

    def missing(self) -> list[str]:
        """The types of messages to the agent that have no handler."""
        return sorted(kind.__name__ for kind in get_args(self.incoming) if kind not in self._table)

    def handle(self, session: Session, message: msgspec.Struct, fds: list[int]) -> None:
        """Call the handler of the message's type."""
        self._table[type(message)](session, message, fds)


class SessionObserver:
    """Follows the life of sessions; the methods do nothing unless they are overridden."""

    def joined(self, session: Session) -> None:
        """The worker has sent its last Hello. Messages sent now reach it first."""

    def left(self, session: Session) -> None:
        """The worker drains or is gone; the registry no longer lists the session."""

    def closed(self, session: Session) -> None:
        """The session's last message has been handled."""
