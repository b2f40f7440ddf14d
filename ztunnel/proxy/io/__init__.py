# SPDX-License-Identifier: Apache-2.0
"""Non-blocking sockets, buffers and the event loop of a worker."""
