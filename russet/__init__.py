"""Russet: on-device language models on Apple silicon, with the shortest honest wait for the first token."""
