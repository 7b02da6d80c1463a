"""What judges the answers that a model gives itself: one file a reward, each run apart from the training.

`judge.py` is the side of the training, `worker.py` that of the process which computes the values. What the worker
imports must need nothing heavy.
"""
