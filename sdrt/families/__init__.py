"""What the models of one family have in common."""
