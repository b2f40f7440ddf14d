/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map and every value that the agent, ztctl and the programs share.
 *
 * Addresses are 16 bytes in network byte order; IPv4 is stored v4-mapped (::ffff:a.b.c.d), so one
 * key serves both families. Ports are network byte order unless a comment says host. Padding is
 * explicit and zeroed: it is part of hash keys. ztunnel/datapath/bpf/layout.py mirrors these structs;
 * tests compare sizes and offsets.
 */
#ifndef ZT_MAPS_H
#define ZT_MAPS_H

#define ZT_ABI 5 /* raise when a struct or a map below changes shape */

#define ZT_PORT_OUTBOUND 15001
#define ZT_PORT_INBOUND 15006
#define ZT_PORT_HBONE 15008
#define ZT_PORT_DNS 15053       /* TCP, and UDP with the ports after it: one a name server */
#define ZT_DNS_SERVERS 3        /* name servers a socket asks at once: resolv.conf's limit */

#define ZT_MAX_PODS 1024        /* Kubernetes' own limit is 110 pods a node by default */
#define ZT_MAX_FLOWS 262144     /* live redirected connections of one node */
#define ZT_MAX_SAME_NODE_ALLOW 65536   /* authorised pairs; one that is pushed out takes the slow path */
#define ZT_MAX_SAME_NODE_CONNS 262144    /* live same-node connections without the proxy */
#define ZT_EVENT_BYTES 2097152  /* 15,000 ended connections until the agent reads; power of two */
#define ZT_MAX_NODE_ADDRS 1024
#define ZT_MAX_NODE_CONNS 65536 /* live connections of the node; one pushed out counts as forwarded */
#define ZT_MAX_LISTENERS (2 * ZT_MAX_PODS)
#define ZT_MAX_DNS_PENDING 16384      /* queries between their arrival and the proxy's question */
#define ZT_MAX_UDP_ROUTES 65536  /* addresses whose UDP is carried; beyond, it passes as it is */
#define ZT_MAX_UDP_TOKENS 65536 /* remote ends of one node's flows; one pushed out is made anew */
#define ZT_MAX_UDP_WORKERS 32    /* workers of the node that carry UDP */
#define ZT_MAX_UDP_CONNTRACK 131072 /* who spoke first, of native UDP; one pushed out is asked anew */
#define ZT_UDP_IDLE_NS 120000000000ULL /* RFC 4787 4.3: as long as what came back counts as an answer */
#define ZT_UDP_PROXY_DELIVERY_NS 1000000000ULL /* from a worker to an app inside the pod: more than enough */
#define ZT_UDP_EVENT_INTERVAL_NS 50000000 /* between two events of one pod's refused datagrams */

#define ZT_SOCKOPT_LEVEL 0x5A54 /* "ZT"; sockopt.py says the same */
#define ZT_SOCKOPT_CLIENT 1
#define ZT_SOCKOPT_UDP_REMOTE 2 /* set: which token stands for this remote address? */
#define ZT_SOCKOPT_UDP_TOKEN 3  /* set: which remote address does this token stand for? */
#define ZT_SOCKOPT_UDP_RESULT 4 /* get: the answer to the last of these two */
#define ZT_SOCKOPT_DNS_SERVER 0x10000 /* plus the client's port, host order */

/* What a socket is to us. Kept in sk_storage: it dies with the socket, so it can't go stale. */
enum zt_role {
	ZT_ROLE_NONE = 0,
	ZT_ROLE_PROXY = 1,        /* made by the agent for the proxy: never redirected */
	ZT_ROLE_REDIRECTED = 2, /* the app's; the address is the one it dialled */
	ZT_ROLE_REDIRECT_ACCEPTED = 3,   /* the proxy's end of a REDIRECTED one; same address */
	ZT_ROLE_UPSTREAM_ACCEPTED = 4,     /* the app's end of an OWN one; the address is the true client */
	ZT_ROLE_SAME_NODE = 5,     /* the app's, left alone by verdict; the address is the one it dialled */
	ZT_ROLE_RESOLVER = 6,   /* the proxy's UDP socket that queries of the pod are sent to */
};

