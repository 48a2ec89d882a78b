/* `preforkd upgrade`: the process stays and its program is replaced. What must not be forgotten is saved; all else is gone.
 *
 * One worker with a spare, the supervisor, a trial, three clients of the control socket, and children that end whenever they
 * like. The worker may be killed, also with its spare taken and nobody told yet. Steps: one system call each, and what only
 * the supervisor can see is done with the step before.
 */
#ifndef KILLS
#define KILLS 1
#endif
#define NONE 255

#include "trace.pml"

/* The steps that a story tells, and a trace. */
#define ASKED 21     /* client: its request is heard */
#define TRIED 22     /* the trial is forked */
#define PASSED 23    /* the trial has said that it can go on, and is heard */
#define EXECED 24    /* the supervisor becomes the new program */
#define ANSWERED 25  /* client */
#define KILLED 26    /* the worker */
#define BURIED 27
#define TAKEN 28     /* the spare has accepted */
#define ENDED 29     /* the spare's process */
#define REAPED 30    /* the same, by the supervisor */
#define REFUSED 31   /* client */
#define HEARD_LATE 32   /* what the spare has said, by the supervisor */

mtype = { RUNS, ENDS, ZOMBIE, GONE, STARTING, SAYS_YES, SAYS_NO, SILENT };

/* The kernel's: it knows nothing of programs, and keeps what is pending. */
mtype worker = RUNS;
mtype spare = RUNS;          /* the connection process that was a spare */
mtype trial = GONE;
bit events;                  /* SpareEvents: it says that it was taken, and nobody has read it */
bit connected;               /* it has a connection */
bit sigchld;                 /* pending, blocked outside epoll_pwait */
bit term;                    /* SIGTERM, the same */
byte asked[3];               /* a client: 0 not yet, 1 its request is in the socket, 2 it was read, 3 it is answered, 4 it hears nothing */

/* What the supervisor knows, and an upgrade saves. */
bit knows_worker = 1;
bit has_adopted;             /* AdoptedRecord */
bit adopted_serves;          /* the connection in the row */
bit watches_late;            /* SavedLateEvents */
bit changed;                 /* the new program runs */
byte accepted, completed;

/* What an exec forgets, unless it is among the saved. */
bit trying;
bit rolling_out;             /* the workers of the new program; begun anew after the exec, see reload.pml */
bit rolled_out, failed_to;   /* they accept, or cannot */
bit waits[3];                /* in the trial, or in the rollout: who waits for it */
bit wants[3];                /* PendingChanges::upgrade */
bit flag_child, flag_term;   /* flags that the handlers have set */
bit ending;

bit can_exec = 1;

inline answer(c, what)
{
	atomic {
		assert(asked[c] == 2);
		if :: what == ANSWERED -> OBSERVED(ANSWERED, c) :: what == REFUSED -> OBSERVED(REFUSED, c) fi;
		asked[c] = 3
	}
}

inline answer_waits(what)
{
	i = 0;
	do
	:: i < 3 ->
		if
		:: waits[i] -> answer(i, what); waits[i] = 0
		:: else
		fi;
		i++
	:: else -> i = 0; break
	od
}

inline answer_wants(what)
{
	i = 0;
	do
	:: i < 3 ->
		if
		:: wants[i] -> answer(i, what); wants[i] = 0
		:: else
		fi;
		i++
	:: else -> i = 0; break
	od
}

/* Supervisor::upgrade: who asks while something else is under way waits for his turn. */
inline ask_upgrade(c)
{
	if
	:: ending -> answer(c, REFUSED)
	:: !ending && (trying || rolling_out) -> wants[c] = 1
	:: else ->
		atomic { waits[c] = 1; trying = 1; OBSERVED(TRIED, 0); trial = STARTING }
	fi
}

inline begin_wanted()
{
	if
	:: !ending && !trying && !rolling_out && (wants[0] || wants[1] || wants[2]) ->
		atomic {
			waits[0] = wants[0]; waits[1] = wants[1]; waits[2] = wants[2];
			wants[0] = 0; wants[1] = 0; wants[2] = 0;
			trying = 1; OBSERVED(TRIED, 0); trial = STARTING
		}
	:: else
	fi
}

/* AdoptedConnections::hear_late */
inline hear_late()
{
	atomic {
		if
		:: watches_late && events && OBSERVABLE(HEARD_LATE, 0) ->
			OBSERVED(HEARD_LATE, 0);
			events = 0;
			if
			:: has_adopted && !adopted_serves -> adopted_serves = 1; accepted++
			:: else
			fi
		:: else
		fi
	}
}

