"""`python -m russet` is the `russet` command."""

from russet.engine.cli import main

if __name__ == "__main__":
    main(prog_name="russet")
