"""A run, exported, is the same model to `transformers` as it is to us."""

import io
import json
import os
import shutil
import sysconfig
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from lichen.arch.families import load_spec, text_splits
from lichen.data.prepare import prepare
from lichen.errors import LichenError, SpecError
from lichen.files.sealed import seal
from lichen.serve.generate import generate
from lichen.serve.open import check_whole, open_model
from lichen.serve.sampling import SamplingParams
from lichen.train import export as export_module
from lichen.train import model_folder
from lichen.train.export import export_run
from lichen.train.loop import train
from lichen.train.recipe import read_recipe
from lichen.train.run import Run, open_run, start_run
from lichen.weights.load import load_model
from tests.conftest import logits_of

CPU = torch.device("cpu")
EXPERTS = """
model_type = "{family}"
num_hidden_layers = 2
num_attention_heads = 2
q_lora_rank = 16
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
n_routed_experts = 4
num_experts_per_tok = 2
n_group = {groups}
topk_group = 1
n_shared_experts = 1
moe_intermediate_size = 16
first_k_dense_replace = 1
intermediate_size = 48
norm_topk_prob = true
routed_scaling_factor = 2.0
num_nextn_predict_layers = {mtp}
"""
DENSE = """
model_type = "llama"
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
intermediate_size = 48
tie_word_embeddings = true
"""
COMPRESSED = """
model_type = "deepseek_v4"
num_hidden_layers = 3
layer_types = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
compress_rates = {{ compressed_sparse_attention = 4, heavily_compressed_attention = 8 }}
sliding_window = 16
num_attention_heads = 2
head_dim = 16
qk_rope_head_dim = 8
q_lora_rank = 16
o_groups = 2
o_lora_rank = 8
index_n_heads = 16
index_head_dim = 8
index_topk = 4
n_routed_experts = 4
num_experts_per_tok = 2
n_shared_experts = 1
moe_intermediate_size = 16
num_hash_layers = 1
scoring_func = "sqrtsoftplus"
norm_topk_prob = true
routed_scaling_factor = 1.5
swiglu_limit = 10.0
hc_mult = 2
num_nextn_predict_layers = 1
"""
MODELS = {
    "deepseek_v4": COMPRESSED.format(),
    "kimi_k2": EXPERTS.format(family="kimi_k2", groups=1, mtp=0),
    "deepseek_v3": EXPERTS.format(family="deepseek_v3", groups=2, mtp=1),
    "llama": DENSE,
    "qwen3": DENSE.replace("llama", "qwen3") + "head_dim = 16\n",
}
TOKENS = {"deepseek_v4": "deepseek_v3"}
RECIPE = """
[model.config]
{model}
vocab_size = 512
hidden_size = 32
max_position_embeddings = 256
rope_theta = 10000.0
initializer_range = 0.2

[data]
path = "{data}"

[optimizer]
recipe = "adamw"

[train]
steps = 2
tokens_per_step = 256
seq_len = 64
micro_batch = 4
dtype = "fp32"
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Two steps of a small model of every family."""
    folder = tmp_path_factory.mktemp("runs")
    modules = [str(Path(sysconfig.get_path("stdlib")) / name) for name in ("ast.py", "bisect.py", "heapq.py")]
    runs = {}
    for family, model in MODELS.items():
        data = folder / f"data-{family}"
        prepare(modules, data, vocab_size=500, family=TOKENS.get(family, family), validation_fraction=0)
        recipe = folder / f"{family}.toml"
        recipe.write_text(RECIPE.format(model=model, data=data))
        run = start_run(read_recipe(recipe), folder / family)
        train(run, Console(file=io.StringIO()))
        runs[family] = run
    return runs


@pytest.fixture(scope="module")
def exports(runs) -> dict[str, Path]:
    exports = {family: run.folder.with_name(f"{family}-export") for family, run in runs.items()}
    for family, out in exports.items():
        export_run(runs[family].folder, out)
    return exports


@pytest.fixture
def run(runs, tmp_path) -> Run:
    return open_run(shutil.copytree(runs["kimi_k2"].folder, tmp_path / "run"))


