# SPDX-License-Identifier: Apache-2.0
"""Changes the log configuration of the node at run time; implements `admin_server.Logs`.

The configuration is reset when the agent restarts, so that settings for an incident do not persist
unnoticed.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import structlog

from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.workers.handlers import SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.messages import AccessRule, LogConfig, LogLevel
from ztunnel.telemetry.logs import set_level

MAX_NAMESPACE_RULES = 1000

log = structlog.get_logger()


class _RuleChange(msgspec.Struct, forbid_unknown_fields=True):
    level: LogLevel | None = None
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    process: LogLevel | msgspec.UnsetType | None = msgspec.UNSET
    access: _RuleChange | msgspec.UnsetType | None = msgspec.UNSET
    namespaces: dict[str, _RuleChange | None] = {}


class LogControl(SessionObserver):
    """Applies settings to this process, and sends them to the workers."""

    def __init__(self, settings: LogSettings, *sessions: SessionRegistry) -> None:
        """`sessions`: of the workers and of the gateway process."""
        self._settings = settings
        self._sessions = sessions

    def joined(self, session: Session) -> None:
        session.send(self._settings.current)

    def view(self) -> dict[str, Any]:
        """The current configuration, in the format of `change`."""
        view: dict[str, Any] = msgspec.to_builtins(self._settings.current)
        view.pop("type", None)
        return view

    def change(self, wanted: bytes) -> dict[str, Any]:
        """Change the fields of a JSON object; null resets to the default. Raises ValueError."""
        try:
            change = msgspec.json.decode(wanted, type=_Change)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error
        config = self._settings.current = changed(self._settings.current, change)
        log.info("log configuration changed", **self.view())
        set_level(config.process)
        for sessions in self._sessions:
            sessions.broadcast(config)
        return self.view()


def changed(now: LogConfig, change: _Change) -> LogConfig:
    """The configuration after a change. Raises ValueError."""
    process, access = now.process, now.access
    if change.process is not msgspec.UNSET:
        process = change.process or LogConfig().process
    if change.access is not msgspec.UNSET:
        access = _merged(access, change.access) if change.access else AccessRule()
    namespaces = dict(now.namespaces)
    for name, rule in change.namespaces.items():
        if rule is None:
            namespaces.pop(name, None)
        else:
            namespaces[name] = _merged(namespaces.get(name, access), rule)
    if len(namespaces) > MAX_NAMESPACE_RULES:
        raise ValueError(f"rules for {len(namespaces)} namespaces; limit {MAX_NAMESPACE_RULES}")
    return msgspec.structs.replace(now, process=process, access=access, namespaces=namespaces)


def _merged(now: AccessRule, change: _RuleChange) -> AccessRule:
    return AccessRule(
        now.level if change.level is None else change.level,
        now.sample if change.sample is None else change.sample,
    )
