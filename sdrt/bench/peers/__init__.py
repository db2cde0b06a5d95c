"""Other people's ways to run the same checkpoint, each by its documented fast path."""
