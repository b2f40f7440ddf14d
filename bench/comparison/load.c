// SPDX-License-Identifier: Apache-2.0
/*
 * The load of `make bench`: one small program, so that what it costs itself is little and known.
 *
 *   load server PORT                       serve until ended
 *   load bulk ADDRESS PORT STREAMS SECONDS bytes one way
 *   load trip ADDRESS PORT SIZE SECONDS    SIZE bytes there and back, one connection
 *   load connect ADDRESS PORT PARALLEL SECONDS
 *                                          connect, one byte there and back, close
 *   load hold ADDRESS PORT                 then on stdin: "open TOTAL", "check"; end of file ends it
 *   load self SECONDS                      connect() + close() to a listener of its own
 *
 * Every client prints one line of JSON per job: times in microseconds, cpu in seconds of this
 * process. The first byte of a connection says what the server does with the rest: 'E' sends it
 * back, 'S' swallows it and answers one byte after the end. One thread, epoll, IPv4.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (256 * 1024)
#define MAX_FDS (1 << 17)
#define MAX_STREAMS 64
#define EVENTS 256
#define STALL_MS 10000     /* no event for so long is an error, not a slow peer */
#define MAX_ERRORS 100     /* then the job ends: what fails is not worth repeating */
#define HOLD_PARALLEL 64
#define WARM_UP_NS 100000000ull
#define MODE_ECHO 'E'
#define MODE_SINK 'S'

static char block[BLOCK];

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "ended early");
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void)
{
	struct rusage use;

	getrusage(RUSAGE_SELF, &use);
	return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
	       (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

/* -- samples: durations in nanoseconds ------------------------------------------------------- */

struct samples {
	uint64_t *values;
	size_t count, room;
};

static void sample(struct samples *all, uint64_t value)
{
	if (all->count == all->room) {
		all->room = all->room ? all->room * 2 : 1 << 16;
		all->values = realloc(all->values, all->room * sizeof(*all->values));
		if (!all->values)
			die("memory for samples");
	}
	all->values[all->count++] = value;
}

static int ascending(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double percentile(const struct samples *all, double share)
{
	if (!all->count)
		return 0;
	return (double)all->values[(size_t)(share * (double)(all->count - 1) + 0.5)] / 1e3;
}

static void report_samples(struct samples *all, double seconds, double cpu, long errors)
{
	if (all->count)
		qsort(all->values, all->count, sizeof(*all->values), ascending);
	printf("{\"count\": %zu, \"seconds\": %.6f, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, "
	       "\"cpu\": %.6f, \"errors\": %ld}\n",
	       all->count, seconds, percentile(all, 0.5), percentile(all, 0.9),
	       percentile(all, 0.99), cpu, errors);
	fflush(stdout);
}

/* -- sockets --------------------------------------------------------------------------------- */

static struct sockaddr_in address_of(const char *host, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

	if (inet_pton(AF_INET, host, &to.sin_addr) != 1) {
		errno = EINVAL;
		die(host);
	}
	return to;
}

static int tcp_socket(int flags)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (fd < 0)
		die("socket");
	if (fd >= MAX_FDS) {
		errno = EMFILE;
		die("socket");
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void limit_wait(int fd)
{
	struct timeval limit = {.tv_sec = STALL_MS / 1000};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
}

static int dial(const struct sockaddr_in *to, char mode)
{
	int fd = tcp_socket(0);

	limit_wait(fd);
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) || send(fd, &mode, 1, 0) != 1)
		die("connect");
	return fd;
}

static int listening(uint32_t address, uint16_t port, int flags)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
	int one = 1, fd = tcp_socket(flags);

	at.sin_addr.s_addr = htonl(address);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 4096))
		die("listen");
	return fd;
}

static void watch(int poller, int operation, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	if (epoll_ctl(poller, operation, fd, &event))
		die("epoll_ctl");
}

/* -- server ---------------------------------------------------------------------------------- */

static struct {
	char mode;  /* 0 until the first byte */
	char *rest; /* what the client does not take yet */
	size_t from, to;
} served[MAX_FDS];

static void forget(int fd)
{
	free(served[fd].rest);
	memset(&served[fd], 0, sizeof(served[fd]));
	close(fd);
}

