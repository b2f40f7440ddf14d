# SPDX-License-Identifier: Apache-2.0
"""The filters that enforce the policies of a destination."""

from __future__ import annotations

from ztunnel.l7.config import Filters
from ztunnel.l7.inputs import Destination, Inputs


def filters(inputs: Inputs, destination: Destination) -> Filters:
    """Return the filters, first to last; the router is added by the caller."""
    return Filters()
