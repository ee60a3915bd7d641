"""Ways to fill the cache from a prompt, one a file; the contract is in base.py."""
