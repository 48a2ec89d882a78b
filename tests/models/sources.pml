/* How many connections of a source there are: src/admission/sources/members.rs.
 *
 * What stands in the word of a slot is the count. A worker enters its slot and leaves it; the supervisor counts a connection
 * anew for another source when the configuration has changed (Scoreboard::recount), and the slot may become another's
 * meanwhile. Who enters may be killed; then the supervisor clears its slot. Each step is one operation on a word.
 */
#ifndef S
#define S 2
#endif
#ifndef LIVES
#define LIVES 2      /* connections of each worker, one after the other */
#endif
#define LIMIT 1      /* max_connections of a source */
#define FREE 0
#define OLD 1        /* the source as the old generation counts */
#define NEW 2        /* and the new one */
#ifdef TWO_SOURCES
#define OTHER 3      /* that of the second worker's clients, as the new one counts */
#else
#define OTHER NEW
#endif
#define NEW_OF(w) (w == 0 -> NEW : OTHER)
#define APPLIES 4
#ifdef MUTANT_SAME_WORD
#define MOVES 0
#else
#define MOVES 8      /* set beside APPLIES by the supervisor: its word is nobody else's */
#endif

byte owner[S];       /* of the row: a worker + 1 */
byte number[S];      /* of the connection in the row: each worker counts from 1 */
byte word[S];        /* Members::slots */
byte rough[4];       /* Members::groups, one for each source */

bit in_force;        /* the new configuration is */
byte entered_as[S];  /* for the assertions: whoever holds this slot has been let in, counted for this source */

/* Members::enter, at slot s for source k. */
inline enter(s, k)
{
#ifdef MUTANT_DECIDE_FIRST
	others = ((word[0] & 3) == k) + ((word[1] & 3) == k);
	if
	:: others < LIMIT -> atomic { word[s] = k; entered_as[s] = k }; rough[k]++; entered = 1
	:: else -> entered = 0
	fi
#else
	word[s] = k | APPLIES;
	atomic { before = rough[k]; rough[k]++ };
	others = 0;
	if
	:: before < LIMIT
	:: else -> others = ((word[1 - s] & 3) == k)
	fi;
	if
	:: others < LIMIT -> atomic { word[s] = k; entered_as[s] = k }; entered = 1
	:: else -> word[s] = 0; rough[k]--; entered = 0
	fi;
	before = 0
#endif
}

/* Members::leave */
inline leave(s)
{
	atomic { before = word[s]; word[s] = 0; entered_as[s] = 0 };
	if
	:: before != 0 && !(before & APPLIES) -> rough[before & 3]--
	:: else
	fi;
	before = 0
}

proctype Worker(byte me)
{
	byte n, before, others, s, k;
	bit entered;
	do
	:: n < LIVES ->
		n++;
		/* Slot::claim */
		if
		:: atomic { owner[0] == 0 -> owner[0] = me + 1; s = 0 }
		:: atomic { owner[1] == 0 -> owner[1] = me + 1; s = 1 }
		fi;
		k = (in_force -> NEW_OF(me) : OLD);
		enter(s, k);
		if
		:: entered ->
			number[s] = n;        /* Slot::note */
			skip;                 /* it is served */
			number[s] = 0         /* Scoreboard::clear: the number, the source, the owner */
		:: else
		fi;
		leave(s);
		owner[s] = 0;
		entered = 0
	:: else -> break
	od
}

#define STILL (owner[s] == who && number[s] == seen)
#ifdef MUTANT_BY_NUMBER
#undef STILL
#define STILL (number[s] == seen)
#endif

/* Scoreboard::recount and Members::move_to */
proctype Supervisor()
{
	byte s, who, seen, old, key;
	bit still, done;
	in_force = 1;
	do
	:: s < S ->
		who = owner[s];       /* Scoreboard::held_by */
		seen = number[s];
		key = (who == 1 -> NEW : OTHER);
		if
		:: who != 0 && seen != 0 ->
			old = word[s];
			if
			:: (old & 3) != key ->
				still = STILL;   /* spares a newcomer most of this; the second look decides */
				if
				:: still ->
					atomic { done = (word[s] == old); if :: done -> word[s] = key | APPLIES | MOVES :: else fi };
					if
					:: done ->
						if
						:: old != 0 && !(old & APPLIES) -> rough[old & 3]--
						:: else
						fi;
						rough[key]++;
#ifdef MUTANT_NO_SECOND_LOOK
						still = 1;
#else
						still = STILL;
#endif
						atomic {
							done = (word[s] == (key | APPLIES | MOVES));
							if
							:: done -> word[s] = (still -> key : 0)
							:: else
							fi
						};
						if
						:: !done || !still -> rough[key]--
						:: else
						fi
					:: else
					fi
				:: else
				fi
			:: else
			fi
		:: else
		fi;
		still = 0; done = 0; old = 0; who = 0; seen = 0; key = 0;
		s++
	:: else -> break
	od
}

#define IN(k) ((entered_as[0] == k) + (entered_as[1] == k))

/* It serves somebody, and is counted for the other worker's clients. */
#define IS_ANOTHERS(s) (NEW != OTHER && number[s] != 0 && ((owner[s] == 1 && word[s] == OTHER) || (owner[s] == 2 && word[s] == NEW)))

/* Never has the configuration in force let in more than may be. Those that the old one has let in may be more, and when they
 * are counted anew the old one may let in others until its workers have heard that they retire.
 */
active proctype Always()
{
	atomic { IN(NEW) > LIMIT || IS_ANOTHERS(0) || IS_ANOTHERS(1) -> assert(false) }
}

/* When all have gone, nobody is counted: who is could never come again. */
active proctype AtRest()
{
	atomic {
		timeout ->
		assert(word[0] == 0 && word[1] == 0)
		assert(rough[OLD] == 0 && rough[NEW] == 0 && rough[OTHER] == 0)   /* nobody was killed, so it is exact */
	}
}

init { atomic { run Worker(0); run Worker(1); run Supervisor() } }
