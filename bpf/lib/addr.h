/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Addresses, and the address-family layer of the cgroup/sock_addr hooks.
 *
 * Each of these hooks exists once for IPv4 and once for IPv6 sockets. Both call the same function
 * with a constant `family`; after inlining, only the accesses to the context that the verifier
 * allows for the attach type remain.
 */
#ifndef ZT_ADDR_H
#define ZT_ADDR_H

#include "abi.h"

#define ZT_V4 4
#define ZT_V6 6

#define ZT_ALLOW 1
#define ZT_DENY 0
#define ZT_SOCK_STREAM 1 /* enum sock_type; linux/net.h is not UAPI */
#define ZT_SOCK_DGRAM 2
#define ZT_AF_INET 2
#define ZT_AF_INET6 10
#define ZT_IPPROTO_TCP 6
#define ZT_IPPROTO_UDP 17
#define ZT_ECONNREFUSED 111
#define ZT_LOOPBACK4 0x7f000001 /* 127.0.0.1, host order */

/* The decision about a connect() or a datagram. */
enum zt_action {
	ZT_PASS,     /* not captured */
	ZT_REFUSE,
	ZT_REDIRECT, /* to the proxy */
	ZT_BYPASS,   /* captured, but goes to its destination without the proxy */
};

static __always_inline void zt_map4(__u8 ip[16], __be32 ip4)
{
	__builtin_memset(ip, 0, 10);
	ip[10] = 0xff;
	ip[11] = 0xff;
	__builtin_memcpy(ip + 12, &ip4, 4);
}

/* Copies an IPv6 address out of a context. Volatile: the verifier rejects the wider loads into
 * which the compiler would merge these. */
static __always_inline void zt_copy6(__u8 ip[16], const volatile __u32 *field)
{
	__u32 words[4] = { field[0], field[1], field[2], field[3] };

	__builtin_memcpy(ip, words, 16);
}

static __always_inline __u32 zt_word(const __u8 ip[16], int index)
{
	__u32 word;

	__builtin_memcpy(&word, ip + 4 * index, 4);
	return word;
}

static __always_inline int zt_is_mapped(const __u8 ip[16])
{
	return !zt_word(ip, 0) && !zt_word(ip, 1) && zt_word(ip, 2) == bpf_htonl(0xffff);
}

static __always_inline int zt_is_zero(const __u8 ip[16])
{
	return !zt_word(ip, 0) && !zt_word(ip, 1) && !zt_word(ip, 2) && !zt_word(ip, 3);
}

/* Loopback, or the unspecified address, which connect() treats as loopback. */
static __always_inline int zt_is_local(const __u8 ip[16])
{
	__u32 last = zt_word(ip, 3);

	if (zt_is_mapped(ip))
		return ip[12] == 127 || !last;
	return !zt_word(ip, 0) && !zt_word(ip, 1) && !zt_word(ip, 2) &&
	       (!last || last == bpf_htonl(1));
}

