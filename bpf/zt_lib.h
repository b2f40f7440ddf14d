/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Small helpers that several hooks share. */
#ifndef ZT_LIB_H
#define ZT_LIB_H

#include "zt_maps.h"

#define ZT_ALLOW 1
#define ZT_DENY 0
#define ZT_SOCK_STREAM 1     /* enum sock_type; linux/net.h is not UAPI */
#define ZT_SOCK_DGRAM 2
#define ZT_AF_INET 2
#define ZT_AF_INET6 10
#define ZT_IPPROTO_TCP 6
#define ZT_IPPROTO_UDP 17
#define ZT_IPPROTO_MPTCP 262
#define ZT_ECONNREFUSED 111
#define ZT_SOL_SOCKET 1
#define ZT_SO_BINDTODEVICE 25
#define ZT_RB_NO_WAKEUP 1 /* the agent reads by the clock: no wake-up on the app's account */
#define ZT_LOOPBACK_IFINDEX 1 /* lo is always the first interface of a netns */

/* BCC declares the result u32, which truncates cookies. */
#define zt_socket_cookie(ctx) (((__u64(*)(void *))BPF_FUNC_get_socket_cookie)(ctx))

static __always_inline void zt_map4(__u8 ip[16], __be32 ip4)
{
	__builtin_memset(ip, 0, 10);
	ip[10] = 0xff;
	ip[11] = 0xff;
	__builtin_memcpy(ip + 12, &ip4, 4);
}

/* Copy an address out of a context, word by word: the verifier refuses the wider loads that the
 * compiler would make of it. */
#define zt_copy6(ip, field)                                                                        \
	do {                                                                                       \
		const volatile __u32 *from = (field);                                              \
		__u32 words[4] = { from[0], from[1], from[2], from[3] };                           \
		__builtin_memcpy(ip, words, 16);                                                   \
	} while (0)

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

/* Loopback, or the unspecified address, which connect() takes for loopback. */
static __always_inline int zt_is_local(const __u8 ip[16])
{
	__u32 last = zt_word(ip, 3);

	if (zt_is_mapped(ip))
		return ip[12] == 127 || !last;
	return !zt_word(ip, 0) && !zt_word(ip, 1) && !zt_word(ip, 2) &&
	       (!last || last == bpf_htonl(1));
}

static __always_inline int zt_same_ip(const __u8 a[16], const __u8 b[16])
{
	return zt_word(a, 0) == zt_word(b, 0) && zt_word(a, 1) == zt_word(b, 1) &&
	       zt_word(a, 2) == zt_word(b, 2) && zt_word(a, 3) == zt_word(b, 3);
}

static __always_inline int zt_is_link_local(const __u8 ip[16])
{
	return ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

static __always_inline int zt_is_our_port(__be16 port)
{
	return port == bpf_htons(ZT_PORT_OUTBOUND) || port == bpf_htons(ZT_PORT_INBOUND) ||
	       port == bpf_htons(ZT_PORT_HBONE) || port == bpf_htons(ZT_PORT_DNS);
}

static __always_inline int zt_is_pods_own(const struct zt_pod *pod, const __u8 ip[16])
{
	if (zt_is_mapped(ip))
		return pod->ip4 && zt_word(ip, 3) == pod->ip4;
	return zt_same_ip(ip, pod->ip6);
}

/* The cookie of the node's own netns; 0 when it is not known. */
static __always_inline __u64 zt_node_netns_now(void)
{
	__u32 zero = 0;
	__u64 *cookie = zt_node_netns.lookup(&zero);

	return cookie ? *cookie : 0;
}

static __always_inline __u64 zt_current_epoch(void)
{
	__u32 zero = 0;
	struct zt_policy_epoch *lease = zt_policy_epoch.lookup(&zero);

	return lease ? lease->epoch : 0;
}

/* The verdict on a pod's connection to a destination, if it holds now: of this epoch, with a
 * living agent, both pods enrolled. */
static __always_inline struct zt_same_node_allow *zt_same_node_allowed(__u64 netns, const __u8 ip[16], __be16 port)
{
	struct zt_same_node_key key = {};
	struct zt_same_node_allow *verdict;
	struct zt_policy_epoch *lease;
	__u32 zero = 0;
	__u64 there;

	key.netns = netns;
	__builtin_memcpy(key.ip, ip, 16);
	key.port = port;
	verdict = zt_same_node_allow.lookup(&key);
	if (!verdict)
		return 0;
	lease = zt_policy_epoch.lookup(&zero);
	if (!lease || !lease->epoch || verdict->epoch != lease->epoch ||
	    bpf_ktime_get_ns() >= lease->lease_until_ns)
		return 0;
	there = verdict->dst_netns;
	return zt_pods.lookup(&there) ? verdict : 0;
}

static __always_inline int zt_refuse(void)
{
	bpf_set_retval(-ZT_ECONNREFUSED);
	return ZT_DENY;
}

static __always_inline void zt_count(__u32 stat)
{
	__u64 *count = zt_stats.lookup(&stat);

	if (count)
		*count += 1;
}

#endif