/* Sends what is left over; 1 when nothing is, 0 when some is, -1 when the client has gone. */
static int flush_rest(int fd)
{
	while (served[fd].from < served[fd].to) {
		ssize_t n = send(fd, served[fd].rest + served[fd].from,
				 served[fd].to - served[fd].from, MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		served[fd].from += (size_t)n;
	}
	free(served[fd].rest);
	served[fd].rest = NULL;
	return 1;
}

static void echo(int poller, int fd, const char *data, size_t size)
{
	ssize_t n = send(fd, data, size, MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN) {
		forget(fd);
		return;
	}
	n = n < 0 ? 0 : n;
	if ((size_t)n == size)
		return;
	served[fd].from = 0;
	served[fd].to = size - (size_t)n;
	served[fd].rest = malloc(served[fd].to);
	if (!served[fd].rest)
		die("memory");
	memcpy(served[fd].rest, data + n, served[fd].to);
	watch(poller, EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void receive(int poller, int fd)
{
	ssize_t n = recv(fd, block, BLOCK, 0);
	char *data = block;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		if (!n && served[fd].mode == MODE_SINK)
			send(fd, ".", 1, MSG_NOSIGNAL);
		forget(fd);
		return;
	}
	if (!served[fd].mode) {
		served[fd].mode = *data++;
		n--;
	}
	if (n && served[fd].mode == MODE_ECHO)
		echo(poller, fd, data, (size_t)n);
}

static void serve_one(int poller, int fd)
{
	if (!served[fd].rest) {
		receive(poller, fd);
		return;
	}
	switch (flush_rest(fd)) {
	case 1:
		watch(poller, EPOLL_CTL_MOD, fd, EPOLLIN);
		break;
	case -1:
		forget(fd);
	}
}

static void accept_all(int poller, int listener)
{
	int fd, one = 1;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (fd >= MAX_FDS) {
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		watch(poller, EPOLL_CTL_ADD, fd, EPOLLIN);
	}
}

static void serve(uint16_t port)
{
	int poller = epoll_create1(EPOLL_CLOEXEC);
	int listener = listening(INADDR_ANY, port, SOCK_NONBLOCK);
	struct epoll_event events[EVENTS];

	watch(poller, EPOLL_CTL_ADD, listener, EPOLLIN);
	for (;;) {
		int n = epoll_wait(poller, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == listener)
				accept_all(poller, listener);
			else
				serve_one(poller, events[i].data.fd);
		}
	}
}

/* -- bulk ------------------------------------------------------------------------------------ */

/* Ends the streams and waits until the server has said of each that it has all. */
static void finish(const int *fds, int streams)
{
	char answer;

	for (int i = 0; i < streams; i++)
		shutdown(fds[i], SHUT_WR);
	for (int i = 0; i < streams; i++) {
		errno = 0;
		if (recv(fds[i], &answer, 1, 0) != 1)
			die("end of a bulk stream");
		close(fds[i]);
	}
}

static void bulk(struct sockaddr_in to, int streams, double seconds)
{
	int poller = epoll_create1(EPOLL_CLOEXEC), fds[MAX_STREAMS];
	struct epoll_event events[EVENTS];
	uint64_t bytes = 0, began, until;
	double cpu;

	for (int i = 0; i < streams; i++) {
		fds[i] = dial(&to, MODE_SINK);
		watch(poller, EPOLL_CTL_ADD, fds[i], EPOLLOUT);
	}
	cpu = cpu_seconds();
	began = now_ns();
	until = began + (uint64_t)(seconds * 1e9);
	while (now_ns() < until) {
		int n = epoll_wait(poller, events, EVENTS, STALL_MS);

		if (n <= 0) {
			errno = ETIMEDOUT;
			die("bulk");
		}
		for (int i = 0; i < n; i++) {
			ssize_t sent = send(events[i].data.fd, block, BLOCK, MSG_DONTWAIT | MSG_NOSIGNAL);

			if (sent < 0 && errno != EAGAIN)
				die("send");
			bytes += sent > 0 ? (uint64_t)sent : 0;
		}
	}
	finish(fds, streams);
	printf("{\"bytes\": %llu, \"seconds\": %.6f, \"cpu\": %.6f}\n", (unsigned long long)bytes,
	       (double)(now_ns() - began) / 1e9, cpu_seconds() - cpu);
}

/* -- round trips ----------------------------------------------------------------------------- */

static void there_and_back(int fd, size_t size)
{
	errno = 0;
	for (size_t done = 0; done < size;) {
		ssize_t n = send(fd, block + done, size - done, MSG_NOSIGNAL);

		if (n <= 0)
			die("send");
		done += (size_t)n;
	}
	for (size_t done = 0; done < size;) {
		ssize_t n = recv(fd, block + done, size - done, 0);

		if (n <= 0)
			die("recv");
		done += (size_t)n;
	}
}

static void trip(struct sockaddr_in to, size_t size, double seconds)
{
	struct samples all = {0};
	int fd = dial(&to, MODE_ECHO);
	uint64_t began, until, last = now_ns() + WARM_UP_NS;
	double cpu;

	while (now_ns() < last)
		there_and_back(fd, size);
	cpu = cpu_seconds();
	began = last = now_ns();
	until = began + (uint64_t)(seconds * 1e9);
	while (last < until) {
		uint64_t done;

		there_and_back(fd, size);
		done = now_ns();
		sample(&all, done - last);
		last = done;
	}
	report_samples(&all, (double)(last - began) / 1e9, cpu_seconds() - cpu, 0);
	close(fd);
}

/* -- new connections ------------------------------------------------------------------------- */

struct job {
	struct sockaddr_in to;
	int poller;
	int parallel;
	uint64_t until; /* start no more after this */
	long wanted;    /* nor more than so many */
	int *keep;      /* where to put open ones; NULL closes them */
	struct samples all;
	long begun, under_way, errors;
};

static struct {
	uint64_t began;
	bool asked;
} opening[MAX_FDS];

static void begin(struct job *job)
{
	uint64_t began = now_ns();
	int fd = tcp_socket(SOCK_NONBLOCK);

	job->begun++;
	if (connect(fd, (struct sockaddr *)&job->to, sizeof(job->to)) && errno != EINPROGRESS) {
		job->errors++;
		close(fd);
		return;
	}
	opening[fd].began = began;
	opening[fd].asked = false;
	job->under_way++;
	watch(job->poller, EPOLL_CTL_ADD, fd, EPOLLOUT);
}

static void end(struct job *job, int fd, bool good)
{
	job->under_way--;
	if (!good) {
		job->errors++;
		close(fd);
		return;
	}
	if (job->keep) {
		job->keep[job->all.count] = fd;
		watch(job->poller, EPOLL_CTL_DEL, fd, 0);
	} else {
		close(fd);
	}
	sample(&job->all, now_ns() - opening[fd].began);
}

static void advance(struct job *job, int fd)
{
	static const char question[] = {MODE_ECHO, 'x'};
	char answer;

	if (opening[fd].asked) {
		end(job, fd, recv(fd, &answer, 1, 0) == 1);
		return;
	}
	if (send(fd, question, sizeof(question), MSG_NOSIGNAL) != sizeof(question)) {
		end(job, fd, false);
		return;
	}
	opening[fd].asked = true;
	watch(job->poller, EPOLL_CTL_MOD, fd, EPOLLIN);
}

static void work_off(struct job *job)
{
	struct epoll_event events[EVENTS];

	for (;;) {
		int n;

		while (job->under_way < job->parallel && job->begun < job->wanted &&
		       job->errors < MAX_ERRORS && now_ns() < job->until)
			begin(job);
		if (!job->under_way)
			return;
		n = epoll_wait(job->poller, events, EVENTS, STALL_MS);
		if (n <= 0) {
			job->errors += job->under_way;
			return;
		}
		for (int i = 0; i < n; i++)
			advance(job, events[i].data.fd);
	}
}

static void connect_and_close(struct sockaddr_in to, int parallel, double seconds)
{
	struct job warm = {.to = to, .parallel = parallel, .wanted = INT32_MAX};
	struct job job = warm;
	uint64_t began;
	double cpu;

	warm.poller = epoll_create1(EPOLL_CLOEXEC);
	warm.until = now_ns() + WARM_UP_NS;
	work_off(&warm);
	job.poller = epoll_create1(EPOLL_CLOEXEC);
	cpu = cpu_seconds();
	began = now_ns();
	job.until = began + (uint64_t)(seconds * 1e9);
	work_off(&job);
	report_samples(&job.all, (double)(now_ns() - began) / 1e9, cpu_seconds() - cpu,
		       warm.errors + job.errors);
}

/* -- many open ------------------------------------------------------------------------------- */

static bool answers(int fd)
{
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	char answer;

	return send(fd, "x", 1, MSG_NOSIGNAL) == 1 && poll(&readable, 1, STALL_MS) == 1 &&
	       recv(fd, &answer, 1, 0) == 1;
}

/* One byte there and back on each; how many did not, or were not asked after too many. */
static long silent(const int *fds, long count)
{
	long errors = 0;

	for (long i = 0; i < count; i++) {
		if (!answers(fds[i]))
			errors++;
		if (errors >= MAX_ERRORS)
			return errors + count - i - 1;
	}
	return errors;
}

static long open_more(struct sockaddr_in to, int *fds, long more)
{
	struct job job = {.to = to, .parallel = HOLD_PARALLEL, .until = UINT64_MAX};
	uint64_t began = now_ns();
	double cpu = cpu_seconds();

	job.wanted = more;
	job.keep = fds;
	job.poller = epoll_create1(EPOLL_CLOEXEC);
	work_off(&job);
	report_samples(&job.all, (double)(now_ns() - began) / 1e9, cpu_seconds() - cpu, job.errors);
	free(job.all.values);
	close(job.poller);
	return (long)job.all.count;
}

static void hold(struct sockaddr_in to)
{
	static int fds[MAX_FDS];
	long open = 0, total;
	char line[64];

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "open %ld", &total) == 1) {
			open += open_more(to, fds + open, total - open);
		} else {
			struct samples none = {0};
			uint64_t began = now_ns();
			double cpu = cpu_seconds();
			long errors = silent(fds, open);

			report_samples(&none, (double)(now_ns() - began) / 1e9, cpu_seconds() - cpu,
				       errors);
		}
	}
}

