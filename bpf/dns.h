/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Name servers as UDP sockets see them. What an app of an enrolled pod sends to port 53 goes to the
 * resolver's sockets in the pod, which are one port for each of the servers that the app's socket
 * asks; so an answer's port says from whom it is. The app is shown the server's own address.
 *
 *   app asks 10.96.0.10:53 ─▶ zt_dns_server_slots of its socket: server[0] ─▶ 127.0.0.1:15053
 *   proxy reads the query  ─▶ who sent it? its socket's server[0] ─▶ zt_dns_pending ─▶ ZT_SOCKOPT_DNS_SERVER
 *   app reads the answer from 127.0.0.1:15053 ─▶ shown: 10.96.0.10:53
 */
#ifndef ZT_DNS_H
#define ZT_DNS_H

#include "zt_lib.h"

#define ZT_DNS_PORT 53
#define ZT_DNS_NOT (-1)    /* no query that we take */
#define ZT_DNS_FAILED (-2) /* no memory for it: it must not pass */

static __always_inline int zt_is_dns(__be16 port)
{
	return port == bpf_htons(ZT_DNS_PORT);
}

static __always_inline int zt_is_same_ip(const __u8 a[16], const __u8 b[16])
{
	return zt_word(a, 0) == zt_word(b, 0) && zt_word(a, 1) == zt_word(b, 1) &&
	       zt_word(a, 2) == zt_word(b, 2) && zt_word(a, 3) == zt_word(b, 3);
}

static __always_inline int zt_is_unset(const __u8 ip[16])
{
	return !zt_word(ip, 0) && !zt_word(ip, 1) && !zt_word(ip, 2) && !zt_word(ip, 3);
}

/* The index of a resolver's port, negative when it is none. */
static __always_inline int zt_dns_index(__u16 port)
{
	return port >= ZT_PORT_DNS && port < ZT_PORT_DNS + ZT_DNS_SERVERS ? port - ZT_PORT_DNS : -1;
}

/* The barrier keeps the mask, which the compiler finds needless and the verifier wants. */
static __always_inline struct zt_addr *zt_server_at(struct zt_dns_slots *asked, __u64 index)
{
	asm volatile("" : "+r"(index));
	return &asked->server[index & 3];
}

static __always_inline int zt_remember_server(struct zt_dns_slots *asked, const __u8 ip[16])
{
	__u32 free = asked->next < ZT_DNS_SERVERS ? asked->next : 0;

#pragma unroll
	for (int at = 0; at < ZT_DNS_SERVERS; at++)
		if (zt_is_same_ip(asked->server[at].ip, ip))
			return at;
	__builtin_memcpy(zt_server_at(asked, free)->ip, ip, 16);
	asked->next = free + 1;
	return free;
}

/* Which of the resolver's ports a datagram to `to` belongs to. A socket on port 53 is a name
 * server's own: what it sends are answers. */
static __always_inline int zt_dns_server(struct bpf_sock_addr *ctx, const struct zt_sock *to)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_dns_slots *asked;
	struct zt_sock *known;
	struct zt_pod *pod;
	__u64 netns;

	if (!zt_is_dns(to->port) || ctx->protocol != ZT_IPPROTO_UDP)
		return ZT_DNS_NOT;
	netns = bpf_get_netns_cookie(ctx);
	pod = zt_pods.lookup(&netns);
	if (!pod || zt_is_local(to->ip) || zt_is_link_local(to->ip) || zt_is_pods_own(pod, to->ip))
		return ZT_DNS_NOT;
	if (!sk)
		return ZT_DNS_FAILED;
	known = zt_socks.sk_storage_get(sk, 0, 0);
	if ((known && known->role == ZT_ROLE_PROXY) || sk->src_port == ZT_DNS_PORT)
		return ZT_DNS_NOT;
	asked = zt_dns_server_slots.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	return asked ? zt_remember_server(asked, to->ip) : ZT_DNS_FAILED;
}

/* What the app is to see instead of the resolver; null when it is nothing of ours. */
static __always_inline struct zt_addr *zt_dns_shown(struct bpf_sock_addr *ctx, const __u8 ip[16])
{
	int index = zt_dns_index(bpf_ntohs((__u16)ctx->user_port));
	struct bpf_sock *sk = ctx->sk;
	struct zt_dns_slots *asked;
	struct zt_addr *server;

	if (index < 0 || !sk || !zt_is_local(ip))
		return 0;
	asked = zt_dns_server_slots.sk_storage_get(sk, 0, 0);
	if (!asked)
		return 0;
	server = zt_server_at(asked, index);
	return zt_is_unset(server->ip) ? 0 : server;
}

