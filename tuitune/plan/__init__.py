"""What a run will be before it is begun: memory, steps, time, and which models are offered."""
