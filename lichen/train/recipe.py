"""What to train, in one TOML file: every key, its type, its default and its meaning.

The models below are the only description of a recipe. `read_recipe` validates a file and its command-line
overrides against them, `lichen train --keys` prints them, and the resolved recipe that a run keeps is
written by `write_recipe`.
"""

import difflib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from lichen.arch.families.fields import shown
from lichen.errors import LichenError
from lichen.files.atomic import write_text
from lichen.files.bounded import check_bounds, parse_toml, read_toml
from lichen.nn.roles import Kind
from lichen.optim.recipes import Published
from lichen.optim.schedule import lr_factor
from lichen.serve.sampling import SamplingParams


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    config: str | dict[str, Any] = Field(
        description="what to train: a named model, a config.json or its folder, or a table of its fields"
    )
    weights: str | None = Field(
        default=None,
        description="folder of weights to start from (Hugging Face layout); without it, random weights",
    )


class DataSection(Section):
    path: str = Field(description="folder written by `lichen data prepare`")


class OverrideRow(Section):
    """What to change for the parameters whose whole name matches `pattern` (* is any text)."""

    pattern: str
    role: Kind | None = None
    lr_scale: float = Field(default=1.0, ge=0)
    weight_decay: bool | None = None


class OptimizerSection(Section):
    recipe: Published = Field(description="published update rule; its numbers hold unless given here")
    lr: float | None = Field(default=None, gt=0, description="peak learning rate")
    adamw_lr: float | None = Field(
        default=None, gt=0, description="peak learning rate of what Muon leaves to AdamW; without it, lr"
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="decoupled, for the kinds that the rule decays"
    )
    qk_clip_tau: float | None = Field(
        default=None, ge=0, description="largest attention logit after a step (QK-clip); 0 switches it off"
    )
    overrides: list[OverrideRow] = Field(
        default=[],
        description="rows {pattern, role, lr_scale, weight_decay}; the first that matches a name counts",
    )


class ScheduleSection(Section):
    kind: Literal["constant", "cosine", "wsd"] = Field(
        default="wsd", description="after the warm-up: flat; cosine to the end; or flat, then a decay"
    )
    warmup_steps: int = Field(default=0, ge=0, description="linear rise from 0 to the peak")
    decay_steps: int = Field(default=0, ge=0, description="length of wsd's final decay")
    min_ratio: float = Field(
        default=0.1, ge=0, le=1, description="final learning rate as a share of the peak"
    )


class TrainSection(Section):
    steps: int = Field(gt=0, description="optimizer steps; with train.minutes, at most so many")
    minutes: float = Field(
        default=0,
        ge=0,
        description="budget for the training, with evaluations, samples and checkpoints: its first steps are "
        "timed, and it takes as many as fit, wsd's decay shortened with them; 0: none. It gives way to "
        "train.steps on the command line",
    )
    tokens_per_step: int = Field(gt=0, description="tokens of one optimizer step, a multiple of seq_len")
    seq_len: int = Field(gt=1, description="tokens of one sequence")
    micro_batch: int = Field(
        gt=0,
        description="sequences in memory at once, shared by as many threads as there are on CPU, each with a "
        "gradient of its own; the result does not depend on it",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="of the initial weights and the order of the data"
    )
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description="of matrix products; auto is bf16 where the machine is found to multiply it faster",
    )
    clip_grad_norm: float = Field(default=1.0, gt=0, description="largest norm of the whole gradient")
    bias_update_rate: float = Field(
        default=0.001,
        ge=0,
        description="step of the router's selection bias (arXiv 2412.19437, section 4.2); 0: off",
    )
    mtp_weight: float = Field(
        default=0.3,
        ge=0,
        description="weight of the multi-token-prediction loss, where the model predicts several",
    )


class EvalSection(Section):
    every: int = Field(default=0, ge=0, description="steps between evaluations; 0: only at the end")
    tokens: int = Field(
        default=65536, gt=0, description="validation tokens per evaluation; more than there are means all"
    )