@pytest.mark.parametrize("family", MODELS)
def test_transformers_computes_the_logits_and_texts_of_the_run(runs, exports, family):
    theirs = AutoModelForCausalLM.from_pretrained(exports[family]).eval()
    ours, exact = (open_model(runs[family].folder, CPU, weights) for weights in ("auto", "fp32"))
    prompt = AutoTokenizer.from_pretrained(exports[family])("def f(x):\n    return x", return_tensors="pt")
    ids = prompt["input_ids"]
    assert ours.tokenizer.encode("def f(x):\n    return x").ids == ids[0].tolist()
    with torch.no_grad():
        expected, logits = theirs(ids).logits, logits_of(exact.model, ids)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()

    greedy = theirs.generate(**prompt, max_new_tokens=64, do_sample=False, return_dict_in_generate=False)
    params = SamplingParams(temperature=0, max_tokens=64)
    for model in (ours.model, exact.model, load_model(exports[family])):
        text = list(generate(model, ids[0].tolist(), params, eos_ids=ours.eos_ids))
        assert text == [i for i in greedy[0, ids.shape[1] :].tolist() if i not in ours.eos_ids]


@pytest.mark.parametrize("family", MODELS)
def test_the_tokenizer_is_whole(runs, exports, family):
    theirs, ours = AutoTokenizer.from_pretrained(exports[family]), open_model(runs[family].folder, CPU)
    text = "class A:\n\tx = 'é 中 🎉'  # <think>\r\n\n"
    ids = theirs(text)["input_ids"]
    assert ids == ours.tokenizer.encode(text).ids
    assert theirs.decode(ids, skip_special_tokens=True) == text
    generation = json.loads((exports[family] / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == ours.eos_ids
    assert theirs.eos_token_id in ours.eos_ids
    assert None not in (theirs.bos_token_id, theirs.pad_token_id)
    assert theirs.model_max_length == 256
    config = json.loads((exports[family] / "tokenizer_config.json").read_text())
    assert config["add_bos_token"] == (ids[0] == theirs.bos_token_id)
    assert config["add_eos_token"] == (ids[-1] == theirs.eos_token_id)
    # Other engines know how a family's tokenizer cuts text by this very expression.
    described = json.loads((exports[family] / "tokenizer.json").read_text())
    cuts = [part["pattern"]["Regex"] for part in described["pre_tokenizer"]["pretokenizers"][:-1]]
    assert tuple(cuts) == text_splits(runs[family].manifest.parameters.family)


@pytest.mark.parametrize("family", MODELS)
def test_all_markup_of_a_conversation_is_special_tokens(exports, family):
    tokenizer = AutoTokenizer.from_pretrained(exports[family])
    conversation = [{"role": "user", "content": "x"}]
    text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert sum(i in tokenizer.added_tokens_decoder for i in ids) == text.count("<")


def test_the_config_says_what_other_engines_ask_for(exports):
    config = json.loads((exports["kimi_k2"] / "config.json").read_text())
    assert config["model_type"] == "deepseek_v3"
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert config["torch_dtype"] == "float32"


def test_the_multi_token_prediction_layer_is_exported(exports):
    with safe_open(exports["deepseek_v3"] / "model.safetensors", "pt") as tensors:
        assert "model.layers.2.eh_proj.weight" in tensors.keys()  # noqa: SIM118


def test_bf16_halves_the_weights_and_keeps_the_selection_bias(runs, tmp_path):
    whole = export_run(runs["kimi_k2"].folder, tmp_path / "fp32")
    half = export_run(runs["kimi_k2"].folder, tmp_path / "bf16", torch.bfloat16)
    assert half.weight_bytes < 0.6 * whole.weight_bytes
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "bf16").dtype == torch.bfloat16
    with safe_open(tmp_path / "bf16" / "model.safetensors", "pt") as tensors:
        assert tensors.get_tensor("model.layers.1.mlp.gate.e_score_correction_bias").dtype == torch.float32


def test_the_model_card_says_what_the_model_is(exports, runs):
    card = (exports["kimi_k2"] / "README.md").read_text()
    parameters = sum(p.numel() for p in load_model(exports["kimi_k2"]).parameters())
    assert f"{parameters:,}" in card
    assert "base model" in card
    assert "512 tokens seen in 2 steps" in card
    assert str(runs["kimi_k2"].folder.parent) not in card


def test_an_export_is_replaced_by_the_next(run, tmp_path):
    out = tmp_path / "out"
    assert export_run(run.folder, out, torch.bfloat16).step == 2
    (out / "chat_template.jinja").unlink()
    export_run(run.folder, out)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    assert (out / "chat_template.jinja").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_of_an_export_only_the_readme_may_be_edited(exports, tmp_path):
    """Everything else is what `lichen.json` says to the last bit, also where weights are trained on."""
    out = shutil.copytree(exports["llama"], tmp_path / "out")
    with (out / "README.md").open("a") as file:
        file.write("My model.")
    check_whole(out)
    files = sorted(path for path in out.iterdir() if path.name not in ("README.md", "lichen.json"))
    assert len(files) == 6
    for file in files:
        wrote = file.read_bytes()
        file.write_bytes(bytes([*wrote[:-2], wrote[-2] ^ 1, wrote[-1]]))
        check_whole(out, contents=False)
        with pytest.raises(LichenError, match=f"not as it was exported: {file.name}"):
            open_model(out, CPU)
        with pytest.raises(LichenError, match=f"not as it was exported: {file.name}"):
            check_whole(out)
        file.write_bytes(wrote[:-1])
        with pytest.raises(LichenError, match=f"not as it was exported: {file.name}"):
            check_whole(out, contents=False)
        file.write_bytes(wrote)


def test_a_config_that_has_changed_is_not_counted(exports, runs, tmp_path, monkeypatch):
    """Of a run, a checkpoint, an export, also by a short name; its own name is that of any file."""
    folder = shutil.copytree(runs["llama"].folder, tmp_path / "run")
    shutil.copytree(exports["llama"], tmp_path / "export")
    model = folder / "checkpoints" / "step-00000002" / "model"
    for whence, name in ((tmp_path, "run"), (tmp_path, "export"), (model.parent, "model"), (model, ".")):
        monkeypatch.chdir(whence)
        config = Path(name) / "config.json"
        load_spec(name)
        wrote = config.read_text()
        config.write_text(wrote.replace('"hidden_size": 32', '"hidden_size": 64'))
        assert load_spec(config).hidden_size == 64
        with pytest.raises(SpecError, match=r"not as it was written: (model/)?config\.json does not have"):
            load_spec(name)
        config.write_text(wrote)


@pytest.mark.parametrize(
    ("files", "version", "refused"),
    [
        ([], 2, "does not list the files"),
        ({}, 2, "does not list config.json"),
        ({}, 1, "does not list config.json"),
        (["tokenizer.json"], 1, None),
    ],
)
def test_an_export_that_vouches_for_nothing_is_not_believed(exports, tmp_path, files, version, refused):
    """Those of the first version listed names."""
    out = shutil.copytree(exports["llama"], tmp_path / "out")
    mark = json.loads((out / "lichen.json").read_text())
    (out / "lichen.json").write_text(json.dumps(mark | {"files": files, "format_version": version}))
    with pytest.raises(LichenError, match=refused) if refused else nullcontext():
        check_whole(out)


@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja"])
def test_what_somebody_has_edited_is_not_replaced(run, tmp_path, name):
    out = tmp_path / "out"
    export_run(run.folder, out)
    (out / name).write_text("years of work")
    with pytest.raises(LichenError, match=rf"{name} is not as the earlier export wrote it"):
        export_run(run.folder, out)
    assert (out / name).read_text() == "years of work"
    (out / name).rename(tmp_path / name)
    os.truncate(out / "model.safetensors", 9)  # what nobody edits
    export_run(run.folder, out)
    check_whole(out)


def test_a_former_export_that_lies_hidden_is_named(exports, tmp_path):
    former = shutil.copytree(exports["llama"], tmp_path / ".out.previous")
    with pytest.raises(LichenError, match=f"no folder {tmp_path / 'out'}; .* the former one as {former}"):
        open_model(tmp_path / "out", CPU)


@pytest.mark.parametrize("exported", [False, True])
def test_what_is_not_an_export_is_not_replaced(run, tmp_path, exported):
    out = tmp_path / "out"
    if exported:
        export_run(run.folder, out)
    out.mkdir(exist_ok=True)
    (out / "thesis.txt").write_text("years of work")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(LichenError, match=r"thesis\.txt|not empty"):
        export_run(run.folder, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(LichenError, match="is a file"):
        export_run(run.folder, out / "thesis.txt")
    with pytest.raises(LichenError, match="not empty"):
        export_run(run.folder, run.folder)


def test_an_export_that_breaks_off_leaves_the_earlier_one(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_run(run.folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "model_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_run(run.folder, out, torch.bfloat16)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(KeyboardInterrupt):
        export_run(run.folder, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_exported(run, tmp_path):
    first = run.checkpoints / "step-00000001"
    newest = run.checkpoints / "step-00000002"
    shutil.copytree(newest, first)
    weights = newest / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.warns(UserWarning, match="step-00000002 is damaged.*skipped"):
        assert export_run(run.folder, tmp_path / "out").step == 1
    shutil.rmtree(first)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(LichenError, match=r"no checkpoint in .* is good"),
    ):
        export_run(run.folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_without_a_checkpoint_says_how_to_make_one(run, tmp_path):
    shutil.rmtree(run.checkpoints)
    with pytest.raises(LichenError, match=f"no checkpoint yet.*lichen train {run.folder}"):
        export_run(run.folder, tmp_path / "out")


def test_the_current_folder_can_be_exported_into(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_run(run.folder, Path())
    assert (tmp_path / "here" / "config.json").is_file()


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(LichenError, match="not a run"):
        export_run(tmp_path, tmp_path / "out")


def test_a_run_is_exported_and_read_without_its_data(run, tmp_path):
    recipe = run.folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(run.recipe.data.path, str(tmp_path / "gone")))
    export_run(run.folder, tmp_path / "out")
    assert open_model(run.folder, CPU).eos_ids == open_model(tmp_path / "out", CPU).eos_ids


@pytest.mark.parametrize("family", MODELS)
def test_a_checkpoint_is_such_a_folder_too(runs, exports, family):
    """For transformers, and for us by run, checkpoint or its folder: the same logits, tokens and ends."""
    checkpoint = runs[family].checkpoints / "step-00000002"
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "model")
    ids = tokenizer("def f(x):\n    return x", return_tensors="pt")["input_ids"]
    folders = runs[family].folder, checkpoint, checkpoint / "model"
    opened = [open_model(path, CPU, "fp32") for path in folders]
    exported = open_model(exports[family], CPU, "fp32")
    with torch.no_grad():
        expected = logits_of(exported.model, ids)
        assert (expected - theirs(ids).logits).abs().max() <= 1e-5 * expected.abs().max()
        for one in opened:
            assert torch.equal(logits_of(one.model, ids), expected)
            assert one.eos_ids == exported.eos_ids
            assert one.tokenizer.to_str() == exported.tokenizer.to_str()
    names = {path.name for path in exports[family].iterdir()} - {"README.md", "lichen.json"}
    assert {path.name for path in (checkpoint / "model").iterdir()} == names


def as_earlier_versions_wrote_it(run):
    """Its newest checkpoint holds config.json of the run and weights alone; returns its model folder."""
    model = run / "checkpoints" / "step-00000002" / "model"
    for path in model.iterdir():
        if path.name != "model.safetensors":
            path.unlink()
    shutil.copyfile(run / "config.json", model / "config.json")
    (model.parent / "manifest.json").unlink()
    seal(model.parent)
    return model


def as_earlier_runs(run):
    """Its run.json vouches for nothing."""
    facts = json.loads((run / "run.json").read_bytes())
    for key in ("files", "recipe", "sha256"):
        del facts[key]
    (run / "run.json").write_text(json.dumps(facts))


def rewrite(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **values}))


def test_a_tokenizer_that_an_earlier_version_kept_in_the_run_is_checked(run, runs):
    model = as_earlier_versions_wrote_it(run.folder)
    rewrite(model.parent / "state.json", tokenizer_hash="another")
    (model.parent / "manifest.json").unlink()
    seal(model.parent)
    with pytest.raises(
        LichenError, match=r"step-00000002 was trained with another tokenizer than .*tokenizer"
    ):
        open_model(model, CPU)
    shutil.copyfile(runs["llama"].tokenizer, run.tokenizer)
    for path in (run.folder, model.parent, model):
        with pytest.raises(LichenError, match="not the tokenizer that the run began with"):
            open_model(path, CPU)
    (run.folder / "data.json").unlink()
    with pytest.raises(LichenError, match=r"data\.json is missing or damaged; copy the manifest"):
        open_model(run.folder, CPU)


def test_what_a_newer_version_wrote_is_not_opened(run):
    checkpoint = run.checkpoints / "step-00000002"
    rewrite(run.folder / "run.json", format_version=2)
    with pytest.raises(LichenError, match="newer Lichen"):
        open_model(run.folder, CPU)
    (run.folder / "run.json").write_text("null")
    with pytest.raises(LichenError, match=r"run\.json: a JSON object is needed"):
        open_model(run.folder, CPU)
    rewrite(checkpoint / "state.json", format_version=2)
    with pytest.raises(LichenError, match="newer Lichen"):
        open_model(checkpoint, CPU)


@pytest.mark.parametrize("end", [1.5, -5, 10**18, True, [7, "x"], {}])
def test_an_end_that_is_no_token_is_refused(exports, tmp_path, end):
    out = shutil.copytree(exports["llama"], tmp_path / "out")
    rewrite(out / "generation_config.json", eos_token_id=end)
    (out / "lichen.json").unlink()  # a folder like any other
    with pytest.raises(LichenError, match=r"generation_config\.json: eos_token_id is .*a token id or a list"):
        open_model(out, CPU)


@pytest.mark.parametrize("file", ["generation_config.json", "lichen.json"])
@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, None], ids=["empty", "list", "deep", "folder"])
def test_a_damaged_file_is_named(exports, tmp_path, file, content):
    out = shutil.copytree(exports["llama"], tmp_path / "out")
    (out / file).unlink()
    if content is None:
        (out / file).mkdir()
    else:
        (out / file).write_text(content)
    with pytest.raises(LichenError, match=rf"{file}"):
        open_model(out, CPU)


