/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Constants, keys and values that the BPF programs share with the agent and ztctl.
 *
 * Addresses are 16 bytes in network byte order. IPv4 is stored v4-mapped (::ffff:a.b.c.d), so that
 * one key serves both families. Ports are in network byte order unless a comment says otherwise.
 * Padding is explicit and zero, because it is part of hash keys. ztunnel/datapath/bpf/layout.py
 * mirrors these structs; tests/bpf/loading/test_layout.py compares sizes and offsets.
 */
#ifndef ZT_ABI_H
#define ZT_ABI_H

#include "bcc_compat.h"

#define ZT_ABI 6 /* increase when the name or the shape of a map changes */

#define ZT_PORT_OUTBOUND 15001
#define ZT_PORT_INBOUND 15006
#define ZT_PORT_HBONE 15008
#define ZT_PORT_WAYPOINT 15088 /* of a waypoint's Envoy: it trusts what the proxy states there */
#define ZT_PORT_DNS 15053 /* TCP and UDP; UDP also uses the following ports, one per name server */
#define ZT_DNS_SERVERS 3  /* name servers per socket; resolv.conf(5) allows three */

#define ZT_MAX_PODS 1024               /* Kubernetes defaults to at most 110 pods per node */
#define ZT_MAX_LISTENERS (2 * ZT_MAX_PODS)
#define ZT_MAX_FLOWS 262144            /* live connections between apps and the proxy */
#define ZT_MAX_NODE_ADDRS 1024
#define ZT_MAX_NODE_CONNS 65536        /* an evicted connection counts as forwarded by the node */
#define ZT_MAX_SAME_NODE_ALLOW 65536   /* an evicted pair takes the path through the proxy */
#define ZT_MAX_SAME_NODE_CONNS 262144  /* live connections that bypass the proxy */
#define ZT_MAX_DNS_PENDING 16384       /* queries that the proxy has read but not yet looked up */
#define ZT_MAX_UDP_ROUTES 65536        /* when full, UDP to unknown destinations is refused */
#define ZT_MAX_UDP_TOKENS 65536        /* an evicted token is allocated again */
#define ZT_MAX_UDP_WORKERS 32          /* worker sockets per pod */
#define ZT_MAX_UDP_CONNTRACK 131072    /* an evicted pair is authorized again */
#define ZT_MAX_UDP_DECISIONS 65536     /* an evicted decision is made again */
#define ZT_MAX_GATEWAY_PORTS 16384     /* when full, connections to further ports are captured */
#define ZT_EVENTS_BYTES 2097152        /* 15,000 unread events; a power of two */

#define ZT_UDP_IDLE_NS 120000000000ULL        /* RFC 4787 4.3: lifetime of a UDP pair */
#define ZT_UDP_PROXY_DELIVERY_NS 1000000000ULL /* from a worker's sendmsg to the pod's sk_lookup */
#define ZT_UDP_EVENT_INTERVAL_NS 50000000      /* between two events about one pod's drops */

/* Socket options between the proxy and these programs; ztunnel/datapath/sockopt.py mirrors them. */
#define ZT_SOCKOPT_LEVEL 0x5A54 /* "ZT" */
#define ZT_SOCKOPT_CLIENT 1     /* set: the client address that the app is to see */
#define ZT_SOCKOPT_UDP_REMOTE 2 /* set: look up or allocate the token of a remote address */
#define ZT_SOCKOPT_UDP_TOKEN 3  /* set: look up the remote address of a token */
#define ZT_SOCKOPT_UDP_RESULT 4 /* get: the result of the last of these two lookups */
#define ZT_SOCKOPT_DNS_SERVER 0x10000 /* get: name server; add the client port, host order */

/*
 * The role of a socket. It lives in socket storage, which the kernel frees with the socket, so it
 * cannot become stale.
 */
enum zt_role {
	ZT_ROLE_NONE = 0,
	ZT_ROLE_PROXY = 1,             /* created by the agent for the proxy; never redirected */
	ZT_ROLE_REDIRECTED = 2,        /* the app's; the address is the original destination */
	ZT_ROLE_REDIRECT_ACCEPTED = 3, /* the proxy's end of a REDIRECTED connection; same address */
	ZT_ROLE_UPSTREAM_ACCEPTED = 4, /* the app's end of a PROXY connection; the address is the client */
	ZT_ROLE_SAME_NODE = 5,         /* the app's, bypasses the proxy; the address is the destination */
	ZT_ROLE_RESOLVER = 6,          /* the proxy's UDP socket that receives the pod's DNS queries */
};

struct zt_sock {
	__u8 ip[16];
	__be16 port; /* 0: no address */
	__u8 role;   /* enum zt_role */
	__u8 pad[5];
};

struct zt_addr {
	__u8 ip[16];
};