class SampleSection(Section):
    every: int = Field(default=0, ge=0, description="steps between samples; 0: only at the end")
    prompts: list[str] = Field(default=[], description="texts to continue")
    max_tokens: int = Field(default=64, gt=0, description="length of each continuation")
    temperature: float = Field(default=0.8, ge=0, description="0 takes the likeliest token")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the sampling")


class CheckpointSection(Section):
    every: int = Field(
        default=0, ge=0, description="steps between checkpoints; 0: only at the end and when stopped"
    )
    keep: int = Field(default=2, gt=0, description="newest checkpoints to keep")


class Recipe(Section):
    """A whole recipe. Immutable; `model_dump()` is the plain form."""

    model: ModelSection
    data: DataSection
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection
    eval: EvalSection = EvalSection()
    sample: SampleSection = SampleSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @property
    def sequences_per_step(self) -> int:
        return self.train.tokens_per_step // self.train.seq_len


# Once a run has begun, these cannot change: its weights, its optimizer state or its position in the data
# would no longer mean the same. Everything else may, by an override of the run.
FIXED = (
    "model",
    "data",
    "optimizer.recipe",
    "optimizer.overrides",
    "train.seed",
    "train.seq_len",
    "train.tokens_per_step",
)


LARGEST = 1e38
"""What training computes with; fp32 ends soon after."""

DECIDED_AFTER = 10
"""Steps after which it is decided how many fit into train.minutes."""


def cut_down(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with no more than so many steps: wsd's decay keeps its share of those after the warm-up."""
    planned, schedule = recipe.train.steps, recipe.schedule
    if steps >= planned:
        return recipe
    decay = schedule.decay_steps * (steps - schedule.warmup_steps) // (planned - schedule.warmup_steps)
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"steps": steps}),
            "schedule": schedule.model_copy(update={"decay_steps": decay}),
        }
    )


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file; `overrides` are `section.key=value` strings that win over the file.

    An override of train.steps sets train.minutes to 0, unless that is given too.
    Raises LichenError for an unreadable file, an unknown key, a wrong type or numbers that disagree.
    """
    values = read_toml(path)
    if any(override.startswith("train.steps=") for override in overrides):
        overrides = ["train.minutes=0", *overrides]  # who names the steps means them
    for override in overrides:
        _apply(values, override)
    check_bounds(values, f"recipe {path}")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = _sentences(error)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise LichenError(f"recipe {path}: {problems[0]}{more}") from None
    _check_numbers(recipe, path)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write every key, defaults included, so that the run does not depend on a later version's defaults."""
    write_text(path, tomli_w.dumps(recipe.model_dump(exclude_none=True)))


def differences(ours: Recipe, theirs: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    left, right = by_keys(ours), by_keys(theirs)
    both = ((key, (left.get(key), right.get(key))) for key in {**left, **right})
    return {key: values for key, values in both if values[0] != values[1]}


def by_keys(recipe: Recipe) -> dict[str, Any]:
    """All its values, by dotted keys."""
    return dict(_flat(recipe.model_dump()))


def is_fixed(key: str) -> bool:
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)


def describe_keys() -> list[tuple[str, str, str, str]]:
    """Rows (key, type, default, meaning) of everything a recipe may hold."""
    rows = []
    for section, section_field in Recipe.model_fields.items():
        section_type = section_field.annotation
        assert isinstance(section_type, type)
        assert issubclass(section_type, Section)
        for key, field in section_type.model_fields.items():
            default = "" if field.default is None else f"default {field.default}"
            default = "required" if field.is_required() else default
            rows.append((f"{section}.{key}", _type_name(field.annotation), default, field.description or ""))
    return rows


