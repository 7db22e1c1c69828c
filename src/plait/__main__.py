"""`python -m plait`: the same as the command `plait`."""

import sys

from plait.cli import main

sys.exit(main())
