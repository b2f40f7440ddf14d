# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes objects that run a Gateway, and Envoy's bootstrap."""

from ztunnel.l7.deployment.bootstrap import BootstrapSettings, bootstrap, envoy_arguments
from ztunnel.l7.deployment.resources import (
    LiveState,
    gateway_problems,
    gateway_resources,
    parameters_name,
)
from ztunnel.l7.deployment.settings import CONTROLLER_NAME, DeploymentSettings

__all__ = [
    "CONTROLLER_NAME",
    "BootstrapSettings",
    "DeploymentSettings",
    "LiveState",
    "bootstrap",
    "envoy_arguments",
    "gateway_problems",
    "gateway_resources",
    "parameters_name",
]
