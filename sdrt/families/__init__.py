"""Facts shared by all models of one family."""
