"""Other libraries that run the same checkpoint, each by its documented fast path."""
