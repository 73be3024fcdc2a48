"""Rewards: one file per kind, and the one pipeline that scores by any of them."""
