"""The README.md of an exported model: what it is, how it was made, how to run it, what not to expect."""

import json
from datetime import UTC, datetime

import lichen
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import active_parameters, total_parameters
from lichen.train.metrics import read_metrics
from lichen.train.run import Run

_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
inputs = tokenizer("def ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

`lichen sample FOLDER "def "` does the same without `transformers`.
"""


def model_card(run: Run, step: int, spec: ModelSpec) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads. `spec` is the exported model."""
    recipe, manifest = run.recipe, run.manifest
    seen = step * recipe.train.tokens_per_step
    evaluated = [m for m in read_metrics(run.metrics) if m.step <= step and m.bits_per_byte is not None]
    rows = {
        "architecture": _architecture(spec),
        "parameters": f"{total_parameters(spec):,}, of which {active_parameters(spec):,} work on each token",
        "context": f"{spec.max_position_embeddings:,} tokens; trained on {recipe.train.seq_len:,} at a time",
        "vocabulary": f"{manifest.vocab_size:,} byte-level BPE tokens",
        "training data": (
            f"{manifest.splits['train'].tokens:,} tokens of {manifest.splits['train'].documents:,} documents "
            f"from {manifest.sources:,} sources; {seen:,} tokens seen in {step:,} steps"
        ),
        "optimizer": (
            f"{recipe.optimizer.recipe}, peak learning rate {recipe.optimizer.lr:g}, {recipe.schedule.kind} "
            f"schedule, {recipe.train.tokens_per_step:,} tokens per step"
        ),
    }
    if evaluated:
        last = evaluated[-1]
        rows["validation"] = f"{last.bits_per_byte:.3f} bits per byte at step {last.step:,}"
    rows["weights"] = spec.dtype
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lichen", spec.family],
    }
    return (
        "---\n"
        + "".join(f"{key}: {json.dumps(value)}\n" for key, value in front.items())
        + f"---\n\n# {run.folder.resolve().name}\n\n"
        f"Trained with Lichen {lichen.__version__}, exported on {datetime.now(UTC):%Y-%m-%d}.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"## Use\n\n{_USE}\n"
        "## Limits\n\n"
        "This is a base model: it continues text in the manner of its training data, and nobody has taught "
        "it to follow instructions, to tell the truth or to decline. The chat template is for "
        "fine-tuning: the model has not learnt its turns. The licence of the training data decides what may "
        "be done with the model.\n"
    )


def _architecture(spec: ModelSpec) -> str:
    attention = spec.layers[0].attention.title
    layers = f"{spec.family}: {len(spec.layers)} layers with {attention}, hidden size {spec.hidden_size:,}"
    parts = [layer.feed_forward for layer in spec.layers]
    dense = sum(part.router is None for part in parts)
    for part in parts:
        if router := part.router:
            return (
                f"{layers}; {dense} dense, the others with {router.n_routed_experts} experts, "
                f"{router.num_experts_per_tok} of them and {part.n_shared_experts} shared per token"
            )
    return layers
