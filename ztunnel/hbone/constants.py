# SPDX-License-Identifier: Apache-2.0
"""The limits of HBONE's HTTP/2: those this side announces, and those it enforces on a peer.

Windows, frame and list sizes are those of istio's ztunnel (`src/config.rs`,
`src/proxy/h2/{client,server}.rs`), so both ends of a mixed mesh behave alike. Values from RFC 9113
name their section; the others state their reason.
"""

from __future__ import annotations

# Windows double while applications read as fast as the peer sends. A reader that stalls from the
# start holds the initial window only.
STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 1024 * 1024
MAX_STREAM_WINDOW_BYTES = 4 * 1024 * 1024  # istio ztunnel: window_size
MAX_CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024  # istio ztunnel: connection_window_size
STREAMS_PER_WINDOW = 4  # full stream windows that a connection's window has room for
MAX_FRAME_BYTES = 1024 * 1024  # istio ztunnel: frame_size
CLIENT_MAX_HEADER_LIST_BYTES = 16 * 1024  # the Rust h2 crate's default for a client
SERVER_MAX_HEADER_LIST_BYTES = 64 * 1024  # istio ztunnel: max_header_list_size of the server
MAX_CONCURRENT_STREAMS = 200  # announced by a server: twice what istio's pool uses
POOL_STREAMS = 100  # istio ztunnel: pool_max_streams_per_conn, what a client uses

DEFAULT_WINDOW_BYTES = 65_535  # RFC 9113 6.9.2: both windows before any SETTINGS
DEFAULT_MAX_FRAME_BYTES = 16_384  # RFC 9113 6.5.2: SETTINGS_MAX_FRAME_SIZE before any SETTINGS
MAX_ALLOWED_FRAME_BYTES = 16_777_215  # RFC 9113 6.5.2: 2^24-1
MAX_WINDOW_BYTES = 2_147_483_647  # RFC 9113 6.9.1: 2^31-1
MAX_STREAM_ID = 2_147_483_647  # RFC 9113 5.1.1

INITIAL_PEER_MAX_STREAMS = 100  # before its SETTINGS; RFC 9113 6.5.2 recommends at least this
# Payload that waits for slow readers without occupying the connection's window: 128 initial stream
# windows. So 128 streams that stall from the start do not stop the others.
MAX_HELD_BYTES = 32 * 1024 * 1024
BUFFER_BUDGET_BYTES = 256 * 1024 * 1024  # of a worker, for held payload and grown windows
CREDIT_FRACTION = 4  # send WINDOW_UPDATE once a quarter is consumed: few, large updates
FRAME_HEADER_BYTES = 9  # RFC 9113 4.1

# Flood limits: beyond them a peer gets ENHANCE_YOUR_CALM. Conforming peers stay far below.
MAX_CONTINUATIONS = 16  # per header block (CVE-2024-27316); 64 KiB needs 4 of the smallest limit
MAX_SETTINGS_PER_FRAME = 64  # ten times what is defined
MAX_REMEMBERED_RESETS = 4096  # locally reset streams whose late frames are ignored
MAX_QUEUED_OUTPUT_BYTES = 1024 * 1024  # control frames that the peer does not read
# Frames without payload or effect on a stream: PING, SETTINGS, PRIORITY, unknown, empty DATA.
OVERHEAD_FRAME_BURST = 1000
OVERHEAD_FRAMES_PER_S = 200.0
# Frames on closed streams were on their way when the stream was closed. Each stream may have this
# many; more count as frames without effect.
LATE_FRAMES_PER_STREAM = 64
MAX_LATE_FRAMES = 65_536  # that a connection may accumulate; also what it begins with
SMALL_DATA_BYTES = 64  # less payload in DATA on a closed stream counts as a late frame
# Octets of header blocks that hpack decodes, at up to 1 µs each (indexed fields, Huffman codes).
# A CONNECT of Istio's ztunnel takes about 300 octets.
HPACK_BURST_BYTES = 512 * 1024
HPACK_BYTES_PER_S = 256.0 * 1024
# Streams refused, malformed, or reset before a response (CVE-2023-44487). Streams that got a
# response may be reset freely: applications do that.
RESET_BURST = 1000
RESETS_PER_S = 100.0
