"""`python -m tools.native`: see the package."""

import sys

from tools.native import main

sys.exit(main())
