"""Talking with a loaded model."""
