"""Chat templates: how they render a conversation, what stands before a reply and what ends it."""