struct zt_endpoint {
	__u8 ip[16];
	__be16 port;
	__u8 pad[6];
};

struct zt_four_tuple {
	__u8 src[16];
	__u8 dst[16];
	__be16 sport;
	__be16 dport;
	__u32 pad;
};

/* An enrolled pod; the key is its netns cookie (__u64). */
struct zt_pod {
	__u8 ip6[16]; /* zero: none */
	__be32 ip4;   /* zero: none */
	__u32 pad;
};

struct zt_pod_stats {
	__u64 redirected;
	__u64 proxy_originated; /* connects of the proxy's sockets */
	__u64 refused;          /* connects to the proxy's ports, or by a protocol it cannot forward */
	__u64 local;            /* connects to the pod's own loopback */
	__u64 same_node_bypass; /* connects that bypass the proxy */
	__u64 dns;              /* redirected UDP queries and TCP connections to name servers */
};

/* Identifies the loaded build; the loader compares it before it compiles. */
struct zt_meta {
	__u32 abi;
	__u32 pad;
	__u8 fingerprint[32]; /* SHA-256 of the sources and of what they were compiled for */
};

/* A connection between an app and the proxy inside a pod, keyed from the connecting side. */
struct zt_flow_key {
	__u64 netns; /* cookie */
	__u8 ip[16]; /* source */
	__be16 sport;
	__be16 dport;
	__u32 pad;
};

struct zt_flow {
	__u64 owner;    /* cookie of the connecting socket; only that socket may delete the entry */
	__u64 start_ns; /* CLOCK_MONOTONIC */
	struct zt_sock sock;
};

/*
 * A port of an ingress gateway's listener at an address of one of its pods: what arrives there is
 * not captured, because the pod's Envoy enforces policy. The port 0 of UDP stands for the pod: it
 * has UDP listeners, so that what it sends to port 53 of backends are not queries.
 */
struct zt_gateway_port_key {
	__u8 ip[16];
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad[5];
};

struct zt_gateway_port {
	__u64 admitted; /* connections or datagrams */
};

/*
 * Same-node bypass
 */

/*
 * The current policy epoch. An entry of zt_same_node_allow is valid only in the epoch in which it
 * was written, and only while the agent renews the lease. Epoch 0 is never valid.
 */
struct zt_policy_epoch {
	__u64 epoch;
	__u64 lease_until_ns; /* CLOCK_MONOTONIC */
};

#define ZT_TCP_EPOCH 0 /* indexes into zt_policy_epoch */
#define ZT_UDP_EPOCH 1 /* without a lease */

/* A source pod and a destination on this node that policy allows it to reach. */
struct zt_same_node_key {
	__u64 netns; /* cookie of the source pod */
	__u8 ip[16];
	__be16 port;
	__u8 pad[6];
};

struct zt_same_node_allow {
	__u64 epoch;
	__u64 dst_netns; /* cookie of the destination pod */
};

enum zt_same_node_state {
	ZT_SAME_NODE_SYN_SENT = 0,    /* the destination pod has not seen the SYN */
	ZT_SAME_NODE_ADMITTED = 1,    /* the destination pod's sk_lookup passed the SYN */
	ZT_SAME_NODE_INTERCEPTED = 2, /* sk_lookup gave it to the proxy: the epoch had changed */
	ZT_SAME_NODE_ESTABLISHED = 3, /* both ends are established; the entry admits nothing else */
};

/* A live connection that bypasses the proxy, keyed by its four-tuple from the source. */
struct zt_same_node_conn {
	__u64 epoch;     /* of the zt_same_node_allow entry; 0: none was valid */
	__u64 owner;     /* cookie of the connecting socket; only that socket may delete the entry */
	__u64 netns;     /* cookie of the source pod */
	__u64 dst_netns; /* cookie of the destination pod */
	__u64 start_ns;  /* CLOCK_MONOTONIC */
	__u8 state;      /* enum zt_same_node_state */
	__u8 server_fin; /* the accepting side has sent its FIN */
	__u8 pad[6];
};

enum zt_close_reason {
	ZT_CLOSE_ORDERLY = 0,
	ZT_CLOSE_RESET = 1,           /* by either side */
	ZT_CLOSE_REFUSED = 2,         /* never established */
	ZT_CLOSE_UNEXPECTED_PEER = 3, /* answered by another pod: cut off, but still open */
	ZT_CLOSE_UDP_STRICT = 4,      /* not a connection: a plaintext datagram that policy forbids */
};

/* An event for the agent about a connection that bypassed the proxy. Byte counts are payload. */
struct zt_event {
	struct zt_four_tuple key;
	__u64 owner;
	__u64 netns;
	__u64 dst_netns;
	__u64 duration_ns;
	__u64 sent;
	__u64 received;
	__u32 srtt_us;
	__u32 retransmits;
	__u8 close_reason; /* enum zt_close_reason */
	__u8 pad[7];
};

