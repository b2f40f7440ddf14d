/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: carries what we know of a connecting socket over to the socket that is accepted.
 *
 *   app connects (REDIRECTED)  ──▶ zt_flows ──▶ the proxy's accepted socket (ACCEPTED)
 *   proxy connects (OWN)       ──▶ zt_flows ──▶ the app's accepted socket   (SERVED)
 *
 * The entry is written when the SYN leaves and deleted when the connecting socket closes, by its
 * owner only. The accepted socket has its own copy, so a port used again finds nothing old.
 *
 * A connection by verdict (DIRECT) has its entry in zt_same_node_conns under its exact four-tuple:
 *
 *   SYN leaves ─▶ SENT ─ destination's sk_lookup ─▶ PASSED ─ accepted ─▶ ACCEPTED ─▶ closed: event
 *                   │                            └▶ STOLEN: the proxy's from here on
 *                   └─ established all the same: who answered is not the enrolled pod: cut off
 */
#include "zt_lib.h"

static __always_inline void zt_local_ip(struct bpf_sock_ops *ops, __u8 ip[16])
{
	if (ops->family == ZT_AF_INET)
		zt_map4(ip, ops->local_ip4);
	else
		zt_copy6(ip, ops->local_ip6);
}

static __always_inline void zt_remote_ip(struct bpf_sock_ops *ops, __u8 ip[16])
{
	if (ops->family == ZT_AF_INET)
		zt_map4(ip, ops->remote_ip4);
	else
		zt_copy6(ip, ops->remote_ip6);
}

/* The key as the connecting side sees it. */
static __always_inline void zt_key_out(struct bpf_sock_ops *ops, struct zt_flow_key *key)
{
	key->netns = bpf_get_netns_cookie(ops);
	zt_local_ip(ops, key->ip);
	key->sport = bpf_htons((__u16)ops->local_port);
	key->dport = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
}

/* The same key as the accepting side sees it. */
static __always_inline void zt_key_in(struct bpf_sock_ops *ops, struct zt_flow_key *key)
{
	key->netns = bpf_get_netns_cookie(ops);
	zt_remote_ip(ops, key->ip);
	key->sport = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
	key->dport = bpf_htons((__u16)ops->local_port);
}

static __always_inline struct zt_sock *zt_known(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	return sk ? zt_socks.sk_storage_get(sk, 0, 0) : 0;
}

static __always_inline int zt_needs_flow(struct zt_sock *known)
{
	return known->role == ZT_ROLE_REDIRECTED || (known->role == ZT_ROLE_PROXY && known->port);
}

static __always_inline void zt_client_tuple(struct bpf_sock_ops *ops, struct zt_four_tuple *key)
{
	zt_local_ip(ops, key->src);
	zt_remote_ip(ops, key->dst);
	key->sport = bpf_htons((__u16)ops->local_port);
	key->dport = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
}

static __always_inline void zt_server_tuple(struct bpf_sock_ops *ops, struct zt_four_tuple *key)
{
	zt_remote_ip(ops, key->src);
	zt_local_ip(ops, key->dst);
	key->sport = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
	key->dport = bpf_htons((__u16)ops->local_port);
}

