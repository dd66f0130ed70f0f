"""What the card of a personalised run says: its files, and the code by which stock pipelines draw for a user."""

from __future__ import annotations

import json
from collections.abc import Sequence

from diffalign.models.users.store import BRANCH, ENCODER

EXAMPLE = "user.safetensors"  # where no user came with the export


# How somebody who was not trained on comes in, by the run's encoder.
NEW = {
    "profile": "A new user is known by a text: `diffalign user embed --output_dir <this folder> --profile <text> "
    f"--destination {EXAMPLE}` writes their tokens.",
    "vector": f"A new user is known by numbers: `diffalign.load(<this folder>).for_user(<tensor>).save('{EXAMPLE}')` writes their tokens.",
    "slider": f"`diffalign.load(<this folder>).for_user({{<score>: <value in [0, 1]>}}).save('{EXAMPLE}')` writes the tokens of sliders, "
    "each at its value; those left out are off.",
    "one_hot": f"Only the users of the training can be drawn for, whose ids are in `{ENCODER}`: "
    f"`diffalign.load(<this folder>).for_user(<id>).save('{EXAMPLE}')` writes the tokens of one.",
}
CHOICES = (
    "A new user is known by a few choices, four or more: `diffalign user embed --output_dir <this folder> --dataset_name <pairs> "
    f"--destination {EXAMPLE}` writes their tokens."
)


def personal_files(users: Sequence[str], encoder: str = "pairs") -> list[str]:
    """Return a line for each kind of file; `users` are the files of users that came with the export."""
    held = (
        "what turns what is known of a new user into tokens"
        if encoder != "one_hot"
        else "the tokens of the training's users, with their ids"
    )
    return [
        f"`{BRANCH}`: the user branch, an IP-Adapter that stock pipelines load (PixArt's: the projection of a user's tokens)",
        f"`{ENCODER}`, `run.json`: {held}, for `diffalign`",
        *(f"`{user}`: the tokens of a user" for user in users),
    ]


def personal_usage(
    imports: Sequence[str], lines: Sequence[str], family: str, repo: str, users: Sequence[str], encoder: str = "pairs"
) -> str:
    """Return a snippet for stock diffusers, which begins with `imports` and `lines` that make `pipe`, and how new users come in."""
    tokens = f"load_file({_found(repo, users[0])})" if users else f'load_file("{EXAMPLE}")'
    comment = "# (U, D); torch.zeros_like(user) is nobody, and the negative half of guidance"
    more, steps, draw = _pixart(repo) if family == "pixart" else _adapter(repo, family)
    hub = ["from huggingface_hub import hf_hub_download"] if "/" in repo and (users or family == "pixart") else []
    needed = sorted([*imports, "from safetensors.torch import load_file", *more, *hub])
    code = ["import torch", *needed, "", *lines, f'user = {tokens}["tokens"]  {comment}', *steps, *draw]
    new = f"{NEW.get(encoder, CHOICES)} Tokens of two users may be mixed linearly."
    return "\n".join(["```python", *code, "```", "", new])


def _found(repo: str, file: str) -> str:
    """Return the expression for a file's path; an export on this machine is called by its folder's own name."""
    return f"hf_hub_download({json.dumps(repo)}, {json.dumps(file)})" if "/" in repo else json.dumps(f"{repo}/{file}")


def _adapter(repo: str, family: str) -> tuple[list[str], list[str], list[str]]:
    """Return imports, preparing lines and drawing lines where the pipeline itself loads an IP-Adapter."""
    absent = "image_encoder_pretrained_model_name_or_path" if family == "flux" else "image_encoder_folder"
    steps = [f'pipe.load_ip_adapter({json.dumps(repo)}, subfolder="", weight_name="{BRANCH}", {absent}=None)']
    both = "torch.stack([torch.zeros_like(user), user])"
    arguments = {
        "sd3": f"ip_adapter_image_embeds={both}",
        "flux": "ip_adapter_image_embeds=[user[None]], negative_ip_adapter_image_embeds=[torch.zeros_like(user)[None]]",
    }.get(family, f"ip_adapter_image_embeds=[{both}[:, None]]")
    return [], steps, [f'pipe("a red star", {arguments}).images[0].save("picture.png")']


def _pixart(repo: str) -> tuple[list[str], list[str], list[str]]:
    """Return the same for pipelines that load none: the user's words go behind the prompt's."""
    steps = [
        "projection = IPAdapterFullImageProjection(user.shape[1], pipe.transformer.config.caption_channels)",
        'layers = {"0": "ff.net.0.proj", "2": "ff.net.2", "3": "norm"}  # of image_proj.proj',
        f"tensors = [(name.split('.')[2:], value) for name, value in load_file({_found(repo, BRANCH)}).items()]",
        'projection.load_state_dict({f"{layers[layer]}.{leaf}": value for (layer, leaf), value in tensors})',
        "with torch.no_grad():",
        "    words = projection(user[None])",
        '    embeds, mask, negative, negative_mask = pipe.encode_prompt("a red star")',
        "heard = mask.new_full((1, len(user)), int(user.any()))  # nobody's words are masked",
        "embeddings = {",
        '    "prompt_embeds": torch.cat([embeds, words], 1),',
        '    "prompt_attention_mask": torch.cat([mask, heard], 1),',
        '    "negative_prompt_embeds": torch.cat([negative, torch.zeros_like(words)], 1),',
        '    "negative_prompt_attention_mask": torch.cat([negative_mask, torch.zeros_like(heard)], 1),',
        "}",
    ]
    imports = ["from diffusers.models.embeddings import IPAdapterFullImageProjection"]
    return imports, steps, ['pipe(negative_prompt=None, **embeddings).images[0].save("picture.png")']
