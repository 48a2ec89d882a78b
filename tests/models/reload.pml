/* Reload: a generation is made, proven, put in force, and until then the old one serves; whatever fails or is killed.
 *
 * Two workers a generation and room for two generations, the supervisor, the process that reads the configuration, clients
 * of the service and of the control socket. The links are what they are, queues of messages. The supervisor's turn is as many
 * steps as it hears and says: what it says may be answered before it has heard all that there is, and after it has looked
 * at one link something more may come there. A message that is heard and what follows from it at once are one step, as
 * nobody else sees what is between; so are several that are said with nothing heard between.
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
#define ANY_OF(f) :: f(0) -> e = 0 :: f(1) -> e = 1 :: f(2) -> e = 2 :: f(3) -> e = 3
#else
#define NW 3
#define SUM(f) (f(0) + f(1) + f(2))
#define ANY_OF(f) :: f(0) -> e = 0 :: f(1) -> e = 1 :: f(2) -> e = 2
#endif
#define E NW
#define NO_GENERATION 0
#define NONE 255

#include "kernel.pml"

/* The steps that a story tells, and a trace. */
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
#define ASK_HEARD 51     /* client */
#define SAID_DONE 52     /* client */
#define SAID_REFUSED 53  /* client */
#define OBEYS_ACCEPT 54  /* worker: it has heard the order */
#define OBEYS_RETIRE 55
#define OBEYS_LOOK 56

mtype = { READY, FAILED, ACCEPTING, RETIRED, LOOKED, ACCEPT, RETIRE, LOOK };
mtype = { ABSENT, STARTING, IS_READY, ACCEPTS, DRAINS, HAS_RETIRED };
mtype = { IDLE, READING, PREPARING, OPENING };
mtype = { UNASKED, ASKED, HEARD, DONE, REFUSED };

chan orders[NW] = [4] of { mtype };
chan reports[NW] = [4] of { mtype };

bit alive[NW], zombie[NW], spawned[NW], killed[NW], open[NW], gave_up[NW];
bit sigchld;

/* What the supervisor knows of its workers. */
mtype stage[NW] = ABSENT;
byte generation[NW];
bit unanswered[NW], again[NW];
bit to_look;

byte in_force;
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
	if :: what == DONE -> OBSERVED(SAID_DONE, c) :: what == REFUSED -> OBSERVED(SAID_REFUSED, c) fi;
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

/* WorkerProcess::order: who is dead hears nothing. */
inline tell(e, what)
{
	if
	:: what == ACCEPT -> OBSERVED(SENT_ACCEPT, e)
	:: what == RETIRE -> OBSERVED(SENT_RETIRE, e)
	:: what == LOOK -> OBSERVED(SENT_LOOK, e)
	fi;
	if :: alive[e] -> orders[e]!what :: else fi
}

/* Looks::want */
inline look(e)
{
	if
	:: unanswered[e] -> again[e] = 1
	:: else -> unanswered[e] = 1; tell(e, LOOK)
	fi
}

/* What a worker says, and what is noted of it: Workers::hear, WorkerProcess::hear_last_words. */
#define SAYS(what, step) reports[e]?[what] && OBSERVABLE(step, e) -> OBSERVED(step, e); reports[e]?what
#define GOES(e) (stage[e] == DRAINS || stage[e] == HAS_RETIRED)

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
#define IS_DEAD(e) (zombie[e])
#define IS_THERE(e) (stage[e] != ABSENT)
#define IS_OLD(e) (stage[e] != ABSENT && !GOES(e) && generation[e] != in_force)
#define MAY_ACCEPT(e) (stage[e] == ACCEPTS || stage[e] == DRAINS)
#define CALLS(e) (called[e])
#define READS(c) (called[NW + c])

/* Of each worker for which that is so, in whatever order. */
#define FOR_EACH(f, what) \
	d_step { e = 0; do :: e < NW -> called[e] = f(e); e++ :: else -> break od; e = 0 }; \
	do \
	:: if ANY_OF(CALLS) fi; called[e] = 0; what \
	:: SUM(CALLS) == 0 -> break \
	od; \
	e = 0

/* WorkerProcess::retire */
inline retire(e)
{
	stage[e] = DRAINS;
	tell(e, RETIRE)
}

/* Supervisor::dismiss: of those on their way, which accept nothing any more. */
#ifdef MUTANT_KEEPS_NUMBER
#define FORGET_NUMBER(e) skip
#else
#define FORGET_NUMBER(e) generation[e] = NO_GENERATION
#endif
inline dismiss()
{
	FOR_EACH(ON_ITS_WAY, retire(e); FORGET_NUMBER(e))
}

