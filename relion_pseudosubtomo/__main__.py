"""`python -m relion_pseudosubtomo`."""

import sys

from relion_pseudosubtomo.cli import main

if __name__ == "__main__":
    sys.exit(main())
