/* The slots of a service without spares: who holds one, from before the accept until the record is written, whoever dies.
 *
 * Two workers, the supervisor, and clients that come whenever they like. A worker is killed between any two steps. Each step
 * is one system call or one store to shared memory; what only one process can see is done in the step before.
 * The names beside the steps are those of the functions in src/.
 */
#ifndef W
#define W 2
#endif
#ifndef S
#define S 2          /* max_connections */
#endif
#ifndef C
#define C 3          /* clients */
#endif
#ifndef CRASHES
#define CRASHES 1    /* workers that are killed */
#endif
#ifndef FAILS
#define FAILS 1      /* forks that say EAGAIN */
#endif
#define K (S + 1)    /* processes that could live, one more than may */
#define E W
#define NONE 255
#define SUPERVISOR (W + 1)

#include "kernel.pml"

#ifdef TRACE
#define TRACED 1
#else
#define TRACED 0
#endif

/* The steps of a trace. */
#define ACCEPTED 1   /* worker */
#define NOTHING 2    /* worker: accept4 says EAGAIN */
#define FORKED 3     /* worker * 16 + process */
#define ENDED 4      /* process */
#define REAPED 5     /* worker * 16 + process */
#define KILLED 6     /* worker */
#define BURIED 7     /* worker, by the supervisor */
#define ADOPTED_REAPED 8  /* process, by the supervisor */
#define SPAWNED 9    /* worker */
#define FAILED 10    /* worker: clone says EAGAIN */

/* The scoreboard. */
byte owner[S];       /* 0, a worker + 1, or the supervisor */
byte row_pid[S];         /* 0, or a process + 1 */
bit noted[S];        /* its number */
bit wanted;
bit freed[W];        /* the edge of the eventfd slot_freed that this worker has not seen */

/* The kernel's processes. */
mtype = { FREE, RUNS, EXITS, ZOMBIE };
mtype process[K] = FREE;
byte parent[K];
bit sigchld[W];
bit alive[W], killed[W], zombie[W];

/* What is known of connections, for the assertions. */
byte came;
byte unrecorded;     /* accepted, and neither in the log nor gone with a worker that had not noted them */
bit written[S];      /* the connection in this row has its record */
bit unnoted[W];      /* it has accepted somebody who is in no row yet */

/* Counters: accepted less completed, of each worker, and of the dead. */
byte unended[W], gone_open;

byte place[K];       /* Children::by_pid, whoever's: the slot + 1 */
bit look[W];         /* Order::Look is in the link */
bit deaf[W];
byte fails, crashes;

/* Nobody sees the scratch variables of d_steps. */
hidden byte dk;

/* Scoreboard::claim_below: one compare-and-swap after the other. */
inline scan()
{
	do
	:: atomic { owner[i] == 0 -> owner[i] = me + 1; slot = i; i = 0; break }
	:: atomic { owner[i] != 0 && i < S - 1 -> i++ }
	:: atomic { owner[i] != 0 && i == S - 1 -> i = 0; break }
	od
}

inline ring()
{
	freed[0] = alive[0]; freed[1] = alive[1]
}

/* Scoreboard::clear: the number and the pid, then the owner, who goes last. Nobody but the owner looks at the first two,
 * and a supervisor that finds one without the other does as if it had found neither, so they are one step.
 * `s` is `next` then, for the caller.
 */
inline clear(s, next)
{
#ifdef MUTANT_OWNER_FIRST
	atomic { owner[s] = 0; written[s] = 0 };
	atomic { noted[s] = 0; row_pid[s] = 0; s = next };
#else
	atomic { noted[s] = 0; row_pid[s] = 0 };
	atomic { owner[s] = 0; written[s] = 0; s = next };
#endif
}

/* Scoreboard::release: a worker wakes whoever waits. The supervisor, which must not wait on what workers have, has them look. */
inline release(s, next)
{
	clear(s, next);
	if
	:: !wanted
	:: atomic { wanted -> wanted = 0 }; atomic { ring() }
	fi
}

inline release_adopted(s, next)
{
	clear(s, next);
	if
	:: !wanted
	:: atomic { wanted -> wanted = 0; to_look = 1 }
	fi
}

