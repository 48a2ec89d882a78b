/* A run of the real program, one step after the other, that the model has to be able to go along with (tests/models/replay).
 * Without TRACE the steps are free. */
#ifdef TRACE
#define TRACED 1
#define LONGEST 2000
hidden short trace_what[LONGEST];
hidden short trace_who[LONGEST];
short trace_at;
hidden short trace_length;
#define OBSERVED(what, who) (trace_what[trace_at] == (what) && trace_who[trace_at] == (who)) -> trace_at++
#define OBSERVABLE(what, who) (trace_what[trace_at] == (what) && trace_who[trace_at] == (who))
#define ANYBODY_NEXT(what) (trace_what[trace_at] == (what))
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
#define TRACED 0
#define OBSERVED(what, who) printf(#what); printf(" %d;\n", who)
#define OBSERVABLE(what, who) true
#define SOON(what) true
#define SOON_BY(what, who) true
#endif
