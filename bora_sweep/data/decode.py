"""Tokens that a model has generated, as text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def continuation(tokenizer: PreTrainedTokenizerBase, prompt_T: Sequence[int], new_T: Sequence[int]) -> str:
    """The text of the tokens that follow a prompt, without special tokens.

    Decoded together with the prompt if possible, so that no first space is lost.

    Args:
        tokenizer: Of the model.
        prompt_T: Tokens of the prompt.
        new_T: Tokens after it.
    """
    prompt, whole, alone = (
        str(tokenizer.decode(list(part_T), skip_special_tokens=True))
        for part_T in (prompt_T, [*prompt_T, *new_T], new_T)
    )
    return whole.removeprefix(prompt) if whole.startswith(prompt) else alone
