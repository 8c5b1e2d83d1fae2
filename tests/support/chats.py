"""A tokenizer of bytes with control tokens, chat templates of three kinds, and models that take its tokens."""

import torch
from tiny import make_base
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

CONTROL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{- bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama_3": LLAMA_3, "gemma": GEMMA}


def make_byte_tokenizer(template: str | None = CHATML, end: str = "</s>") -> PreTrainedTokenizerFast:
    """A token for each byte, and merges of white space, as in the tokenizers of large models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: n for n, word in enumerate([*CONTROL, *alphabet, "ĊĊ", "ĠĠ"])}
    tokenizer = Tokenizer(models.BPE(words, [("Ċ", "Ċ"), ("Ġ", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=end, pad_token=end)
    made.add_special_tokens({"additional_special_tokens": CONTROL})  # type: ignore[dict-item]
    made.chat_template = template
    return made


def make_chat_base(
    family: str, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """A small random model of a family, with an embedding for each token."""
    base = make_base(family, dtype=dtype)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(1)
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        weight = next(layer.parameters()).data
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * weight.shape[-1] ** -0.5)
    return base.eval()
