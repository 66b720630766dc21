"""`python -m guardwire_server` is `guardwire-server`."""

import sys

from guardwire_server.cli import main

sys.exit(main())