/*
 * DNS
 */

/* The name servers that an app's UDP socket uses; the index selects the resolver's port. */
struct zt_dns_slots {
	struct zt_addr server[4]; /* the last is unused: a power of two lets a mask bound the index */
	__u32 next;               /* the slot to reuse for a further server */
};

/* A query that the proxy has read; the value is its original name server. */
struct zt_dns_pending_key {
	__u64 netns;
	__be16 port;  /* the client's */
	__u8 server;  /* index of the resolver's port */
	__u8 family;  /* 4 or 6: of the resolver's socket */
	__u32 pad;
};

/*
 * UDP. A token is a number that represents a remote endpoint inside one pod: the app's datagrams
 * to that endpoint go to 127.64.0.0 + token, so one socket of the proxy can act for every remote.
 */

/*
 * The route of a destination; looked up by address and port, then by address and port 0, then by
 * the address :: and port 0, which is the default route.
 */
enum zt_udp_route {
	ZT_UDP_ROUTE_NATIVE = 0,   /* not redirected, like a destination without a route */
	ZT_UDP_ROUTE_REDIRECT = 1, /* to the proxy */
	ZT_UDP_ROUTE_STRICT = 2,   /* refused: would be plaintext to a STRICT destination */
	ZT_UDP_ROUTE_REFUSED = 3,  /* refused: the route is unknown, because there is no room for it */
};

struct zt_udp_remote_key {
	__u64 netns;
	struct zt_endpoint remote;
};

struct zt_udp_token {
	__u32 token;
	__be16 worker_port; /* of the worker that forwards this remote's datagrams */
	__u16 pad;
	__u64 redirected_ns; /* CLOCK_MONOTONIC: last datagram from the remote via the proxy; 0: none */
};

struct zt_udp_token_key {
	__u64 netns;
	__u32 token;
	__u32 pad;
};

/* A pod whose UDP is redirected; the key is its netns cookie. */
struct zt_udp_pod {
	__u32 workers;                    /* length of `ports` */
	__be16 ports[ZT_MAX_UDP_WORKERS]; /* unused ones are zero */
};

/* Datagrams and connects to destinations with a route. */
struct zt_udp_stats {
	__u64 redirected;
	__u64 refused;       /* no worker forwards the pod's UDP */
	__u64 strict;        /* plaintext to a STRICT destination */
	__u64 last_event_ns; /* CLOCK_MONOTONIC */
};

/*
 * A native UDP pair, keyed from the side that sent first; datagrams in the other direction are
 * replies. The source port is 0 for a socket that was connected before it was bound.
 */
struct zt_udp_ct_entry {
	__u64 netns;   /* cookie of the pod of this node that sent first; 0: a remote host did */
	__u64 seen_ns; /* CLOCK_MONOTONIC */
};

/* A sender and a destination; everything but `dst` zero: all senders. */
struct zt_udp_decision_key {
	__u64 netns; /* cookie of the source pod; 0: not a pod of this node */
	__u8 src[16];
	__u8 dst[16];
	__be16 port;
	__u8 pad[6];
};

struct zt_udp_decision {
	__u64 epoch; /* valid while it equals the epoch at ZT_UDP_EPOCH */
	__u64 datagrams;
	__u8 allowed;
	__u8 pad[7];
};

/* Counters of the node. */
enum zt_stat {
	ZT_STAT_INBOUND_INTERCEPTED = 0, /* inbound connections redirected to the proxy */
	ZT_STAT_NO_LISTENER,             /* inbound connections refused: the proxy does not listen */
	ZT_STAT_NODE_LOCAL_BYPASS,       /* connections of the node itself, for example probes */
	ZT_STAT_FLOW_FULL,               /* zt_flows was full; the proxy rejects the connection */
	ZT_STAT_ORIGINAL_DST_MISSING,    /* connections to the proxy without an original destination */
	ZT_STAT_SAME_NODE_BYPASS,        /* inbound connections admitted by a bypass entry */
	ZT_STAT_UNEXPECTED_PEER,         /* bypass connections that another pod answered: cut off */
	ZT_STAT_EVENT_LOST,              /* events that did not fit into zt_events */
	ZT_STAT_UDP_DENIED,              /* native datagrams that policy denied */
	ZT_STAT_UDP_NO_AUTHORIZER,       /* native datagrams dropped: no agent to authorize them */
	ZT_STAT_UDP_NO_ROUTE,            /* datagrams refused: zt_udp_routes has no room for the route */
	ZT_STAT_UDP_FORGED,              /* datagrams with the pod's address that the pod did not send */
	ZT_STAT_MAX,
};

#endif
