"""Trains every method on a small random model of every family, two steps each through the command line, counts the memory of the published
models, and writes docs/models.md and the table of the README.

python -m scripts.matrix                  train and count all: about ten minutes on two cores
python -m scripts.matrix sd flux          these families alone; what the page has of the others stays
python -m scripts.matrix --count sd flux  only count their memory
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from diffalign.cli.main import main
from diffalign.data.table import read_table
from diffalign.methods import METHODS
from diffalign.models.backbones.folders import LAYOUTS
from scripts.model_memory import lora_bytes
from tests.contracts.test_real_dimensions import PARAMETERS
from tests.edit_models import EDITS, small_references, with_inputs
from tests.micro import write_pairs
from tests.micro_models import MAKERS, write_micro
from tests.micro_parts import SIDE

ROOT = Path(__file__).resolve().parents[1]
FILE, README = ROOT / "docs" / "models.md", ROOT / "README.md"
HEAD = """# Models

Made by `python -m scripts.matrix`, which trains each method for two steps on a small random model of the family, of the real classes of
diffusers and from a folder in their layout, through `diffalign train`. "yes" is a run that ended well; "no" is a refusal before
anything is loaded, which says why. No published checkpoint was at hand.

## Families

Latents are those of 1024 by 1024 pixels. Parameters are the denoiser's, counted on the meta device from the published config and equal
to a sum by hand (`tests/contracts/test_real_dimensions.py`); with *, the config was not compared with the hub's. LoRA is the memory of
training one on pairs at 1024 pixels, in GiB, by the arithmetic of `diffalign train --dry_run` (`scripts/model_memory.py`): one pair at
a time, rank 8, `--mixed_precision bf16`, `--gradient_checkpointing`, latents and prompts cached, the base in bf16 or by `--quantization
nf4`. The allocator's reserve and the device's context come on top, about 1 GiB. No GPU was at hand to measure it on.

| family | models | licence | parameters | LoRA, bf16 | LoRA, nf4 | latent | path | methods |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
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
    "ovis_image": ("Ovis-Image 7B", "see its card", 7_370_449_728, True, "16x128x128", "flow, shift by tokens"),
    "ernie_image": ("ERNIE-Image", "see its card", 8_033_490_048, True, "128x64x64, batch-normalised", "flow, fixed shift"),
}
TOKENS = {
    "kolors": 256,
    "ovis_image": 48,
    "lumina2": 64,
    "flux2": 48,
    "z_image": 48,
}  # of a prompt with what stands around it; 24 elsewhere
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


Cells = dict[str, dict[str, str]]  # by family and column


def table(text: str, first: str) -> Cells:
    """Return the table of a page whose columns begin with `family` and `first`."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| family | {first} |"):
            names, rows = _split(line)[1:], {}
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                family, *values = _split(row)
                rows[family.strip("`")] = dict(zip(names, values, strict=True))
            return rows
    return {}


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def works(cells: Mapping[str, str]) -> str:
    """Return in words which methods passed."""
    passed, others = [name for name, cell in cells.items() if cell == "yes"], [name for name, cell in cells.items() if cell != "yes"]
    return "all" if not others else f"all but {', '.join(others)}" if len(others) < len(passed) else ", ".join(passed)


def family_row(family: str, memory: Mapping[str, str], cells: Mapping[str, str]) -> str:
    models, licence, parameters, compared, latent, path = FACTS[family]
    count = "not counted" if parameters is None else f"{parameters / 1e9:.2f}B{'' if compared else '*'}"
    sizes = (memory.get(f"LoRA, {base}", "") for base in ("bf16", "nf4"))
    return _line([f"`{family}`", models, licence, count, *sizes, latent, path, works(cells)])


def page(memory: Cells, cells: Cells) -> str:
    """Return docs/models.md."""
    lines = [family_row(family, memory.get(family, {}), cells[family]) for family in FACTS]
    lines += ["", "## Methods", "", _line(["family", *IMAGE]), "| --- |" + " --- |" * len(IMAGE)]
    return HEAD + "\n".join([*lines, *(_line([f"`{family}`", *cells[family].values()]) for family in FACTS)]) + "\n"


def readme(text: str, cells: Cells) -> str:
    """Return the README with what passed in its table of methods: families of equal columns share one, and the first column stays."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for family in sorted(FACTS, key=lambda family: -list(cells[family].values()).count("yes")):
        groups.setdefault(tuple(cells[family].values()), []).append(re.sub(r" \([^)]*\)", "", FACTS[family][0]))
    match = re.search(r"^\| method \|.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    assert match is not None, "the README has no table of methods"
    lines = [_line(["method", *("; ".join(names) for names in groups.values())]), "| --- |" + " --- |" * len(groups)]
    for row in match[0].splitlines()[2:]:
        name = re.search(r"docs/methods/(\w+)\.md", row)
        assert name is not None, f"no method's page in the row {row}"
        lines.append(_line([_split(row)[0], *(values[IMAGE.index(name[1])] for values in groups)]))
    return text.replace(match[0], "\n".join(lines))


def trained_families(families: Iterable[str]) -> Cells:
    """Return what became of every method on the small models of some families."""
    cells: Cells = {}
    with tempfile.TemporaryDirectory() as temporary, small_references():
        work = Path(temporary)
        pairs = write_pairs(work / "pairs.parquet", scored=True, users=4)
        main(["data", "import", "--dataset_name", str(pairs), "--output_dir", str(work / "table")])
        with_inputs(read_table(work / "table"), work / "edits")
        for family in families:
            model, data = write_micro(family, work / family), work / ("edits" if family in EDITS else "table")
            cells[family] = {method: trained(model, data, family, method, work / f"{family}-{method}") for method in IMAGE}
            print(family, *cells[family].values(), flush=True)
    return cells


def latent_of(family: str, shrink: int = 1) -> tuple[int, int, int]:
    """Return the (C, H, W) of a picture of 1024 / `shrink` pixels."""
    channels, height, width = (int(side) for side in FACTS[family][4].split(",")[0].split("x"))
    return channels, height // shrink, width // shrink


def counted_families(families: Iterable[str]) -> Cells:
    """Return the memory of LoRA in GiB for some families, of a base in bf16 and in nf4."""
    cells: Cells = {}
    for family in families:
        latent = latent_of(family)
        model = next(name for name, parameters in PARAMETERS.items() if parameters == FACTS[family][2])
        with tempfile.TemporaryDirectory() as work:
            sizes = {
                base: lora_bytes(family, model, latent, Path(work), quantization) for base, quantization in (("bf16", None), ("nf4", "nf4"))
            }
        cells[family] = {f"LoRA, {base}": f"{size / 2**30:.1f}" for base, size in sizes.items()}
        print(family, cells[family], flush=True)
    return cells


def write(train: Iterable[str], count: Iterable[str]) -> None:
    """Train and count some families, and write page and README; other families keep what stands on the page."""
    text = FILE.read_text()
    cells = table(text, IMAGE[0]) | trained_families(train)
    memory = table(text, "models") | counted_families(count)
    FILE.write_text(page(memory, cells))
    README.write_text(readme(README.read_text(), cells))


if __name__ == "__main__":
    assert {layout.family for layout in LAYOUTS.values()} == FACTS.keys() <= MAKERS.keys(), "a family without its row"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="families to train and count")
    parser.add_argument("--count", nargs="+", choices=FACTS, help="families to count alone")
    args = parser.parse_args()
    chosen = args.families or [*FACTS]
    write([] if args.count else chosen, args.count or chosen)
