/* Spares: processes that accept by themselves, the two workers that keep them, and who is woken for a connection.
 *
 * Two workers with at most one spare each, at one listener. What becomes of a slot when somebody dies is in slots.pml; here a slot
 * is a number less. A worker or a spare is killed, or a worker is stopped or told to
 * retire.
 */
#ifndef S
#define S 2          /* max_connections */
#endif
#ifndef C
#define C 2          /* connections */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef SPARES
#define SPARES 2     /* of both workers, or of the second only */
#endif
#define KEEPS_SPARE(w) (SPARES == 2 || w == 1)
#define W 2
#define E (2 * W)    /* workers, then their spares */

#include "kernel.pml"

#define ACCEPTED 1   /* by a worker or a spare */
#define REAPED 5     /* by its worker: a connection process, or a spare */
#define KILLED 6
#define MADE 61      /* a spare, by its worker */
#define TAKEN 62     /* a spare says in the pipe that it was taken */
#define HEARD 63     /* its worker reads that */
#define WENT 64      /* it has looked once more, and goes */
#define TOLD 65      /* a byte in the leash */
#define RETIRED 66
#define STOPPED 67
#define TOLD_IT 68   /* a spare reads that byte */
#define LOOKED 69    /* a worker does what Order::Look says */

mtype = { ABSENT, WAITS, SERVES, ENDED };

/* A worker makes the next spare while the last one serves, which is not searched. In a trace it does: once it has heard of it, it
 * is a connection process like any other, and the place is free. */
#ifdef TRACE
#define IS_ONE_OF(w) if :: spare[w] == SERVES -> spare[w] = ABSENT; by_worker[w]++; serving++ :: else fi
#define SERVES_ON(w) :: atomic { spare[w] != SERVES -> goes = 0; KERNEL_GONE(W + w) }
#else
#define IS_ONE_OF(w) skip
#define SERVES_ON(w)
#endif

byte slots = S;      /* that are free */
bit wanted, freed[W];

mtype spare[W] = ABSENT;
bit made[W];
byte leash[W];       /* bytes in it */
bit leash_ends[W];
byte events[W];      /* SpareEvents: taken, and not read */
bit wake[W];         /* the eventfd that wakes the worker */
bit sigchld[W], look[W], retire[W];
bit alive[W], killed[W], spare_killed[W], retired[W];

byte came, served, lost, serving;   /* serving: connections that have a process other than a spare */
byte by_worker[W];   /* its own connection processes */
byte ended[W];       /* those among them that are not reaped */
bit spare_ended[W], spare_had[W];   /* a spare to be reaped, and whether it had a connection that was heard of */
bit reserved[W], hand[W], full_[W], holds[W];   /* hand: a slot that it has just claimed */
byte crashes;
bit stopped;         /* the first worker is, by SIGSTOP */
byte first;          /* its number among the processes of spin */
byte told_of_it;     /* how often the supervisor's watchdog has come by since */

inline give_back()
{
	atomic {
		slots++;
		if
		:: wanted -> wanted = 0; freed[0] = alive[0]; freed[1] = alive[1]
		:: else
		fi
	}
}

/* Slots::claim */
inline claim(got)
{
	atomic { got = (slots > 0); slots = slots - got };
	if
	:: !got -> wanted = 1; atomic { got = (slots > 0); slots = slots - got }
	:: else
	fi
}

