"""What the figures in docs/measured.md come from; each script says how to run it and writes its result as JSON."""