struct zt_sock {
	__u8 ip[16];
	__be16 port; /* 0: no address */
	__u8 role;   /* enum zt_role */
	__u8 pad[5];
};

/* An enrolled pod; the key is its netns cookie (__u64). */
struct zt_pod {
	__u8 ip6[16];  /* zero when it has none */
	__be32 ip4;    /* zero when it has none */
	__u32 pad;
};

/* Which build of these programs runs; the loader compares before it compiles. */
struct zt_meta {
	__u32 abi;
	__u32 pad;
	__u8 fingerprint[32]; /* SHA-256 of the sources and of what they were compiled for */
};

/*
 * What makes verdicts valid: they carry the epoch they were given in, and the agent must have
 * renewed its lease. Generation 0 is nobody's.
 */
struct zt_policy_epoch {
	__u64 epoch;
	__u64 lease_until_ns; /* CLOCK_MONOTONIC */
};

#define ZT_UDP_EPOCH 1 /* index of that of UDP's verdicts; they have no lease */

/* A destination in a pod of this node that a pod of this node may connect to. */
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

/* How far a connection by verdict has got. */
enum zt_same_node_state {
	ZT_SAME_NODE_SYN_SENT = 0,    /* its SYN left; the destination has not seen it */
	ZT_SAME_NODE_ADMITTED = 1,  /* the destination pod's sk_lookup let it through */
	ZT_SAME_NODE_INTERCEPTED = 2,  /* ... gave it to the proxy, as the verdict was no longer valid */
	ZT_SAME_NODE_ESTABLISHED = 3,/* both ends are established: nobody may use the entry again */
};

/* A live connection by verdict, as its source sees it. */
struct zt_four_tuple {
	__u8 src[16];
	__u8 dst[16];
	__be16 sport;
	__be16 dport;
	__u32 pad;
};

struct zt_same_node_conn {
	__u64 epoch; /* of its verdict; 0 when there was none any more */
	__u64 owner;      /* cookie of the connecting socket: only it may delete the entry */
	__u64 netns;
	__u64 dst_netns;
	__u64 start_ns;    /* CLOCK_MONOTONIC */
	__u8 state;       /* enum zt_same_node_state */
	__u8 server_fin;  /* the accepting side has said that it will send no more */
	__u8 pad[6];
};

enum zt_close_reason {
	ZT_CLOSE_ORDERLY = 0,
	ZT_CLOSE_RESET = 1,   /* by either side */
	ZT_CLOSE_REFUSED = 2, /* never established */
	ZT_CLOSE_UNEXPECTED_PEER = 3, /* answered by who is not the pod of the verdict: cut off, still open */
	ZT_CLOSE_UDP_STRICT = 4,  /* no connection: UDP that a pod may not send in the clear */
};

/* What the agent is told of a connection by verdict. Bytes are payload. */
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

/* A connection between an app and the proxy inside one pod, from the connecting side. */
struct zt_flow_key {
	__u64 netns;   /* cookie */
	__u8 ip[16];   /* source */
	__be16 sport;
	__be16 dport;
	__u32 pad;
};

struct zt_flow {
	__u64 owner;   /* cookie of the connecting socket: only it may delete the entry */
	__u64 start_ns; /* CLOCK_MONOTONIC */
	struct zt_sock sock;
};

struct zt_addr {
	__u8 ip[16];
};

/* The name servers that an app's UDP socket asks; the index is that of the resolver's port. */
struct zt_dns_slots {
	struct zt_addr server[4]; /* zero: unused, as the last is: a power of two is bounded by a mask */
	__u32 next; /* the one to forget when a further server is asked */
};

/* A query that the proxy reads: whom did it go to? */
struct zt_dns_pending_key {
	__u64 netns;
	__be16 port;   /* the client's */
	__u8 server;   /* index of the resolver's port */
	__u8 family;   /* 4 or 6, of the resolver's socket */
	__u32 pad;
};

struct zt_pod_stats {
	__u64 redirected;
	__u64 proxy_originated;     /* connects of the proxy's sockets */
	__u64 refused; /* connects to our ports, or of a kind we can't carry */
	__u64 local;   /* connects to the pod's own loopback, left alone */
	__u64 same_node_bypass;  /* connects to authorised pods of this node, left alone */
	__u64 dns;     /* queries by UDP, connections to name servers by TCP: given to the proxy */
};

