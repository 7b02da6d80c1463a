"""Documents that a chat can look things up in: read, split by their structure, indexed, searched."""
