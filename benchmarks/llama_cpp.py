"""llama.cpp as a contender of `benchmarks.decode`: the same weights as GGUF, and its own greedy text.

Needs `gguf` and `llama-cpp-python`, which compiles llama.cpp for the processor at hand, in minutes; with
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON", for any that has AVX2. The
weights of a folder in the Hugging Face layout are written as fp32 once; llama.cpp's own quantizer makes
every other format from that file.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lichen.errors import LichenError

INSTALLED = find_spec("gguf") is not None and find_spec("llama_cpp") is not None

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)(\..*)")


def convert(folder: Path, file_type: str) -> Path:
    """`folder` as one GGUF file beside its weights, written unless it is there.

    file_type: F32, BF16, F16, Q8_0 or Q4_K. Norms, biases and routers stay fp32. Every matrix is in the
    format asked for ("pure" for llama.cpp's quantizer), except that Q4_K has blocks of 256 numbers, and
    matrices whose rows are no multiple of that, such as the parts of kv_b_proj, become Q5_0.
    """
    exact = folder / "F32.gguf"
    if not exact.exists():
        _write(folder, exact)
    file = folder / f"{file_type}.gguf"
    if not file.exists():
        _quantize(exact, file, file_type)
    return file


def _write(folder: Path, file: Path) -> None:
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    config = json.loads((folder / "config.json").read_text())
    names = get_tensor_name_map(MODEL_ARCH.DEEPSEEK2, config["num_hidden_layers"])
    writer = GGUFWriter(file, "deepseek2")
    _describe(writer, config)
    for key, tensor in _tensors(folder, config):
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise LichenError(f"{folder}: GGUF's deepseek2 has no place for {key}")
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    """What llama.cpp wants to know, as its convert_hf_to_gguf.py says it of DeepseekV3ForCausalLM."""
    from gguf import ExpertGatingFuncType, LlamaFileType

    if config["rope_parameters"]["rope_type"] != "default":
        raise LichenError(f"RoPE of type {config['rope_parameters']['rope_type']} is not written as GGUF")
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(rotated)
    # Absorbed, MLA has one key and value head, the latent itself; the "MLA" lengths are those of its heads.
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rotated)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    # transformers leaves scoring_func out of config.json; without it llama.cpp would take a softmax.
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The weights by their Hugging Face names, but experts stacked and kv_b_proj in its two parts.

    Absorbed, MLA multiplies queries by the keys' part, (heads, kv_lora_rank, nope), and what it has read by
    the values' part, (heads, v, kv_lora_rank).
    """
    experts: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for file in sorted(folder.glob("*.safetensors")):
        for key, tensor in load_file(file).items():
            if match := EXPERT.fullmatch(key):
                experts[match[1] + match[3]].append((int(match[2]), tensor))
            elif key.endswith("kv_b_proj.weight"):
                heads = tensor.unflatten(0, (config["num_attention_heads"], -1))
                keys, values = heads.split([config["qk_nope_head_dim"], config["v_head_dim"]], 1)
                yield key.replace("kv_b_proj", "k_b_proj"), keys.transpose(1, 2).contiguous()
                yield key.replace("kv_b_proj", "v_b_proj"), values.contiguous()
            else:
                yield key.replace("e_score_correction_bias", "e_score_correction.bias"), tensor
    for key, numbered in experts.items():
        yield key, torch.stack([tensor for _, tensor in sorted(numbered, key=lambda item: item[0])])


def _library() -> Any:
    """llama.cpp's C interface. It says nothing of its own: what fails is raised here."""
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    return llama_cpp


def _quantize(source: Path, target: Path, file_type: str) -> None:
    library = _library()
    params = library.llama_model_quantize_default_params()
    mixture = "Q4_K_S" if file_type == "Q4_K" else file_type
    params.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{mixture}")
    params.pure = True
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise LichenError(f"llama.cpp cannot write {source} as {file_type}")


class Sequences:
    """Sequences of equal length in llama.cpp's cache; as many threads as PyTorch has here."""

    def __init__(self, file: Path, batch: int, capacity: int, exact: bool = False) -> None:
        """Open `file` with room for `capacity` tokens of each of `batch` sequences.

        As llama.cpp is run: flash attention, which makes the cache fp16, and pieces of 512 tokens. exact:
        without flash attention and with a cache in fp32, so that fp32 weights give fp32 logits.
        """
        self._library = library = _library()
        model_params = library.llama_model_default_params()
        self._model = library.llama_model_load_from_file(str(file).encode(), model_params)
        if not self._model:
            raise LichenError(f"llama.cpp cannot open {file}")
        params = library.llama_context_default_params()
        params.n_ctx = batch * -(-capacity // 256) * 256  # it reads its cache in pieces of 256
        params.n_batch, params.n_ubatch, params.n_seq_max = batch * capacity, 512, batch
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if exact:
            params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = library.GGML_TYPE_F32
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            raise LichenError(f"llama.cpp has no context for {batch} x {capacity} tokens of {file}")
        vocabulary = library.llama_model_get_vocab(self._model)
        self.vocab_size = library.llama_vocab_n_tokens(vocabulary)
        self._batch = library.llama_batch_init(batch * capacity, 0, 1)
        self._length = 0

    def clear(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)
        self._length = 0

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Read `tokens` (batch, new) of every sequence; the logits after the last, (batch, vocab_size)."""
        n, new = tokens.shape
        into = self._batch
        into.n_tokens = n * new
        for at, token in enumerate(tokens.flatten().tolist()):
            sequence, position = divmod(at, new)
            into.token[at] = token
            into.pos[at] = self._length + position
            into.n_seq_id[at] = 1
            into.seq_id[at][0] = sequence
            into.logits[at] = position == new - 1
        if error := self._library.llama_decode(self._context, into):
            raise LichenError(f"llama.cpp fails to read {n} x {new} tokens: {error}")
        self._length += new
        logits = self._library.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(logits, (n, self.vocab_size)))
