"""What the README's figures come from; each script says how to run it and writes under benchmarks/results/."""
