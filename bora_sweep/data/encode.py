"""Text as tokens: what a user's text says stays text, and only what the configuration's author wrote is control.

A control mark is a token that is not part of a text, such as `</s>`, `<pad>`, or one of a chat template's own. Where
its characters stand in a document, a task's name or a prompt, they are characters.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bora_sweep.errors import InputError

PROBES = ("x", "a b", "0", "The cat.")
STRANGE = "\ufdd1 \u1c9f \U0003fffd"
"""Characters that are none."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
PLACE = re.compile(r"\{\{|\}\}|\{(task|text)\}")


class Encoder:
    """A tokenizer of which no text that is filled in makes a control token.

    What holds no mark has the tokens that the tokenizer gives it, as one piece. What does is tokenised once more by a
    twin of the tokenizer, in which the marks have names that no text has.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        _leave_nothing_to_chance(tokenizer)
        self.tokenizer, self.mark_of = tokenizer, control_marks(tokenizer)
        self.control = frozenset(self.mark_of)
        # What stands for characters that the tokenizer does not know may come of a text, but does not end it.
        self.refused = self.control - {token for token in _unknown(tokenizer) if token != tokenizer.eos_token_id}

    def encode(self, words: str, values_N: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """The tokens of `words` with each of `values_N` filled in, nothing put before or after.

        Args:
            words: `data.prompt` or `data.template`, whose own marks are control.
            values_N: What stands for `{task}` and `{text}`.

        Raises:
            InputError: The tokenizer makes a control token of a text, whatever is done.
        """
        texts_N = [fill(words, values) for values in values_N]
        tokens_N = self._plain(texts_N)
        doubtful = [n for n, tokens in enumerate(tokens_N) if not self.control.isdisjoint(tokens)]
        if not doubtful:
            return tokens_N
        own = re.findall(self._any_mark(), words)
        id_of = {mark: token for token, mark in self.mark_of.items()}
        wanted = [id_of[mark] for mark in own if id_of[mark] in self.refused]
        for n, tokens in zip(doubtful, self._again(words, [values_N[n] for n in doubtful], bool(own)), strict=True):
            if [token for token in tokens if token in self.refused] != wanted:
                self._refuse(texts_N[n], tokens)
            tokens_N[n] = tokens
        return tokens_N

    def _plain(self, texts: list[str], **options: Any) -> list[list[int]]:
        return self.tokenizer(  # type: ignore[return-value]
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options
        )["input_ids"]

    def _again(self, words: str, values_N: list[Mapping[str, str]], has_marks: bool) -> list[list[int]]:
        """The tokens of texts in which marks may stand."""
        if not self.tokenizer.is_fast:  # has no twin; it knows all marks or none
            return self._plain([fill(words, values) for values in values_N], split_special_tokens=not has_marks)
        # A character that is control has no other token: where a text has it, the text is refused.
        name_of = {mark: _name(token) for token, mark in self.mark_of.items() if not _is_of_text(mark)}
        renamed = re.sub(self._any_mark(), lambda found: name_of.get(found[0], found[0]), words)
        twin = _twin(self.tokenizer, name_of)
        texts = [fill(renamed, values) for values in values_N]
        return [found.ids for found in twin.encode_batch(texts, add_special_tokens=False)]

    def _any_mark(self) -> str:
        """A pattern: of marks that begin alike, the longest."""
        return "|".join(re.escape(mark) for mark in sorted(self.mark_of.values(), key=len, reverse=True))

    def _refuse(self, text: str, tokens: list[int]) -> None:
        made = next((self.mark_of[token] for token in tokens if token in self.refused), None)
        why = ", which stands for what it does not know as well" if made == self.tokenizer.unk_token else ""
        raise InputError(
            f"{self.tokenizer.name_or_path}: the tokenizer makes its control token {made!r}{why} of the text "
            f"{_shortened(text)}, which would end or part it; leave such texts out, or give a model with another "
            "tokenizer"
        )


def fill(words: str, values: Mapping[str, str]) -> str:
    """`words` with `{task}` and `{text}` filled in, braces within what is filled in as they are; `{{` is a brace."""
    return PLACE.sub(lambda found: values.get(found[1], found[0]) if found[1] else found[0][0], words)


def until_text(template: str) -> str:
    """`data.template` up to its `{text}`."""
    end = next(found.end() for found in PLACE.finditer(template) if found[1] == "text")
    return template[:end]


def control_marks(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that are no text, by what stands for them in a string.

    Special tokens, and added ones that the chat template writes, unless these are words. Not a lone character, which
    some models are padded with, and not a byte such as `<0x0A>`: these come of texts by right. But what begins or ends
    a document is control, whatever it is.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = {}
    with suppress(NotImplementedError):  # Mistral's own makes control tokens of no text
        added = tokenizer.added_tokens_decoder
    marks = {
        token: found.content
        for token, found in added.items()
        if found.special or (found.content in template and re.search(r"\w", found.content) and not _is_word(found))
    }
    marks |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    bounds = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return {token: mark for token, mark in marks.items() if token in bounds or not _is_of_text(mark)}


def _is_of_text(mark: str) -> bool:
    """Whether it may as well be a character, or a byte, of a text."""
    return len(mark) == 1 or mark.isspace() or BYTE.match(mark) is not None


def _leave_nothing_to_chance(tokenizer: Any) -> None:
    """A tokenizer may be saved as it was trained, to leave out merges at random: the same text had other tokens."""
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None


def _unknown(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer writes for characters that it does not know: as it says, and by trying some."""
    said = tokenizer.unk_token_id
    tried: list[int] = tokenizer(STRANGE, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    return [said, *tried] if isinstance(said, int) else tried


def _is_word(added: Any) -> bool:
    return re.fullmatch(r"[\w\s]+", added.content) is not None


def boundary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """(start symbol, end token): all that the tokenizer prepends, else its BOS, else its EOS; and its EOS.

    Raises:
        InputError: The tokenizer has no end token, or puts other tokens before one text than before another.
    """
    end, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if not isinstance(end, int):
        raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end token; set its eos_token")
    return prepended(tokenizer) or [bos if isinstance(bos, int) else end], end


def prepended(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text by itself, found by trying."""
    found = []
    for probe in PROBES:
        bare, whole = (tokenizer(probe, add_special_tokens=special)["input_ids"] for special in (False, True))
        if bare:
            places = range(len(whole) - len(bare) + 1)
            found.append({tuple(whole[:i]) for i in places if whole[i : i + len(bare)] == bare})
    agreed = set.intersection(*found) if found else {tuple(tokenizer("")["input_ids"])}
    if len(agreed) != 1:
        raise InputError(
            f"{tokenizer.name_or_path}: cannot tell what the tokenizer puts before a text; it depends on the text"
        )
    return list(agreed.pop())


def _name(token: int) -> str:
    """Of a control token in the twin: such that a normaliser leaves it as it is, and no text has it."""
    return f"zqxcontrol{token}lortnocxqz"


def _twin(tokenizer: Any, name_of: dict[str, str]) -> Tokenizer:
    """The same tokenizer, in which the marks go by the names of `name_of`, wherever they stood."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    made |= {"truncation": None, "padding": None, "post_processor": None}
    for added in made["added_tokens"]:
        if added["content"] in name_of:
            added["content"] = name_of[added["content"]]
    model = made["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name_of.get(piece, piece): token for piece, token in model["vocab"].items()}
    else:  # Unigram: pieces with their scores
        model["vocab"] = [[name_of.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not {*merge, "".join(merge)} & name_of.keys()]
    if model.get("unk_token") in name_of:
        model["unk_token"] = name_of[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(made))


def _shortened(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")
