"""`diffalign app`."""

from __future__ import annotations

from diffalign.app.options import AppConfig
from diffalign.core.errors import ConfigError

CONFIG = AppConfig
ABOUT = "vote on pictures in the browser, and train on your votes"
HELP = """examples:
  diffalign app                                              the embedded model: no GPU, no download
  diffalign app --pretrained_model_name_or_path runwayml/stable-diffusion-v1-5 --config configs/diffusion_dpo_sd15_lora.yaml
  diffalign app --dataset_name votes.db --ahead 0            vote on what `diffalign votes add` put there
  diffalign app --server_name 0.0.0.0 --auth users.json      for others, who log in
"""


def run(config: AppConfig) -> int:
    """Serve the page until Ctrl-C."""
    print("Starting the app; this takes a few seconds.", flush=True)
    try:
        from diffalign.app.build import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ConfigError("the app needs gradio: pip install 'diffalign[app]'") from error

    serve(config)
    return 0
