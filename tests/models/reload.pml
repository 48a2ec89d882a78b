/* Reload: a generation is made, proven, put in force, and until then the old one serves; whatever fails or is killed.
 *
 * Two workers a generation and room for two generations, the supervisor, the process that reads the configuration, clients
 * of the service and of the control socket. The links are what they are, queues of messages. The supervisor's
 * turn is two steps, what it hears and what it does: nobody else sees what it keeps, and an order that is sent a little earlier
 * or later is in the queue all the same.
 */
#ifndef CRASHES
#define CRASHES 1    /* workers that are killed */
#endif
#ifndef C
#define C 1          /* connections */
#endif
#ifndef ASKS
#define ASKS 2       /* who asks for a reload */
#endif
#ifndef N
#define N 1          /* workers of a generation */
#endif
#if N == 2
#define NW 4         /* that there may be at a time */
#define SUM(f) (f(0) + f(1) + f(2) + f(3))
#else
#define NW 3
#define SUM(f) (f(0) + f(1) + f(2))
#endif
#define E NW
#define NO_GENERATION 0

#include "kernel.pml"

/* The steps that a story tells. */
#define ACCEPTED 1   /* a connection, by a worker */
#define KILLED 6     /* worker */
#define BURIED 7     /* worker */
#define SPAWNED 9    /* worker */
#define SENT_ACCEPT 41   /* to a worker */
#define SENT_RETIRE 42
#define SENT_LOOK 43
#define HEARD_READY 44   /* from a worker */
#define HEARD_FAILED 45
#define HEARD_ACCEPTING 46
#define HEARD_RETIRED 47
#define HEARD_LOOKED 48
#define READ_BEGUN 49    /* the loader is forked */
#define EXITED 50        /* worker */

mtype = { READY, FAILED, ACCEPTING, RETIRED, LOOKED, ACCEPT, RETIRE, LOOK };
mtype = { ABSENT, STARTING, IS_READY, ACCEPTS, DRAINS };
mtype = { IDLE, READING, PREPARING, OPENING };
mtype = { UNASKED, ASKED, HEARD, DONE, REFUSED };

chan orders[NW] = [3] of { mtype };
chan reports[NW] = [4] of { mtype };

bit alive[NW], zombie[NW], spawned[NW], killed[NW], open[NW], gave_up[NW];
bit sigchld;

/* What the supervisor knows of its workers. */
mtype stage[NW] = ABSENT;
byte generation[NW];
bit unanswered[NW], again[NW];
bit to_look;

byte in_force = 1;
byte version_in_force, file_version;
mtype change = IDLE;
bit loaded, loaded_well, loaded_same;   /* or nothing has changed that needs a new worker */
byte loaded_version;
byte next_version;
bit own_failure;         /* for the assertions: something of what is on its way has failed */
bit wanted;              /* PendingChanges::reload */
bit terms, ending;

mtype ask[ASKS] = UNASKED;
bit waits[ASKS], queued_ask[ASKS];
byte asked_version[ASKS];
byte came, crashes;

inline answer(c, what)
{
	assert(ask[c] == HEARD);
	assert(what != DONE || version_in_force >= asked_version[c]);   /* what it says is true of what was written before it asked */
	ask[c] = what;
	asked_version[c] = 0
}

inline answer_waits(what)
{
	if :: waits[0] -> waits[0] = 0; answer(0, what) :: else fi;
#if ASKS > 1
	if :: waits[1] -> waits[1] = 0; answer(1, what) :: else fi
#endif
}

/* Workers::spawn */
inline spawn(e, g)
{
	OBSERVED(SPAWNED, e);
	stage[e] = STARTING; generation[e] = g; alive[e] = 1; spawned[e] = 1
}