static __always_inline void zt_watch_states(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Whether a pod speaks from an address of its own: another's must not be vouched for. */
static __always_inline int zt_is_own_of(__u64 netns, const __u8 ip[16])
{
	struct zt_pod *pod = zt_pods.lookup(&netns);

	return pod && zt_is_pods_own(pod, ip);
}

/* The verdict is asked again, for what really leaves; without it the entry lets nothing through. */
static __always_inline void zt_on_same_node_connect(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	struct zt_same_node_conn direct = {};
	struct zt_same_node_allow *verdict;

	zt_client_tuple(ops, &key);
	direct.netns = bpf_get_netns_cookie(ops);
	direct.owner = zt_socket_cookie(ops);
	direct.start_ns = bpf_ktime_get_ns();
	verdict = zt_same_node_allowed(direct.netns, key.dst, key.dport);
	if (verdict && zt_is_own_of(direct.netns, key.src)) {
		direct.epoch = verdict->epoch;
		direct.dst_netns = verdict->dst_netns;
	}
	if (zt_same_node_conns.update(&key, &direct))
		zt_count(ZT_STAT_FLOW_FULL);
	zt_watch_states(ops);
}

/* The node itself connects: what bears its address without this entry is only forwarded by it. */
static __always_inline void zt_on_node_connect(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	struct zt_addr from = {};
	__u64 netns = bpf_get_netns_cookie(ops);
	__u64 owner;

	if (netns != zt_node_netns_now())
		return;
	zt_local_ip(ops, from.ip);
	if (!zt_node_addrs.lookup(&from))
		return;
	zt_client_tuple(ops, &key);
	owner = zt_socket_cookie(ops);
	if (!zt_node_conns.update(&key, &owner))
		zt_watch_states(ops);
}

static __always_inline void zt_on_node_close(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	__u64 *owner;

	zt_client_tuple(ops, &key);
	owner = zt_node_conns.lookup(&key);
	if (owner && *owner == zt_socket_cookie(ops))
		zt_node_conns.delete(&key);
}

static __always_inline void zt_on_connect(struct bpf_sock_ops *ops)
{
	struct zt_flow_key key = {};
	struct zt_flow flow = {};
	struct zt_sock *known = zt_known(ops);

	if (known && known->role == ZT_ROLE_SAME_NODE) {
		zt_on_same_node_connect(ops);
		return;
	}
	if (!known) {
		zt_on_node_connect(ops);
		return;
	}
	if (!zt_needs_flow(known))
		return;
	zt_key_out(ops, &key);
	flow.owner = zt_socket_cookie(ops);
	flow.start_ns = bpf_ktime_get_ns();
	flow.sock = *known;
	if (zt_flows.update(&key, &flow))
		zt_count(ZT_STAT_FLOW_FULL);
	else
		zt_watch_states(ops);
}

static __always_inline void zt_emit_event(struct zt_event *event)
{
	if (zt_events.ringbuf_output(event, sizeof(*event), ZT_RB_NO_WAKEUP))
		zt_count(ZT_STAT_EVENT_LOST);
}

static __always_inline void zt_describe(struct zt_event *event, const struct zt_four_tuple *key,
					const struct zt_same_node_conn *direct)
{
	event->key = *key;
	event->owner = direct->owner;
	event->netns = direct->netns;
	event->dst_netns = direct->dst_netns;
	event->duration_ns = bpf_ktime_get_ns() - direct->start_ns;
}

/* The SYN was answered. Not by the pod of the verdict, if its sk_lookup did not see it: then that
 * pod's address is somebody else's now. The socket is bound to loopback, where nothing gets out;
 * the agent destroys it. */
static __always_inline void zt_on_connected(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	struct zt_event event = {};
	struct zt_same_node_conn *direct;
	struct zt_sock *known;
	char loopback[] = "lo";

	if (!(ops->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		return;
	known = zt_known(ops);
	if (!known || known->role != ZT_ROLE_SAME_NODE)
		return;
	zt_client_tuple(ops, &key);
	direct = zt_same_node_conns.lookup(&key);
	if (direct && direct->owner == zt_socket_cookie(ops) && direct->state != ZT_SAME_NODE_SYN_SENT)
		return;
	bpf_setsockopt(ops, ZT_SOL_SOCKET, ZT_SO_BINDTODEVICE, loopback, sizeof(loopback));
	zt_count(ZT_STAT_UNEXPECTED_PEER);
	if (!direct)
		return;
	zt_describe(&event, &key, direct);
	event.close_reason = ZT_CLOSE_UNEXPECTED_PEER;
	zt_emit_event(&event);
}

/* The destination pod has it: from now on the entry lets nothing through. */
static __always_inline void zt_on_same_node_accept(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	struct zt_same_node_conn *direct;
	__u64 netns = bpf_get_netns_cookie(ops);

	if (!zt_pods.lookup(&netns))
		return;
	zt_server_tuple(ops, &key);
	direct = zt_same_node_conns.lookup(&key);
	if (!direct || direct->dst_netns != netns || direct->state != ZT_SAME_NODE_ADMITTED)
		return;
	direct->state = ZT_SAME_NODE_ESTABLISHED;
	zt_watch_states(ops);
}

static __always_inline void zt_on_accept(struct bpf_sock_ops *ops)
{
	struct zt_flow_key key = {};
	struct zt_flow *flow;
	struct zt_sock *mine;
	struct bpf_sock *sk;

	zt_key_in(ops, &key);
	flow = zt_flows.lookup(&key);
	if (!flow) {
		if (key.dport == bpf_htons(ZT_PORT_OUTBOUND))
			zt_count(ZT_STAT_ORIGINAL_DST_MISSING);
		else
			zt_on_same_node_accept(ops);
		return;
	}
	sk = ops->sk;
	if (!sk)
		return;
	mine = zt_socks.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mine)
		return;
	*mine = flow->sock;
	mine->role = flow->sock.role == ZT_ROLE_REDIRECTED ? ZT_ROLE_REDIRECT_ACCEPTED : ZT_ROLE_UPSTREAM_ACCEPTED;
}

/* Payload from the kernel's counts, in which SYN and FIN are a byte each. */
static __always_inline void zt_count_bytes(struct bpf_sock_ops *ops, int from,
					   const struct zt_same_node_conn *direct, struct zt_event *event)
{
	int fin_sent = from == BPF_TCP_FIN_WAIT1 || from == BPF_TCP_FIN_WAIT2 ||
		       from == BPF_TCP_LAST_ACK || from == BPF_TCP_CLOSING;
	int fin_received = from == BPF_TCP_CLOSE_WAIT || from == BPF_TCP_LAST_ACK ||
			   from == BPF_TCP_CLOSING ||
			   (from == BPF_TCP_FIN_WAIT2 && direct->server_fin);

	event->sent = ops->bytes_acked;
	if (event->sent)
		event->sent -= 1;
	if (event->sent && fin_sent && ops->snd_una == ops->snd_nxt)
		event->sent -= 1;
	event->received = ops->bytes_received;
	if (event->received && fin_received)
		event->received -= 1;
}

static __always_inline void zt_on_same_node_close(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	struct zt_event event = {};
	struct zt_same_node_conn *direct;
	int from = ops->args[0];

	zt_client_tuple(ops, &key);
	direct = zt_same_node_conns.lookup(&key);
	if (!direct || direct->owner != zt_socket_cookie(ops))
		return;
	if (direct->state != ZT_SAME_NODE_INTERCEPTED && direct->epoch) {
		zt_describe(&event, &key, direct);
		zt_count_bytes(ops, from, direct, &event);
		event.srtt_us = ops->srtt_us >> 3;
		event.retransmits = ops->total_retrans;
		if (from == BPF_TCP_SYN_SENT)
			event.close_reason = ZT_CLOSE_REFUSED;
		else if (from == BPF_TCP_ESTABLISHED || from == BPF_TCP_FIN_WAIT1 ||
			 from == BPF_TCP_CLOSE_WAIT)
			event.close_reason = ZT_CLOSE_RESET;
		zt_emit_event(&event);
	}
	zt_same_node_conns.delete(&key);
}

/* The accepting side sends its FIN: the source can't tell one that came from one that did not. */
static __always_inline void zt_on_server_fin(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	struct zt_same_node_conn *direct;

	zt_server_tuple(ops, &key);
	direct = zt_same_node_conns.lookup(&key);
	if (direct)
		direct->server_fin = 1;
}

static __always_inline void zt_on_state(struct bpf_sock_ops *ops)
{
	struct zt_flow_key key = {};
	struct zt_flow *flow;
	struct zt_sock *known;
	int to = ops->args[1];

	if (to != BPF_TCP_CLOSE && to != BPF_TCP_FIN_WAIT1 && to != BPF_TCP_LAST_ACK)
		return;
	known = zt_known(ops);
	if (to != BPF_TCP_CLOSE) {
		if (!known)
			zt_on_server_fin(ops);
		return;
	}
	if (!known) {
		zt_on_node_close(ops);
		return;
	}
	if (known->role == ZT_ROLE_SAME_NODE) {
		zt_on_same_node_close(ops);
		return;
	}
	zt_key_out(ops, &key);
	flow = zt_flows.lookup(&key);
	if (flow && flow->owner == zt_socket_cookie(ops))
		zt_flows.delete(&key);
}

int zt_sockops(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		zt_on_connect(ops);
	else if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		zt_on_connected(ops);
	else if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		zt_on_accept(ops);
	else if (ops->op == BPF_SOCK_OPS_STATE_CB)
		zt_on_state(ops);
	return 1;
}