@pytest.mark.parametrize("family", MODELS)
def test_a_checkpoint_that_keeps_no_tokenizer_is_opened_and_exported(runs, exports, family, tmp_path):
    """As earlier versions wrote them."""
    run = shutil.copytree(runs[family].folder, tmp_path / "run")
    model = as_earlier_versions_wrote_it(run)
    exported = open_model(exports[family], CPU)
    for path in (run, model.parent, model):
        opened = open_model(path, CPU)
        assert opened.eos_ids == exported.eos_ids
        assert opened.model.compute_dtype == torch.float32
        for ours, theirs in zip(opened.model.parameters(), exported.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    export_run(run, tmp_path / "out")
    for path in exports[family].iterdir():
        if path.name not in ("README.md", "lichen.json"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_damaged_checkpoint_is_not_opened(run):
    checkpoint = run.checkpoints / "step-00000002"
    os.truncate(checkpoint / "model" / "tokenizer.json", 9)
    with pytest.raises(LichenError, match=r"step-00000002 is damaged: model/tokenizer\.json"):
        open_model(checkpoint, CPU)


def test_another_tokenizer_than_the_runs_is_noticed(run, runs, tmp_path):
    shutil.copyfile(runs["llama"].tokenizer, run.tokenizer)
    with pytest.raises(LichenError, match=r"not as the run began: tokenizer\.json"):
        export_run(run.folder, tmp_path / "out")


def test_an_export_with_another_tokenizer_is_refused(run, exports, tmp_path):
    out = tmp_path / "out"
    export_run(run.folder, out)
    open_model(out, CPU)
    shutil.copyfile(exports["llama"] / "tokenizer.json", out / "tokenizer.json")
    for mark, told in (
        (None, "tokenizer.json has .* bytes"),
        (
            {
                "format_version": 1,
                "files": ["tokenizer.json"],
                "tokenizer_hash": run.manifest.tokenizer_hash,
            },
            ".*not the tokenizer",
        ),
        ({"files": {}}, "lichen.json does not list config.json"),
        ({}, "lichen.json does not list the files"),
    ):
        if mark is not None:
            (out / "lichen.json").write_text(json.dumps(mark))
        with pytest.raises(LichenError, match=f"not as it was exported: {told}.*Export the run again"):
            open_model(out, CPU)


def test_a_checkpoint_of_a_run_with_another_tokenizer_is_noticed(run, runs, tmp_path):
    shutil.rmtree(run.checkpoints)
    shutil.copytree(runs["llama"].checkpoints, run.checkpoints)
    with pytest.raises(LichenError, match="another tokenizer"):
        export_run(run.folder, tmp_path / "out")


def test_a_model_that_transformers_would_compute_differently_is_not_exported(run, tmp_path):
    rewrite(run.folder / "config.json", scoring_func="softmax")
    as_earlier_runs(run.folder)
    with pytest.raises(LichenError, match="softmax"):
        export_run(run.folder, tmp_path / "out")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_folder.shutil, "copyfile", full)
    with pytest.raises(LichenError, match="no space left"):
        export_run(run.folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
