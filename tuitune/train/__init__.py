"""A run: the order of things, the trainer, batches that fit, checkpoints, and the proof that rows stay apart."""
