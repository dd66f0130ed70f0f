"""The step of other programs on the same pairs and the same model, rebuilt from what their scripts do, with the stock libraries they call.

`LoraScript` is diffusers' `train_diffusion_dpo.py` (SD1.5, LoRA), `FullScript` the training script of the Diffusion-DPO authors: both
decode the pictures and run VAE and text encoder in the step. Neither is copied; what is left out here (trackers, checkpoints) costs a
script more. `timed_script` runs a script itself, where it is installed, and times what lies between the steps of its optimiser.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

LORA_LAYERS = ["to_k", "to_q", "to_v", "to_out.0"]  # of diffusers' script
WATCH = """
import json, runpy, sys, time, torch
ends = []
def end(*_):
    torch.cuda.is_available() and torch.cuda.synchronize()
    ends.append((time.perf_counter(), time.process_time()))
torch.optim.optimizer.register_optimizer_step_post_hook(end)
file, *sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    open(file, "w").write(json.dumps(ends))
"""


class LoraScript:
    """A step of diffusers' script: an adapter, the reference with adapters disabled; all of a batch in one pass of the network."""

    rank, beta = 8, 2500.0

    def __init__(self, model: str, pairs: Path, side: int, count: int, precision: str) -> None:
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        pipe: Any = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
        self.vae, self.encoder, self.tokenizer, self.unet = pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet
        self.scheduler: Any = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
        for part in (self.vae, self.encoder, self.unet):
            torch.nn.Module.to(part.requires_grad_(False), self.accelerator.device, self.dtype)  # diffusers' own warns
        self.device, self.count = self.accelerator.device, count
        self.rows = itertools.cycle(pq.read_table(pairs).to_pylist())
        self.framing = v2.Compose(
            [v2.Resize(side), v2.RandomCrop(side), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
        )
        self.parameters = self._train()
        optimizer = torch.optim.AdamW(self.parameters, lr=1e-8, weight_decay=1e-2)
        self.unet, self.optimizer, self.schedule = self.accelerator.prepare(self.unet, optimizer, get_scheduler("constant", optimizer))
        self.unet.train()

    def _train(self) -> list[torch.nn.Parameter]:
        self.unet.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=LORA_LAYERS))
        parameters = [p for p in self.unet.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        return parameters

    def _reference(self, *inputs: Tensor) -> Tensor:
        self.unet.disable_adapters()
        with torch.no_grad():
            output = self.unet(*inputs).sample
        self.unet.enable_adapters()
        return output

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return the pictures (2B, 3, H, W), preferred ones first, and the tokens (B, L) of the next pairs."""
        rows, sides = list(itertools.islice(self.rows, self.count)), ([], [])
        for row in rows:
            order = (0, 1) if row["label_0"] else (1, 0)
            for side, k in zip(sides, order, strict=True):
                side.append(self.framing(Image.open(io.BytesIO(row[f"jpg_{k}"])).convert("RGB")))
        words = {"padding": "max_length", "truncation": True, "max_length": self.tokenizer.model_max_length}
        tokens = self.tokenizer([row["caption"] for row in rows], **words, return_tensors="pt").input_ids
        return torch.stack(sides[0] + sides[1]).to(self.device, self.dtype), tokens.to(self.device)

    def step(self) -> None:
        """Take a step: pictures, VAE, text encoder, two passes of the network, backward pass, clipping, optimiser, log."""
        pixels, tokens = self._batch()
        latents = torch.cat([self.vae.encode(part).latent_dist.sample() for part in pixels.split(8)]) * self.vae.config.scaling_factor
        noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)
        times = torch.randint(0, 1000, (self.count,), device=self.device).repeat(2)
        inputs = self.scheduler.add_noise(latents, noise, times), times, self.encoder(tokens)[0].repeat(2, 1, 1)
        own = self._errors(self.unet(*inputs).sample, noise)
        their = self._errors(self._reference(*inputs), noise)
        logits = (their[0] - their[1]) - (own[0] - own[1])
        loss = -F.logsigmoid(self.beta * logits).mean()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        _ = [value.detach().item() for value in (loss, own[0].mean(), their[0].mean(), (logits > 0).float().mean())]

    @staticmethod
    def _errors(output: Tensor, noise: Tensor) -> Sequence[Tensor]:
        return F.mse_loss(output.float(), noise.float(), reduction="none").flatten(1).mean(dim=1).chunk(2)


class FullScript(LoraScript):
    """A step of the authors' script: every weight is trained, the reference is a second network, frozen and in the precision of the run."""

    beta = 5000.0 / 2  # which multiplies the same errors with one half before

    def _train(self) -> list[torch.nn.Parameter]:
        self.frozen: Any = UNet2DConditionModel.from_config(self.unet.config)
        self.frozen.load_state_dict(self.unet.state_dict())
        torch.nn.Module.to(self.frozen.requires_grad_(False).eval(), self.device, self.dtype)
        torch.nn.Module.float(self.unet).requires_grad_(True)
        return list(self.unet.parameters())

    def _reference(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self.frozen(*inputs).sample


def timed_script(script: Path, words: Sequence[str], skip: int = 2) -> Mapping[str, float]:
    """Return the median seconds, and seconds of CPU, between the optimiser's steps of another program's script, run with its own flags.

    The first `skip` are left out. Raises CalledProcessError with its output on the screen where the script fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ends.json"
        subprocess.run([sys.executable, "-c", WATCH, str(file), str(script), *words], check=True)  # noqa: S603  # named by who runs this
        ends = json.loads(file.read_text())[skip:]
    gaps = [[later[k] - earlier[k] for earlier, later in itertools.pairwise(ends)] for k in (0, 1)]
    return {"seconds": statistics.median(gaps[0]), "seconds of CPU": statistics.median(gaps[1]), "steps": len(gaps[0])}
