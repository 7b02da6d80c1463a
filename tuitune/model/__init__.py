"""A model as it lies on disk or on the Hub: configuration, tokenizer, weights, and where an adapter goes."""
