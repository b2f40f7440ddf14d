# SPDX-License-Identifier: Apache-2.0
"""Configures the logs of every ztunnel process: standard error, console or JSON lines.

Logging never blocks and never raises, see `log_writer`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ztunnel.telemetry import log_writer

LOG_FORMATS = ("console", "json")
_NUMBERS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": logging.CRITICAL + 1,
}

_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Level:
    """The level of the process. Cached loggers refer to this object, so it can change later."""

    number = logging.INFO


def set_level(name: str) -> None:
    """Set the least severe level to log: `debug`, `info`, `warning` or `error`; or `off`."""
    _Level.number = _NUMBERS[name]


def configure_logs(log_format: str) -> None:
    """Configure structlog. Call once, before the first event; `log_format` is of LOG_FORMATS.

    Writes never block from here on.
    """
    log_writer.install()
    shared: list[Processor] = [
        _drop_lower,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        structlog.configure(
            processors=[*shared, structlog.processors.format_exc_info, _render_json],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
            cache_logger_on_first_use=True,
        )
        return
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=structlog.dev.plain_traceback,  # rich's shows variables, hence keys
    )
    structlog.configure(
        processors=[*shared, console],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def current_format() -> str:
    """The configured format: one of LOG_FORMATS."""
    return "json" if _render_json in structlog.get_config()["processors"] else "console"


def access_logger() -> Any:
    """A logger for access log lines, which `access_log_filter` selects instead of the level."""
    return structlog.get_logger("access", is_access=True)


def _drop_lower(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if event.pop("is_access", False):
        return event
    if _NUMBERS.get(method, logging.ERROR) < _Level.number:  # unknown methods are errors
        raise structlog.DropEvent
    return event


def _render_json(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    """Render with msgspec, which is several times faster than json."""
    return _encode(event)
