"""One user's pipeline: the stock one, which gets the user's tokens with each call. All users of a run share one network."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.models.backbones.table import component_of
from diffalign.models.users import branch
from diffalign.models.users.layout import parameters
from diffalign.models.users.store import save_tokens


@dataclass(frozen=True, slots=True, eq=False)
class UserPipeline:
    """Draws for one user: called as the stock pipeline `pipe` is. `tokens` (U, D) of nobody are None, who gets the base's pictures."""

    pipe: Any
    encoder: str  # fingerprint of what made the tokens
    tokens: Tensor | None = None
    strength: float = 1.0  # of the user branch: 1 is the one it is trained at

    @torch.no_grad()
    def __call__(self, prompt: Any = None, **arguments: Any) -> Any:
        """Return what the stock pipeline returns for the prompt or prompts, and its own other arguments, by name."""
        with at_strength(self.denoiser, 0.0 if self.tokens is None else self.strength):
            if self.tokens is not None and type(self.pipe).__name__.startswith("PixArt"):
                return self.pipe(**_appended(self.pipe, self.tokens, prompt, arguments))
            user_arguments = branch.pipeline_arguments(self.pipe, self.tokens, _guided(self.pipe, arguments))
            return self.pipe(prompt, **_cast(self.denoiser, user_arguments), **arguments)

    @property
    def denoiser(self) -> Any:
        """Return the network, which all users of a run share."""
        return getattr(self.pipe, component_of(self.pipe))

    def mixed(self, other: UserPipeline | None, weight: float) -> UserPipeline:
        """Return the pipeline at `weight` in [0, 1] on the way from this user to another, or to nobody (None).

        Tokens mix linearly between two users; on the way to nobody the branch grows weaker. Neither way do pictures change evenly: what
        the branch adds passes through the whole network, and most of the change may lie in a part of the way. Raises ConfigError for a
        weight outside [0, 1], and for users of different encoders.
        """
        if not 0.0 <= weight <= 1.0:
            raise ConfigError(f"`weight` is {weight}; expected a number from 0, this user, to 1, the other")
        if other is not None and other.encoder != self.encoder:
            raise ConfigError("the two users come from different user encoders, whose tokens do not mix; embed both with one run")
        parts = [(user, share) for user, share in ((self, 1.0 - weight), (other, weight)) if user is not None and user.tokens is not None]
        strength = sum(share * user.strength for user, share in parts)
        # Towards nobody the tokens stay as they are: half of them would be another user's, and the strength does it.
        shares = [1.0] if len(parts) == 1 else [share for _, share in parts]
        tokens = [share * user.tokens for (user, _), share in zip(parts, shares, strict=True) if user.tokens is not None]
        return UserPipeline(self.pipe, self.encoder, sum(tokens[1:], tokens[0]) if tokens else None, strength)

    def save(self, file: str | Path) -> None:
        """Write the user's tokens for `for_user` of this run: a few kB (encoder vlm: some 100 kB); the folder is made if it is missing.

        Raises ConfigError for nobody, and for a mix with nobody.
        """
        if self.tokens is None or self.strength != 1.0:
            raise ConfigError(
                f"{file}: a file holds a user's tokens, and nobody, or a mix with nobody, has none; save the user and mix again"
            )
        save_tokens(self.tokens, Path(file), self.encoder)


@contextlib.contextmanager
def at_strength(denoiser: Any, strength: float) -> Iterator[None]:
    """Run the block with the branch at `strength`; it is as strong as before afterwards, also on an error."""
    before = denoiser.user_branch.strength
    branch.set_strength(denoiser, strength)
    try:
        yield
    finally:
        branch.set_strength(denoiser, before)


def shortlist(name: str, users: Iterable[str]) -> list[str]:
    """Return the user id nearest to `name` and the first ten: a dataset may have thousands."""
    names = sorted(users)
    return [*get_close_matches(name, names, n=1, cutoff=0.6), *names[:10]]


def _guided(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether a call with `arguments` runs classifier-free guidance, as the stock pipeline decides it."""
    scale = arguments.get("guidance_scale", inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)
    return scale > 1.0 and getattr(pipe, component_of(pipe)).config.get("time_cond_proj_dim") is None


def _cast(denoiser: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments in the precision of the branch, since not every projector casts what it gets."""
    dtype = next(iter(parameters(denoiser)["image_proj"].values())).dtype
    return {
        name: [value.to(dtype) for value in values] if isinstance(values, list) else values.to(dtype) for name, values in arguments.items()
    }


def _appended(pipe: Any, tokens: Tensor, prompt: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a PixArt pipeline with the prompt's embeddings and the user's words, masked in guidance's other half."""
    rest, defaults = dict(arguments), inspect.signature(type(pipe).__call__).parameters
    # The two methods of the pipeline have different defaults.
    encoding = {name: rest.pop(name, defaults[name].default) for name in ("negative_prompt", "clean_caption", "max_sequence_length")}
    embedded = {name: rest.pop(name) for name in _EMBEDDED if name in rest}
    embeds, mask, *negative = pipe.encode_prompt(prompt, _guided(pipe, arguments), num_images_per_prompt=1, **encoding, **embedded)
    transformer, user = pipe.transformer, tokens.expand(len(embeds), -1, -1)
    made = branch.appended(transformer, embeds, mask, user)
    if negative[0] is not None:
        made += branch.appended(transformer, negative[0], negative[1], torch.zeros_like(user))
    return {"negative_prompt": None, **dict(zip(_EMBEDDED, made, strict=False)), **rest}


_EMBEDDED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
