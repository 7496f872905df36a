"""The turns that Moonshot AI and DeepSeek document for their models, letter by letter."""

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from lichen.arch.families import chat_template

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
BOS = "<bos>"
USER = {"role": "user", "content": "1 + 2?"}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def render(family, messages, tools=None, add_generation_prompt=False):
    texts, _ = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=chat_template(family),
        add_generation_prompt=add_generation_prompt,
        bos_token=BOS,
    )
    return texts[0]


def test_kimi_turns():
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "3 \n"},
        USER,
    ]
    assert render("kimi_k2", messages, add_generation_prompt=True) == (
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
        "<|im_user|>user<|im_middle|>1 + 2?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>3 \n<|im_end|>"
        "<|im_user|>user<|im_middle|>1 + 2?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>"
    )


def test_kimi_tool_calls():
    messages = [
        USER,
        {
            "role": "assistant",
            "reasoning_content": "two calls",
            "content": None,
            "tool_calls": [
                call("add", '{"a": 1}', id="functions.add:0"),
                call("add", {"a": "é"}, id="functions.add:1"),
            ],
        },
        {"role": "tool", "tool_call_id": "functions.add:0", "content": "3"},
        {"role": "tool", "tool_call_id": "functions.add:1", "content": [{"type": "text", "text": "4"}]},
        {"role": "assistant", "content": "again", "tool_calls": [call("add", "{}")]},
    ]
    assert render("kimi_k2", messages, TOOLS) == (
        '<|im_system|>tool_declare<|im_middle|>[{"type":"function","function":'
        '{"name":"add","parameters":{"type":"object"}}}]<|im_end|>'
        "<|im_user|>user<|im_middle|>1 + 2?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think>two calls</think><|tool_calls_section_begin|>"
        '<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>'
        '<|tool_call_begin|>functions.add:1<|tool_call_argument_begin|>{"a": "é"}<|tool_call_end|>'
        "<|tool_calls_section_end|><|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.add:0\n3<|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.add:1\n4<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>again<|tool_calls_section_begin|>"
        "<|tool_call_begin|>functions.add:2<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|><|im_end|>"
    )


def test_deepseek_turns():
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "3"}, USER]
    assert render("deepseek_v3", messages, add_generation_prompt=True) == (
        "<bos>Be brief.<｜User｜>1 + 2?<｜Assistant｜>3<｜end▁of▁sentence｜><｜User｜>1 + 2?<｜Assistant｜>"
    )


def test_deepseek_tool_calls():
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call("add", '{"a": 1}'), call("add", {"a": 2})]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]
    conversation = (
        "<｜User｜>1 + 2?<｜Assistant｜><｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>\n'
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 2}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>4<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )
    assert render("deepseek_v3", messages) == BOS + conversation
    # The model answers right after the tool outputs, and a question begins a new turn.
    messages.append({"role": "assistant", "content": "7"})
    assert render("deepseek_v3", [*messages, USER], TOOLS).endswith(
        conversation + "7<｜end▁of▁sentence｜><｜User｜>1 + 2?"
    )


def test_deepseek_declares_tools_after_the_system_text():
    text = render("deepseek_v3", [{"role": "system", "content": "Be brief."}, USER], TOOLS)
    assert text.startswith("<bos>Be brief.\n\n## Tools")
    assert '\n{"name": "add", "parameters": {"type": "object"}}\n' in text


def test_llama_turns():
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "3"}]
    assert render("llama", messages, add_generation_prompt=True) == (
        "<bos><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1 + 2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n3<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    with pytest.raises(TemplateError, match="no tools"):
        render("llama", messages, TOOLS)


def test_qwen_turns():
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "reasoning_content": "easy", "content": "3"},
        USER,
    ]
    assert render("qwen3", messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    # What the model has thought since the last question is kept, be it nothing.
    assert render("qwen3", [USER, {"role": "assistant", "content": "3"}]).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n3<|im_end|>\n"
    )


def test_qwen_tool_calls():
    messages = [
        USER,
        {
            "role": "assistant",
            "reasoning_content": "two calls",
            "content": "",
            "tool_calls": [call("add", '{"a": 1}'), call("add", {"a": 2})],
        },
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]
    text = render("qwen3", messages, TOOLS, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n# Tools\n\n")
    declared = '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}'
    assert f"\n<tools>\n{declared}\n</tools>\n" in text
    assert text.endswith(
        "<|im_start|>user\n1 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\ntwo calls\n</think>\n\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n"
        "<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("family", ["kimi_k2", "deepseek_v3", "llama", "qwen3"])
@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "wizard", "content": "x"}, "wizard"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
    ],
)
def test_what_cannot_be_written_is_refused(family, message, named):
    with pytest.raises(TemplateError, match=named):
        render(family, [message])