/* Supervisor::bury */
inline bury()
{
	if
	:: atomic { worker == ZOMBIE -> OBSERVED(BURIED, 0); worker = GONE; knows_worker = 0 };
		atomic { has_adopted = 1; watches_late = 1; adopted_serves = 0 };
		hear_late()
	:: else
	fi
}

inline reap()
{
	bury();
	if
	:: spare == ZOMBIE ->
		if
		:: !has_adopted -> bury()
		:: else
		fi;
		/* wait::reap_one, then what it had to say, then AdoptedConnections::ended */
		atomic { OBSERVED(REAPED, 0); spare = GONE };
#ifndef MUTANT_ENDS_UNHEARD
		hear_late();
#endif
		atomic {
			assert(has_adopted);
			if
			:: adopted_serves -> completed++
			:: else
			fi;
			has_adopted = 0; adopted_serves = 0; watches_late = 0
		}
	:: else
	fi;
	if
	:: trial == SILENT -> trial = GONE    /* its trial has ended and is reaped like everybody */
	:: else
	fi
}

#define SPARE_CALLS (watches_late && events)
#define SOMETHING (sigchld || term || asked[0] == 1 || asked[1] == 1 || asked[2] == 1 || SPARE_CALLS || (trying && (trial == SAYS_YES || trial == SAYS_NO)) || rolled_out || failed_to)

active proctype Supervisor()
{
	byte i, n, c;
	bit yes, was_sent;
	do
	:: /* epoll_pwait(2): handlers run here and nowhere else, Signals::fetch_pending takes the rest. */
		atomic { SOMETHING || flag_child || flag_term -> flag_child = flag_child || sigchld; sigchld = 0; flag_term = flag_term || term; term = 0 };
		/* Supervisor::serve_control */
		c = 0;
		do
		:: c < 3 ->
			if
			:: atomic { asked[c] == 1 && OBSERVABLE(ASKED, c) -> OBSERVED(ASKED, c); asked[c] = 2 }; ask_upgrade(c)
			:: asked[c] != 1
			fi;
			c++
		:: else -> c = 0; break
		od;
		hear_late();
		/* Supervisor::obey_signals */
		if
		:: flag_term && !ending ->
			flag_term = 0; ending = 1;
			/* Supervisor::give_up_changes */
			atomic { trying = 0; rolling_out = 0; rolled_out = 0; failed_to = 0 };
			answer_waits(REFUSED);
			answer_wants(REFUSED)
		:: else -> flag_term = 0
		fi;
		flag_child = 0;
		reap();
		/* Supervisor::advance_rollout */
		if
		:: rolled_out -> atomic { rolled_out = 0; rolling_out = 0 }; answer_waits(ANSWERED)
		:: failed_to -> atomic { failed_to = 0; rolling_out = 0 }; answer_waits(REFUSED)
		:: else
		fi;
		/* Supervisor::advance_trial */
		begin_wanted();
		if
		:: trying && (trial == SAYS_YES || trial == SAYS_NO) ->
			atomic {
				yes = (trial == SAYS_YES); trying = 0; trial = SILENT;
				if :: yes -> OBSERVED(PASSED, 0) :: else fi
			};
			if
			:: !yes ->
				answer_waits(REFUSED);
				begin_wanted()
			:: else ->
				/* Supervisor::exec: State::save, execve(2). What is saved is what there is now. */
				if
				:: can_exec ->
					atomic {
						OBSERVED(EXECED, 0);
						/* Who waits for the trial is saved, and who has not been read. */
#ifndef MUTANT_FORGETS_WHO_WAITS
						waits[0] = waits[0] || wants[0]; waits[1] = waits[1] || wants[1]; waits[2] = waits[2] || wants[2];
#endif
#ifdef MUTANT_FORGETS_NEWCOMERS
						asked[0] = (asked[0] == 1 -> 4 : asked[0]); asked[1] = (asked[1] == 1 -> 4 : asked[1]); asked[2] = (asked[2] == 1 -> 4 : asked[2]);
#endif
						asked[0] = (asked[0] == 2 && !waits[0] -> 4 : asked[0]);
						asked[1] = (asked[1] == 2 && !waits[1] -> 4 : asked[1]);
						asked[2] = (asked[2] == 2 && !waits[2] -> 4 : asked[2]);
						/* Memory is gone. */
						wants[0] = 0; wants[1] = 0; wants[2] = 0;
						flag_child = 0; flag_term = 0; trying = 0;
#ifdef MUTANT_LATE_NOT_SAVED
						watches_late = 0;
#endif
#ifdef MUTANT_SIGNALS_RESET
						sigchld = 0; term = 0;
#endif
#ifdef MUTANT_ADOPTED_NOT_SAVED
						has_adopted = 0;
#endif
						/* Supervisor::renew_workers */
						changed = 1; can_exec = TRACED; rolling_out = 1
						/* AdoptedConnections::resume takes the connection from its row. */
					}
				:: else ->
					/* It failed, and all is as it was. */
#ifdef MUTANT_FORGETS_WHO_WAITS
					answer_waits(REFUSED)
#else
					atomic { waits[0] = waits[0] || wants[0]; waits[1] = waits[1] || wants[1]; waits[2] = waits[2] || wants[2]; wants[0] = 0; wants[1] = 0; wants[2] = 0 };
					answer_waits(REFUSED)
#endif
				fi
			fi;
			yes = 0
		:: else
		fi
	od
}

