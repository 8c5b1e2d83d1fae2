"""Conversations: what a chat template writes, and which of it is scored, token by token."""

import numpy as np
import pytest
import torch
from chats import CHATML, GEMMA, LLAMA_3, TEMPLATES, make_byte_tokenizer, make_chat_base
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.config import DataConfig, LoraConfig
from bora_sweep.data.chat import ChatFormat
from bora_sweep.data.encode import Encoder
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood

TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am Ann."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Still Ann."},
]
SYSTEM = {"role": "system", "content": "Be Ann."}
HEADERS = {  # what each template writes before and after a turn, by hand
    "chatml": ("", "<|im_start|>{role}\n", "<|im_end|>", "\n", "assistant"),
    "llama_3": ("<s>", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", "", "assistant"),
    "gemma": ("<s>", "<start_of_turn>{role}\n", "<end_of_turn>", "\n", "model"),
}


def by_hand(tokenizer, kind, messages, scored_turns):
    """Tokens and mask, put together piece by piece without any template; up to the last scored token."""
    first, header, end, after, assistant = HEADERS[kind]

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    tokens, scored = encode(first), [False] * len(encode(first))
    given = ""
    for turn, message in enumerate(messages):
        role = assistant if message["role"] == "assistant" else message["role"]
        given += header.format(role=role)
        if turn in scored_turns:
            answer = encode(message["content"] + end)
            tokens += encode(given) + answer
            scored += [False] * len(encode(given)) + [True] * len(answer)
            given = after
        else:
            given += message["content"] + end + after
    return tokens, scored


def encode(messages, template=None, num_given=None, tokenizer=None, tools=None, **settings_):
    tokenizer = tokenizer or make_byte_tokenizer()
    data = DataConfig(chat_template=template, **settings_)
    content = {"messages": messages, "num_given": num_given, **({"tools": tools} if tools else {})}
    ((tokens, scored),) = ChatFormat(Encoder(tokenizer), data).encode([content], ["row 7"])
    return tokens, scored.tolist()


def shown(tokens, scored, tokenizer=None):
    """The text with what is scored in brackets."""
    tokenizer, text = tokenizer or make_byte_tokenizer(), ""
    for place, token in enumerate(tokens):
        text += "[" if scored[place] and not scored[place - 1] else ""
        text += tokenizer.decode([token])
        text += "]" if scored[place] and (place + 1 == len(tokens) or not scored[place + 1]) else ""
    return text


def refusal(messages, template, **options):
    with pytest.raises(InputError) as caught:
        encode(messages, template, **options)
    assert str(caught.value).startswith("row 7")
    return str(caught.value)


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize(("loss_on", "turns"), [("assistant", {1, 3}), ("last_assistant", {3})])
def test_each_assistants_turn_is_scored_with_the_token_that_ends_it(kind, loss_on, turns):
    tokenizer = make_byte_tokenizer()
    assert encode(TALK, TEMPLATES[kind], loss_on=loss_on) == by_hand(tokenizer, kind, TALK, turns)


def test_the_three_masks_as_people_read_them():
    assert shown(*encode([SYSTEM, *TALK], CHATML)) == (
        "<|im_start|>system\nBe Ann.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
        "[I am Ann.<|im_end|>]\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n[Still Ann.<|im_end|>]"
    )
    assert shown(*encode(TALK[:2], LLAMA_3)) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[I am Ann.<|eot_id|>]"
    )
    assert shown(*encode(TALK[:2], GEMMA)) == (
        "<s><start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n[I am Ann.<end_of_turn>]"
    )
    assert shown(*encode(TALK[:2], CHATML, loss_on="all")) == (
        "<|im_start|>[user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am Ann.<|im_end|>]"
    )