#define ON_ITS_WAY(e) (stage[e] != ABSENT && generation[e] == in_force + 1)
#define NOT_READY(e) (ON_ITS_WAY(e) && stage[e] != IS_READY)
#define ALL_READY (SUM(NOT_READY) == 0)
#define ACCEPTS_NOW(e) (ON_ITS_WAY(e) && stage[e] == ACCEPTS)
#define HOW_MANY_ACCEPT SUM(ACCEPTS_NOW)
#define SERVES(e) (generation[e] == in_force && (stage[e] == ACCEPTS || stage[e] == STARTING || stage[e] == IS_READY))
#define SERVING SUM(SERVES)
#define PLACES SUM(FREE_PLACE)
#define HAS_SAID(e) (len(reports[e]) > 0)
#define IS_OPEN(e) (open[e])
#define OPEN SUM(IS_OPEN)
#define FREE_PLACE(e) (stage[e] == ABSENT && !alive[e] && !zombie[e] && !killed[e])

inline retire(e)
{
	atomic {
		if
		:: stage[e] != ABSENT && stage[e] != DRAINS ->
			stage[e] = DRAINS;
			if :: alive[e] -> OBSERVED(SENT_RETIRE, e); orders[e]!RETIRE :: else fi
		:: else
		fi
	}
}

/* Supervisor::dismiss: of those on their way, which accept nothing any more. */
inline dismiss()
{
	e = 0;
	do
	:: e < NW ->
		if
		:: generation[e] == in_force + 1 && stage[e] != ABSENT ->
			retire(e)
#ifndef MUTANT_KEEPS_NUMBER
			generation[e] = NO_GENERATION
#endif
		:: else
		fi;
		e++
	:: else -> e = 0; break
	od
}

/* Supervisor::abort and reject */
inline abort_rollout()
{
	assert(own_failure);
	dismiss();
	atomic { change = IDLE; own_failure = 0; next_version = 0; answer_waits(REFUSED) }
}

/* State::commit and Supervisor::complete */
inline complete()
{
	atomic {
		assert(HOW_MANY_ACCEPT >= N);
		in_force++;
		version_in_force = next_version; next_version = 0;
		change = IDLE; own_failure = 0
	};
	e = 0;
	do
	:: e < NW ->
		if
		:: generation[e] != in_force -> retire(e)
		:: else
		fi;
		e++
	:: else -> e = 0; break
	od;
	atomic { answer_waits(DONE) }
}

/* Supervisor::reload */
inline reload_for(c)
{
	atomic {
		if
		:: ending -> answer(c, REFUSED)
#ifdef MUTANT_JOINS_THE_OTHER
		:: !ending && change != IDLE -> waits[c] = 1   /* it may have read the files before */
#else
		:: !ending && change != IDLE -> wanted = 1; queued_ask[c] = 1
#endif
		:: !ending && change == IDLE -> waits[c] = 1; OBSERVED(READ_BEGUN, 0); change = READING; loaded = 0
		fi
	}
}

inline begin_wanted_reload()
{
	atomic {
		if
		:: wanted && change == IDLE && !ending ->
			wanted = 0;
			waits[0] = waits[0] || queued_ask[0]; queued_ask[0] = 0;
#if ASKS > 1
			waits[1] = waits[1] || queued_ask[1]; queued_ask[1] = 0;
#endif
			OBSERVED(READ_BEGUN, 0);
			change = READING; loaded = 0
		:: else
		fi
	}
}

#define HAS_NEWS (SUM(HAS_SAID) > 0)
#define ASKS_NOW (ask[0] == ASKED || ask[ASKS - 1] == ASKED)
/* The model has room for two generations: who is next waits until those before the last have gone. */
#define CAN_SPAWN (PLACES >= N)
#define MISSING (!ending && SERVING < N && PLACES > 0)