/* Supervisor::abort and reject */
inline abort_rollout()
{
	assert(own_failure);
	dismiss();
	change = IDLE; own_failure = 0; next_version = 0; answer_waits(REFUSED)
}

/* State::commit and Supervisor::complete */
inline complete()
{
	assert(HOW_MANY_ACCEPT >= N);
	in_force++;
	version_in_force = next_version; next_version = 0;
	change = IDLE; own_failure = 0;
	to_look = to_look || TRACED;   /* Service::comes_into_force: Scoreboard::set_limit; to be shown is that all goes well without that */
	FOR_EACH(IS_OLD, retire(e));
	answer_waits(DONE)
}

/* Supervisor::reload */
inline reload_for(c)
{
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

inline begin_wanted_reload()
{
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

#define HAS_NEWS (SUM(HAS_SAID) > 0)
#define ASKS_NOW (ask[0] == ASKED || ask[ASKS - 1] == ASKED)
/* The model has room for two generations: who is next waits until those before the last have gone. */
#define CAN_SPAWN (PLACES >= N)
#define MISSING (in_force > 0 && !ending && SERVING < N && PLACES > 0)
/* The end of the loader and a client that hangs up wake the supervisor, too, and then it says what it owes. */
#define OTHERS_CALL (TRACED && to_look)
#define IS_READ (change == READING && loaded && CAN_SPAWN)

/* Of whom there is something to hear, in whatever order. */
inline next_call()
{
	if
	ANY_OF(CALLS)
	:: READS(0) -> e = NW
#if ASKS > 1
	:: READS(1) -> e = NW + 1
#endif
	:: SUM(CALLS) + READS(0) + READS(ASKS - 1) == 0 -> e = NONE
	fi
}

inline free_place()
{
	e = 0;
	do
	:: !FREE_PLACE(e) -> e++
	:: FREE_PLACE(e) -> break
	od
}

active proctype Supervisor()
{
	byte e, n;
	bit called[NW + ASKS];

	/* Supervisor::start */
	atomic {
		change = PREPARING;
		spawn(0, 1);
#if N == 2
		spawn(1, 1)
#endif
	};
	do
	:: atomic {   /* epoll_pwait(2) */
			HAS_NEWS || ASKS_NOW || sigchld || terms || IS_READ || OTHERS_CALL ->
			d_step {
				e = 0;
				do
				:: e < NW -> called[e] = HAS_SAID(e); e++
				:: else -> break
				od;
				called[NW] = (ask[0] == ASKED);
#if ASKS > 1
				called[NW + 1] = (ask[1] == ASKED);
#endif
				e = 0
			};
			next_call()
		};
		do
		:: atomic {
				/* Supervisor::listen_to: a link, until nothing more is there */
				do
				:: e < NW && len(reports[e]) == 0 -> called[e] = 0; next_call()
				:: !(e < NW && len(reports[e]) == 0) -> break
				od;
				if
				:: e < NW && SAYS(READY, HEARD_READY); if :: stage[e] == STARTING -> stage[e] = IS_READY :: else fi
				:: e < NW && SAYS(FAILED, HEARD_FAILED)
				:: e < NW && SAYS(ACCEPTING, HEARD_ACCEPTING);
					if
					:: !GOES(e) ->
						stage[e] = ACCEPTS;
#ifndef MUTANT_BEGINS_UNLOOKED
						look(e)   /* it has been woken for nobody while it was not known to accept */
#endif
					:: else
					fi
				:: e < NW && SAYS(RETIRED, HEARD_RETIRED);
#ifndef MUTANT_NOBODY_LOOKS
					to_look = 1;
#endif
					stage[e] = HAS_RETIRED
				:: e < NW && SAYS(LOOKED, HEARD_LOOKED);
					unanswered[e] = 0;
					if
					:: again[e] -> again[e] = 0; look(e)
					:: else
					fi
				/* Supervisor::serve_control */
				:: e >= NW && e != NONE && OBSERVABLE(ASK_HEARD, e - NW) -> OBSERVED(ASK_HEARD, e - NW); called[e] = 0; ask[e - NW] = HEARD; reload_for(e - NW); next_call()
				:: e == NONE ->
					e = 0;
					/* Signals::fetch_pending, Supervisor::obey_signals: TERM */
					sigchld = 0;
					if
					:: terms ->
						terms = 0; ending = 1;
						/* Supervisor::give_up_changes */
						if
						:: change == PREPARING || change == OPENING -> dismiss()
						:: else
						fi;
						change = IDLE; own_failure = 0; next_version = 0; wanted = 0; loaded = 0; loaded_well = 0; loaded_same = 0; loaded_version = 0;
						answer_waits(REFUSED);
#ifndef MUTANT_FORGETS_WHO_WANTS
						if :: queued_ask[0] -> queued_ask[0] = 0; answer(0, REFUSED) :: else fi;
#if ASKS > 1
						if :: queued_ask[1] -> queued_ask[1] = 0; answer(1, REFUSED) :: else fi;
#endif
#endif
						FOR_EACH(IS_THERE, retire(e))
					:: else
					fi;
					/* Supervisor::advance_loader, begin_rollout */
					if
					:: IS_READ ->
						loaded = 0;
						if
						:: loaded_well && !loaded_same ->
							change = PREPARING; next_version = loaded_version;
							n = 0;
							do
							:: n < N -> free_place(); spawn(e, in_force + 1); n++
							:: n == N -> break
							od;
							e = 0; n = 0
						:: loaded_well && loaded_same -> change = OPENING; next_version = loaded_version
						:: else -> change = IDLE; answer_waits(REFUSED)
						fi;
						loaded_well = 0; loaded_version = 0
					:: else
					fi;
					break
				fi
			}
		od;
		/* Supervisor::reap, bury, replace */
		do
		:: atomic {
				if
				ANY_OF(IS_DEAD)
				fi;
				OBSERVED(BURIED, e);
				zombie[e] = 0;
				/* WorkerProcess::hear_last_words */
				do
				:: SAYS(READY, HEARD_READY)
				:: SAYS(FAILED, HEARD_FAILED)
				:: SAYS(ACCEPTING, HEARD_ACCEPTING)
				:: SAYS(RETIRED, HEARD_RETIRED)
				:: SAYS(LOOKED, HEARD_LOOKED)
				:: len(reports[e]) == 0 -> break
				od;
				unanswered[e] = 0; again[e] = 0;
#ifndef MUTANT_NOBODY_LOOKS
				to_look = 1;
#endif
				do
				:: len(orders[e]) > 0 -> orders[e]?_
				:: else -> break
				od;
				if
				:: ON_ITS_WAY(e) && (change == PREPARING || change == OPENING) ->
					/* lost_in_rollout: one that gave up speaks for all, one that was killed is replaced */
					if
					:: gave_up[e] ->
						stage[e] = ABSENT; generation[e] = 0; gave_up[e] = 0;
						abort_rollout()
					:: else ->
						spawn(e, in_force + 1);
						if :: change == OPENING -> tell(e, ACCEPT) :: else fi
					fi
				:: else -> stage[e] = ABSENT; generation[e] = 0; gave_up[e] = 0
				fi;
				e = 0
			}
		:: atomic {
				SUM(IS_DEAD) == 0 ->
				/* Workers::send_looks */
				if
				:: to_look ->
					to_look = 0;
					FOR_EACH(MAY_ACCEPT, look(e))
				:: else
				fi;
				/* Supervisor::start_missing_workers */
				do
				:: MISSING -> free_place(); spawn(e, in_force); tell(e, ACCEPT); e = 0
				:: !(MISSING) -> break
				od;
				/* Supervisor::advance_rollout */
				begin_wanted_reload();
				if
				:: change == PREPARING && ALL_READY ->
					change = OPENING;
					FOR_EACH(ON_ITS_WAY, tell(e, ACCEPT))
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
				begin_wanted_reload();
#endif
				break
			}
		od
	od
}

/* What a worker says to an order is one step with hearing that, as nobody else can see what is between. In a trace somebody may have been
 * seen to go on without the answer, for it is on its way from the beginning of a call to its end. */
#ifdef TRACE
#define ANSWER(what) says = what
#define SAY_IT if :: atomic { says != 0 -> reports[me]!says; says = 0 } :: atomic { says == 0 } fi
#else
#define ANSWER(what) reports[me]!what
#define SAY_IT
#endif

/* A worker: it gets ready, waits for its order, accepts, retires. */
proctype Worker(byte me)
{
	bit due, called;
#ifdef TRACE
	mtype says;
#endif
	do
	:: spawned[me] ->
	{
		if
		:: atomic { spawned[me] = 0; reports[me]!READY }
		/* In the first generation this is the end of all, which is not searched. */
		:: atomic { in_force > 0 && generation[me] == in_force + 1 && SOON(HEARD_FAILED) -> spawned[me] = 0; own_failure = 1; reports[me]!FAILED; goto ends }
		fi;
		do
		:: atomic {
				if :: open[me] -> kernel_watch(me) :: else fi;
				kernel_wait(me, len(orders[me]) > 0 || due);
				/* Worker::follow_orders */
				if
				:: orders[me]?[ACCEPT] -> OBSERVED(OBEYS_ACCEPT, me); orders[me]?ACCEPT; open[me] = 1; ANSWER(ACCEPTING)
				:: orders[me]?[LOOK] -> OBSERVED(OBEYS_LOOK, me); orders[me]?LOOK; ANSWER(LOOKED); due = open[me]
				/* Acceptor::retire */
				:: orders[me]?[RETIRE] -> OBSERVED(OBEYS_RETIRE, me); orders[me]?RETIRE; due = 0; open[me] = 0; kernel_unwatch(me); goto retires
				:: open[me] && (kernel_reports(me) || due) -> called = 1
				fi
			};
			SAY_IT;
			if
			:: atomic { called && queue > 0 -> OBSERVED(ACCEPTED, me); called = 0; queue-- }
			:: atomic { called && queue == 0 -> called = 0; due = 0 }
			:: !called
			fi
		od;
retires:	/* Worker::report_retirement, when all orders that are there have been heard */
		do
		:: atomic { orders[me]?[LOOK] -> OBSERVED(OBEYS_LOOK, me); orders[me]?LOOK; ANSWER(LOOKED) }; SAY_IT
		:: atomic { reports[me]!RETIRED; break }
		od;
ends:	/* its last connection ends, and it exits */
		do
		:: atomic { orders[me]?[LOOK] -> OBSERVED(OBEYS_LOOK, me); orders[me]?LOOK; ANSWER(LOOKED) }; SAY_IT
		:: atomic { OBSERVED(EXITED, me); gave_up[me] = 1; alive[me] = 0; open[me] = 0; KERNEL_GONE(me); break }
		od;
		atomic { zombie[me] = 1; sigchld = 1 }
	} unless { killed[me] };
#ifdef TRACE
		says = 0;
#endif
		d_step { due = 0; called = 0; killed[me] = 0 }
	:: atomic { killed[me] -> killed[me] = 0 }
	od
}

/* The configuration is read in a process of its own; whatever it finds, or that it died. */
active proctype Loader()
{
	do
	:: atomic { change == READING && !loaded && SOON(SPAWNED) -> loaded = 1; loaded_version = file_version; loaded_well = 1 }
	:: atomic { change == READING && !loaded && SOON(SAID_DONE) -> loaded = 1; loaded_version = file_version; loaded_well = 1; loaded_same = 1 }
	:: atomic { change == READING && !loaded && SOON(SAID_REFUSED) -> loaded = 1; loaded_well = 0; loaded_version = 0 }
	od
}

#ifdef TRACE
/* Who was told asks again as another client. */
#define MAY_ASK(c) (ask[c] != ASKED && ask[c] != HEARD && SOON_BY(ASK_HEARD, c))
#else
#define MAY_ASK(c) (ask[c] == UNASKED && in_force > 0)
#endif

active proctype World()
{
	do
#ifdef TRACE
	/* Somebody comes whom the worker finds that the trace has. */
	:: d_step {
			queue == 0 && trace_what[trace_at] == ACCEPTED ->
			queue = 1;
			ready[trace_who[trace_at]] = watching[trace_who[trace_at]];
			asleep[trace_who[trace_at]] = 0
		}
#else
	:: atomic { came < C -> came++; kernel_arrival(0) }
	:: atomic { came < C -> came++; kernel_arrival(1) }
	:: atomic { came < C -> came++; kernel_arrival(2) }
#endif
	/* Somebody writes the file, then asks; the control socket is there when the first generation accepts. */
	:: atomic { MAY_ASK(0) -> file_version++; asked_version[0] = file_version; ask[0] = ASKED }
#if ASKS > 1
	:: atomic { MAY_ASK(1) && (TRACED || ask[0] != UNASKED) -> file_version++; asked_version[1] = file_version; ask[1] = ASKED }
#endif
	od
}

active proctype Term()
{
#if defined(TERM) || defined(TRACE)
	atomic { SOON(SENT_RETIRE) -> terms = 1 }
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
#ifdef TRACE
	:: KILL(2)
	:: KILL(NW - 1)
#endif
	od
}

#ifndef TRACE
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

#define IS_TOLD(c) (ask[c] == DONE || ask[c] == REFUSED || (in_force == 0 && ask[c] == UNASKED))

active proctype AtRest()
{
	atomic {
		timeout ->
		assert(queue == 0 || ending);                              /* nobody is stuck */
		assert(IS_TOLD(0) && IS_TOLD(ASKS - 1));                   /* each is told, and once: see answer() */
		assert(change == IDLE && !wanted && (ending || !to_look));
		assert(ending || OPEN == N)  /* the generation in force and nobody else */
	}
}
#endif

init
{
	atomic {
		run Worker(0); run Worker(1); run Worker(2);
#if NW == 4
		run Worker(3)
#endif
	}
}