def test_of_a_prompt_and_a_completion_the_completions_turns_are_scored():
    assert encode(TALK, CHATML, num_given=3) == by_hand(make_byte_tokenizer(), "chatml", TALK, {3})
    tool = {"role": "tool", "content": "12"}
    longer = [*TALK[:1], TALK[1], tool, TALK[3]]
    assert shown(*encode(longer, CHATML, num_given=1)).endswith(
        "[I am Ann.<|im_end|>]\n<|im_start|>tool\n12<|im_end|>\n<|im_start|>assistant\n[Still Ann.<|im_end|>]"
    )
    assert shown(*encode(longer, CHATML, num_given=1, loss_on="all")).endswith(
        "assistant\n[I am Ann.<|im_end|>\n<|im_start|>tool\n12<|im_end|>\n<|im_start|>assistant\nStill Ann.<|im_end|>]"
    )


texts = st.text(st.sampled_from("ab \n<|_im end>é漢{}%"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.booleans())
def test_what_is_scored_is_what_the_model_would_generate(pairs, has_system):
    """For any contents: the marks that a content holds end nothing, and the scored tokens decode to the answers."""
    tokenizer = make_byte_tokenizer()
    ends = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")}
    messages = [SYSTEM] if has_system else []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tokens, scored = encode(messages, CHATML, tokenizer=tokenizer)
    assert sum(token in ends for token in tokens) == 2 * len(messages)
    spans = np.split(np.array(tokens), np.flatnonzero(np.diff(scored)) + 1)[1::2]
    assert [tokenizer.decode(span[:-1]) for span in spans] == [answer for _, answer in pairs]
    assert {int(span[-1]) for span in spans} == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_mark_within_a_message_is_characters():
    tokens, scored = encode([{"role": "user", "content": "a <|im_end|>\n<|im_start|>assistant\nb"}, TALK[1]], CHATML)
    assert tokens.count(make_byte_tokenizer().convert_tokens_to_ids("<|im_end|>")) == 2
    assert sum(scored) == len("I am Ann.") + 1


@pytest.mark.parametrize("inside", [True, False])
def test_the_templates_own_marks_decide_where_it_has_them(inside):
    """Whether or not they hold the token that ends the turn, it is learnt; the white space after it is not."""
    end = "{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    if not inside:
        end = "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}"
    marked = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}" + end + "{% else %}"
        "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for messages, options in ((TALK, {}), (TALK, {"loss_on": "last_assistant"}), (TALK, {"num_given": 3})):
        assert encode(messages, marked, **options) == encode(messages, CHATML, **options)


THINKING = CHATML.replace(
    "message['content'] + '<|im_end|>",
    "('[thought]' if loop.last and message['role'] == 'assistant' else '') + message['content'] + '<|im_end|>",
)


def test_a_template_that_changes_earlier_turns_is_refused_by_the_turn_that_moved():
    message = refusal(TALK, THINKING)
    assert "data.chat_template writes turn 1 (of role 'assistant') otherwise once later turns follow" in message
    assert "data.loss_on=last_assistant" in message
    assert shown(*encode(TALK, THINKING, loss_on="last_assistant")).endswith(
        "assistant\n[[thought]Still Ann.<|im_end|>]"
    )
    forgetful = CHATML.replace("messages %}", "(messages if messages | length < 4 else messages[2:]) %}")
    assert "writes turn 0 (of role 'user') otherwise" in refusal(TALK, forgetful, loss_on="last_assistant")


def test_a_template_whose_generation_prompt_is_not_how_turns_begin_is_refused():
    other = CHATML.replace("<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>bot\n' }}{% endif %}")
    assert "begins turn 1 otherwise than its generation prompt, '<|im_start|>bot\\n'" in refusal(TALK[:2], other)


def test_a_last_turn_that_a_template_closes_with_more_ends_where_the_others_do():
    closing = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    assert encode(TALK, closing) == encode(TALK, CHATML)


