"""Encode text as tokens, so that control tokens come from the configuration alone, never from a document.

A control mark is the text of a token that is not part of a document, such as `</s>`, `<pad>`, or a token of a chat
template. Where a document or a task's name contains the characters of a mark, they are encoded as characters.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bora_sweep.errors import InputError

PROBES = ("x", "a b", "0", "The cat.")
"""Texts that show what the tokenizer prepends."""
UNASSIGNED = "\ufdd1 \u1c9f \U0003fffd"
"""Code points that are no characters, so that no tokenizer knows them."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
AS_CHARACTERS = re.compile(r"zqxcharacters(\d+)sretcarahcxqz")
"""What stands for a control mark that is characters of a text, while a chat template writes its own marks around it."""


class Encoder:
    """Encodes filled-in templates so that no text becomes a control token.

    A text without marks gets the tokens that the tokenizer gives it. A text with marks is encoded again by a twin of
    the tokenizer, in which the marks have names that no text has.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        _disable_dropout(tokenizer)
        self.tokenizer, self.mark_of = tokenizer, control_marks(tokenizer)
        self.control = frozenset(self.mark_of)
        # The token for unknown characters may come from a text, unless it is also the end token.
        self.refused = self.control - {token for token in _unknown_tokens(tokenizer) if token != tokenizer.eos_token_id}

    @cached_property
    def end(self) -> int:
        """The end token of a document.

        Raises:
            InputError: The tokenizer has none.
        """
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise InputError(f"{self.tokenizer.name_or_path}: the tokenizer has no end token; set its eos_token")
        return end

    @cached_property
    def prepended(self) -> list[int]:
        """All tokens that the tokenizer prepends to a text by itself, found by encoding `PROBES` with and without.

        Raises:
            InputError: They depend on the text.
        """
        return _prepended(self.tokenizer)

    @cached_property
    def start(self) -> list[int]:
        """The start symbol of a document: what the tokenizer prepends, else its BOS, else its EOS."""
        bos = self.tokenizer.bos_token_id
        return self.prepended or [bos if isinstance(bos, int) else self.end]

    def encode(self, template: str, values_N: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """The tokens of `template` filled in with each of `values_N`, with nothing before or after.

        Args:
            template: `data.prompt` or `data.template`. Marks in it are control tokens.
            values_N: The values of the placeholders, for each of N documents.

        Raises:
            InputError: The tokenizer makes a control token of a text, and no encoding avoids it.
        """
        texts_N = [fill(template, values) for values in values_N]
        tokens_N = self._encode_plain(texts_N)
        with_control = [n for n, tokens in enumerate(tokens_N) if not self.control.isdisjoint(tokens)]
        if not with_control:
            return tokens_N
        marks = re.findall(self._mark_pattern(), template)
        id_of = {mark: token for token, mark in self.mark_of.items()}
        wanted = [id_of[mark] for mark in marks if id_of[mark] in self.refused]
        again = self._encode_with_marks(template, [values_N[n] for n in with_control], bool(marks))
        for n, tokens in zip(with_control, again, strict=True):
            if [token for token in tokens if token in self.refused] != wanted:
                self._refuse(texts_N[n], tokens)
            tokens_N[n] = tokens
        return tokens_N

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts that a chat template wrote: marks are control tokens, but for those `as_characters`.

        Raises:
            InputError: A text has such marks, and the tokenizer has no twin to encode them by.
        """
        if not texts:
            return []
        tokens_N = self._encode_plain(list(texts))
        for n, text in enumerate(texts):
            if AS_CHARACTERS.search(text):
                tokens_N[n] = self._encode_with_characters(text)
        return tokens_N

    def as_characters(self, text: str) -> str:
        """`text` with each special mark replaced by what `encode_rendered` encodes as the mark's characters."""
        token_of = {mark: token for token, mark in self.special.items()}
        return self.special_pattern.sub(lambda match: f"zqxcharacters{token_of[match[0]]}sretcarahcxqz", text)

    @cached_property
    def special(self) -> dict[int, str]:
        """The control marks of special tokens. Added tokens such as `<think>` are words that a message may contain."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        bounds = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, *self.tokenizer.all_special_ids]
        return {t: mark for t, mark in self.mark_of.items() if t in bounds or (t in added and added[t].special)}

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches the mark of any special token; of marks that begin alike the longest."""
        marks = sorted(self.special.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def _encode_with_characters(self, text: str) -> list[int]:
        plain = AS_CHARACTERS.sub(lambda match: self.special[int(match[1])], text)
        if not self.tokenizer.is_fast:
            self._refuse(plain, list(self.special))
        renamed = self.special_pattern.sub(lambda match: self._renamed.get(match[0], match[0]), text)
        renamed = AS_CHARACTERS.sub(lambda match: self.special[int(match[1])], renamed)
        tokens = self._special_twin.encode(renamed, add_special_tokens=False).ids
        wanted = self.special_pattern.findall(AS_CHARACTERS.sub(" ", text))
        if [self.special[token] for token in tokens if token in self.special] != wanted:
            self._refuse(plain, tokens)
        return tokens

    @cached_property
    def _renamed(self) -> dict[str, str]:
        return {mark: _twin_name(token) for token, mark in self.special.items() if not _may_be_text(mark)}

    @cached_property
    def _special_twin(self) -> Tokenizer:
        return _twin(self.tokenizer, self._renamed)

    def _encode_plain(self, texts: list[str], **options: Any) -> list[list[int]]:
        return self.tokenizer(  # type: ignore[return-value]
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options
        )["input_ids"]

    def _encode_with_marks(self, template: str, values_N: list[Mapping[str, str]], has_marks: bool) -> list[list[int]]:
        """The tokens of filled-in templates whose values may contain the characters of marks."""
        if not self.tokenizer.is_fast:  # it has no twin, and recognises all marks or none
            texts = [fill(template, values) for values in values_N]
            return self._encode_plain(texts, split_special_tokens=not has_marks)
        # A mark that is one character has no other token: a text with it is refused.
        name_of = {mark: _twin_name(token) for token, mark in self.mark_of.items() if not _may_be_text(mark)}
        renamed = re.sub(self._mark_pattern(), lambda match: name_of.get(match[0], match[0]), template)
        twin = _twin(self.tokenizer, name_of)
        texts = [fill(renamed, values) for values in values_N]
        return [encoding.ids for encoding in twin.encode_batch(texts, add_special_tokens=False)]

    def _mark_pattern(self) -> str:
        """A regular expression for any mark. Of marks that begin alike it matches the longest."""
        return "|".join(re.escape(mark) for mark in sorted(self.mark_of.values(), key=len, reverse=True))

    def _refuse(self, text: str, tokens: list[int]) -> None:
        mark = next((self.mark_of[token] for token in tokens if token in self.refused), None)
        why = ", which also stands for unknown characters" if mark == self.tokenizer.unk_token else ""
        raise InputError(
            f"{self.tokenizer.name_or_path}: the tokenizer makes its control token {mark!r}{why} of the text "
            f"{_shortened(text)}, which would end or divide it; leave such texts out, or give a model with another "
            "tokenizer"
        )


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with its placeholders filled in, and `{{` as a brace. Braces within the values stay."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]) if match[1] else match[0][0], template)


def until_text(template: str, scored_names: Collection[str]) -> str:
    """`data.template` up to and with its `{text}`, or whichever of `scored_names` it has."""
    end = next(match.end() for match in PLACEHOLDER.finditer(template) if match[1] in scored_names)
    return template[:end]


def placeholders(template: str) -> set[str]:
    """The names in braces."""
    return {match[1] for match in PLACEHOLDER.finditer(template) if match[1]}


def control_marks(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """From control token to its mark, the characters that stand for it in a string.

    These are special tokens, and added tokens that the chat template writes, unless they are words. A single character,
    which some models use for padding, and a byte such as `<0x0A>` are text. But tokens that begin or end a document are
    control in any case.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = {}
    with suppress(NotImplementedError):  # Mistral's own tokenizer, which never makes control tokens of text
        added = tokenizer.added_tokens_decoder
    marks = {
        token: entry.content
        for token, entry in added.items()
        if entry.special or (entry.content in template and re.search(r"\w", entry.content) and not _is_word(entry))
    }
    marks |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    bounds = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return {token: mark for token, mark in marks.items() if token in bounds or not _may_be_text(mark)}


def _may_be_text(mark: str) -> bool:
    """Whether the mark may also be a character or a byte of a text."""
    return len(mark) == 1 or mark.isspace() or BYTE.match(mark) is not None


def _disable_dropout(tokenizer: Any) -> None:
    """Make tokens deterministic. A tokenizer may be saved with the dropout of merges that it was trained with."""
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None


def _unknown_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens for unknown characters: the tokenizer's unk_token, and those that it uses for some such characters."""
    unk = tokenizer.unk_token_id
    observed: list[int] = tokenizer(UNASSIGNED, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    return [unk, *observed] if isinstance(unk, int) else observed


def _is_word(added: Any) -> bool:
    return re.fullmatch(r"[\w\s]+", added.content) is not None


def _prepended(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer prepends to a text, found by encoding `PROBES` with and without special tokens."""
    candidates = []
    for probe in PROBES:
        bare, whole = (tokenizer(probe, add_special_tokens=special)["input_ids"] for special in (False, True))
        if bare:
            starts = range(len(whole) - len(bare) + 1)
            candidates.append({tuple(whole[:i]) for i in starts if whole[i : i + len(bare)] == bare})
    common = set.intersection(*candidates) if candidates else {tuple(tokenizer("")["input_ids"])}
    if len(common) != 1:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer prepends tokens that depend on the text; give another model"
        )
    return list(common.pop())


def _twin_name(token: int) -> str:
    """The mark of a control token in the twin. A normaliser leaves it unchanged, and no text has it."""
    return f"zqxcontrol{token}lortnocxqz"


def _twin(tokenizer: Any, name_of: dict[str, str]) -> Tokenizer:
    """The same tokenizer with its marks renamed by `name_of`, wherever they occur."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"truncation": None, "padding": None, "post_processor": None}
    for added in state["added_tokens"]:
        if added["content"] in name_of:
            added["content"] = name_of[added["content"]]
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name_of.get(piece, piece): token for piece, token in model["vocab"].items()}
    else:  # Unigram: pieces with their scores
        model["vocab"] = [[name_of.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not {*merge, "".join(merge)} & name_of.keys()]
    if model.get("unk_token") in name_of:
        model["unk_token"] = name_of[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(state))


def _shortened(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")
