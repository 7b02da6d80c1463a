"""The machine: its GPUs and memory, its libraries, and how they are made ready."""
