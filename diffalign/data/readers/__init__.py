"""Readers of published datasets and of people's own files, by name."""

from __future__ import annotations

from diffalign.data.readers.base import Reader, Row, read
from diffalign.data.readers.columns import COLUMNS
from diffalign.data.readers.controlnet import CONTROLNET
from diffalign.data.readers.folders import FOLDERS
from diffalign.data.readers.helpsteer2 import HELPSTEER2
from diffalign.data.readers.hh_rlhf import HH_RLHF
from diffalign.data.readers.hpdv2 import HPDV2
from diffalign.data.readers.imagereward import IMAGEREWARD
from diffalign.data.readers.label_studio import LABEL_STUDIO
from diffalign.data.readers.llamafactory import LLAMAFACTORY
from diffalign.data.readers.llmbar import LLMBAR
from diffalign.data.readers.open_image_preferences import OPEN_IMAGE_PREFERENCES
from diffalign.data.readers.pandalm import PANDALM
from diffalign.data.readers.pickapic import PICKAPIC
from diffalign.data.readers.prompts import PROMPTS
from diffalign.data.readers.sources import open_rows
from diffalign.data.readers.trl import TRL
from diffalign.data.readers.ultrafeedback import ULTRAFEEDBACK
from diffalign.data.readers.unpaired import UNPAIRED
from diffalign.data.readers.votes import VOTES

READERS: dict[str, Reader] = {
    "columns": COLUMNS,
    "folders": FOLDERS,
    "helpsteer2": HELPSTEER2,
    "hh_rlhf": HH_RLHF,
    "hpdv2": HPDV2,
    "imagereward": IMAGEREWARD,
    "label_studio": LABEL_STUDIO,
    "llamafactory": LLAMAFACTORY,
    "llmbar": LLMBAR,
    "open_image_preferences": OPEN_IMAGE_PREFERENCES,
    "pandalm": PANDALM,
    "pickapic": PICKAPIC,
    "prompts": PROMPTS,
    "trl": TRL,
    "ultrafeedback": ULTRAFEEDBACK,
    "unpaired": UNPAIRED,
    "votes": VOTES,
    "controlnet": CONTROLNET,  # last: what lacks one of its columns is rather meant as one of the others
}

__all__ = ["READERS", "Reader", "Row", "open_rows", "read"]
