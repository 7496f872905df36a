"""Which parameters of other people's models are embeddings and output layers, and why."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lichen.nn.roles import Role
from lichen.optim import Muon, ParameterTable, parameter_table, recipes
from lichen.optim.table import Row

TOKENS: dict[str, Any] = {f"{kind}_token_id": n for n, kind in enumerate(("pad", "bos", "eos", "cls", "sep"))}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
BERT = SIZES | TOKENS | {"vocab_size": 64}
BART: dict[str, Any] = {"d_model": 32, "vocab_size": 64, "encoder_layers": 1, "decoder_layers": 1} | TOKENS
REFORMER: dict[str, Any] = {
    "axial_pos_shape": (4, 4),
    "axial_pos_embds_dim": (8, 24),
    "attn_layers": ["local"],
}


def table_of(name: str, config: dict[str, Any]) -> ParameterTable:
    kind = getattr(transformers, name)
    with torch.device("meta"):
        return parameter_table(kind(kind.config_class(**config)))


def names(table: ParameterTable, *kinds: str) -> dict[str, str]:
    """Name -> why, of the rows of these kinds that are no vectors."""
    return {row.name: row.why for row in table if row.role.kind in kinds and row.parameter.ndim > 1}


@pytest.mark.parametrize(
    ("name", "config", "heads"),
    [
        ("LlamaForCausalLM", BERT, {"lm_head.weight": "get_output_embeddings()"}),
        ("LlamaForSequenceClassification", BERT, {"score.weight": "named score"}),
        ("RobertaForSequenceClassification", BERT, {"classifier.out_proj.weight": "named classifier"}),
        (
            "BartForSequenceClassification",
            BART,
            {"classification_head.out_proj.weight": "named classification_head"},
        ),
        ("BartForQuestionAnswering", BART, {"qa_outputs.weight": "named qa_outputs"}),
        ("BertForPreTraining", BERT, {"cls.seq_relationship.weight": "named cls"}),
        ("ModernBertForMaskedLM", BERT, {}),
        ("ModernBertForSequenceClassification", BERT, {"classifier.weight": "named classifier"}),
        ("SiglipVisionModel", SIZES, {}),
        (
            "YolosForObjectDetection",
            SIZES | {"image_size": [32, 32], "num_detection_tokens": 3},
            {
                "class_labels_classifier.layers.2.weight": "named class_labels_classifier",
                "bbox_predictor.layers.2.weight": "named bbox_predictor",
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:optimizer table")
def test_heads_of_transformers(name: str, config: dict[str, Any], heads: dict[str, str]) -> None:
    """Only their last layers, and none that gives a hidden state."""
    assert names(table_of(name, config), "head") == heads


class Blocks(nn.Module):
    """A decoder as nanoGPT and litgpt write it, whose output layer is declared first; the vocabulary is as
    large as the feed-forward layer."""

    def __init__(self, head: str, vocabulary: int = 64) -> None:
        super().__init__()
        self.add_module(head, nn.Linear(16, vocabulary, bias=False))
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(vocabulary, 16), "h": nn.ModuleList([self.block()])}
        )
        self.transformer["ln_f"] = nn.LayerNorm(16)

    def block(self) -> nn.Module:
        return nn.ModuleDict({"fc": nn.Linear(16, 64), "proj": nn.Linear(64, 16)})


@pytest.mark.parametrize(
    ("head", "why"),
    [("lm_head", "named lm_head"), ("to_words", "a row for every token"), ("output", "named output")],
)
def test_heads_that_are_declared_first(head: str, why: str) -> None:
    table = parameter_table(Blocks(head))
    assert names(table, "head") == {f"{head}.weight": why}
    assert set(names(table, "matrix")) == {"transformer.h.0.fc.weight", "transformer.h.0.proj.weight"}


def test_several_heads() -> None:
    model = Blocks("lm_head")
    model.value_head = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    model.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 7)])
    model.policy_head = nn.Linear(16, 4)
    model.mixer = nn.Linear(16, 16)
    assert set(names(parameter_table(model), "head")) == {
        "lm_head.weight",
        "value_head.2.weight",
        "heads.0.weight",
        "heads.1.weight",
        "policy_head.weight",
    }


def test_a_model_without_an_output_layer_is_a_doubt() -> None:
    """But not if the output layer is tied to the embedding, or an override says that the embedding serves."""
    words = "no output layer was found, so each linear layer holds matrices; an override can decide it"
    with pytest.warns(UserWarning, match=words):
        table = table_of("BertModel", BERT)
    assert str(table).splitlines()[-1].startswith("not sure: no output layer was found")
    model = Blocks("lm_head")
    del model.lm_head
    with pytest.warns(UserWarning, match=words):
        parameter_table(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table_of("LlamaForCausalLM", BERT | {"tie_word_embeddings": True})
        parameter_table(model, [("transformer.wte.weight", Role("embedding"))])


def outputs(**layers: nn.Module) -> nn.Module:
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64))} | layers)


@pytest.mark.parametrize(
    ("model", "heads", "doubt"),
    [
        (outputs(policy=nn.Linear(64, 6), value=nn.Linear(64, 3)), {"policy", "value"}, ""),
        (outputs(critic=nn.Sequential(nn.Linear(64, 3)), actor=nn.Linear(64, 6)), {"critic.0", "actor"}, ""),
        (outputs(mean=nn.Linear(64, 6), spread=nn.Linear(64, 3)), {"spread"}, "but mean ends at as many"),
        (outputs(mean=nn.Linear(64, 6), squeeze=nn.Linear(6, 3)), {"squeeze"}, ""),
        (outputs(last=nn.Linear(64, 64)), {"last"}, "but has as many outputs as inputs"),
    ],
)
def test_a_last_layer_is_a_guess(model: nn.Module, heads: set[str], doubt: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        table = parameter_table(model)
    assert names(table, "head").keys() == {f"{head}.weight" for head in heads}
    assert len(table.doubts) == bool(doubt)
    assert all(f"because it comes last, {doubt}" in each for each in table.doubts)


def test_an_output_layer_that_peft_wraps() -> None:
    """Its factors are matrices."""
    wrapped = nn.Module()
    wrapped.base_layer = nn.Linear(16, 40)
    wrapped.lora_A = nn.ModuleDict({"default": nn.Linear(16, 4)})
    wrapped.lora_B = nn.ModuleDict({"default": nn.Linear(4, 40)})
    model = nn.ModuleDict({"inner": nn.Linear(16, 16), "lm_head": wrapped})
    assert set(names(parameter_table(model), "head")) == {"lm_head.base_layer.weight"}


class Table(nn.Module):
    """An embedding that is not PyTorch's."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, 16))


