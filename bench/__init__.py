"""Measurements: ours and the peer's in one run, alternating, with the machine named."""
