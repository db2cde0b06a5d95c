"""Source of the demo checkpoint: scenes, captions, training and evaluation."""
