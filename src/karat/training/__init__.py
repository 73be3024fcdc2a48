"""Training any kind of reward on transformers' Trainer, through the same render and forward that score."""
