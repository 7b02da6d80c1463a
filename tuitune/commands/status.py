"""Exit statuses of the command line; what is unusable ends with `UnusableInput.exit_code`."""

DONE, FAILED, INTERRUPTED = 0, 1, 130