/*
 * UDP. A token stands for a remote address (ip, port) inside one pod: to the app's socket the
 * remote is 127.64.0.0 + token, so one socket of the proxy can be every remote there is.
 */
struct zt_udp_remote {
	__u8 ip[16];
	__be16 port;
	__u8 pad[6];
};

struct zt_udp_remote_key {
	__u64 netns;
	struct zt_udp_remote remote;
};

/* What becomes of UDP to an address; by port, else by port 0. */
enum zt_udp_route {
	ZT_UDP_ROUTE_NATIVE = 0,  /* passes as it is, as what is not in the map */
	ZT_UDP_ROUTE_REDIRECT = 1,  /* goes to the proxy */
	ZT_UDP_ROUTE_STRICT = 2, /* would go in the clear, and policy forbids: refused */
};

struct zt_udp_token {
	__u32 token;
	__be16 worker_port; /* the port of the worker that carries it */
	__u16 pad;
	__u64 redirected_ns; /* CLOCK_MONOTONIC: when it last spoke by the proxy; 0: never first */
};

struct zt_udp_token_key {
	__u64 netns;
	__u32 token;
	__u32 pad;
};

/* A pod whose UDP is carried; the key is its netns cookie. */
struct zt_udp_pod {
	__u32 workers; /* how many of `ports` there are */
	__be16 ports[ZT_MAX_UDP_WORKERS];
};

/* Datagrams and connects; only those to a carried destination count. */
struct zt_udp_stats {
	__u64 redirected;
	__u64 refused; /* no worker carries UDP for the pod now */
	__u64 strict;  /* in the clear, where policy forbids it */
	__u64 last_event_ns; /* CLOCK_MONOTONIC: when the agent was last told of these */
};

/*
 * Native UDP of captured pods, from whom spoke first: zt_four_tuple, sport 0 for a socket that was
 * connected before it had a port. What goes the other way is an answer.
 */
struct zt_udp_ct_entry {
	__u64 netns;   /* cookie of the pod of this node that spoke first; 0: somebody from elsewhere */
	__u64 seen_ns; /* CLOCK_MONOTONIC */
};

/* Who asks to be let in; all zero but `dst`: everybody. */
struct zt_udp_decision_key {
	__u64 netns; /* cookie of the source pod; 0: from elsewhere */
	__u8 src[16];
	__u8 dst[16];
	__be16 port;
	__u8 pad[6];
};

struct zt_udp_decision {
	__u64 epoch; /* it holds while this is ZT_UDP_EPOCH's */
	__u64 datagrams;
	__u8 allowed;
	__u8 pad[7];
};

enum zt_stat {
	ZT_STAT_INBOUND_INTERCEPTED = 0,    /* inbound connections given to the proxy */
	ZT_STAT_NO_LISTENER,   /* inbound connections refused: no proxy listens */
	ZT_STAT_NODE_LOCAL_BYPASS,          /* connections of the node itself, left alone */
	ZT_STAT_FLOW_FULL,     /* zt_flows had no room: the proxy refuses that connection */
	ZT_STAT_ORIGINAL_DST_MISSING,       /* a connection to the proxy without an original destination */
	ZT_STAT_SAME_NODE_BYPASS,        /* inbound connections let through by verdict */
	ZT_STAT_UNEXPECTED_PEER,       /* connections by verdict that somebody else answered: cut off */
	ZT_STAT_EVENT_LOST,    /* ends of connections that the agent was too slow to read */
	ZT_STAT_UDP_DENIED,    /* datagrams that policy did not let in */
	ZT_STAT_UDP_NO_AUTHORIZER,  /* datagrams dropped, as no agent was there to judge them */
	ZT_STAT_MAX,
};