active proctype Supervisor()
{
	byte e, n;
	mtype news;

	atomic {
		spawn(0, 1); stage[0] = ACCEPTS; orders[0]!ACCEPT;
#if N == 2
		spawn(1, 1); stage[1] = ACCEPTS; orders[1]!ACCEPT
#endif
	};
	do
	:: (HAS_NEWS || ASKS_NOW || sigchld || terms || (change == READING && loaded && CAN_SPAWN)) ->
		atomic {
		/* Supervisor::listen_to */
		e = 0;
		do
		:: e < NW ->
			do
			:: atomic {
					len(reports[e]) > 0 -> reports[e]?news;
					if
					:: news == READY -> OBSERVED(HEARD_READY, e); if :: stage[e] == STARTING -> stage[e] = IS_READY :: else fi
					:: news == FAILED -> OBSERVED(HEARD_FAILED, e)
					:: news == ACCEPTING -> 
						OBSERVED(HEARD_ACCEPTING, e);
						if
						:: stage[e] != DRAINS ->
							stage[e] = ACCEPTS;
#ifndef MUTANT_BEGINS_UNLOOKED
							/* It has been woken for nobody while it was not known to accept. */
							if
							:: unanswered[e] -> again[e] = 1
							:: !unanswered[e] && alive[e] -> unanswered[e] = 1; OBSERVED(SENT_LOOK, e); orders[e]!LOOK
							:: else
							fi
#endif
						:: else
						fi
					:: news == RETIRED ->
						OBSERVED(HEARD_RETIRED, e);
#ifndef MUTANT_NOBODY_LOOKS
						to_look = 1;
#endif
						stage[e] = DRAINS
					:: news == LOOKED ->
						OBSERVED(HEARD_LOOKED, e);
						unanswered[e] = 0;
						if
						:: again[e] -> again[e] = 0; if :: alive[e] -> unanswered[e] = 1; OBSERVED(SENT_LOOK, e); orders[e]!LOOK :: else fi
						:: else
						fi
					fi;
					news = 0
				}
			:: atomic { len(reports[e]) == 0 -> break }
			od;
			e++
		:: else -> e = 0; break
		od;
		/* Supervisor::serve_control */
		atomic { if :: ask[0] == ASKED -> ask[0] = HEARD; reload_for(0) :: else fi };
#if ASKS > 1
		atomic { if :: ask[1] == ASKED -> ask[1] = HEARD; reload_for(1) :: else fi };
#endif
		/* Supervisor::obey_signals: TERM */
		if
		:: terms ->
			atomic { terms = 0; ending = 1 };
			if
			:: change == PREPARING || change == OPENING -> dismiss()
			:: else
			fi;
			/* Supervisor::give_up_changes */
			atomic {
				change = IDLE; own_failure = 0; next_version = 0; wanted = 0; loaded = 0; loaded_well = 0; loaded_same = 0; loaded_version = 0;
				answer_waits(REFUSED);
#ifndef MUTANT_FORGETS_WHO_WANTS
				if :: queued_ask[0] -> queued_ask[0] = 0; answer(0, REFUSED) :: else fi;
#if ASKS > 1
				if :: queued_ask[1] -> queued_ask[1] = 0; answer(1, REFUSED) :: else fi
#endif
#endif
			};
			e = 0;
			do
			:: e < NW -> retire(e); e++
			:: else -> e = 0; break
			od
		:: else
		fi;
		/* Supervisor::advance_loader, begin_rollout */
		if
		:: change == READING && loaded && CAN_SPAWN ->
			atomic {
				loaded = 0;
				if
				:: loaded_well && !loaded_same -> 
					change = PREPARING; next_version = loaded_version;
					e = 0; n = 0;
					do
					:: e < NW && n < N && FREE_PLACE(e) -> spawn(e, in_force + 1); n++; e++
					:: e < NW && n < N && !FREE_PLACE(e) -> e++
					:: n == N -> break
					od;
					e = 0; n = 0
				:: loaded_well && loaded_same -> change = OPENING; next_version = loaded_version
				:: else -> change = IDLE; answer_waits(REFUSED)
				fi;
				loaded_well = 0; loaded_version = 0
			}
		:: else
		fi;
		};
		/* Whoever dies in between is buried in this turn. Supervisor::reap, bury, replace */
		atomic {
		if
		:: sigchld ->
			sigchld = 0;
			e = 0;
			do
			:: e < NW ->
				if
				:: atomic { zombie[e] && len(reports[e]) > 0 -> reports[e]?news; if :: news == RETIRED -> stage[e] = DRAINS :: else fi; news = 0; }   /* hear_last_words */
					do
					:: atomic { len(reports[e]) > 0 -> reports[e]?news; if :: news == RETIRED -> stage[e] = DRAINS :: else fi; news = 0 }
					:: atomic { len(reports[e]) == 0 -> break }
					od
				:: else
				fi;
				if
				:: atomic { zombie[e] -> OBSERVED(BURIED, e); zombie[e] = 0; unanswered[e] = 0; again[e] = 0 };
#ifndef MUTANT_NOBODY_LOOKS
					to_look = 1;
#endif
					do
					:: atomic { len(orders[e]) > 0 -> orders[e]?news; news = 0 }
					:: atomic { len(orders[e]) == 0 -> break }
					od;
					if
					:: generation[e] == in_force + 1 && change != IDLE && change != READING ->
						/* lost_in_rollout: one that gave up speaks for all, one that was killed is replaced */
						if
						:: gave_up[e] ->
							atomic { stage[e] = ABSENT; generation[e] = 0; gave_up[e] = 0 };
							abort_rollout()
						:: else ->
							atomic {
								spawn(e, in_force + 1);
								if :: change == OPENING -> OBSERVED(SENT_ACCEPT, e); orders[e]!ACCEPT :: else fi
							}
						fi
					:: else -> atomic { stage[e] = ABSENT; generation[e] = 0; gave_up[e] = 0 }
					fi
				:: else
				fi;
				e++
			:: else -> e = 0; break
			od
		:: else
		fi;
		/* Workers::send_looks */
		if
		:: to_look ->
			atomic {
				to_look = 0; e = 0;
				do
				:: e < NW ->
					if
					:: stage[e] == ACCEPTS && alive[e] ->
						if
						:: unanswered[e] -> again[e] = 1
						:: else -> unanswered[e] = 1; OBSERVED(SENT_LOOK, e); orders[e]!LOOK
						fi
					:: else
					fi;
					e++
				:: else -> e = 0; break
				od
			}
		:: else
		fi;
		/* Supervisor::start_missing_workers */
		do
		:: MISSING ->
			atomic {
				e = 0;
				do
				:: !FREE_PLACE(e) -> e++
				:: FREE_PLACE(e) -> break
				od;
				spawn(e, in_force);
				OBSERVED(SENT_ACCEPT, e);
				orders[e]!ACCEPT;
				e = 0
			}
		:: !(MISSING) -> break
		od;
		/* Supervisor::advance_rollout */
		begin_wanted_reload();
		if
		:: change == PREPARING && ALL_READY ->
			change = OPENING;
			e = 0;
			do
			:: e < NW ->
				atomic { if :: ON_ITS_WAY(e) && alive[e] -> OBSERVED(SENT_ACCEPT, e); orders[e]!ACCEPT :: else fi };
				e++
			:: else -> e = 0; break
			od
		:: else
		fi;
		if
		:: change == OPENING && loaded_same -> loaded_same = 0; version_in_force = next_version; next_version = 0; change = IDLE; answer_waits(DONE)
#ifdef MUTANT_FIRST_IS_ENOUGH
		:: change == OPENING && !loaded_same && HOW_MANY_ACCEPT >= 1 -> complete()
#else
		:: change == OPENING && !loaded_same && HOW_MANY_ACCEPT >= N -> complete()
#endif
		:: else
		fi;
#ifndef MUTANT_NO_LAST_LOOK
		begin_wanted_reload()
#endif
		}
	od
}

