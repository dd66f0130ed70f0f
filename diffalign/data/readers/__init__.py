"""Readers of published datasets and of people's own files, by name."""

from __future__ import annotations

from diffalign.data.readers.base import Reader, Row, read
from diffalign.data.readers.columns import COLUMNS
from diffalign.data.readers.controlnet import CONTROLNET
from diffalign.data.readers.folders import FOLDERS
from diffalign.data.readers.helpsteer2 import HELPSTEER2
from diffalign.data.readers.hh_rlhf import HH_RLHF
from diffalign.data.readers.hpdv2 import HPDV2
from diffalign.data.readers.hpdv3 import HPDV3
from diffalign.data.readers.imagereward import IMAGEREWARD
from diffalign.data.readers.label_studio import LABEL_STUDIO
from diffalign.data.readers.llamafactory import LLAMAFACTORY
from diffalign.data.readers.llmbar import LLMBAR
from diffalign.data.readers.multifaceted import MULTIFACETED
from diffalign.data.readers.multipref import MULTIPREF
from diffalign.data.readers.oasst import OASST
from diffalign.data.readers.open_image_preferences import OPEN_IMAGE_PREFERENCES
from diffalign.data.readers.pandalm import PANDALM
from diffalign.data.readers.pickapic import PICKAPIC
from diffalign.data.readers.prompts import PROMPTS
from diffalign.data.readers.rapidata import RAPIDATA
from diffalign.data.readers.richhf import RICHHF
from diffalign.data.readers.sources import open_rows
from diffalign.data.readers.trl import TRL
from diffalign.data.readers.ultrafeedback import ULTRAFEEDBACK
from diffalign.data.readers.ultrafeedback_original import ULTRAFEEDBACK_ORIGINAL
from diffalign.data.readers.unpaired import UNPAIRED
from diffalign.data.readers.votes import VOTES

READERS: dict[str, Reader] = {
    "columns": COLUMNS,
    "folders": FOLDERS,
    "helpsteer2": HELPSTEER2,
    "hh_rlhf": HH_RLHF,
    "hpdv2": HPDV2,
    "hpdv3": HPDV3,
    "imagereward": IMAGEREWARD,
    "label_studio": LABEL_STUDIO,
    "llamafactory": LLAMAFACTORY,
    "llmbar": LLMBAR,
    "multifaceted": MULTIFACETED,
    "multipref": MULTIPREF,
    "oasst": OASST,
    "open_image_preferences": OPEN_IMAGE_PREFERENCES,
    "pandalm": PANDALM,
    "pickapic": PICKAPIC,
    "prompts": PROMPTS,
    "rapidata": RAPIDATA,
    "richhf": RICHHF,
    "trl": TRL,
    "ultrafeedback": ULTRAFEEDBACK,
    "ultrafeedback_original": ULTRAFEEDBACK_ORIGINAL,
    "unpaired": UNPAIRED,
    "votes": VOTES,
    "controlnet": CONTROLNET,  # last: what lacks one of its columns is rather meant as one of the others
}

__all__ = ["READERS", "Reader", "Row", "open_rows", "read"]