static __always_inline int zt_dns_show4(struct bpf_sock_addr *ctx)
{
	struct zt_addr *server;
	__u8 ip[16];

	zt_map4(ip, ctx->user_ip4);
	server = zt_dns_shown(ctx, ip);
	if (!server || !zt_is_mapped(server->ip))
		return 0;
	ctx->user_ip4 = zt_word(server->ip, 3);
	ctx->user_port = bpf_htons(ZT_DNS_PORT);
	return 1;
}

static __always_inline int zt_dns_show6(struct bpf_sock_addr *ctx)
{
	struct zt_addr *server;
	__u8 ip[16];

	zt_copy6(ip, ctx->user_ip6);
	server = zt_dns_shown(ctx, ip);
	if (!server || zt_is_mapped(server->ip) != zt_is_mapped(ip))
		return 0;
	ctx->user_ip6[0] = zt_word(server->ip, 0);
	ctx->user_ip6[1] = zt_word(server->ip, 1);
	ctx->user_ip6[2] = zt_word(server->ip, 2);
	ctx->user_ip6[3] = zt_word(server->ip, 3);
	ctx->user_port = bpf_htons(ZT_DNS_PORT);
	return 1;
}

/* The resolver reads a datagram of the socket `from`: note whom that socket asked by this port. */
static __always_inline void zt_dns_note(struct bpf_sock_addr *ctx, struct bpf_sock *from, int index,
					__u8 family)
{
	struct zt_dns_slots *asked = zt_dns_server_slots.sk_storage_get(from, 0, 0);
	struct zt_dns_pending_key key = {};
	struct zt_pod_stats *stats;
	struct zt_addr server;

	if (!asked)
		return;
	key.netns = bpf_get_netns_cookie(ctx);
	key.port = (__be16)ctx->user_port;
	key.server = index;
	key.family = family;
	server = *zt_server_at(asked, index);
	if (zt_is_unset(server.ip))
		return;
	zt_dns_pending.update(&key, &server);
	stats = zt_pod_stats.lookup(&key.netns);
	if (stats)
		__sync_fetch_and_add(&stats->dns, 1);
}

static __always_inline void zt_dns_read4(struct bpf_sock_addr *ctx, int index)
{
	struct bpf_sock_tuple pair = {};
	struct bpf_sock *from;

	pair.ipv4.saddr = bpf_htonl(0x7f000001);
	pair.ipv4.sport = bpf_htons(ZT_PORT_DNS + index);
	pair.ipv4.daddr = ctx->user_ip4;
	pair.ipv4.dport = (__be16)ctx->user_port;
	from = bpf_sk_lookup_udp(ctx, &pair, sizeof(pair.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!from)
		return;
	zt_dns_note(ctx, from, index, 4);
	bpf_sk_release(from);
}

static __always_inline void zt_dns_read6(struct bpf_sock_addr *ctx, int index)
{
	struct bpf_sock_tuple pair = {};
	struct bpf_sock *from;

	pair.ipv6.saddr[3] = bpf_htonl(1);
	pair.ipv6.sport = bpf_htons(ZT_PORT_DNS + index);
	pair.ipv6.daddr[0] = ctx->user_ip6[0];
	pair.ipv6.daddr[1] = ctx->user_ip6[1];
	pair.ipv6.daddr[2] = ctx->user_ip6[2];
	pair.ipv6.daddr[3] = ctx->user_ip6[3];
	pair.ipv6.dport = (__be16)ctx->user_port;
	from = bpf_sk_lookup_udp(ctx, &pair, sizeof(pair.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!from)
		return;
	zt_dns_note(ctx, from, index, 6);
	bpf_sk_release(from);
}

/* The index of the resolver's socket that this hook is about; negative when it is another's. */
static __always_inline int zt_dns_resolver(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_sock *known;

	if (!sk)
		return -1;
	known = zt_socks.sk_storage_get(sk, 0, 0);
	return known && known->role == ZT_ROLE_RESOLVER ? zt_dns_index(sk->src_port) : -1;
}

#endif