#ifdef TRACE
/* Which of several zombies waitid(2) finds first is the kernel's affair: the one that the trace has. */
#define ZOMBIE_OF(whose, k) (process[k] == ZOMBIE && parent[k] == whose)
#define NEXT_IS(whose, k) (ZOMBIE_OF(whose, k) && ((whose < W && OBSERVABLE(REAPED, whose * 16 + k)) || (whose == SUPERVISOR && OBSERVABLE(ADOPTED_REAPED, k))))
inline find_zombie(whose)
{
	if
	:: !ZOMBIE_OF(whose, 0) && !ZOMBIE_OF(whose, 1) && !ZOMBIE_OF(whose, 2) -> dead = NONE
	:: NEXT_IS(whose, 0) -> dead = 0
	:: NEXT_IS(whose, 1) -> dead = 1
	:: NEXT_IS(whose, 2) -> dead = 2
	fi
}
#else
inline find_zombie(whose)
{
	d_step {
		dead = NONE; dk = 0;
		do
		:: dk < K && process[dk] == ZOMBIE && parent[dk] == whose -> dead = dk; break
		:: dk < K && !(process[dk] == ZOMBIE && parent[dk] == whose) -> dk++
		:: dk >= K -> break
		od;
		dk = 0
	}
}
#endif

/* The kernel does not give a number again so soon that a row still has it. */
#define CAN_FORK(k) (process[k] == FREE && row_pid[0] != k + 1 && row_pid[S - 1] != k + 1 && OBSERVABLE(FORKED, me * 16 + k))

/* Starter::start: clone(2) with CLONE_PARENT_SETTID writes the row before the child runs. */
inline fork_for(s)
{
	if
	:: atomic {
		forked = NONE;
		if
		:: fails < FAILS && OBSERVABLE(FAILED, me) -> fails++; OBSERVED(FAILED, me)
		:: true -> forked = 0
		fi;
		if
		:: forked == NONE
		:: forked == 0 ->
			do
			:: forked < K && !(CAN_FORK(forked)) -> forked++
			:: forked < K && CAN_FORK(forked) -> break
			:: forked >= K -> break
			od;
			OBSERVED(FORKED, me * 16 + forked);
			assert(forked < K);
			process[forked] = RUNS;
			parent[forked] = me;
#ifndef MUTANT_PID_BY_WORKER
			row_pid[s] = forked + 1;
#endif
			place[forked] = s + 1
		fi
	}
	fi;
#ifdef MUTANT_PID_BY_WORKER
	if
	:: forked != NONE -> row_pid[s] = forked + 1
	:: else
	fi
#endif
}

/* What is next in a turn of Worker::work. */
inline go_on()
{
	if
	:: held != NONE -> goto retry
	:: held == NONE && asked -> goto claim
	:: else -> asked = 0; goto idle
	fi
}

