"""``python -m sdrt``."""

from sdrt.cli import main

if __name__ == "__main__":
    main()
