"""Properties of random models that the families can express, and of configs broken at random."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from lichen.arch.account import account
from lichen.arch.families import can_write, for_export, load_spec, read_config, write_config
from lichen.arch.flops import flops_per_token
from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.dense import Activation, Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.parts.indexer import Indexer
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Llama3Scaling, Rope, Yarn
from lichen.arch.published import named_models
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.arch.weights import active_parameters, parameters, total_parameters
from lichen.errors import SpecError

NAMES = list(named_models())
numbers = st.floats(0.001, 1000.0)
tokens = st.none() | st.integers(0, 63)
biased = st.booleans()


@st.composite
def yarns(draw, softmax_scaled: bool):
    mscale = (
        draw(st.sampled_from([None, 0.707, 1.0])) if softmax_scaled else draw(st.sampled_from([None, 1.0]))
    )
    slow = draw(st.floats(0.5, 4))
    return Yarn(
        factor=draw(st.floats(1, 64)),
        original_max_position_embeddings=draw(st.integers(64, 4096)),
        beta_fast=slow + draw(st.floats(0, 32)),
        beta_slow=slow,
        mscale=mscale,
        mscale_all_dim=mscale if softmax_scaled else None,
    )


@st.composite
def llama3_scalings(draw):
    low = draw(st.floats(0.5, 4))
    return Llama3Scaling(
        draw(st.floats(1, 32)), low, low + draw(st.floats(0.5, 4)), draw(st.integers(64, 4096))
    )


@st.composite
def routers(draw, scoring=("sigmoid", "softmax"), biased_only=False):
    n_group = draw(st.integers(1, 3))
    per_group = draw(st.integers(2, 4))
    selection_bias = True if biased_only or n_group > 1 else draw(st.booleans())
    topk_group = draw(st.integers(1, n_group))
    return Router(
        n_routed_experts=n_group * per_group,
        num_experts_per_tok=draw(st.integers(1, topk_group * per_group)),
        scoring_func=draw(st.sampled_from(scoring)),
        selection_bias=selection_bias,
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(numbers),
        aux_loss_alpha=draw(st.sampled_from([0.0, 1e-4])),
    )


def common(draw):
    return {
        "vocab_size": draw(st.integers(64, 99)),
        "max_position_embeddings": draw(st.integers(1, 8192)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "initializer_range": draw(st.floats(0, 1)),
        "tie_word_embeddings": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["bfloat16", "float16", "float32"])),
        "bos_token_id": draw(tokens),
        "eos_token_id": draw(tokens | st.lists(st.integers(0, 63), min_size=1).map(tuple)),
        "pad_token_id": draw(tokens),
    }


@st.composite
def llamas(draw):
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(2, 4))
    rope = Rope(draw(st.floats(2, 1e6)), False, draw(st.none() | yarns(False) | llama3_scalings()))
    attention = GQA(kv_heads * group, kv_heads, head_dim, rope, draw(biased))
    layer = LayerSpec(attention, Dense(draw(st.integers(1, 24)), draw(biased)))
    return ModelSpec(
        family="llama",
        hidden_size=kv_heads * group * draw(st.integers(1, 4)),
        layers=(layer,) * draw(st.integers(1, 4)),
        **common(draw),
    )


@st.composite
def deepseeks(draw, scoring=("sigmoid", "softmax"), frequencies=(1, 2, 3), shared=(0, 1, 2)):
    attention = MLA(
        num_attention_heads=draw(st.integers(1, 4)),
        q_lora_rank=draw(st.none() | st.integers(1, 12)),
        kv_lora_rank=draw(st.integers(1, 12)),
        qk_nope_head_dim=draw(st.integers(1, 8)),
        qk_rope_head_dim=2 * draw(st.integers(2, 4)),
        v_head_dim=draw(st.integers(1, 8)),
        rope=Rope(
            draw(st.floats(2, 1e6)), draw(st.booleans()), draw(st.none() | yarns(True) | llama3_scalings())
        ),
        attention_bias=draw(biased),
    )
    experts = LayerSpec(
        attention, MoE(draw(routers(scoring)), draw(st.integers(1, 12)), draw(st.sampled_from(shared)))
    )
    dense = LayerSpec(attention, Dense(draw(st.integers(1, 24))))
    n, mtp = draw(st.integers(1, 5)), draw(st.integers(0, 2))
    first, frequency = draw(st.integers(0, n + mtp)), draw(st.sampled_from(frequencies))
    layers = tuple(
        experts if number >= first and number % frequency == 0 else dense for number in range(n + mtp)
    )
    return ModelSpec(
        family=draw(st.sampled_from(["deepseek_v3", "kimi_k2"])),
        hidden_size=draw(st.integers(1, 16)),
        layers=layers[:n],
        mtp=layers[n:],
        **common(draw),
    )


@st.composite
def deepseek_v4s(draw):
    heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rotary = 2 * draw(st.integers(1, 3))
    csa, hca = draw(st.sampled_from([(4, 128), (2, 8), (8, 2)]))
    window = Compressed(
        num_attention_heads=heads * groups,
        head_dim=rotary + draw(st.integers(1, 8)),
        qk_rope_head_dim=rotary,
        q_lora_rank=draw(st.integers(1, 12)),
        o_groups=groups,
        o_lora_rank=draw(st.integers(1, 8)),
        window=draw(st.integers(1, 16)),
        rope=Rope(draw(st.floats(2, 1e6)), True),
    )
    scaling = draw(st.none() | yarns(False).map(lambda yarn: replace(yarn, scaled=False)))
    entries = replace(window, compress_ratio=hca, rope=Rope(draw(st.floats(2, 1e6)), True, scaling))
    indexer = Indexer(draw(st.integers(1, 8)), rotary + draw(st.integers(0, 8)), draw(st.integers(1, 8)))
    kinds = [window, entries, replace(entries, compress_ratio=csa, indexer=indexer)]
    router = draw(routers(("sqrtsoftplus",), biased_only=True))
    router = replace(router, n_group=1, topk_group=1)
    experts = MoE(
        router,
        draw(st.integers(1, 12)),
        draw(st.integers(0, 2)),
        activation=Activation(limit=draw(st.none() | st.floats(1, 10))),
    )
    hashed = replace(experts, router=replace(router, hashed=True, selection_bias=False))
    # A kind that no layer has leaves nothing of itself in the config.
    parts = [*kinds, *draw(st.lists(st.sampled_from(kinds), max_size=2))]
    n_hashed, n_mtp = draw(st.integers(0, len(parts))), draw(st.integers(0, 2))
    layers = tuple(
        LayerSpec(part, hashed if number < n_hashed else experts) for number, part in enumerate(parts)
    )
    return ModelSpec(
        family="deepseek_v4",
        hidden_size=draw(st.integers(1, 16)),
        layers=layers,
        mtp=(LayerSpec(window, experts),) * n_mtp,
        residual=HyperConnections(draw(st.integers(1, 4)), sinkhorn_iters=draw(st.integers(1, 20))),
        **common(draw),
    )


@st.composite
def qwens(draw):
    """Dense, or with experts in some layers."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rope = Rope(draw(st.floats(2, 1e6)), False, draw(st.none() | yarns(False)))
    head_dim = 2 * draw(st.integers(2, 4))
    attention = GQA(kv_heads * group, kv_heads, head_dim, rope, draw(biased), qk_norm=True)
    dense = LayerSpec(attention, Dense(draw(st.integers(1, 24))))
    n_experts = draw(st.integers(1, 6))
    router = Router(
        n_experts,
        draw(st.integers(1, n_experts)),
        "softmax",
        selection_bias=False,
        norm_topk_prob=draw(st.booleans()),
    )
    experts = LayerSpec(attention, MoE(router, draw(st.integers(1, 12))))
    layers = tuple(draw(st.lists(st.sampled_from([dense, experts]), min_size=1, max_size=4)))
    return ModelSpec(
        family="qwen3_moe" if experts in layers else "qwen3",
        hidden_size=kv_heads * group * draw(st.integers(1, 4)),
        layers=layers,
        **common(draw),
    )