/* Jumps go to the head of an `if` or a `do`, never to an `atomic`, to which that from which they come would extend. */
proctype Worker(byte me)
{
	byte slot = NONE, i, held = NONE, dead, forked;
	bit due, reaps, asked;

	do
	:: alive[me] ->
	{
		due = 0;
idle:	/* Acceptor::watch: not while all slots are taken, or somebody waits for a process. Worker::wait. */
		if
		:: atomic {
				asked = 0;
				if
				:: !deaf[me] && held == NONE -> kernel_watch(me)
				:: else -> kernel_unwatch(me)
				fi;
				kernel_wait(me, freed[me] || sigchld[me] || look[me] || (due && !deaf[me] && held == NONE) || held != NONE);
				asked = kernel_reports(me);
				reaps = sigchld[me]; sigchld[me] = 0;
				if   /* Worker::slot_freed, Acceptor::slot_freed */
				:: freed[me] -> freed[me] = 0; if :: deaf[me] -> deaf[me] = 0; due = 1 :: else fi
				:: else
				fi;
				if   /* Worker::follow_orders: Order::Look */
				:: look[me] -> look[me] = 0; deaf[me] = 0; due = 1
				:: else
				fi;
				asked = (asked || due) && !deaf[me];
				if
				:: reaps -> goto reap
				:: else -> go_on()
				fi
			}
		fi;
reap:	/* Worker::reap */
		if
		:: atomic {
				find_zombie(me);
				if
				:: dead == NONE -> dead = 0; reaps = 0; go_on()
				:: else ->   /* wait4(2); Books::enter counts it */
					OBSERVED(REAPED, me * 16 + dead);
					process[dead] = FREE; parent[dead] = 0;
					slot = place[dead] - 1; place[dead] = 0; dead = 0;
					unended[me]--
				fi
			}
		fi;
		atomic { unrecorded--; written[slot] = 1 };   /* Log::connection */
		release(slot, NONE);   /* Child is dropped */
		goto reap;
retry:	/* Worker::retry_start: when it is time, or when something has just ended. */
		fork_for(held);
		if
		:: atomic { forked != NONE -> forked = 0; held = NONE; go_on() }
		:: atomic { forked == NONE -> forked = 0; asked = 0; goto idle }   /* Backoff::failed */
		:: atomic { forked == NONE -> forked = 0; unended[me]--; unrecorded--; written[held] = 1 }   /* Started::Never, Books::not_started */
		fi;
		release(held, NONE);
		if
		:: asked
		:: else -> goto idle
		fi;
claim:	/* Worker::accept_from, for an event or from accept_unasked: Slots::claim */
		scan();
		if
		:: atomic { slot == NONE -> wanted = 1 };   /* Scoreboard::want */
#ifndef MUTANT_WANT_AND_WAIT
			scan()
#endif
		:: slot != NONE
		fi;
		if
		:: atomic { slot == NONE -> deaf[me] = 1; asked = 0; goto idle }   /* Acceptor::pause_until_slot_freed */
		/* accept4(2); Worker::admit counts it */
		:: atomic { slot != NONE && queue > 0 -> OBSERVED(ACCEPTED, me); queue--; unnoted[me] = 1; unrecorded++; unended[me]++ }
		:: atomic { slot != NONE && queue == 0 -> OBSERVED(NOTHING, me); due = 0; asked = 0 };
			release(slot, NONE);
			goto idle
		fi;
		atomic { noted[slot] = 1; unnoted[me] = 0 };   /* Slot::note */
		fork_for(slot);
		if
		:: atomic { forked != NONE -> forked = 0; slot = NONE; asked = 0; goto idle }
#ifdef MUTANT_SLOT_LEAKS
		/* ipsvd: the count went up before the fork, and stayed there when that failed. */
		:: atomic { forked == NONE -> forked = 0; slot = NONE; asked = 0; unended[me]--; unrecorded--; goto idle }
#else
		:: atomic { forked == NONE -> forked = 0; held = slot; slot = NONE; asked = 0; goto idle }
#endif
		fi
	} unless { killed[me] };
		d_step { slot = NONE; i = 0; held = NONE; dead = 0; forked = 0; due = 0; reaps = 0; asked = 0; killed[me] = 0 }
	:: atomic { killed[me] -> killed[me] = 0 }
	od
}

#define SOMEBODY_DIED (zombie[0] || zombie[W - 1])

/* The supervisor: Supervisor::bury_workers. */
inline bury_workers()
{
	do
	:: atomic { SOMEBODY_DIED -> j = (zombie[0] -> 0 : W - 1); OBSERVED(BURIED, j); zombie[j] = 0 };
		/* AdoptedConnections::adopt */
		do
		:: /* Its worker is dead, so nobody else writes this row: one step. */
			atomic {
				i < S ->
				frees = 0;
				if
				:: owner[i] == j + 1 ->
					owner[i] = SUPERVISOR;   /* Slot::adopt */
					ours = ours + noted[i];
					if   /* process::is_child: it lives, or is a zombie of ours */
					:: row_pid[i] != 0 && process[row_pid[i] - 1] != FREE && parent[row_pid[i] - 1] == SUPERVISOR ->
						place[row_pid[i] - 1] = i + 1;
						kept[row_pid[i] - 1] = 1
					:: else ->
						frees = 1;
						if
						:: noted[i] -> gone_open--; unrecorded = unrecorded - (1 - written[i]); written[i] = 1   /* Books::lost */
						:: else
						fi
					fi
				:: else
				fi;
				i = i + 1 - frees
			};
			if
			:: frees -> frees = 0; release_adopted(i, i + 1)
			:: else
			fi
		:: atomic {
				i == S -> i = 0;
#ifdef MUTANT_COMPLETED_TWICE
				gone_open = gone_open + unended[j];
#else
				gone_open = gone_open + ours;   /* what it accepted and is not ours to complete, it has completed */
#endif
				unended[j] = 0; ours = 0
			};
#ifndef MUTANT_NOBODY_LOOKS
			to_look = 1;   /* Workers::look: it may have been the only one that was woken, or was to wake others */
#endif
			break
		od
	:: atomic { !(SOMEBODY_DIED) -> j = 0; break }
	od
}