class ScaledEmbedding(Table):
    pass


class Own(nn.Module):
    """Known by class, by name, by the vocabulary of the config, and by use."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=48)
        self.words = ScaledEmbedding(30)
        self.tok_embeddings = Table(31)
        self.lookup = Table(48)
        self.inputs = Table(33)
        self.position_table = nn.Parameter(torch.zeros(1, 7, 16))
        self.query_tokens = nn.Parameter(torch.zeros(5, 16))
        self.patches = nn.Linear(12, 16)
        self.head = nn.Linear(16, 9)

    def get_input_embeddings(self) -> nn.Module:
        return self.inputs


def test_embeddings_of_ones_own() -> None:
    table = parameter_table(Own())
    assert names(table, "embedding") == {
        "words.weight": "in ScaledEmbedding",
        "tok_embeddings.weight": "named tok_embeddings",
        "lookup.weight": "a row for every token",
        "inputs.weight": "get_input_embeddings()",
        "position_table": "named position_table",
        "query_tokens": "named query_tokens",
    }
    assert set(names(table, "matrix")) == {"patches.weight"}


@pytest.mark.parametrize(
    ("name", "config", "embeddings"),
    [
        (
            "IBertForSequenceClassification",
            BERT,
            {"word_embeddings", "token_type_embeddings", "position_embeddings"},
        ),
        ("ReformerModel", REFORMER | {"vocab_size": 64, "hidden_size": 32}, {"word_embeddings", "weights"}),
    ],
)
@pytest.mark.filterwarnings("ignore:optimizer table")
def test_embeddings_of_transformers_that_are_not_pytorchs(
    name: str, config: dict[str, Any], embeddings: set[str]
) -> None:
    found = names(table_of(name, config), "embedding")
    assert {part for name in found for part in name.split(".") if part in embeddings} == embeddings
    assert not [name for name in names(table_of(name, config), "matrix") if "embeddings" in name]


class Adapted(nn.Module):
    """The names that PEFT gives: one adapter, "default", in dictionaries of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Embedding(40, 16)
        self.lora_embedding_A = nn.ParameterDict({"default": torch.randn(4, 40)})
        self.lora_embedding_B = nn.ParameterDict({"default": torch.randn(16, 4)})
        self.trainable_tokens_delta = nn.ParameterDict({"default": torch.randn(3, 16)})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 4, bias=False)})
        self.lora_weights = nn.ParameterDict({"default": torch.randn(16, 4)})
        self.biases = nn.ParameterList([torch.randn(3, 4)])
        self.pos_embeds = nn.ParameterList([torch.randn(1, 7, 16), torch.randn(9, 16)])
        self.head = nn.Linear(16, 40)


def test_leaves_of_containers_have_their_containers_name() -> None:
    table = parameter_table(Adapted())
    kinds = {row.name: row.role.kind for row in table}
    assert kinds == {
        "base_layer.weight": "embedding",
        "lora_embedding_A.default": "embedding",
        "lora_embedding_B.default": "embedding",
        "trainable_tokens_delta.default": "embedding",
        "lora_A.default.weight": "matrix",
        "lora_weights.default": "matrix",
        "biases.0": "bias",
        "pos_embeds.0": "embedding",
        "pos_embeds.1": "embedding",
        "head.weight": "head",
        "head.bias": "bias",
    }


def balanced_step(gradient: Tensor, role: Role) -> Tensor:
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient.clone()
    Muon(ParameterTable((Row("weight", weight, role),)), recipes.deepseek_v4_1).step()
    return weight.detach()


def test_tokens_in_columns_are_balanced_as_tokens_in_rows() -> None:
    """Of (rank, tokens) or (inputs, tokens); and the filters of a convolution that is an output layer."""
    gradient = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    rows = balanced_step(gradient, Role("embedding"))
    torch.testing.assert_close(balanced_step(gradient.mT, Role("embedding", layout="columns")).mT, rows)
    kernel = balanced_step(gradient.view(12, 5, 1, 1), Role("head", layout="kernel"))
    torch.testing.assert_close(kernel.flatten(1), rows)
