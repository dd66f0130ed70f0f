"""The anchor of a run: a second stream of records, whose loss keeps the policy where it is on prompts that the preferences are not about.

C3PO (2402.10893) adds to DPO on prompts in scope s_soft * L(near misses) + s_hard * L(general prompts), L a mixture of likelihood and of
KL(reference || policy) on the reference's own answers; as released it is the likelihood alone, with weights 0.2 and 0.1. Here both kinds of
prompts lie in one table, L is the objective `denoise` or `distil`, and there is one weight.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from diffalign.core.errors import ConfigError, TableError
from diffalign.core.keys import Kind
from diffalign.data.records import Record
from diffalign.data.table import is_table, read_table
from diffalign.data.view import View
from diffalign.methods.anchoring import anchor_objective
from diffalign.methods.builders import image, text
from diffalign.methods.checks import check_text
from diffalign.methods.config import TrainConfig
from diffalign.methods.edits import check_inputs, layout_at
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models.reference import NoReference
from diffalign.objectives import bind_objective


def alone(record: Record) -> tuple[Record, ...]:
    """Return a record for each candidate alone: no label is read."""
    return tuple(replace(record, id=f"{record.id}/{place}", candidates=(c,), prob=1.0) for place, c in enumerate(record.candidates))


def open_anchor(config: TrainConfig, kind: Kind) -> View | None:
    """Return the records of the anchor, one for each candidate of its table, None where there is no anchor.

    Raises ConfigError where it names no table, TableError for a table of other candidates than the model makes, or of none.
    """
    if config.anchor_dataset_name is None:
        return None
    if not is_table(config.anchor_dataset_name):
        raise ConfigError(
            f"`anchor_dataset_name` is {config.anchor_dataset_name!r}, which is no preference table; `diffalign pairs generate` and "
            "`diffalign data import` write such"
        )
    table = read_table(config.anchor_dataset_name)
    view = View(table, [alone])
    if table.manifest["kind"] != kind or not len(view):
        raise TableError(f"{table.path}: {len(view)} {table.manifest['kind']}s; the anchor needs {kind}s that the model itself has made")
    if kind == "image" and (layout := layout_at(config.pretrained_model_name_or_path)) is not None and layout.picture != "none":
        check_inputs(view, layout)
    return view


def with_anchor(config: TrainConfig, parts: Parts, view: View | None, device: torch.device) -> Parts:
    """Return the parts of a run with those of its anchor on the records of `view`; unchanged where that is None.

    Model and reference are the run's own; pictures are noised (`forward`) whatever trajectory the run has.
    """
    if view is None:
        return parts
    objective = bind_objective(anchor_objective(config, parts.kind))
    compares = objective.name == "distil"
    changes = {"trajectory_spec": {"forward": {}}, "driver": "policy", "error_spec": {"squared": {}}, "transforms": ()}
    recipe = replace(parts.recipe, objective=objective, compares=compares, residuals=compares, rationales=False, **changes)
    build = _images if parts.kind == "image" else _texts
    anchor = replace(build(config, recipe, parts, view, device), recipe=recipe, table=view.table.fingerprint, index=None, penalty=None)
    return replace(parts, anchor=anchor, facts={**parts.facts, "anchor": view.table.fingerprint})


def _images(config: TrainConfig, recipe: Recipe, parts: Parts, view: View, device: torch.device) -> Parts:
    model, reference = parts.backbone, parts.reference
    if not recipe.compares:
        reference = NoReference()
    elif not parts.recipe.compares:
        reference = image.reference(config, recipe, model, device)
    likelihood = image.likelihood_of(config, recipe, model)
    return replace(parts, likelihood=likelihood, reference=reference, pairs=image.pairs(config, view, model))


def _texts(config: TrainConfig, recipe: Recipe, parts: Parts, view: View, device: torch.device) -> Parts:  # noqa: ARG001  # as of images
    check_text(config, recipe)
    data, reference = text.pairs(config, recipe, view), NoReference()
    return replace(parts, likelihood=text.likelihood(config, recipe, parts.backbone, data.longest), reference=reference, pairs=data)
