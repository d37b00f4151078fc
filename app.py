"""Open the workbench: `python app.py`. The options are in `python app.py --help`."""

import sys

from workbench.launch import main

if __name__ == "__main__":
    sys.exit(main())
