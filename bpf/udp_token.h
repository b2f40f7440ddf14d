/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The addresses that tokens have inside a pod: see udp.h. */
#ifndef ZT_UDP_TOKEN_H
#define ZT_UDP_TOKEN_H

#include "zt_lib.h"

#define ZT_TOKEN_NET 0x7f400000 /* 127.64.0.0/10, host order; loopback that nobody uses */
#define ZT_TOKEN_MASK 0x003fffff

#define ZT_TOKEN_NET6 0xfd5a7464 /* the first 32 bits, host order; a unique local prefix */
#define ZT_TOKEN_FROM_LOOPBACK 1 /* the second 64 bits' first word */
#define ZT_TOKEN_FROM_POD 2

static __always_inline __be32 zt_token_ip4(__u32 token)
{
	return bpf_htonl(ZT_TOKEN_NET | (token & ZT_TOKEN_MASK));
}

static __always_inline int zt_is_token_ip4(__be32 ip4)
{
	return (bpf_ntohl(ip4) & ~ZT_TOKEN_MASK) == ZT_TOKEN_NET;
}

static __always_inline int zt_is_token_ip6(const __u8 ip[16])
{
	return zt_word(ip, 0) == bpf_htonl(ZT_TOKEN_NET6) && !zt_word(ip, 1) &&
	       zt_is_token_ip4(zt_word(ip, 3));
}

#endif
