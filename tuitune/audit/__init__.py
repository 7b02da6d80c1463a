"""The whole of a dataset, looked at before anything is trained on it."""
