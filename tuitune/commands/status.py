"""Exit statuses of the command line; what is unusable ends with `UnusableInput.exit_code`.

PREEMPTED, by SIGTERM or SIGUSR1 and saved, is the EX_TEMPFAIL of sysexits.h: it can be gone on with.
"""

DONE, FAILED, PREEMPTED, INTERRUPTED = 0, 1, 75, 130