/* A worker: it gets ready, waits for its order, accepts, retires. */
proctype Worker(byte me)
{
	mtype order;
	bit due;
	do
	:: spawned[me] ->
	{
		spawned[me] = 0;
		if
		:: reports[me]!READY
		:: atomic { generation[me] == in_force + 1 -> own_failure = 1; reports[me]!FAILED; goto ends }
		fi;
		do
		:: atomic {
				kernel_wait(me, len(orders[me]) > 0 || due);
				if
				:: len(orders[me]) > 0 -> orders[me]?order
				:: open[me] && (kernel_reports(me) || due) -> skip
				fi
			};
			/* Worker::follow_orders */
			if
			:: order == ACCEPT -> atomic { open[me] = 1; order = 0 }; reports[me]!ACCEPTING; kernel_watch(me)
			:: order == LOOK -> order = 0; reports[me]!LOOKED; due = open[me]
			:: order == RETIRE ->
				/* Acceptor::retire, and report_retirement */
				atomic { order = 0; due = 0; open[me] = 0 };
				kernel_unwatch(me);
				reports[me]!RETIRED;
				goto ends
			:: else ->
				if
				:: open[me] && (kernel_reports(me) || due) ->
					if
					:: atomic { queue > 0 -> OBSERVED(ACCEPTED, me); queue-- }
					:: atomic { queue == 0 -> due = 0 }
					fi
				:: else
				fi
			fi
		od;
ends:	/* its last connection ends, and it exits */
		atomic { OBSERVED(EXITED, me); gave_up[me] = 1; alive[me] = 0; open[me] = 0; KERNEL_GONE(me); zombie[me] = 1; sigchld = 1 }
		
	} unless { killed[me] };
		d_step { order = 0; due = 0; killed[me] = 0 }
	:: atomic { killed[me] -> killed[me] = 0 }
	od
}

