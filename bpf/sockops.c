/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: copies what is known about a connecting socket to the accepted socket.
 *
 *   app connects (REDIRECTED) -> zt_flows -> the proxy's accepted socket (REDIRECT_ACCEPTED)
 *   proxy connects (PROXY)    -> zt_flows -> the app's accepted socket (UPSTREAM_ACCEPTED)
 *
 * The entry is written when the SYN is sent and deleted when the connecting socket, its owner,
 * closes. The accepted socket has its own copy, so a reused port never finds a stale entry.
 *
 * A connection that bypasses the proxy (SAME_NODE) has an entry in zt_same_node_conns:
 *
 *   SYN sent -> SYN_SENT -+-> destination's sk_lookup -+-> ADMITTED -> accepted -> ESTABLISHED
 *                         |                            `-> INTERCEPTED: redirected to the proxy
 *                         `-> established, but not ADMITTED: another pod answered; cut off
 */
#include "lib/same_node.h"

#define ZT_SOL_SOCKET 1
#define ZT_SO_BINDTODEVICE 25

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

static __always_inline __be16 zt_ops_local_port(struct bpf_sock_ops *ops)
{
	return bpf_htons((__u16)ops->local_port); /* host order in the context */
}

static __always_inline __be16 zt_ops_remote_port(struct bpf_sock_ops *ops)
{
	return bpf_htons((__u16)bpf_ntohl(ops->remote_port)); /* network order, 32 bits */
}

/* The flow key, computed on the connecting side. */
static __always_inline void zt_flow_key_client(struct bpf_sock_ops *ops, struct zt_flow_key *key)
{
	key->netns = bpf_get_netns_cookie(ops);
	zt_local_ip(ops, key->ip);
	key->sport = zt_ops_local_port(ops);
	key->dport = zt_ops_remote_port(ops);
}

/* The same key, computed on the accepting side. */
static __always_inline void zt_flow_key_server(struct bpf_sock_ops *ops, struct zt_flow_key *key)
{
	key->netns = bpf_get_netns_cookie(ops);
	zt_remote_ip(ops, key->ip);
	key->sport = zt_ops_remote_port(ops);
	key->dport = zt_ops_local_port(ops);
}

/* The four-tuple from client to server, computed on the connecting side. */
static __always_inline void zt_tuple_client(struct bpf_sock_ops *ops, struct zt_four_tuple *key)
{
	zt_local_ip(ops, key->src);
	zt_remote_ip(ops, key->dst);
	key->sport = zt_ops_local_port(ops);
	key->dport = zt_ops_remote_port(ops);
}

/* The same four-tuple, computed on the accepting side. */
static __always_inline void zt_tuple_server(struct bpf_sock_ops *ops, struct zt_four_tuple *key)
{
	zt_remote_ip(ops, key->src);
	zt_local_ip(ops, key->dst);
	key->sport = zt_ops_remote_port(ops);
	key->dport = zt_ops_local_port(ops);
}

static __always_inline struct zt_sock *zt_ops_sock(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	return sk ? zt_sock_find(sk) : 0;
}

