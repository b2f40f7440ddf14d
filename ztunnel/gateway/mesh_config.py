# SPDX-License-Identifier: Apache-2.0
"""Reads Istio's MeshConfig from a file, a mounted ConfigMap: it names the external authorizers.

absent or empty file    no authorizers
invalid file            the last valid content stays in use; without one, no authorizers
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import yaml

from ztunnel.kube.objects.yaml_errors import YAML_ERRORS
from ztunnel.l7.api.extension_providers import parse_extension_providers

POLL_S = 5.0  # kubelet updates a mounted ConfigMap once a minute
MAX_BYTES = 1 << 20  # the limit of a ConfigMap

log = structlog.get_logger()

MeshConfig = dict[str, Any]


class MeshConfigError(ValueError):
    """The text is not a MeshConfig."""


def parse(text: bytes) -> MeshConfig:
    """Parse the YAML of a MeshConfig. Raises MeshConfigError."""
    if len(text) > MAX_BYTES:
        raise MeshConfigError(f"has over {MAX_BYTES} bytes")
    try:
        value = yaml.safe_load(text)
    except YAML_ERRORS as error:
        raise MeshConfigError(f"is not YAML: {error}"[:512]) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MeshConfigError("is not a mapping")
    return value


class MeshConfigFile:
    """Calls `changed` with the content at the start, and after each change."""

    def __init__(self, path: Path, changed: Callable[[MeshConfig], None]) -> None:
        self._path = path
        self._changed = changed
        self._text: bytes | None = None

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            self.poll()
            await asyncio.sleep(POLL_S)

    def poll(self) -> None:
        """Read the file once."""
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            text = b""
        except OSError as error:
            log.warning("mesh config unreadable", path=str(self._path), error=str(error))
            return
        if text == self._text:
            return
        self._text = text
        try:
            config = parse(text)
        except MeshConfigError as error:
            log.warning("mesh config invalid", path=str(self._path), error=str(error))
            return
        providers, errors = parse_extension_providers(config)
        for reason in errors:
            log.warning("extension provider invalid", error=reason)
        log.info("mesh config read", extension_providers=[each.name for each in providers])
        self._changed(config)
