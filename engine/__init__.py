"""The runtime: a prompt goes in, timed tokens come out."""
