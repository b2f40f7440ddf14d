/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Authorization of connections that bypass the proxy. */
#ifndef ZT_SAME_NODE_H
#define ZT_SAME_NODE_H

#include "addr.h"
#include "maps.h"

static __always_inline __u64 zt_current_epoch(void)
{
	struct zt_policy_epoch *current = zt_policy_epoch_find(ZT_TCP_EPOCH);

	return current ? current->epoch : 0;
}

/*
 * The bypass entry for a pod's connection to a destination, if it is valid: written in the current
 * policy epoch, while the agent holds its lease, and to a destination pod that is enrolled.
 */
static __always_inline struct zt_same_node_allow *zt_same_node_allowed(__u64 netns,
								       const __u8 ip[16],
								       __be16 port)
{
	struct zt_same_node_key key = {};
	struct zt_same_node_allow *allow;
	struct zt_policy_epoch *current;

	key.netns = netns;
	__builtin_memcpy(key.ip, ip, 16);
	key.port = port;
	allow = zt_same_node_allow_find(&key);
	if (!allow)
		return 0;
	current = zt_policy_epoch_find(ZT_TCP_EPOCH);
	if (!current || !current->epoch || allow->epoch != current->epoch ||
	    bpf_ktime_get_ns() >= current->lease_until_ns)
		return 0;
	return zt_pod_find(allow->dst_netns) ? allow : 0;
}

#endif
