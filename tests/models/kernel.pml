/* What the models take for granted of the kernel: one listener that many wait for, each by an epoll instance of its
 * own with EPOLLEXCLUSIVE. `E` is the number of instances; they are numbered from 0.
 *
 * epoll_ctl(2): "one or more" of those that wait are woken. How Linux does it (ep_poll_callback in fs/eventpoll.c): it
 * goes through the instances in the order in which they were added, puts the listener on the ready list of each, and
 * stops after the first that has somebody who sleeps in epoll_wait(2). So who is busy may find it on his list or not,
 * of those who sleep exactly one is woken, and who wakes for another reason does not hear of the listener.
 */

byte queue;          /* connections that nobody has accepted */
bit watching[E];     /* the listener is in this instance */
bit asleep[E];       /* somebody sleeps in epoll_wait, and was not woken */
bit ready[E];        /* the listener is on the ready list */

hidden byte ke, kn;  /* scratch, inside d_step only */

/* A connection has come. `first` is whoever is asked first. */
inline kernel_arrival(first)
{
	d_step {
		queue++;
		kn = 0;
		do
		:: kn < E ->
			ke = (first + kn) % E;
			kn++;
			if
			:: watching[ke] && asleep[ke] -> ready[ke] = 1; asleep[ke] = 0; break
			:: watching[ke] && !asleep[ke] -> ready[ke] = 1
			:: else
			fi
		:: else -> break
		od;
		kn = 0; ke = 0
	}
}

/* EPOLL_CTL_ADD looks whether there is something. */
inline kernel_watch(e)
{
	if :: atomic { !watching[e] -> watching[e] = 1; ready[e] = (queue > 0) } :: watching[e] fi
}

inline kernel_unwatch(e)
{
	d_step { watching[e] = 0; ready[e] = 0 }
}

/* epoll_wait(2) until the listener has something or `other` is true: what else this instance waits for. */
inline kernel_wait(e, other)
{
	do
	:: atomic { (ready[e] && queue > 0) || (other) -> break }
	:: atomic { else -> ready[e] = 0; asleep[e] = 1; (!asleep[e] || (other)) -> asleep[e] = 0 }
	od
}

#define kernel_reports(e) (ready[e] && queue > 0)

/* Whoever dies is in nobody's list any more. */
#define KERNEL_GONE(e) watching[e] = 0; ready[e] = 0; asleep[e] = 0

/* A run of the real program, one step after the other, that the model has to be able to go along with (tests/models/replay).
 * Without TRACE the steps are free. */
#ifdef TRACE
#define LONGEST 2000
hidden short trace_what[LONGEST];
hidden short trace_who[LONGEST];
short trace_at;
hidden short trace_length;
#define OBSERVED(what, who) (trace_what[trace_at] == (what) && trace_who[trace_at] == (who)) -> trace_at++
#define OBSERVABLE(what, who) (trace_what[trace_at] == (what) && trace_who[trace_at] == (who))
/* Whether such a step is among the next ones, whoever's it is. What can only lead to it need not be tried elsewhere. */
#define SOON(what) c_expr { (is_soon(now.trace_at, what, ANYBODY) > 0) }
#define SOON_BY(what, who) c_expr { (is_soon(now.trace_at, what, who) > 0) }
#define ANYBODY 255
c_code {
	void load_trace(void)
	{
		const char *path = getenv("TRACE_FILE");
		FILE *file = path ? fopen(path, "r") : NULL;
		int what, who;
		if (!file) { fprintf(stderr, "no TRACE_FILE\n"); exit(2); }
		trace_length = 0;
		while (fscanf(file, "%d %d", &what, &who) == 2 && trace_length < LONGEST - 1) {
			trace_what[trace_length] = what;
			trace_who[trace_length++] = who;
		}
		trace_what[trace_length] = -1;
		fclose(file);
	}

	int is_soon(int at, int what, int who)
	{
		int end = at + 16 < trace_length ? at + 16 : trace_length;
		for (; at < end; at++)
			if (trace_what[at] == what && (who == ANYBODY || trace_who[at] == who))
				return 1;
		return 0;
	}
};
/* The search ends with an "error" here if the trace is a run of the model. */
active proctype Replayed()
{
	c_code { load_trace(); };
	atomic { trace_length > 0 && trace_at == trace_length -> assert(false) }
}
#else
#define OBSERVED(what, who) printf(#what); printf(" %d;\n", who)
#define OBSERVABLE(what, who) true
#define SOON(what) true
#endif