/* The trial: it passes, refuses, or is killed without a word, which the end of its link tells. */
active proctype Trial()
{
	do
	:: atomic { trial == STARTING && SOON(PASSED) -> trial = SAYS_YES; sigchld = 1 }
	:: atomic { trial == STARTING && SOON(REFUSED) -> trial = SAYS_NO; sigchld = 1 }
	od
}

active proctype Rollout()
{
	do
	:: atomic { rolling_out && !rolled_out && !failed_to && SOON(ANSWERED) -> rolled_out = 1 }
	:: atomic { rolling_out && !rolled_out && !failed_to && SOON(REFUSED) -> failed_to = 1 }
	od
}

/* Who was told asks again as another client. */
#define MAY_ASK(c) (asked[c] == 0 || (TRACED && asked[c] == 3)) && SOON_BY(ASKED, c)
/* What the worker that is to die hears of its spare is not modelled; in a trace it is stopped when that is taken. */
#define MAY_BE_TAKEN (spare == RUNS && !connected && (TRACED || worker != RUNS))

active proctype World()
{
	byte kills;
#ifdef TRACE
	bit said;
#endif
	do
	:: atomic { MAY_ASK(0) -> asked[0] = 1 }
	:: atomic { MAY_ASK(1) -> asked[1] = 1 }
#ifndef TWO_CLIENTS
	:: atomic { MAY_ASK(2) -> asked[2] = 1 }
#endif
	:: atomic { kills < KILLS && worker == RUNS && OBSERVABLE(KILLED, 0) -> OBSERVED(KILLED, 0); kills++; worker = ZOMBIE; sigchld = 1 }
	/* The spare accepts by itself, and says so in a pipe before anything else. In a trace, when it has accepted, and when it has begun
	 * to end, nobody need have seen anything of it. */
#ifdef TRACE
	:: atomic { MAY_BE_TAKEN && OBSERVABLE(TAKEN, 0) -> OBSERVED(TAKEN, 0); connected = 1 }
	:: atomic { connected && !said && SOON(HEARD_LATE) -> said = 1; events = 1 }
	:: atomic { spare == RUNS && OBSERVABLE(ENDED, 0) -> OBSERVED(ENDED, 0); spare = ENDS }
	:: atomic { spare == ENDS && SOON(REAPED) -> spare = ZOMBIE; sigchld = 1 }
#else
	:: atomic { MAY_BE_TAKEN -> OBSERVED(TAKEN, 0); connected = 1; events = 1 }
	:: atomic { spare == RUNS && worker != RUNS -> OBSERVED(ENDED, 0); spare = ZOMBIE; sigchld = 1 }
#endif
	od
}

/* It may be told to end, before or after. */
bit told_to_end;
active proctype Term()
{
	if
	:: atomic { !TRACED -> term = 1; told_to_end = 1 }
	:: true
	fi
}

#ifndef TRACE
active proctype AtRest()
{
	atomic {
		timeout ->
		assert(asked[0] == 3 && asked[1] == 3);          /* each is told, and was not told twice: see answer() */
#ifndef TWO_CLIENTS
		assert(asked[2] == 3);
#endif
		assert(spare == GONE && worker == GONE);         /* nobody is left unreaped */
		assert(accepted == connected && completed == connected)   /* a zombie from before the exec is counted, once */
		assert(!trying && !rolling_out && ending == told_to_end)
	}
}
#endif