/* -- connect() + close() beside a listener of one's own -------------------------------------- */

static void self(double seconds)
{
	int listener = listening(INADDR_LOOPBACK, 0, 0);
	struct linger reset = {.l_onoff = 1}; /* no TIME_WAIT: every connection is like the first */
	struct sockaddr_in at;
	socklen_t size = sizeof(at);
	struct samples all = {0};
	uint64_t began = now_ns(), until = began + (uint64_t)(seconds * 1e9), start = began;
	double cpu = cpu_seconds();

	getsockname(listener, (struct sockaddr *)&at, &size);
	while (start < until) {
		int fd = tcp_socket(0);

		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		start = now_ns();
		if (connect(fd, (struct sockaddr *)&at, sizeof(at)))
			die("connect");
		close(fd);
		sample(&all, now_ns() - start);
		close(accept(listener, NULL, NULL));
	}
	report_samples(&all, (double)(start - began) / 1e9, cpu_seconds() - cpu, 0);
}

int main(int argc, char **argv)
{
	const char *job = argc > 1 ? argv[1] : "";

	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(job, "server") && argc == 3)
		serve((uint16_t)atoi(argv[2]));
	else if (!strcmp(job, "bulk") && argc == 6 && atoi(argv[4]) <= MAX_STREAMS)
		bulk(address_of(argv[2], argv[3]), atoi(argv[4]), atof(argv[5]));
	else if (!strcmp(job, "trip") && argc == 6 && atol(argv[4]) <= BLOCK)
		trip(address_of(argv[2], argv[3]), (size_t)atol(argv[4]), atof(argv[5]));
	else if (!strcmp(job, "connect") && argc == 6)
		connect_and_close(address_of(argv[2], argv[3]), atoi(argv[4]), atof(argv[5]));
	else if (!strcmp(job, "hold") && argc == 4)
		hold(address_of(argv[2], argv[3]));
	else if (!strcmp(job, "self") && argc == 3)
		self(atof(argv[2]));
	else {
		fprintf(stderr, "load: see the comment at the top of load.c\n");
		return 2;
	}
	return 0;
}