proctype Worker(byte me) provided (!stopped || _pid != first)
{
	bit waits, due, open, called, dismissed, until_freed;
	do
	:: alive[me] ->
	{
		open = 1;
		do
		:: /* Worker::hear_spares */
			atomic { if :: events[me] > 0 && OBSERVABLE(HEARD, me) -> OBSERVED(HEARD, me); events[me] = 0; waits = 0; IS_ONE_OF(me) :: else fi };
			/* report_retirement: not before the last spare has gone, who has the listener, too */
#ifdef MUTANT_RETIRES_BEFORE_SPARES
			atomic { if :: dismissed && !retired[me] -> OBSERVED(RETIRED, me); retired[me] = 1; assert(spare[me] != WAITS); look[1 - me] = alive[1 - me] :: else fi };
#else
			atomic { if :: dismissed && !waits && !retired[me] -> OBSERVED(RETIRED, me); retired[me] = 1; assert(spare[me] != WAITS); look[1 - me] = alive[1 - me] :: else fi };
#endif
			/* Worker::watch, has_room, Slots::reserve: who has no slot, and no spare that waits, does not wait for connections */
			if
#ifdef MUTANT_WAITS_WITHOUT_SLOT
			:: false
#else
			:: open && !waits && !reserved[me] && !full_[me] -> claim(hand[me]); atomic { reserved[me] = hand[me]; full_[me] = !hand[me]; hand[me] = 0 }
#endif
			:: else
			fi;
			atomic {
				if
				:: open && !waits && !full_[me] -> kernel_watch(me)
				:: else -> kernel_unwatch(me)
				fi;
				kernel_wait(me, freed[me] || wake[me] || sigchld[me] || look[me] || retire[me] || (due && open && !full_[me]) || (open && !waits && !until_freed && KEEPS_SPARE(me) && spare[me] == ABSENT && !spare_ended[me] && (reserved[me] || slots > 0)));
				called = kernel_reports(me) && watching[me];
				wake[me] = 0;
				if :: freed[me] -> freed[me] = 0; until_freed = 0; if :: full_[me] -> full_[me] = 0; due = 1 :: else fi :: else fi
			};
			/* follow_orders: Order::Retire */
			if
			:: retire[me] ->
				atomic { retire[me] = 0; open = 0; due = 0; dismissed = 1; leash_ends[me] = 1 };   /* Pool::dismiss */
				if
				:: atomic { reserved[me] -> reserved[me] = 0; give_back() }
				:: else
				fi;
				kernel_unwatch(me);
				waits = (waits && spare[me] == WAITS || events[me] > 0)
			:: else
			fi;
			/* Order::Look, and all that have come: a slot may be free, and somebody waiting whom nobody was woken for */
looks:		atomic { if :: look[me] && OBSERVABLE(LOOKED, me) -> OBSERVED(LOOKED, me); look[me] = 0; due = open; full_[me] = 0; until_freed = 0; goto looks :: else fi };
			/* Worker::reap */
			if
			:: atomic { sigchld[me] -> sigchld[me] = 0 };
				do
				:: atomic { ended[me] > 0 && OBSERVABLE(REAPED, me) -> OBSERVED(REAPED, me); ended[me]--; by_worker[me]--; give_back() }; until_freed = 0
				:: atomic { spare_ended[me] && OBSERVABLE(REAPED, me) ->
						OBSERVED(REAPED, me);
						/* hear_last: what it has said is heard first */
						if :: events[me] > 0 -> OBSERVED(HEARD, me); events[me] = 0; waits = 0 :: else fi;
						spare_ended[me] = 0;
						spare[me] = ABSENT;
						if
						:: waits ->
							waits = 0;
							due = open   /* lost_spare: it may have been the only one that was woken */
						:: else
						fi;
						give_back()
					};
					until_freed = 0
				:: ended[me] == 0 && !spare_ended[me] -> break
				od
			:: else
			fi;
			/* accept_from */
			if
			:: (called || due) && open && !full_[me] ->
				if
				:: reserved[me] -> atomic { reserved[me] = 0; hand[me] = 1 }
				:: else -> claim(hand[me])
				fi;
				if
				:: !hand[me] ->
					full_[me] = 1;
					/* Worker::overloaded, let_a_spare_look: somebody else may accept whom it sees before it has told a spare */
#ifndef MUTANT_NO_SPARE_LOOKS
					if
					:: waits && !dismissed && queue > 0 && SOON(TOLD) -> atomic { OBSERVED(TOLD, me); leash[me]++ }
					:: else
					fi
#endif
				:: else ->
					if
					:: atomic { queue > 0 -> OBSERVED(ACCEPTED, me); queue--; by_worker[me]++; serving++; hand[me] = 0 }
					:: atomic {
							queue == 0 -> due = 0; hand[me] = 0;
							if
#ifndef MUTANT_GIVES_BACK
							:: open && !waits -> reserved[me] = 1   /* Slots::keep */
#endif
							:: else -> give_back()
							fi
						}
					fi
				fi
			:: else
			fi;
			/* make_spare: not while somebody may be coming */
			if
			:: !called && open && !waits && !until_freed && KEEPS_SPARE(me) && spare[me] == ABSENT && !spare_ended[me] ->
				if
				:: reserved[me] -> atomic { reserved[me] = 0; hand[me] = 1 }
				:: else -> claim(hand[me])
				fi;
				if
				:: hand[me] -> atomic { OBSERVED(MADE, me); hand[me] = 0; spare[me] = WAITS; made[me] = 1; waits = 1 }
				:: else -> until_freed = 1
				fi
			:: else
			fi;
			called = 0
		od
	} unless { killed[me] };
		d_step { waits = 0; due = 0; hand[me] = 0; open = 0; called = 0; dismissed = 0; until_freed = 0; killed[me] = 0 }
	:: atomic { killed[me] -> killed[me] = 0 }
	od
}

