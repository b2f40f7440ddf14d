# SPDX-License-Identifier: Apache-2.0
"""The states of a tunnel. `ztunnel.proxy.tunnel.tunnel` draws the transitions."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class TunnelState(Enum):
    """OPEN accepts new streams, DRAINING finishes the open ones, HALF_CLOSED has sent FIN."""

    OPEN = auto()
    DRAINING = auto()
    HALF_CLOSED = auto()
    CLOSED = auto()


# In compiled code a Final is a C variable; looking up a member of an Enum is a dict access.
# The type is not a literal, so that mypy does not assume that `state` is the same after a call.
OPEN: Final[TunnelState] = TunnelState.OPEN
DRAINING: Final[TunnelState] = TunnelState.DRAINING
HALF_CLOSED: Final[TunnelState] = TunnelState.HALF_CLOSED
CLOSED: Final[TunnelState] = TunnelState.CLOSED
