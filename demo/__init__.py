"""How the demo checkpoint is made: its scenes, their captions, the training and the evaluation."""
