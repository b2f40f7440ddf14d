# SPDX-License-Identifier: Apache-2.0
"""Access to an API server: a kubeconfig, or the pod's ServiceAccount."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class AccessError(Exception):
    """The API server's address or credentials cannot be loaded."""


@dataclass(frozen=True)
class Access:
    """`kubeconfig` with `context` (None: its current context); without a kubeconfig, in-cluster."""

    kubeconfig: Path | None = None
    context: str | None = None

    def client(self) -> Any:
        """A new `kubernetes.client.ApiClient`; the caller closes it. Raises AccessError."""
        from kubernetes import client, config  # noqa: PLC0415  30 MB, only where it is used

        settings = client.Configuration()
        try:
            if self.kubeconfig is None:
                config.load_incluster_config(settings)
            else:
                config.load_kube_config(str(self.kubeconfig), self.context, settings, False)
        except (config.ConfigException, OSError, ValueError) as error:
            raise AccessError(self._describe(error)) from error
        settings.retries = False  # callers retry
        settings.keep_alive = True  # TCP keepalive detects a dead peer
        return client.ApiClient(settings)

    def _describe(self, error: Exception) -> str:
        reason = " ".join(str(error).split())
        if self.kubeconfig is None:
            return (
                f"cannot load in-cluster credentials: {reason}; "
                "hint: outside of a cluster, use --kubeconfig"
            )
        return f"cannot use kubeconfig {self.kubeconfig}: {reason}"