/* The configuration is read in a process of its own; whatever it finds, or that it died. */
active proctype Loader()
{
	do
	:: atomic { change == READING && !loaded -> loaded = 1; loaded_version = file_version; loaded_well = 1 }
	:: atomic { change == READING && !loaded -> loaded = 1; loaded_version = file_version; loaded_well = 1; loaded_same = 1 }
	:: atomic { change == READING && !loaded -> loaded = 1; loaded_well = 0; loaded_version = 0 }
	od
}

active proctype World()
{
	do
	:: atomic { came < C -> came++; kernel_arrival(0) }
	:: atomic { came < C -> came++; kernel_arrival(1) }
	:: atomic { came < C -> came++; kernel_arrival(2) }
	/* Somebody writes the file, then asks. */
	:: atomic { ask[0] == UNASKED -> file_version++; asked_version[0] = file_version; ask[0] = ASKED }
#if ASKS > 1
	:: atomic { ask[1] == UNASKED -> file_version++; asked_version[1] = file_version; ask[1] = ASKED }
#endif
	od
}

active proctype Term()
{
#ifdef TERM
	if
	:: atomic { !ending -> terms = 1 }
	:: true
	fi
#else
	skip
#endif
}

#define KILL(w) atomic { \
		crashes < CRASHES && alive[w] && OBSERVABLE(KILLED, w) -> \
		OBSERVED(KILLED, w); \
		crashes++; \
		alive[w] = 0; killed[w] = 1; zombie[w] = 1; spawned[w] = 0; open[w] = 0; KERNEL_GONE(w); sigchld = 1 \
	}

active proctype Killer()
{
	do
	:: KILL(0)
	:: KILL(1)
	od
}

/* From the start to the end somebody accepts, though one of two be killed. */
bit begun;
active proctype Begins()
{
	atomic { OPEN == N -> begun = 1 }
}

active proctype Always()
{
	atomic { begun && !ending && !terms && OPEN < N - CRASHES -> assert(false) }
}

active proctype AtRest()
{
	atomic {
		timeout ->
		assert(queue == 0 || ending);                              /* nobody is stuck */
		assert(ask[0] == DONE || ask[0] == REFUSED);               /* each is told, and once: see answer() */
		assert(ask[ASKS - 1] == DONE || ask[ASKS - 1] == REFUSED);
		assert(change == IDLE && !wanted);
		assert(ending || OPEN == N)  /* the generation in force and nobody else */
	}
}

init
{
	atomic {
		run Worker(0); run Worker(1); run Worker(2);
#if NW == 4
		run Worker(3)
#endif
	}
}
