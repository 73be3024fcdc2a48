"""Models: how they are loaded, what text becomes for them, the heads on top, and checkpoints."""