# ------------------------------------------------------------------------------------------------ details


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if annotation in (int, float, str) else str(annotation)
    name = name.replace("typing.", "").replace(" | None", "").replace("dict[str, Any]", "table")
    return name.removeprefix("Literal[").removesuffix("]") if name.startswith("Literal") else name


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value`. The value follows TOML; what is not TOML is taken as a bare string."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise LichenError(f"cannot understand the override {shown(override)}; write section.key=value")
    try:
        value = parse_toml(f"value = {text}", "")["value"]
    except LichenError:
        value = text
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise LichenError(f"override {shown(override)}: {key} is not a table")
    values[keys[-1]] = value


def _sentences(error: ValidationError) -> list[str]:
    """One sentence per field; the branches of a union speak of the same field and are told once."""
    told: dict[str, str] = {}
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        told.setdefault(".".join(location[:2]), _sentence(problem, ".".join(location[:2])))
    return list(told.values())


def _sentence(problem: ErrorDetails, path: str) -> str:
    meanings = {key: meaning for key, _, _, meaning in describe_keys()}
    if problem["type"] == "extra_forbidden":
        return f"there is no key {path}; {_nearest(path)}"
    if problem["type"] == "missing":
        return f"{path} is missing" + (f" ({meanings[path]})" if path in meanings else "")
    if path == "model.config":
        expected = "a string or a table"
    elif problem["type"] == "model_type":
        expected = f"a table [{path}]"
    else:
        expected = problem["msg"].removeprefix("Input should be ")
    return f"{path} is {shown(problem['input'])}; expected {expected}"


def unknown_field(field: str, fields: Collection[str]) -> str:
    """What to say of a field in [model.config] that its model does not have; it has `fields`."""
    near = difflib.get_close_matches(field, fields, 1)
    remedy = f"did you mean model.config.{near[0]}?" if near else "remove it"
    return f"model.config.{field} is no field of this model; {remedy}"


def _nearest(path: str) -> str:
    keys = [key for key, _, _, _ in describe_keys()]
    section, _, leaf = path.rpartition(".")
    if not section:
        names = list(Recipe.model_fields)
        near = difflib.get_close_matches(leaf, names, 1, cutoff=0.5)
        return f"did you mean [{near[0]}]?" if near else f"the sections are {', '.join(names)}"
    near = [key for key in keys if key.endswith(f".{leaf}")] or difflib.get_close_matches(path, keys, 1)
    if near:
        return f"did you mean {near[0]}?"
    own = [key.removeprefix(f"{section}.") for key in keys if key.startswith(f"{section}.")]
    return f"[{section}] has {', '.join(own)}"


def _check_numbers(recipe: Recipe, path: Path) -> None:
    train, schedule = recipe.train, recipe.schedule
    for key, value in by_keys(recipe).items():
        if isinstance(value, float) and value > LARGEST and not key.startswith("model."):
            raise LichenError(f"recipe {path}: {key} is {value:g}; expected at most {LARGEST:g}, as in fp32")
    try:
        SamplingParams(recipe.sample.temperature)
    except LichenError as error:
        raise LichenError(f"recipe {path}: sample.{error}") from None
    if train.tokens_per_step % train.seq_len:
        nearest = max(1, round(train.tokens_per_step / train.seq_len)) * train.seq_len
        raise LichenError(
            f"recipe {path}: train.tokens_per_step ({train.tokens_per_step}) is not a multiple of "
            f"train.seq_len ({train.seq_len}); the nearest is {nearest}"
        )
    lr_factor(steps=train.steps, step=0, **schedule.model_dump())  # raises for numbers that do not fit
    if train.minutes and schedule.warmup_steps < 2 * DECIDED_AFTER:
        raise LichenError(
            f"recipe {path}: train.minutes needs schedule.warmup_steps of {2 * DECIDED_AFTER} or more (here "
            f"{schedule.warmup_steps}): while the first steps are timed, the learning rate must not depend "
            "on how many will follow"
        )
    if schedule.decay_steps and schedule.kind != "wsd":
        raise LichenError(
            f'recipe {path}: schedule.decay_steps is for kind = "wsd"; here it is "{schedule.kind}"'
        )
