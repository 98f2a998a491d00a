"""`python -m lgm VERB` is `lgm VERB`."""

import sys

from lgm.cli import main

sys.exit(main())
