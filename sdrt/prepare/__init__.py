"""Opening of the engines of a checkpoint, bundle or folder; what is missing is exported and built."""
