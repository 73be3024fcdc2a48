"""The engine: sequences in, float32 hidden states out. It knows nothing about text or rewards."""
