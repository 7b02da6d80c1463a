"""Runs on disk: their folders, their events, and what those add up to."""
