"""`python -m guardwire` is the `guardwire` command."""

import sys

from guardwire.cli import main

if __name__ == "__main__":
    sys.exit(main())
