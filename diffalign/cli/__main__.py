"""`python -m diffalign.cli`, which `accelerate launch -m` needs."""

import sys

from diffalign.cli.main import main

sys.exit(main())
