# SPDX-License-Identifier: Apache-2.0
"""Query a name server repeatedly until a file exists, then print the number of successes as JSON.

usage: dns_query_loop.py SERVER STOP_FILE NAME...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode


def main() -> None:
    server, stop, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    asked, failed = 0, []
    print("asking", flush=True)
    while not stop.exists():
        for name in names:
            asked += 1
            try:
                reply = dns.query.udp(dns.message.make_query(name, "A"), server, timeout=10)
                if reply.rcode() != dns.rcode.NOERROR or not reply.answer:
                    failed.append(f"{name}: {reply.rcode().name}")
            except (OSError, dns.exception.DNSException) as error:
                failed.append(f"{name}: {error}")
    print(json.dumps({"asked": asked, "failed": failed}))


if __name__ == "__main__":
    main()
