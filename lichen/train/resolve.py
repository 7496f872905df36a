"""From a recipe to a plan: which model, which data, what updates which parameter, and whether they fit."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lichen.arch.families import load_spec, read_config, write_config
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.data.dataset import TokenDataset
from lichen.data.tokenizer import tokenizer_hash
from lichen.errors import LichenError, said_if_slow
from lichen.nn.build import require_modules
from lichen.nn.roles import Role
from lichen.nn.transformer import Transformer
from lichen.optim import recipes
from lichen.optim.qk_clip import require_clippable
from lichen.optim.recipes import OptimizerRecipe
from lichen.optim.table import Override, ParameterTable, parameter_table
from lichen.serve.open import check_whole
from lichen.train.recipe import Recipe, unknown_field

MOST_TOKENS = 2**30
"""Of one step, whose ids and targets lie in memory: some 20 GB. DeepSeek-V3's last steps took 63 M tokens."""


@dataclass(frozen=True)
class Plan:
    """A recipe that depends neither on the current folder nor on Lichen's defaults; its model, its data."""

    recipe: Recipe
    spec: ModelSpec
    dataset: TokenDataset


def resolve(recipe: Recipe) -> Plan:
    """Make a recipe independent of the current folder and of Lichen's defaults; its model and its data.

    The special tokens of the model are those of the data. Raises LichenError when the model and the data do
    not fit together, and for an override of the optimizer that does not fit the model's parameters.
    """
    config, weights, rule = recipe.model.config, recipe.model.weights, optimizer_recipe(recipe)
    spec = model_spec(recipe)
    planned_table(spec, recipe)
    dataset = TokenDataset.open(Path(recipe.data.path))
    if isinstance(config, str) and config not in named_models():
        config = str(Path(config).resolve())
    _check_fit(recipe, spec, dataset)
    special = dataset.special_ids
    spec = replace(spec, bos_token_id=special.bos, eos_token_id=special.eos, pad_token_id=special.pad)
    model = {"config": config, "weights": weights and str(Path(weights).resolve())}
    optimizer = {key: getattr(rule, key) for key in ("lr", "adamw_lr", "weight_decay")}
    if recipe.optimizer.qk_clip_tau is None:
        optimizer["qk_clip_tau"] = rule.qk_clip_tau
    resolved = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": recipe.data.model_copy(update={"path": str(dataset.folder.resolve())}),
            "optimizer": recipe.optimizer.model_copy(update=optimizer),
        }
    )
    return Plan(resolved, spec, dataset)


def model_spec(recipe: Recipe) -> ModelSpec:
    """The model that a recipe names or describes.

    Published configs carry fields that say nothing about the model; in a description of one's own a field
    that nobody reads can only be misspelt. Raises LichenError for it, and for a model that cannot be trained.
    """
    config = recipe.model.config
    spec = load_spec(config) if isinstance(config, str) else read_config(config)
    require_modules(spec)
    if not isinstance(config, str) and spec.metadata:
        raise LichenError(unknown_field(min(spec.metadata), write_config(replace(spec, metadata={}))))
    return spec


def optimizer_recipe(recipe: Recipe) -> OptimizerRecipe:
    """The published update rule with the recipe's own numbers."""
    chosen = recipe.optimizer
    rule: OptimizerRecipe = getattr(recipes, chosen.recipe)
    own = chosen.model_dump(exclude_none=True, exclude={"recipe", "overrides"})
    if chosen.qk_clip_tau == 0:
        own["qk_clip_tau"] = None
    return replace(rule, **own)


def optimizer_table(model: nn.Module, recipe: Recipe) -> ParameterTable:
    """The parameter table of `model` with the recipe's own rows."""
    rows = recipe.optimizer.overrides
    return parameter_table(
        model,
        [Override(row.pattern, row.role and Role(row.role), row.lr_scale, row.weight_decay) for row in rows],
    )


def planned_table(spec: ModelSpec, recipe: Recipe) -> ParameterTable:
    """The same table before there is a model. Raises LichenError for overrides that do not fit it."""
    with torch.device("meta"), said_if_slow(f"laying out a model of {len(spec.layers):,} layers"):
        model = Transformer(spec)
    if optimizer_recipe(recipe).qk_clip_tau is not None:
        require_clippable(model)
    return optimizer_table(model, recipe)


def _check_fit(recipe: Recipe, spec: ModelSpec, dataset: TokenDataset) -> None:
    """Refuse a model that cannot read the data, or that learnt another tokenizer, and a step whose tokens no
    machine holds."""
    vocab_size, seq_len = dataset.manifest.vocab_size, recipe.train.seq_len
    if recipe.train.tokens_per_step > MOST_TOKENS:
        raise LichenError(
            f"train.tokens_per_step is {recipe.train.tokens_per_step:,}; a step of more than {MOST_TOKENS:,} "
            "tokens does not fit into memory, and no training takes one"
        )
    if vocab_size > spec.vocab_size:
        raise LichenError(
            f"the data in {dataset.folder} has a vocabulary of {vocab_size:,} tokens and the model of "
            f"{spec.vocab_size:,}; set the model's vocab_size to {vocab_size} or prepare the data with less"
        )
    if seq_len > spec.max_position_embeddings:
        raise LichenError(
            f"train.seq_len is {seq_len}, longer than the model's max_position_embeddings of "
            f"{spec.max_position_embeddings}"
        )
    if recipe.model.weights is not None:
        check_whole(Path(recipe.model.weights), contents=False)
        tokenizer = Path(recipe.model.weights) / "tokenizer.json"
        if tokenizer.exists() and tokenizer_hash(tokenizer) != dataset.manifest.tokenizer_hash:
            raise LichenError(
                f"the weights in {recipe.model.weights} belong to another tokenizer than the data in "
                f"{dataset.folder}; prepare the data with --tokenizer {tokenizer}"
            )
