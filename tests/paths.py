"""Where tests find the repository's folders."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
ASSETS, CONFIGS = ROOT / "assets", ROOT / "configs"
DATA_FIXTURES, FIXTURES, GOLDENS = TESTS / "data" / "fixtures", TESTS / "fixtures", TESTS / "golden" / "data"