static __always_inline void zt_watch_states(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/*
 * The SYN of a connection is sent
 */

/* Whether the accepting socket needs to know about this one. */
static __always_inline int zt_needs_flow(const struct zt_sock *known)
{
	return known->role == ZT_ROLE_REDIRECTED || (known->role == ZT_ROLE_PROXY && known->port);
}

/* Whether the source is an address of the pod; a bypass entry must not cover a spoofed one. */
static __always_inline int zt_is_source_of(__u64 netns, const __u8 ip[16])
{
	struct zt_pod *pod = zt_pod_find(netns);

	return pod && zt_is_pod_ip(pod, ip);
}

/* Authorizes again, for the addresses of the SYN: an entry without an epoch admits nothing. */
static __always_inline void zt_on_same_node_connect(struct bpf_sock_ops *ops)
{
	struct zt_same_node_allow *allow;
	struct zt_same_node_conn conn = {};
	struct zt_four_tuple key = {};

	zt_tuple_client(ops, &key);
	conn.netns = bpf_get_netns_cookie(ops);
	conn.owner = zt_socket_cookie(ops);
	conn.start_ns = bpf_ktime_get_ns();
	allow = zt_same_node_allowed(conn.netns, key.dst, key.dport);
	if (allow && zt_is_source_of(conn.netns, key.src)) {
		conn.epoch = allow->epoch;
		conn.dst_netns = allow->dst_netns;
	}
	if (zt_same_node_conn_add(&key, &conn))
		zt_count(ZT_STAT_FLOW_FULL);
	zt_watch_states(ops);
}

/* A process of the node connects. Traffic with a node address but without such an entry is
 * forwarded by the node, not sent by it. */
static __always_inline void zt_on_node_connect(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	struct zt_addr source = {};

	if (bpf_get_netns_cookie(ops) != zt_node_netns_cookie())
		return;
	zt_local_ip(ops, source.ip);
	if (!zt_is_node_addr(&source))
		return;
	zt_tuple_client(ops, &key);
	if (!zt_node_conn_add(&key, zt_socket_cookie(ops)))
		zt_watch_states(ops);
}

static __always_inline void zt_on_connect(struct bpf_sock_ops *ops)
{
	struct zt_sock *known = zt_ops_sock(ops);
	struct zt_flow_key key = {};
	struct zt_flow flow = {};

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
	zt_flow_key_client(ops, &key);
	flow.owner = zt_socket_cookie(ops);
	flow.start_ns = bpf_ktime_get_ns();
	flow.sock = *known;
	if (zt_flow_add(&key, &flow))
		zt_count(ZT_STAT_FLOW_FULL);
	else
		zt_watch_states(ops);
}

/*
 * A connection is established
 */

static __always_inline void zt_fill_event(struct zt_event *event, const struct zt_four_tuple *key,
					  const struct zt_same_node_conn *conn)
{
	event->key = *key;
	event->owner = conn->owner;
	event->netns = conn->netns;
	event->dst_netns = conn->dst_netns;
	event->duration_ns = bpf_ktime_get_ns() - conn->start_ns;
}

/*
 * The SYN was answered. If the authorized pod's sk_lookup did not see it, another pod now has that
 * pod's address. Bind the socket to loopback, so that nothing leaves it; the agent destroys it.
 */
static __always_inline void zt_on_connected(struct bpf_sock_ops *ops)
{
	struct zt_same_node_conn *conn;
	struct zt_four_tuple key = {};
	struct zt_event event = {};
	struct zt_sock *known;
	char loopback[] = "lo";

	if (!(ops->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		return;
	known = zt_ops_sock(ops);
	if (!known || known->role != ZT_ROLE_SAME_NODE)
		return;
	zt_tuple_client(ops, &key);
	conn = zt_same_node_conn_find(&key);
	if (conn && conn->owner == zt_socket_cookie(ops) && conn->state != ZT_SAME_NODE_SYN_SENT)
		return;
	bpf_setsockopt(ops, ZT_SOL_SOCKET, ZT_SO_BINDTODEVICE, loopback, sizeof(loopback));
	zt_count(ZT_STAT_UNEXPECTED_PEER);
	if (!conn)
		return;
	zt_fill_event(&event, &key, conn);
	event.close_reason = ZT_CLOSE_UNEXPECTED_PEER;
	zt_emit_event(&event);
}

/* The destination pod accepted the connection; its entry admits nothing else. */
static __always_inline void zt_on_same_node_accept(struct bpf_sock_ops *ops)
{
	__u64 netns = bpf_get_netns_cookie(ops);
	struct zt_same_node_conn *conn;
	struct zt_four_tuple key = {};

	if (!zt_pod_find(netns))
		return;
	zt_tuple_server(ops, &key);
	conn = zt_same_node_conn_find(&key);
	if (!conn || conn->dst_netns != netns || conn->state != ZT_SAME_NODE_ADMITTED)
		return;
	conn->state = ZT_SAME_NODE_ESTABLISHED;
	zt_watch_states(ops);
}

static __always_inline void zt_on_accept(struct bpf_sock_ops *ops)
{
	struct zt_sock *accepted;
	struct zt_flow_key key = {};
	struct zt_flow *flow;
	struct bpf_sock *sk;

	zt_flow_key_server(ops, &key);
	flow = zt_flow_find(&key);
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
	accepted = zt_sock_create(sk);
	if (!accepted)
		return;
	*accepted = flow->sock;
	accepted->role = flow->sock.role == ZT_ROLE_REDIRECTED ? ZT_ROLE_REDIRECT_ACCEPTED :
								 ZT_ROLE_UPSTREAM_ACCEPTED;
}

/*
 * A connection closes
 */

/* Payload bytes from the kernel's counters, in which SYN and FIN count as one byte each. */
static __always_inline void zt_count_bytes(struct bpf_sock_ops *ops, int state,
					   const struct zt_same_node_conn *conn,
					   struct zt_event *event)
{
	int fin_sent = state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_FIN_WAIT2 ||
		       state == BPF_TCP_LAST_ACK || state == BPF_TCP_CLOSING;
	int fin_received = state == BPF_TCP_CLOSE_WAIT || state == BPF_TCP_LAST_ACK ||
			   state == BPF_TCP_CLOSING ||
			   (state == BPF_TCP_FIN_WAIT2 && conn->server_fin);

	event->sent = ops->bytes_acked;
	if (event->sent)
		event->sent -= 1;
	if (event->sent && fin_sent && ops->snd_una == ops->snd_nxt)
		event->sent -= 1;
	event->received = ops->bytes_received;
	if (event->received && fin_received)
		event->received -= 1;
}

static __always_inline __u8 zt_close_reason_of(int state)
{
	if (state == BPF_TCP_SYN_SENT)
		return ZT_CLOSE_REFUSED;
	if (state == BPF_TCP_ESTABLISHED || state == BPF_TCP_FIN_WAIT1 ||
	    state == BPF_TCP_CLOSE_WAIT)
		return ZT_CLOSE_RESET;
	return ZT_CLOSE_ORDERLY;
}

static __always_inline void zt_on_same_node_close(struct bpf_sock_ops *ops)
{
	struct zt_same_node_conn *conn;
	struct zt_four_tuple key = {};
	struct zt_event event = {};
	int state = ops->args[0]; /* before it closed */

	zt_tuple_client(ops, &key);
	conn = zt_same_node_conn_find(&key);
	if (!conn || conn->owner != zt_socket_cookie(ops))
		return;
	if (conn->state != ZT_SAME_NODE_INTERCEPTED && conn->epoch) {
		zt_fill_event(&event, &key, conn);
		zt_count_bytes(ops, state, conn, &event);
		event.srtt_us = ops->srtt_us >> 3;
		event.retransmits = ops->total_retrans;
		event.close_reason = zt_close_reason_of(state);
		zt_emit_event(&event);
	}
	zt_same_node_conn_delete(&key);
}

static __always_inline void zt_on_node_close(struct bpf_sock_ops *ops)
{
	struct zt_four_tuple key = {};
	__u64 *owner;

	zt_tuple_client(ops, &key);
	owner = zt_node_conn_find(&key);
	if (owner && *owner == zt_socket_cookie(ops))
		zt_node_conn_delete(&key);
}

static __always_inline void zt_on_flow_close(struct bpf_sock_ops *ops)
{
	struct zt_flow_key key = {};
	struct zt_flow *flow;

	zt_flow_key_client(ops, &key);
	flow = zt_flow_find(&key);
	if (flow && flow->owner == zt_socket_cookie(ops))
		zt_flow_delete(&key);
}

/* The accepting side sends its FIN: in FIN_WAIT2 the source has no record of receiving one. */
static __always_inline void zt_on_server_fin(struct bpf_sock_ops *ops)
{
	struct zt_same_node_conn *conn;
	struct zt_four_tuple key = {};

	zt_tuple_server(ops, &key);
	conn = zt_same_node_conn_find(&key);
	if (conn)
		conn->server_fin = 1;
}

static __always_inline void zt_on_state(struct bpf_sock_ops *ops)
{
	struct zt_sock *known;
	int state = ops->args[1];

	if (state != BPF_TCP_CLOSE && state != BPF_TCP_FIN_WAIT1 && state != BPF_TCP_LAST_ACK)
		return;
	known = zt_ops_sock(ops);
	if (state != BPF_TCP_CLOSE) {
		if (!known)
			zt_on_server_fin(ops);
	} else if (!known) {
		zt_on_node_close(ops);
	} else if (known->role == ZT_ROLE_SAME_NODE) {
		zt_on_same_node_close(ops);
	} else {
		zt_on_flow_close(ops);
	}
}

SEC("sockops")
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
