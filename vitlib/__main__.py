"""``python -m vitlib`` is the console command ``vitlib``."""

import sys

from vitlib.cli import main

sys.exit(main())
