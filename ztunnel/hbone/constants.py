# SPDX-License-Identifier: Apache-2.0
"""The numbers of HBONE's HTTP/2: what we announce, and what we bear from a peer.

Windows, frame and list sizes are those of istio's ztunnel
(`src/config.rs`, `src/proxy/h2/{client,server}.rs`), so both ends of a mixed mesh behave
alike; what RFC 9113 fixes is named with its section; the rest says its own reason.
"""

from __future__ import annotations

STREAM_WINDOW = 4 * 1024 * 1024  # istio ztunnel: window_size
CONNECTION_WINDOW = 16 * 1024 * 1024  # istio ztunnel: connection_window_size
MAX_FRAME_SIZE = 1024 * 1024  # istio ztunnel: frame_size
CLIENT_MAX_HEADER_LIST = 16 * 1024  # the Rust h2 crate's default for a client
SERVER_MAX_HEADER_LIST = 64 * 1024  # istio ztunnel: max_header_list_size of the server
MAX_CONCURRENT_STREAMS = 200  # what a server grants: twice what istio's pool uses
POOL_STREAMS = 100  # istio ztunnel: pool_max_streams_per_conn, what a client uses

DEFAULT_WINDOW = 65_535  # RFC 9113 6.9.2: both windows before any SETTINGS
DEFAULT_FRAME_SIZE = 16_384  # RFC 9113 6.5.2: SETTINGS_MAX_FRAME_SIZE before any SETTINGS
LARGEST_FRAME_SIZE = 16_777_215  # RFC 9113 6.5.2: 2^24-1
LARGEST_WINDOW = 2_147_483_647  # RFC 9113 6.9.1: 2^31-1
LARGEST_STREAM_ID = 2_147_483_647  # RFC 9113 5.1.1
HEADER_TABLE_SIZE = 4096  # RFC 9113 6.5.2: the default, which we keep for our decoder

ASSUMED_PEER_STREAMS = 100  # until its SETTINGS come; RFC 9113 6.5.2 wants no limit below this
HELD_LIMIT = 32 * 1024 * 1024  # octets for slow readers: 8 whole stream windows stop nobody else
CREDIT_FRACTION = 4  # give window back once a quarter of it is consumed: few, large updates
FRAME_HEADER = 9  # octets, RFC 9113 4.1

# Floods: what a peer may do before it hears ENHANCE_YOUR_CALM. No honest peer comes near.
MAX_CONTINUATIONS = 16  # per header block (CVE-2024-27316); 64 KiB needs 4 of the smallest limit
MAX_SETTINGS_PER_FRAME = 64  # ten times what is defined
MAX_RESET_MEMORY = 4096  # streams we reset whose late frames we still forgive
MAX_QUEUED_OUTPUT = 1024 * 1024  # octets of answers that the peer does not read
CHATTER_BURST = 1000  # PING, SETTINGS, PRIORITY, unknown, empty DATA: frames that carry nothing
CHATTER_PER_SECOND = 200.0
RESET_BURST = 1000  # streams refused, malformed, or reset before an answer (CVE-2023-44487);
RESET_PER_SECOND = 100.0  # an answered stream may be reset freely: applications do that
