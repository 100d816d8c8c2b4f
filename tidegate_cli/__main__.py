"""`python -m tidegate_cli` is `tidegate`."""

import sys

from tidegate_cli.main import main

sys.exit(main())
