"""Trains every method on a small random model of every family, two steps each through the command line, and writes docs/models.md.

python -m scripts.matrix            train and write the file: about ten minutes on two cores
python -m scripts.matrix sd flux    train these families alone, and keep the rows of the others
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffalign.cli.main import main
from diffalign.data.table import read_table
from diffalign.methods import METHODS
from diffalign.models.backbones.folders import LAYOUTS
from tests.edit_models import EDITS, small_references, with_inputs
from tests.micro import write_pairs
from tests.micro_models import MAKERS, write_micro
from tests.micro_parts import SIDE

FILE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HEAD = """# Models

Made by `python -m scripts.matrix`, which trains each method for two steps on a small random model of the family, of the real classes of
diffusers and from a folder in their layout, through `diffalign train`. "yes" is a run that ended well; "no" is a refusal before
anything is loaded, which says why. No published checkpoint was at hand.

## Families

Latents are those of 1024 by 1024 pixels. Parameters are the denoiser's, counted on the meta device from the published config and equal
to a sum by hand (`tests/contracts/test_real_dimensions.py`); with *, the config was not compared with the hub's. Weights take two
bytes a parameter in bf16; `diffalign train --dry_run` adds activations, optimiser and adapter of your config.

| family | models | licence | parameters | bf16 weights | latent | path |
| --- | --- | --- | --- | --- | --- | --- |
"""
FITTED = "flow, shift by tokens and steps"
# By family: models, licence, parameters (None where they were not counted), whether their config was compared, latent, path.
FACTS: dict[str, tuple[str, str, int | None, bool, str, str]] = {
    "sd": ("SD 1.x, 2.x, Turbo", "OpenRAIL-M", 859_520_964, True, "4x128x128", "epsilon or v"),
    "sdxl": ("SDXL, Turbo, Playground v2.5", "OpenRAIL++-M; their own", 2_567_463_684, True, "4x128x128", "epsilon, v or EDM"),
    "kolors": ("Kolors", "see its card", 2_579_458_820, True, "4x128x128", "epsilon"),
    "pixart": ("PixArt-alpha, sigma", "OpenRAIL++-M", 611_349_152, True, "4x128x128", "epsilon"),
    "sd3": ("SD3, 3.5 (medium)", "Stability AI Community", 2_028_328_000, True, "16x128x128", "flow, fixed shift"),
    "flux": ("FLUX.1 dev, schnell", "non-commercial; Apache-2.0", 11_901_408_320, True, "16x128x128", "flow, shift by tokens"),
    "flux_kontext": ("FLUX.1 Kontext dev (edits)", "non-commercial", 11_901_408_320, False, "16x128x128", "flow, shift by tokens"),
    "z_image": ("Z-Image, Turbo", "Apache-2.0", 6_154_908_736, True, "16x128x128", "flow, fixed shift"),
    "qwen_image": ("Qwen-Image", "Apache-2.0", 20_430_401_088, True, "16x128x128, standardised", "flow, shift by tokens"),
    "qwen_image_edit": (
        "Qwen-Image-Edit, 2509 (edits)",
        "Apache-2.0",
        20_430_401_088,
        False,
        "16x128x128, standardised",
        "flow, shift by tokens",
    ),
    "chroma": ("Chroma1", "Apache-2.0", 8_899_983_424, True, "16x128x128", "flow"),
    "lumina2": ("Lumina-Image 2.0", "Apache-2.0", 2_609_769_152, True, "16x128x128", "flow, fixed shift"),
    "cogview4": ("CogView4-6B", "Apache-2.0", 6_369_118_272, True, "16x128x128", "flow, shift by the root of tokens"),
    "flux2": ("FLUX.2 klein (4B), dev (32.2B)", "see its card", 3_875_544_576, False, "128x64x64, batch-normalised", FITTED),
    "sana": ("SANA 1.6B", "see its card", 1_604_462_752, True, "32x32x32, no posterior", "flow, fixed shift"),
    "krea2": ("Krea 2", "see its card", 12_820_073_036, False, "16x128x128, standardised", "flow, shift by tokens"),
    "hidream": ("HiDream-I1", "MIT", 17_105_733_184, True, "16x128x128", "flow, fixed shift"),
    "ernie_image": ("ERNIE-Image", "see its card", 8_033_490_048, True, "128x64x64, batch-normalised", "flow, fixed shift"),
}
TOKENS = {"kolors": 256, "lumina2": 64, "flux2": 48, "z_image": 48}  # of a prompt with what stands around it; 24 elsewhere
IMAGE = [name for name, method in METHODS.items() if method.inference != "reward"]


def trained(model: Path, table: Path, family: str, method: str, output: Path) -> str:
    """Return yes for a run of two steps that ended well, no for one that was refused, and its last line for any other."""
    large = any(layout.large for layout in LAYOUTS.values() if layout.family == family)
    flags = {
        "pretrained_model_name_or_path": model,
        "dataset_name": table,
        "method": method,
        "output_dir": output,
        "resolution": SIDE,
        "max_train_steps": 2,
        "train_batch_size": 4,
        "rank": 2,
        **({"max_sequence_length": TOKENS.get(family, 24)} if large else {}),
        **({"user_encoder": "{pairs: {fit_steps: 2, fit_batch: 8}}"} if METHODS[method].inference == "user" else {}),
    }
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main(["train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))])
    return {0: "yes", 2: "no"}.get(status, said.getvalue().strip().splitlines()[-1])


def row(family: str) -> str:
    models, licence, parameters, compared, latent, path = FACTS[family]
    count = "not counted" if parameters is None else f"{parameters / 1e9:.2f}B{'' if compared else '*'}"
    weights = "" if parameters is None else f"{2 * parameters / 2**30:.1f} GiB"
    return f"| `{family}` | {models} | {licence} | {count} | {weights} | {latent} | {path} |"


def write(chosen: Sequence[str]) -> None:
    """Train the chosen families, and write the page."""
    cells = {family: values for family, values in _earlier().items() if family not in chosen}
    with tempfile.TemporaryDirectory() as temporary, small_references():
        work = Path(temporary)
        pairs = write_pairs(work / "pairs.parquet", scored=True, users=4)
        main(["data", "import", "--dataset_name", str(pairs), "--output_dir", str(work / "table")])
        with_inputs(read_table(work / "table"), work / "edits")
        for family in chosen:
            model, data = write_micro(family, work / family), work / ("edits" if family in EDITS else "table")
            cells[family] = [trained(model, data, family, method, work / f"{family}-{method}") for method in IMAGE]
            print(family, *cells[family], flush=True)
    lines = [*map(row, FACTS), "", "## Methods", "", f"| family | {' | '.join(IMAGE)} |", "| --- |" + " --- |" * len(IMAGE)]
    lines += [f"| `{family}` | {' | '.join(cells[family])} |" for family in FACTS]
    FILE.write_text(HEAD + "\n".join(lines) + "\n")


def _earlier() -> dict[str, list[str]]:
    """Return the cells of the page as it is, by family."""
    rows = FILE.read_text().partition("## Methods")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in rows if line.startswith("| `")]
    return {family.strip("`"): values for family, *values in cells}


if __name__ == "__main__":
    assert {layout.family for layout in LAYOUTS.values()} == FACTS.keys() <= MAKERS.keys(), "a family without its row"
    write(sys.argv[1:] or [*FACTS])