#define OURS_ENDED(k) (process[k] == ZOMBIE && parent[k] == SUPERVISOR)
/* `killed` is until the worker has forgotten what it knew. */
#define MISSES(w) (!alive[w] && !zombie[w] && !killed[w])
#define HAS(w) (alive[w] || zombie[w])
#define SPAWN(w) atomic { MISSES(w) -> OBSERVED(SPAWNED, w); alive[w] = 1; deaf[w] = 0; freed[w] = 0; sigchld[w] = 0; look[w] = TRACED }

proctype Supervisor()
{
	byte i, j, ours, dead = NONE;
	bit frees, to_look;
	bit kept[K];

#ifdef TRACE
	atomic { look[0] = 1; look[1] = 1 };   /* Service::comes_into_force: Scoreboard::set_limit */
#endif
	do
	:: /* epoll_pwait(2) until SIGCHLD */
		SOMEBODY_DIED || OURS_ENDED(0) || OURS_ENDED(K / 2) || OURS_ENDED(K - 1) ->
#ifndef MUTANT_REAP_BEFORE_ADOPTION
bury:	bury_workers();
#endif
		/* Supervisor::reap */
		do
		:: atomic {
				if
				:: dead == NONE -> find_zombie(SUPERVISOR)   /* wait::ended */
				:: else -> assert(kept[dead])                /* "reaped process": whom nobody knows, and whose end nobody records */
				fi;
				if
				:: dead == NONE -> break
				:: dead != NONE && !kept[dead] ->
#ifdef MUTANT_REAP_BEFORE_ADOPTION
					OBSERVED(ADOPTED_REAPED, dead);
					assert(false)
#else
					goto bury
#endif
				:: else ->   /* wait::reap_one */
					OBSERVED(ADOPTED_REAPED, dead);
					process[dead] = FREE; parent[dead] = 0
				fi
			};
			atomic { kept[dead] = 0; i = place[dead] - 1; gone_open--; unrecorded--; written[i] = 1; place[dead] = 0; dead = NONE };   /* AdoptedConnections::ended, Books::enter */
			release_adopted(i, 0)
		od;
#ifdef MUTANT_REAP_BEFORE_ADOPTION
		bury_workers();
#endif
		/* State::send_looks */
		if
		:: atomic { to_look -> to_look = 0; look[0] = alive[0]; look[1] = alive[1] }
		:: !to_look
		fi;
		/* Supervisor::start_missing_workers */
		do
		:: SPAWN(0)
		:: SPAWN(1)
		:: HAS(0) && HAS(1) -> break
		od
	od
}

#define BECOME_ZOMBIE(k) \
		process[k] = ZOMBIE; \
		if :: parent[k] < W -> sigchld[parent[k]] = 1 :: else fi

/* A trace has the beginning of exit_group(2). That the process is a zombie, which its parent can find, comes later. */
#ifdef TRACE
#define BEGIN_TO_END(k) process[k] = EXITS
#define END_TO_END(k) atomic { process[k] == EXITS -> BECOME_ZOMBIE(k) }
#else
#define BEGIN_TO_END(k) BECOME_ZOMBIE(k)
#endif

/* Processes end when they like, and clients come. */
#define END(k) atomic { \
		process[k] == RUNS && OBSERVABLE(ENDED, k) -> \
		OBSERVED(ENDED, k); \
		BEGIN_TO_END(k) \
	}