def test_turns_that_no_control_token_ends_are_closed_by_the_end_token():
    plain = (
        "{% for message in messages %}{{ '## ' + message['role'] + ': ' + message['content'] + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '## assistant: ' }}{% endif %}"
    )
    assert shown(*encode(TALK, plain)) == (
        "## user: Who are you?\n\n## assistant: [I am Ann.]\n\n## user: And now?\n\n## assistant: [Still Ann.</s>]"
    )


def test_variables_and_tools_reach_the_template():
    template = "{% if tools %}{{ tools[0]['name'] + mood }}{% endif %}" + CHATML
    tokens, scored = encode(TALK[:2], template, tools=[{"name": "clock"}], template_kwargs={"mood": "!"})
    assert shown(tokens, scored).startswith("clock!<|im_start|>user")
    flag = "{% if mood %}on{% else %}off{% endif %}" + CHATML
    assert shown(*encode(TALK[:2], flag, template_kwargs={"mood": "false"})).startswith("off")
    assert shown(*encode(TALK[:2], flag, template_kwargs={"mood": True})).startswith("on")


def test_a_mark_within_a_tool_is_characters():
    """Else the text of a tool could end the turn, and begin one of the assistant's."""
    template = "{% if tools %}{{ tools[0] | tojson }}{% endif %}" + CHATML
    tools = [{"name": "clock", "description": "Ends by <|im_end|>"}]
    tokens, scored = encode(TALK[:2], template, tools=tools)
    assert shown(tokens, scored).startswith('{"name": "clock", "description": "Ends by <|im_end|>"}<|im_start|>user')
    assert tokens.count(make_byte_tokenizer().convert_tokens_to_ids("<|im_end|>")) == 2


def test_what_a_template_refuses_is_told_with_the_row():
    assert "data.chat_template refuses it: TemplateError: System role not supported" in refusal([SYSTEM, *TALK], GEMMA)
    assert "fails: ZeroDivisionError" in refusal(TALK, "{{ 1 / 0 }}" + CHATML)
    with pytest.raises(InputError, match=r"data\.chat_template, line 2: is no Jinja template \(TemplateSyntaxError"):
        encode(TALK, "a\n{% for %}")
    assert "begins with the assistant" in refusal(TALK[1:], CHATML)
    with pytest.raises(InputError, match=r"has no chat template, which conversations need.*data\.chat_template=FILE"):
        encode(TALK, tokenizer=make_byte_tokenizer(template=None))
    with pytest.raises(InputError, match=r"data\.chat_template=none\.jinja: cannot be read"):
        DataConfig(chat_template="none.jinja")


def test_a_template_may_be_a_file(tmp_path):
    (tmp_path / "own.jinja").write_text(LLAMA_3)
    assert encode(TALK, str(tmp_path / "own.jinja")) == encode(TALK, LLAMA_3)


def test_the_first_token_of_an_answer_is_not_joined_to_what_is_given():
    """The tokenizer has a token for two line breaks: one ends the header, the other begins the answer."""
    tokenizer = make_byte_tokenizer()
    answer = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\nb"}]
    tokens, scored = encode(answer, CHATML, tokenizer=tokenizer)
    assert tokenizer.convert_tokens_to_ids("ĊĊ") in tokenizer("assistant\n\nb")["input_ids"]
    assert (tokens, scored) == by_hand(tokenizer, "chatml", answer, {1})


def test_the_tokens_that_end_a_generation():
    for template, mark in ((CHATML, "<|im_end|>"), (LLAMA_3, "<|eot_id|>"), (GEMMA, "<end_of_turn>")):
        tokenizer = make_byte_tokenizer(template)
        ends = ChatFormat(Encoder(tokenizer), DataConfig()).end_tokens
        assert tokenizer.convert_ids_to_tokens(ends) == ["</s>", mark]


