"""What `accelerate launch` runs: `diffalign train` under it, with the same flags.

accelerate launch scripts/train.py --config configs/diffusion_dpo_sd15.yaml
"""

from __future__ import annotations

import sys

from diffalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