/* spare/process.rs: it waits, is told to go by a byte or the end of its leash, and looks once more before it goes. */
proctype Spare(byte me)
{
	bit goes;
	do
	:: made[me] ->
	{
		made[me] = 0;
		kernel_watch(W + me);
		do
		:: atomic {
				kernel_wait(W + me, leash[me] > 0 || leash_ends[me] || goes);
				if
				:: goes
				:: !goes && leash[me] > 0 && OBSERVABLE(TOLD_IT, me) -> OBSERVED(TOLD_IT, me); leash[me]--; goes = 1
				:: !goes && leash_ends[me] -> goes = 1
				:: !goes && kernel_reports(W + me) -> skip
				fi
			};
			if
			:: goes -> kernel_unwatch(W + me)   /* look_once_more */
			:: else
			fi;
			if
			:: atomic { queue > 0 -> OBSERVED(ACCEPTED, W + me); queue--; spare[me] = SERVES; holds[me] = 1 };
				atomic { OBSERVED(TAKEN, me); holds[me] = 0; events[me]++ };   /* tell */
				wake[me] = alive[me];
				break
			:: atomic { queue == 0 && !goes -> skip }
			:: atomic { queue == 0 && goes -> OBSERVED(WENT, me); break }
			fi
		od;
		/* It serves, and ends. */
		if
		:: atomic {
				spare[me] == SERVES || spare[me] == WAITS ->
				goes = 0;
				KERNEL_GONE(W + me);
				if :: spare[me] == SERVES -> served++ :: else fi;
				spare[me] = ENDED; spare_ended[me] = 1;
				sigchld[me] = alive[me]
			}
		SERVES_ON(me)
		fi
	} unless { spare_killed[me] };
		d_step { goes = 0; spare_killed[me] = 0 }
	:: atomic { spare_killed[me] -> spare_killed[me] = 0 }
	od
}

/* The supervisor, as far as it concerns these: it buries a worker, adopts its spare, has the other look, makes another. */
proctype Supervisor()
{
	do
	/* AdoptedConnections::hear_late, ended; service_of_spare */
	:: atomic { !alive[0] && spare_ended[0] -> events[0] = 0; spare_ended[0] = 0; spare[0] = ABSENT; look[1] = alive[1]; give_back() }
#ifdef TRACE
	/* Who has said that he accepts is told to look, and so is everybody by the watchdog. */
	:: atomic { !look[0] && OBSERVABLE(LOOKED, 0) -> look[0] = 1 }
	:: atomic { !look[1] && OBSERVABLE(LOOKED, 1) -> look[1] = 1 }
#endif
#ifdef STOPS
	/* The watchdog has all look; the last time when all have come. */
	:: atomic { stopped && told_of_it < 2 && (told_of_it == 0 || came == C) -> told_of_it++; look[1] = alive[1] }
#endif
	/* start_missing_workers; only the first worker is killed, see Killer */
	:: atomic { !alive[0] && !killed[0] && spare[0] == ABSENT -> leash[0] = 0; leash_ends[0] = 0; alive[0] = 1 }
	od
}