static __always_inline int zt_is_link_local(const __u8 ip[16])
{
	return ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

static __always_inline int zt_same_ip(const __u8 a[16], const __u8 b[16])
{
	return zt_word(a, 0) == zt_word(b, 0) && zt_word(a, 1) == zt_word(b, 1) &&
	       zt_word(a, 2) == zt_word(b, 2) && zt_word(a, 3) == zt_word(b, 3);
}

static __always_inline int zt_same_endpoint(const struct zt_endpoint *a,
					    const struct zt_endpoint *b)
{
	return zt_same_ip(a->ip, b->ip) && a->port == b->port;
}

static __always_inline void zt_set_tuple(struct zt_four_tuple *key, const __u8 src[16],
					 __be16 sport, const __u8 dst[16], __be16 dport)
{
	__builtin_memcpy(key->src, src, 16);
	__builtin_memcpy(key->dst, dst, 16);
	key->sport = sport;
	key->dport = dport;
}

/* The loopback address in the family of `like`. */
static __always_inline void zt_loopback(__u8 ip[16], const __u8 like[16])
{
	if (zt_is_mapped(like)) {
		zt_map4(ip, bpf_htonl(ZT_LOOPBACK4));
	} else {
		__builtin_memset(ip, 0, 15);
		ip[15] = 1;
	}
}

/* The pod's address in the family of `like`; returns 0 if the pod has none. */
static __always_inline int zt_pod_ip(const struct zt_pod *pod, const __u8 like[16], __u8 ip[16])
{
	if (zt_is_mapped(like)) {
		zt_map4(ip, pod->ip4);
		return pod->ip4 != 0;
	}
	__builtin_memcpy(ip, pod->ip6, 16);
	return zt_word(ip, 0) != 0;
}

static __always_inline int zt_is_pod_ip(const struct zt_pod *pod, const __u8 ip[16])
{
	if (zt_is_mapped(ip))
		return pod->ip4 && zt_word(ip, 3) == pod->ip4;
	return zt_same_ip(ip, pod->ip6);
}

/*
 * The context of cgroup/sock_addr hooks
 */

/* The address in the context: the destination in connect and sendmsg, the source in recvmsg. */
static __always_inline void zt_get_addr(struct bpf_sock_addr *ctx, const int family,
					struct zt_endpoint *addr)
{
	if (family == ZT_V4)
		zt_map4(addr->ip, ctx->user_ip4);
	else
		zt_copy6(addr->ip, ctx->user_ip6);
	addr->port = (__be16)ctx->user_port;
}

/* For ZT_V4, `ip` must be v4-mapped. */
static __always_inline void zt_set_ip(struct bpf_sock_addr *ctx, const int family,
				      const __u8 ip[16])
{
	if (family == ZT_V4) {
		ctx->user_ip4 = zt_word(ip, 3);
	} else {
		ctx->user_ip6[0] = zt_word(ip, 0);
		ctx->user_ip6[1] = zt_word(ip, 1);
		ctx->user_ip6[2] = zt_word(ip, 2);
		ctx->user_ip6[3] = zt_word(ip, 3);
	}
}

static __always_inline void zt_set_addr(struct bpf_sock_addr *ctx, const int family,
					const __u8 ip[16], __be16 port)
{
	zt_set_ip(ctx, family, ip);
	ctx->user_port = port;
}

/* Whether a socket of the family can show the address to the app. */
static __always_inline int zt_family_has(const int family, const __u8 ip[16])
{
	return family == ZT_V6 || zt_is_mapped(ip);
}

/* The port of the context's socket, in network byte order. */
static __always_inline __be16 zt_local_port(struct bpf_sock *sk)
{
	return bpf_htons((__u16)sk->src_port);
}

/*
 * The app's UDP socket in this netns that would receive a datagram from loopback, port
 * `proxy_port`, to `app`. The caller releases it.
 */
static __always_inline struct bpf_sock *zt_lookup_app_udp(struct bpf_sock_addr *ctx,
							  const int family, __be16 proxy_port,
							  const struct zt_endpoint *app)
{
	struct bpf_sock_tuple tuple = {};

	if (family == ZT_V4) {
		tuple.ipv4.saddr = bpf_htonl(ZT_LOOPBACK4);
		tuple.ipv4.sport = proxy_port;
		tuple.ipv4.daddr = zt_word(app->ip, 3);
		tuple.ipv4.dport = app->port;
		return bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	tuple.ipv6.saddr[3] = bpf_htonl(1);
	tuple.ipv6.sport = proxy_port;
	__builtin_memcpy(tuple.ipv6.daddr, app->ip, 16);
	tuple.ipv6.dport = app->port;
	return bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

static __always_inline int zt_refuse(void)
{
	bpf_set_retval(-ZT_ECONNREFUSED);
	return ZT_DENY;
}

#endif
