"""Bytes to examples and back: one file per data format, found by listing this folder."""
