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

#include "trace.pml"
