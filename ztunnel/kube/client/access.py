# SPDX-License-Identifier: Apache-2.0
"""The way to an API server: a kubeconfig, or the ServiceAccount of the pod one runs in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class AccessError(Exception):
    """There is no usable way to an API server; the text says what to do."""


@dataclass(frozen=True)
class Access:
    """Where to find it: `kubeconfig`, with `context` or its current one; None means in-cluster."""

    kubeconfig: Path | None = None
    context: str | None = None

    def client(self) -> Any:
        """A `kubernetes.client.ApiClient`; the caller closes it. Raises AccessError."""
        from kubernetes import client, config  # noqa: PLC0415  40 MB, only for who needs them

        settings = client.Configuration()
        try:
            if self.kubeconfig is None:
                config.load_incluster_config(settings)
            else:
                config.load_kube_config(str(self.kubeconfig), self.context, settings, False)
        except (config.ConfigException, OSError, ValueError) as error:
            raise AccessError(self._mend(error)) from error
        settings.retries = False  # who asks decides when to ask again
        settings.keep_alive = True  # a peer that is gone is noticed
        return client.ApiClient(settings)

    def _mend(self, error: Exception) -> str:
        reason = " ".join(str(error).split())
        if self.kubeconfig is None:
            return f"no access from within a cluster: {reason} Give --kubeconfig outside of one."
        return f"kubeconfig {self.kubeconfig} can't be used: {reason}"