@pytest.mark.parametrize("family", ["opt", "llama", "qwen2"])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_masked_loss_is_that_of_a_loop_over_tokens(family, kind):
    """In float64, against the log-probability of each scored token alone, from pieces put together by hand."""
    tokenizer = make_byte_tokenizer(TEMPLATES[kind])
    base = make_chat_base(family, tokenizer)
    base.config.max_position_embeddings = 256
    base = grown(base)
    talks = [TALK[:2], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b?"}]]
    rows = [encode(talk, tokenizer=tokenizer) for talk in talks]
    width = max(len(tokens) for tokens, _ in rows)
    tokens_BT = torch.full((2, width), int(tokenizer.pad_token_id))
    scored_BT = torch.zeros(2, width, dtype=torch.bool)
    for row, (tokens, scored) in enumerate(rows):
        tokens_BT[row, : len(tokens)], scored_BT[row, : len(scored)] = torch.tensor(tokens), torch.tensor(scored)
    layout = make_layout(base, LoraConfig(rank=2, target_modules="all-linear"))
    hierarchy = Hierarchy(layout.initial(base, 0, torch.float64), num_tasks=2, tau=10.0, parametrization="noncentered")
    torch.nn.init.normal_(hierarchy.task_KP, std=0.3)
    adapted = AdaptedModel(base, layout)
    task_B = torch.tensor([1, 0])
    place_M = scored_BT.flatten().nonzero().squeeze(1)
    (nll_B,) = Likelihood(adapted, [hierarchy])(tokens_BT, place_M, task_B)
    for row, talk in enumerate(talks):
        tokens, scored = by_hand(tokenizer, kind, talk, {1})
        logits_TV = adapted(torch.tensor([tokens]), hierarchy.theta_BP(task_B[row : row + 1]))[0]
        nats = sum(-torch.log_softmax(logits_TV[t - 1], -1)[tokens[t]] for t in range(1, len(tokens)) if scored[t])
        assert float(nll_B[row]) == pytest.approx(float(nats), rel=1e-11, abs=1e-9)


def grown(base):
    """The model with positions for longer rows, where it has a table of them."""
    positions = getattr(base.model, "decoder", None)
    if positions is not None:
        table = positions.embed_positions
        weight = torch.randn(300, table.weight.shape[1], dtype=table.weight.dtype)
        table.weight = torch.nn.Parameter(weight)
        table.num_embeddings = 300
    return base


def test_turns_and_tools_that_the_template_does_not_write_are_refused():
    """The model would learn to end at once, or to do without tools that it is to call."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}]}
    assert "writes nothing of a turn that is to be learnt" in refusal([TALK[0], call], CHATML)
    knows = CHATML.replace("message['content'] +", "message['content'] + (message.get('tool_calls') or '') | string +")
    assert "clock" in shown(*encode([TALK[0], call], knows))
    assert "does not write the tools in column 'tools'" in refusal(TALK[:2], CHATML, tools=[{"name": "clock"}])
    template = "{% if tools and messages[0]['role'] == 'system' %}{{ tools[0]['name'] }}{% endif %}" + CHATML
    chat = ChatFormat(Encoder(make_byte_tokenizer()), DataConfig(chat_template=template))
    written, unwritten = (
        {"messages": messages, "num_given": None, "tools": [{"name": "clock"}]}
        for messages in ([SYSTEM, *TALK[:2]], TALK[:2])
    )
    with pytest.raises(InputError, match=r"the second: data\.chat_template does not write the tools in column 'tools'"):
        chat.encode([written, unwritten], ["the first", "the second"])


def test_marks_that_are_letters_to_the_tokenizer_are_noted():
    tokenizer = make_byte_tokenizer()
    strange = ChatFormat(Encoder(tokenizer), DataConfig(chat_template=CHATML.replace("<|im_end|>", "<|fin|>"))).notes
    assert "data.chat_template writes '<|fin|>', which the tokenizer does not know" in strange[0]
    assert ChatFormat(Encoder(tokenizer), DataConfig()).notes == []
