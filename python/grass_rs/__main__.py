"""`python -m grass_rs` is the command line."""

from __future__ import annotations

import sys

from grass_rs.cli.main import main

sys.exit(main())