#ifndef LIVE
proctype World()
{
	do
#ifdef TRACE
	:: d_step { queue == 0 -> queue = 1; ready[0] = watching[0]; asleep[0] = 0; ready[1] = watching[1]; asleep[1] = 0 }
#else
	:: atomic { came < C -> came++; kernel_arrival(0) }
	:: atomic { came < C -> came++; kernel_arrival(1) }
#endif
	:: END(0)
	:: END(1)
#if S > 1
	:: END(2)
#endif
#ifdef TRACE
	:: END_TO_END(0)
	:: END_TO_END(1)
	:: END_TO_END(2)
#endif
	od
}
#else
/* Clients come for ever, as many as are not queued yet; each connection ends, for which it has a process of spin that is fair. */
active proctype Comes()
{
	do
	:: atomic { queue < C -> kernel_arrival(0) }
	:: atomic { queue < C -> kernel_arrival(1) }
	od
}

active [K] proctype Ends()
{
	do
	:: END(_pid - 1)
	od
}
#endif

/* SIGKILL: the worker is a zombie and its children are the supervisor's, in one step. Which is the first makes no difference. */
#define KILL(w) atomic { \
		crashes < CRASHES && alive[w] && (w == 0 || crashes > 0 || TRACED) && OBSERVABLE(KILLED, w) -> \
		OBSERVED(KILLED, w); \
		crashes++; \
		d_step { \
			alive[w] = 0; killed[w] = 1; zombie[w] = 1; freed[w] = 0; sigchld[w] = 0; look[w] = 0; deaf[w] = 0; \
			KERNEL_GONE(w); \
			unrecorded = unrecorded - unnoted[w]; unnoted[w] = 0; \
			dk = 0; \
			do \
			:: dk < K -> if :: process[dk] != FREE && parent[dk] == w -> parent[dk] = SUPERVISOR :: else fi; dk++ \
			:: else -> break \
			od; \
			dk = 0 \
		} \
	}

proctype Killer()
{
	do
	:: KILL(0)
#if CRASHES > 1
	:: KILL(1)
#endif
#ifdef LIVE
	:: crashes < CRASHES -> crashes = CRASHES   /* fairness must not force it */
#endif
	od
}

#if !defined(TRACE) && !defined(LIVE)
#define HELD_BY(k, s) (row_pid[s] == k + 1 && owner[s] != 0)
#if S > 1
#define ROWS(k) (HELD_BY(k, 0) + HELD_BY(k, 1))
#else
#define ROWS(k) HELD_BY(k, 0)
#endif
#define LIVES(k) (process[k] != FREE)
#define LOST_ROW(k) (LIVES(k) && ROWS(k) != 1)
#define COUNTED (LIVES(0) + LIVES(1) + (S > 1 && LIVES(K - 1)))

/* At every moment: each process that was not reaped has one row, and there are no more than may be. */
active proctype Always()
{
	atomic { LOST_ROW(0) || LOST_ROW(1) || LOST_ROW(K - 1) || COUNTED > S -> assert(false) }
}

/* When nothing goes on any more. */
active proctype AtRest()
{
	atomic {
		timeout ->
		assert(queue == 0 && came == C);                            /* nobody is stuck */
		assert(COUNTED == 0);
		assert(owner[0] == 0 && owner[S - 1] == 0);                     /* every slot has come back */
		assert(!deaf[0] && !deaf[1]);                               /* nobody waits for a slot that is free */
		assert(gone_open + unended[0] + unended[1] == 0);                 /* accepted is completed */
		assert(unrecorded == 0)                                     /* each has its record, or died with its worker */
	}
}
#endif

#ifdef LIVE
/* Under weak fairness: who can go on for ever does so once. The queue is in order, so who is in it is at its head some day,
 * if whoever is at its head is accepted some day.
 */
ltl served { [] (queue == C -> <> (queue < C)) }
#define FULL (owner[0] != 0 && owner[S - 1] != 0)
ltl freed { [] (FULL -> <> !(FULL)) }
#endif

init
{
	atomic {
		alive[0] = 1; alive[1] = 1;
#ifdef TRACE
		/* Whoever begins looks once: see reload.pml, where it matters. */
		look[0] = 1; look[1] = 1;
#endif
		run Worker(0);
		run Worker(1);
		run Supervisor();
#ifndef LIVE
		run World();
#endif
		run Killer()
	}
}
