"""Checkpoints in, MLX model folders out."""
