/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map and every value that the agent, ztctl and the programs share.
 *
 * Addresses are 16 bytes in network byte order; IPv4 is stored v4-mapped (::ffff:a.b.c.d), so one
 * key serves both families. Ports are network byte order unless a comment says host. Padding is
 * explicit and zeroed: it is part of hash keys. ztunnel/datapath/layout.py mirrors these structs;
 * tests compare sizes and offsets.
 */
#ifndef ZT_MAPS_H
#define ZT_MAPS_H

#define ZT_ABI 1 /* raise when a struct or a map below changes shape */

#define ZT_PORT_OUTBOUND 15001
#define ZT_PORT_INBOUND 15006
#define ZT_PORT_HBONE 15008

#define ZT_MAX_PODS 1024        /* Kubernetes' own limit is 110 pods a node by default */
#define ZT_MAX_FLOWS 262144     /* live redirected connections of one node */
#define ZT_MAX_NODE_ADDRS 1024
#define ZT_MAX_LISTENERS (2 * ZT_MAX_PODS)

#define ZT_SOCKOPT_LEVEL 0x5A54 /* "ZT"; sockopt.py says the same */
#define ZT_SOCKOPT_CLIENT 1

/* What a socket is to us. Kept in sk_storage: it dies with the socket, so it can't go stale. */
enum zt_role {
	ZT_ROLE_NONE = 0,
	ZT_ROLE_OWN = 1,        /* made by the agent for the proxy: never redirected */
	ZT_ROLE_REDIRECTED = 2, /* the app's; the address is the one it dialled */
	ZT_ROLE_ACCEPTED = 3,   /* the proxy's end of a REDIRECTED one; same address */
	ZT_ROLE_SERVED = 4,     /* the app's end of an OWN one; the address is the true client */
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
	__u64 born_ns; /* CLOCK_MONOTONIC */
	struct zt_sock note;
};

struct zt_addr {
	__u8 ip[16];
};

struct zt_pod_stats {
	__u64 redirected;
	__u64 own;     /* connects of the proxy's sockets */
	__u64 refused; /* connects to our ports, or of a kind we can't carry */
	__u64 local;   /* connects to the pod's own loopback, left alone */
};

enum zt_stat {
	ZT_STAT_STOLEN = 0,    /* inbound connections given to the proxy */
	ZT_STAT_NO_LISTENER,   /* inbound connections refused: no proxy listens */
	ZT_STAT_NODE,          /* connections from the node's own addresses, left alone */
	ZT_STAT_FLOW_FULL,     /* zt_flows had no room: the proxy refuses that connection */
	ZT_STAT_NO_NOTE,       /* a connection to the proxy without an original destination */
	ZT_STAT_MAX,
};

/* The pin directory comes from the loader; a map that is pinned there already is taken over. */
#ifndef ZT_PIN
#error "ZT_PIN: pass -DZT_PIN='\"/sys/fs/bpf/...\"'"
#endif
#define ZT_MAP(kind, key, value, name, size, flags) \
	BPF_TABLE_PINNED(kind, key, value, name, size, ZT_PIN "/maps/" #name, flags)

ZT_MAP("sk_storage", int, struct zt_sock, zt_socks, 0, BPF_F_NO_PREALLOC);
ZT_MAP("hash", __u64, struct zt_pod, zt_pods, ZT_MAX_PODS, 0);
ZT_MAP("hash", __u64, struct zt_pod_stats, zt_pod_stats, ZT_MAX_PODS, 0);
ZT_MAP("hash", struct zt_flow_key, struct zt_flow, zt_flows, ZT_MAX_FLOWS, BPF_F_NO_PREALLOC);
ZT_MAP("hash", struct zt_addr, __u8, zt_node_addrs, ZT_MAX_NODE_ADDRS, 0);
ZT_MAP("sockhash", struct zt_addr, __u64, zt_listeners, ZT_MAX_LISTENERS, 0);
ZT_MAP("percpu_array", __u32, __u64, zt_stats, ZT_STAT_MAX, 0);
ZT_MAP("array", __u32, struct zt_meta, zt_meta, 1, 0);

#endif
