/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the getsockopt and setsockopt hooks share. */
#ifndef ZT_SOCKOPT_H
#define ZT_SOCKOPT_H

#include "addr.h"
#include "maps.h"

#define ZT_MAX_OPTLEN 4096 /* the kernel requires optlen 0 for a larger value */

struct zt_sockaddr_in {
	__u16 family;
	__be16 port;
	__be32 ip;
	__u8 zero[8];
};

struct zt_sockaddr_in6 {
	__u16 family;
	__be16 port;
	__be32 flowinfo;
	__u8 ip[16];
	__u32 scope;
};

/* Leaves the option to the kernel. */
static __always_inline int zt_passthrough(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > ZT_MAX_OPTLEN)
		ctx->optlen = 0;
	return ZT_ALLOW;
}

#endif
