"""`python -m kft` is the command `kft`."""

from __future__ import annotations

from kft.cli import main

if __name__ == "__main__":
    main()
