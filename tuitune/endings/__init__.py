"""What follows a run's end: notices to whoever looks elsewhere, and a command that the user has named."""
