"""Steps are compared with plain PyTorch and transformers, and with themselves cut differently."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from lichen.arch.families import for_export, write_config
from lichen.data.loader import Loader
from lichen.data.prepare import prepare
from lichen.errors import LichenError
from lichen.train import objective, state
from lichen.train import step as step_module
from lichen.train.evaluate import evaluate, samples
from lichen.train.metrics import MetricsLog
from lichen.train.recipe import DataSection, OptimizerSection
from lichen.train.run import start_run
from lichen.train.step import Trainer
from lichen.weights.save import save_weights
from tests.conftest import logits_of

DENSE = (
    "model.config={model_type='llama', vocab_size=400, hidden_size=32, num_hidden_layers=2, "
    "intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, "
    "rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=false}"
)


@pytest.fixture
def make_trainer(make_recipe, tmp_path: Path):
    count = iter(range(100))
    return lambda *overrides: Trainer(start_run(make_recipe(*overrides), tmp_path / f"run{next(count)}"))


def test_the_loss_falls(make_trainer):
    trainer = make_trainer("train.steps=40")
    losses = [trainer.train_step().cross_entropy for _ in range(40)]
    assert abs(losses[0] - math.log(400)) < 0.3
    assert sum(losses[-5:]) / 5 < losses[0] - 1.0


@pytest.mark.parametrize("name", get_args(OptimizerSection.model_fields["recipe"].annotation))
def test_every_recipe_lowers_the_loss(make_trainer, name: str):
    rates = ("optimizer.lr=0.02", "optimizer.adamw_lr=0.02")
    trainer = make_trainer(DENSE, f"optimizer.recipe={name}", *rates, "train.steps=15")
    losses = [trainer.train_step().loss for _ in range(15)]
    assert trainer.rule.name == name
    assert losses[-1] < losses[0] - 0.3


def test_losses_are_those_of_transformers_under_torch_adamw(make_trainer, tmp_path: Path):
    """Model, loss over packed documents, clipping, schedule and optimizer together, several steps long."""
    from transformers import AutoModelForCausalLM

    trainer = make_trainer(DENSE, "optimizer.recipe=adamw", "train.clip_grad_norm=0.5", "train.micro_batch=3")
    save_weights(trainer.model, tmp_path / "hf", torch.float32)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(write_config(for_export(trainer.run.spec))))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    )
    decay = [p for p in theirs.parameters() if p.ndim > 1]
    no_decay = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    loader = Loader(trainer.dataset, "train", 4, 64, seed=0)
    factors = [0.5, 1.0, 1.0, 1.0, 1.0, 0.55]  # wsd over 6 steps: 2 of warm-up, 2 of decay to 0.1

    for factor in factors:
        batch = loader.next_batch()
        same = batch.segment_ids[:, None, :, None] == batch.segment_ids[:, None, None, :]
        allowed = same & torch.ones(64, 64, dtype=torch.bool).tril()
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        logits = theirs(batch.tokens, attention_mask=mask).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * factor
        optimizer.step()

        ours = trainer.train_step()
        assert ours.lr == pytest.approx(0.01 * factor)
        assert ours.cross_entropy == pytest.approx(loss.item(), rel=2e-5)
        assert ours.grad_norm == pytest.approx(float(norm), rel=2e-4)


def test_the_micro_batch_does_not_change_the_step(make_trainer):
    one, three, four = (make_trainer(f"train.micro_batch={size}") for size in (1, 3, 4))
    for _ in range(2):
        steps = [trainer.train_step() for trainer in (one, three, four)]
        for step in steps[:2]:
            for name in ("loss", "cross_entropy", "mtp", "balance", "grad_norm", "max_logit"):
                assert getattr(step, name) == pytest.approx(getattr(steps[2], name), rel=1e-3), name
            assert (step.load_worst, step.load_mean) == (steps[2].load_worst, steps[2].load_mean)
    biases = [
        trainer.model.model.layers[1].mlp.gate.e_score_correction_bias for trainer in (one, three, four)
    ]
    assert torch.equal(biases[0], biases[2])
    assert torch.equal(biases[1], biases[2])


def test_the_parts_of_the_loss_add_up(make_trainer):
    step = make_trainer("train.mtp_weight=0.5").train_step()
    assert step.loss == pytest.approx(step.cross_entropy + 0.5 * step.mtp + step.balance, rel=1e-6)
    assert 0 < step.balance < 0.1
    assert make_trainer("train.mtp_weight=0").train_step().mtp is None


def test_selection_biases_move_once_per_step_by_the_rate(make_trainer, monkeypatch):
    trainer = make_trainer("train.bias_update_rate=0.25", "train.micro_batch=1")
    counts: dict[str, torch.Tensor] = {}
    update = step_module.update_selection_bias

    def watched(model, given, rate):
        counts.update(given)
        update(model, given, rate)

    monkeypatch.setattr(step_module, "update_selection_bias", watched)
    batch = trainer.loader_of("train", trainer.run.recipe.train.seed).next_batch()
    trainer.train_step()
    tokens = 2 * int((batch.targets != -100).sum())  # two experts per token, padding aside
    assert {name: int(layer.sum()) for name, layer in counts.items()} == dict.fromkeys(
        ["model.layers.1.mlp.gate", "model.layers.2.mlp.gate"], tokens
    )
    for name, load in counts.items():
        error = torch.sign(load.float().mean() - load.float()) * 0.25
        bias = trainer.model.get_submodule(name).e_score_correction_bias
        assert torch.allclose(bias, error - error.mean())
    frozen = make_trainer("train.bias_update_rate=0")
    frozen.train_step()
    assert not frozen.model.model.layers[1].mlp.gate.e_score_correction_bias.any()


def test_qk_clip_holds_logits_at_tau(make_trainer):
    free, held = make_trainer("optimizer.qk_clip_tau=1e6"), make_trainer("optimizer.qk_clip_tau=0.02")
    steps = [(free.train_step(), held.train_step()) for _ in range(6)]
    assert all(step.clipped_heads == 0 for step, _ in steps)
    assert steps[-1][1].clipped_heads > 0
    assert steps[-1][1].max_logit < 0.7 * steps[-1][0].max_logit
    assert make_trainer("optimizer.recipe=muon").train_step().clipped_heads is None


@pytest.mark.parametrize("damage", ["weight", "gradient"])
def test_a_step_that_is_not_finite_is_not_applied(make_trainer, damage: str):
    trainer = make_trainer()
    trainer.train_step()
    if damage == "weight":
        with torch.no_grad():
            trainer.model.model.norm.weight[0] = math.nan
    else:
        trainer.model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(LichenError, match=r"the loss is .* not applied"):
        trainer.train_step()
    assert trainer.step == 1
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) or before[name].isnan().any() for name in before)


def test_evaluation_is_the_mean_over_the_validation_documents(make_trainer, monkeypatch):
    """Each document alone, in pieces of 64 predictions; the first token of a document is never predicted."""
    trainer = make_trainer("eval.tokens=1000000")
    documents = trainer.dataset.documents("validation")
    nats, targets, text_bytes = 0.0, 0, trainer.dataset.manifest.splits["validation"].bytes
    for start, end in zip(documents.starts[:-1], documents.starts[1:], strict=True):
        ids = torch.from_numpy(documents.read(start, end).astype("int64"))
        text_bytes -= len(trainer.tokenizer.decode(ids[:1].tolist()).encode())
        for at in range(0, len(ids) - 1, 64):
            piece = ids[at : at + 65]
            with torch.no_grad():
                logits = logits_of(trainer.model, piece[None, :-1])[0]
            nats += float(F.cross_entropy(logits, piece[1:], reduction="sum"))
            targets += len(piece) - 1
    loss, bits = evaluate(trainer)
    assert loss == pytest.approx(nats / targets, rel=1e-5)
    assert bits == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert evaluate(trainer) == (loss, bits)
    # of which nobody asks for what the routers chose
    monkeypatch.setattr(objective, "copies_by_row", None)
    assert evaluate(trainer) == (loss, bits)


def test_samples_repeat_and_do_not_disturb_training(make_trainer):
    plain, sampled = make_trainer(), make_trainer()
    for _ in range(2):
        first = samples(sampled)
        assert first == samples(sampled)
        assert plain.train_step().loss == sampled.train_step().loss
    assert first[0].prompt == "def "


def test_training_continues_from_given_weights(make_trainer, tmp_path: Path):
    trainer = make_trainer()
    trainer.train_step()
    save_weights(trainer.model, tmp_path / "weights", torch.float32)
    again = make_trainer(f"model.weights={tmp_path / 'weights'}", "train.seed=5")
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.model.parameters(), again.model.parameters(), strict=True)
    )


def test_weights_are_compared_before_a_model_takes_memory(make_trainer, tmp_path: Path, monkeypatch):
    """Else those of another model would be told as a lack of memory, whatever their size."""
    save_weights(make_trainer().model, tmp_path / "weights", torch.float32)
    with pytest.raises(LichenError, match=r"has shape \(400, 32\); expected \(2000000000"):
        make_trainer(f"model.weights={tmp_path / 'weights'}", "model.config.vocab_size=2000000000")

    def no_room(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch.nn.Module, "to_empty", no_room)
    with pytest.raises(LichenError, match=r"out of memory for the model itself: its [\d,]+ parameters take"):
        make_trainer()


def test_a_step_of_more_tokens_than_memory_holds_is_refused(make_trainer):
    with pytest.raises(LichenError, match=r"tokens_per_step is 10,000,000,000,064"):
        make_trainer("train.tokens_per_step=10000000000064")


def test_a_checkpoint_of_another_tokenizer_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.train_step()
    with MetricsLog(trainer.run.folder, trainer.step) as log:
        saved = state.save(trainer, log) / "state.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "tokenizer_hash": "0" * 64}))
    with pytest.raises(LichenError, match="another tokenizer"):
        Trainer(trainer.run, saved.parent)


def test_data_of_another_tokenizer_are_refused(make_trainer, data: Path, tmp_path: Path):
    run = make_trainer().run
    other = prepare([str(Path(json.__file__).parent)], tmp_path / "other", vocab_size=300)
    assert other.tokenizer_hash != run.manifest.tokenizer_hash
    path = DataSection(path=str(tmp_path / "other"))
    with pytest.raises(LichenError, match=f"--tokenizer {run.tokenizer}"):
        Trainer(replace(run, recipe=run.recipe.model_copy(update={"data": path})))


@pytest.mark.parametrize("prompt", ["", "word " * 200])
def test_a_prompt_that_cannot_be_continued_is_refused_at_the_start(make_trainer, prompt: str):
    with pytest.raises(LichenError, match=r"sample\.prompts"):
        make_trainer(f'sample.prompts=["{prompt}"]')
