"""tuitune's engine: one LLM fine-tuning run from data file to export, with no user interface in it."""

__version__ = "0.1.0"
