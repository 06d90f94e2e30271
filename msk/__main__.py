"""`python -m msk` is `msk`."""
import sys

from .cli import main

sys.exit(main())