steady = llamas() | deepseeks() | qwens()  # whose cache grows by the same with every token
models = steady | deepseek_v4s()


@given(models)
def test_every_model_reads_back_from_its_config(spec):
    config = json.loads(json.dumps(write_config(spec)))
    again = read_config(config)
    assert replace(again, metadata={}) == spec
    assert write_config(again) == config


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@settings(max_examples=300)
@given(models, st.data())
def test_a_broken_config_is_refused_in_one_sentence_or_still_means_a_model(spec, data):
    config = write_config(spec)
    where = config
    if config["rope_scaling"] and data.draw(st.booleans()):
        where = config["rope_scaling"]
    key = data.draw(st.sampled_from(sorted(where)))
    if data.draw(st.booleans()):
        del where[key]
    else:
        where[key] = data.draw(json_values)
    try:
        again = read_config(config)
    except SpecError as error:
        sentence = str(error)
    else:
        sentence = ""
        assert read_config(write_config(again)) == again
    assert "\n" not in sentence


@settings(max_examples=200)
@given(st.sampled_from([name for name in NAMES if not can_write(load_spec(name).family)]), st.data())
def test_a_broken_config_of_the_other_families_is_refused_or_still_accounted(name, data):
    config = copy.deepcopy(named_models()[name].config)
    where = data.draw(st.sampled_from(list(objects(config))))
    key = data.draw(st.sampled_from(sorted(where)))
    if data.draw(st.booleans()):
        del where[key]
    else:
        where[key] = data.draw(json_values | st.integers(-2, 2) | st.sampled_from([[1], ["x"], True, "4"]))
    sentence, total = "", 1
    try:
        total = account(read_config(config), context=1).total_parameters
    except SpecError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert total > 0


def objects(config):
    """The config and the objects in it."""
    yield config
    for value in config.values():
        if isinstance(value, dict) and value:
            yield from objects(value)


@settings(max_examples=25)
@given(llamas() | deepseeks(scoring=("sigmoid",), frequencies=(1,), shared=(1, 2)))
def test_transformers_reads_the_same_model_and_saves_one_that_reads_back(spec):
    written = write_config(for_export(spec))
    theirs = AutoConfig.for_model(**written)
    again = read_config(json.loads(theirs.to_json_string()))
    assert replace(again, metadata={}, family=spec.family) == spec
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert total_parameters(spec) == sum(parameter.numel() for parameter in model.parameters())


@given(steady, st.integers(1, 64))
def test_the_account_agrees_with_itself(spec, batch):
    result = account(spec, context=spec.max_position_embeddings, batch=batch, cache="bf16")
    beside = result.parameters["mtp"] + result.parameters["engram_tables"]
    assert sum(result.parameters.values()) == total_parameters(spec) + beside
    assert 0 < active_parameters(spec) <= total_parameters(spec)
    assert result.parameters == parameters(spec)
    assert result.bytes_of_model.weights["bf16"] == 2 * result.total_parameters
    assert result.bytes_of_model.adamw_state >= result.bytes_of_model.muon_state
    assert result.cache_bytes.ideal == batch * result.context * result.cache_bytes_per_token
    assert result.cache_bytes.ideal <= result.cache_bytes.reserved
    one, two = flops_per_token(spec, 1).forward, flops_per_token(spec, 2).forward
    assert one - 2 * (two - one) <= 2 * active_parameters(
        spec
    )  # a key costs two - one; biases are no products