#define KILL_SPARE(w) atomic { \
		crashes < CRASHES && (spare[w] == WAITS || spare[w] == SERVES) && !spare_ended[w] && OBSERVABLE(KILLED, W + w) -> \
		OBSERVED(KILLED, W + w); \
		crashes++; \
		lost = lost + (spare[w] == SERVES); holds[w] = 0; \
		spare_killed[w] = 1; made[w] = 0; KERNEL_GONE(W + w); spare[w] = ENDED; spare_ended[w] = 1; sigchld[w] = alive[w] \
	}

/* With its worker dead, its connections are the supervisor's: see slots.pml. Here their slots come back at once. */
#define KILL_WORKER(w) atomic { \
		crashes < CRASHES && alive[w] && !retired[w] -> \
		OBSERVED(KILLED, w); \
		crashes++; \
		alive[w] = 0; killed[w] = 1; KERNEL_GONE(w); \
		leash_ends[w] = 1; wake[w] = 0; freed[w] = 0; look[w] = 0; sigchld[w] = 0; retire[w] = 0; full_[w] = 0; \
		slots = slots + reserved[w] + hand[w] + by_worker[w]; reserved[w] = 0; hand[w] = 0; served = served + by_worker[w] - ended[w]; serving = serving - (by_worker[w] - ended[w]); \
		by_worker[w] = 0; ended[w] = 0; \
		wanted = 0; freed[0] = alive[0]; freed[1] = alive[1]; look[1 - w] = alive[1 - w] \
	}

proctype World()
{
	bit told;
	do
#ifdef TRACE
	/* Somebody may come at any time; who finds him is the kernel's affair. */
	:: d_step {
			queue == 0 && (ANYBODY_NEXT(ACCEPTED) || ANYBODY_NEXT(TOLD)) -> queue = 1;
			ready[0] = watching[0]; ready[1] = watching[1]; ready[2] = watching[2]; ready[3] = watching[3];
			asleep[0] = 0; asleep[1] = 0; asleep[2] = 0; asleep[3] = 0
		}
#else
	:: atomic { came < C -> came++; kernel_arrival(0) }
	:: atomic { came < C -> came++; kernel_arrival(1) }
	:: atomic { came < C -> came++; kernel_arrival(2) }
	:: atomic { came < C -> came++; kernel_arrival(3) }
#endif
	:: atomic { by_worker[0] > ended[0] && OBSERVABLE(REAPED, 0) -> ended[0]++; served++; serving--; sigchld[0] = 1 }
	:: atomic { by_worker[1] > ended[1] && OBSERVABLE(REAPED, 1) -> ended[1]++; served++; serving--; sigchld[1] = 1 }
#ifdef RETIRES
	:: atomic { alive[0] && !told && crashes == 0 -> told = 1; retire[0] = 1 }
#endif
	od
}

active proctype Killer()
{
	do
	:: KILL_SPARE(0)
#ifdef TRACE
	:: KILL_SPARE(1)
#else
	:: KILL_WORKER(0)
#endif
#ifdef STOPS
	:: atomic { alive[0] && !stopped -> OBSERVED(STOPPED, 0); stopped = 1 }
#endif
	od
}

#ifndef TRACE
active proctype AtRest()
{
	atomic {
		timeout ->
		if
		:: stopped -> assert(queue == 0 || (spare[1] != WAITS && !reserved[1] && slots == 0))
		:: else
		fi;
		!stopped ->
		assert(queue == 0 && came == C);        /* nobody is stuck, while somebody could serve him */
		assert(served + lost == C && lost <= crashes);
		assert(serving == 0);
		assert(slots + reserved[0] + reserved[1] + hand[0] + hand[1] + (spare[0] == WAITS) + (spare[1] == WAITS) == S)
	}
}
#endif

init { atomic { alive[0] = 1; alive[1] = 1; first = run Worker(0); run Worker(1); run Spare(0); run Spare(1); run Supervisor(); run World() } }
