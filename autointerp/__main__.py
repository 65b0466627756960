"""`python -m autointerp` is `autointerp`."""

from autointerp.cli import main

if __name__ == "__main__":
    main()