/* The pin directory comes from the loader; a map that is pinned there already is taken over. */
#ifndef ZT_PIN
#error "ZT_PIN: pass -DZT_PIN='\"/sys/fs/bpf/...\"'"
#endif
#define ZT_MAP(kind, key, value, name, size, flags) \
	BPF_TABLE_PINNED(kind, key, value, name, size, ZT_PIN "/maps/" #name, flags)

/* As BCC's BPF_RINGBUF_OUTPUT, which can't be pinned. */
#define ZT_RING(name, bytes)                                                       \
	struct name##_table_t {                                                    \
		int key;                                                           \
		__u32 leaf;                                                        \
		int (*ringbuf_output)(void *, __u64, __u64);                       \
		__u32 max_entries;                                                 \
	};                                                                         \
	__attribute__((section("maps/ringbuf:" ZT_PIN "/maps/" #name)))            \
	struct name##_table_t name = { .max_entries = (bytes) }

ZT_MAP("sk_storage", int, struct zt_sock, zt_socks, 0, BPF_F_NO_PREALLOC);
ZT_MAP("hash", __u64, struct zt_pod, zt_pods, ZT_MAX_PODS, 0);
ZT_MAP("hash", __u64, struct zt_pod_stats, zt_pod_stats, ZT_MAX_PODS, 0);
ZT_MAP("hash", struct zt_flow_key, struct zt_flow, zt_flows, ZT_MAX_FLOWS, BPF_F_NO_PREALLOC);
ZT_MAP("hash", struct zt_addr, __u8, zt_node_addrs, ZT_MAX_NODE_ADDRS, 0);
/* The node's own netns, its cookie: that of connections which reach apps directly, as probes do. Zero
 * when the node's processes are not below the hooks' cgroup: its addresses must do then. */
ZT_MAP("array", __u32, __u64, zt_node_netns, 1, 0);
/* From an address of the node, out of its netns; the value is the cookie of the socket. */
ZT_MAP("lru_hash", struct zt_four_tuple, __u64, zt_node_conns, ZT_MAX_NODE_CONNS, 0);
ZT_MAP("sockhash", struct zt_addr, __u64, zt_listeners, ZT_MAX_LISTENERS, 0);
ZT_MAP("lru_hash", struct zt_same_node_key, struct zt_same_node_allow, zt_same_node_allow, ZT_MAX_SAME_NODE_ALLOW, 0);
ZT_MAP("hash", struct zt_four_tuple, struct zt_same_node_conn, zt_same_node_conns, ZT_MAX_SAME_NODE_CONNS,
       BPF_F_NO_PREALLOC);
ZT_MAP("sk_storage", int, struct zt_dns_slots, zt_dns_server_slots, 0, BPF_F_NO_PREALLOC);
ZT_MAP("lru_hash", struct zt_dns_pending_key, struct zt_addr, zt_dns_pending, ZT_MAX_DNS_PENDING, 0);
ZT_MAP("array", __u32, struct zt_policy_epoch, zt_policy_epoch, 2, 0); /* [1]: of UDP, without a lease */
ZT_MAP("percpu_array", __u32, __u64, zt_stats, ZT_STAT_MAX, 0);
ZT_MAP("array", __u32, struct zt_meta, zt_meta, 1, 0);
ZT_MAP("hash", struct zt_udp_remote, __u8, zt_udp_routes, ZT_MAX_UDP_ROUTES, BPF_F_NO_PREALLOC);
ZT_MAP("sockhash", struct zt_addr, __u64, zt_udp_authz_socks, ZT_MAX_LISTENERS, 0);
ZT_MAP("lru_hash", struct zt_four_tuple, struct zt_udp_ct_entry, zt_udp_conntrack, ZT_MAX_UDP_CONNTRACK, 0);
ZT_MAP("lru_hash", struct zt_udp_decision_key, struct zt_udp_decision, zt_udp_decisions,
       ZT_MAX_SAME_NODE_ALLOW, 0);
ZT_MAP("hash", __u64, struct zt_udp_pod, zt_udp_pods, ZT_MAX_PODS, 0);
ZT_MAP("hash", __u64, struct zt_udp_stats, zt_udp_stats, ZT_MAX_PODS, 0);
ZT_MAP("lru_hash", struct zt_udp_remote_key, struct zt_udp_token, zt_udp_tokens, ZT_MAX_UDP_TOKENS, 0);
ZT_MAP("lru_hash", struct zt_udp_token_key, struct zt_udp_remote, zt_udp_remotes,
       ZT_MAX_UDP_TOKENS, 0);
ZT_RING(zt_events, ZT_EVENT_BYTES);

#endif
