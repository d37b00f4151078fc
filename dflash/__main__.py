"""`python -m dflash` is the `dflash` command."""

import sys

from dflash.cli.main import main

sys.exit(main())
