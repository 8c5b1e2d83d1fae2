"""Conversations as tokens by a chat template, with what is scored of them found exactly.

A template is a program, and nothing in it says where a turn begins or ends. Where it marks what the assistant generates
(`{% generation %}`), the marks decide. Else each scored turn is found by growing prefixes: the conversation before the
turn, with the generation prompt, must be a prefix of the whole; so must the conversation up to its end. A template that
renders earlier turns otherwise once later ones follow has no such turn, and is refused.

Scored of a turn is what the model would generate: all after the generation prompt, up to and with the token that ends
the turn. White space that a template writes after that token is not.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from bora_sweep.config import DataConfig
from bora_sweep.data.conversation import ASSISTANT, Message
from bora_sweep.data.encode import Encoder
from bora_sweep.errors import InputError, one_line

Span = tuple[int, int]
"""First character, and the one after the last."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
MARK = re.compile(r"<\|[\w-]+\|>|<(?:start|end)_of_turn>")
"""Marks as chat templates write them."""
PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "b"}]


class ChatFormat:
    """The chat template of a tokenizer, or the one that the configuration gives.

    Args:
        encoder: Of the tokenizer. Marks of control tokens within a message are encoded as characters.
        data: `chat_template`, `template_kwargs` and `loss_on`.

    Raises:
        InputError: There is no template.
    """

    def __init__(self, encoder: Encoder, data: DataConfig) -> None:
        self.encoder, self.loss_on, tokenizer = encoder, data.loss_on, encoder.tokenizer
        self.name = "the tokenizer's chat template" if data.chat_template is None else "data.chat_template"
        self.template = data.chat_template or _template(tokenizer)
        self.variables = {**tokenizer.special_tokens_map, **template_variables(data)}
        try:
            _compile_jinja_template(self.template)
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise InputError(
                f"{self.name}{line}: is no Jinja template ({one_line(error, limit=200)}); mend it"
            ) from None

    def encode(
        self, conversations: Sequence[dict[str, Any]], names: Sequence[str]
    ) -> list[tuple[list[int], np.ndarray]]:
        """The tokens of each conversation up to the last one that is scored, and whether each is scored.

        Args:
            conversations: Each with `messages`, `num_given` and maybe `tools`, see `bora_sweep.data.documents`.
            names: What each is called in a message.

        Raises:
            InputError: The template refuses a conversation, or moves a turn as it grows.
        """
        rendered = [self._scored(content, name) for content, name in zip(conversations, names, strict=True)]
        for (text, spans), name in zip(rendered, names, strict=True):
            self._refuse_empty(text, spans, name)
        texts = [text[: spans[-1][1]] for text, spans in rendered]
        whole = self.encoder.encode_rendered(texts)
        cuts = [sorted({place for span in spans for place in span} - {0, len(text)})
                for text, (_, spans) in zip(texts, rendered, strict=True)]  # fmt: skip
        prefixes = iter(
            self.encoder.encode_rendered([t[:c] for t, places in zip(texts, cuts, strict=True) for c in places])
        )
        encoded = []
        for text, places, tokens, (_, spans) in zip(texts, cuts, whole, rendered, strict=True):
            before = {place: next(prefixes) for place in places}
            if any(tokens[: len(prefix)] != prefix for prefix in before.values()):
                # A token would join the end of what is given and the beginning of what is scored.
                pieces = self.encoder.encode_rendered([text[a:b] for a, b in pairwise([0, *places, len(text)])])
                tokens = [token for piece in pieces for token in piece]
                ends = dict(
                    zip([*places, len(text)], np.cumsum([len(piece) for piece in pieces]).tolist(), strict=True)
                )
            else:
                ends = {place: len(prefix) for place, prefix in before.items()} | {len(text): len(tokens)}
            scored = np.zeros(len(tokens), dtype=bool)
            for start, end in spans:
                scored[ends.get(start, 0) : ends[end]] = True
            if not self._ends_with_mark(text):
                tokens, scored = [*tokens, self.encoder.end], np.append(scored, True)
            scored[0] = False
            encoded.append((tokens, scored))
        return encoded

    @property
    def notes(self) -> list[str]:
        """A note on marks that the template writes and the tokenizer does not know: they are letters to the model."""
        added = getattr(self.encoder.tokenizer, "added_tokens_decoder", {}).values()
        strange = sorted(set(MARK.findall(self.template)) - {token.content for token in added})
        if not strange:
            return []
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        return [
            f"{self.name} writes {strange[0]!r}{more}, which the tokenizer does not know as one token: it is letters, "
            "also in generated answers and in what metrics compare; take the template of this model"
        ]

    def prompt_tokens(self, messages: list[Message]) -> list[int]:
        """The tokens of a conversation with the generation prompt, after which the assistant's turn begins.

        Raises:
            InputError: The template refuses it.
        """
        text = self._render(self._protected(messages), None, "the conversation", prompt=True)
        return self.encoder.encode_rendered([text])[0]

    @cached_property
    def end_tokens(self) -> list[int]:
        """The tokens that end a generation: the tokenizer's end token, and the one that ends the assistant's turn."""
        ((tokens, _),) = self.encode([{"messages": PROBE, "num_given": 1}], ["a conversation of one turn each"])
        return list(dict.fromkeys([self.encoder.end, tokens[-1]]))

    def _scored(self, content: dict[str, Any], name: str) -> tuple[str, list[Span]]:
        """The rendered conversation, and the spans that are scored."""
        messages, tools = self._protected(content["messages"]), self._protected(content.get("tools"))
        num_given, whole = content["num_given"], self._render(messages, tools, name)
        if tools is not None and whole == self._render(messages, None, name):
            raise InputError(
                f"{name}: {self.name} does not write the tools in column 'tools'; give a data.chat_template that does, "
                "or drop the column"
            )
        if self.loss_on == "all":
            start = 0 if num_given is None else self._prompt_end(whole, messages, tools, num_given, name)
            return whole, [(start, self._content_end(whole, start))]
        turns = [turn for turn, message in enumerate(messages) if message["role"] == ASSISTANT]
        marked = self._marked(messages, tools, len(turns), name) if GENERATION.search(self.template) else None
        chosen = [turn for turn in turns if turn >= (num_given or 0)]
        chosen = chosen[-1:] if self.loss_on == "last_assistant" else chosen
        if marked is not None:
            spans = [marked[turns.index(turn)] for turn in chosen]
            return whole, [(start, self._with_mark(whole, end, marked[-1][1])) for start, end in spans]
        return whole, [self._span(whole, messages, tools, turn, name) for turn in chosen]

    def _refuse_empty(self, text: str, spans: list[Span], name: str) -> None:
        """Refuse turns of which the template writes nothing but their end: the model would learn to say nothing."""
        for start, end in spans:
            if not self.encoder.special_pattern.sub("", text[start:end]).strip():
                raise InputError(
                    f"{name}: {self.name} writes nothing of a turn that is to be learnt, as of tool calls that it does "
                    "not know; give a data.chat_template that writes them, or remove the row"
                )

    def _span(self, whole: str, messages: list[Message], tools: Any, turn: int, name: str) -> Span:
        """Where a turn of the assistant is, by growing prefixes."""
        start = self._prompt_end(whole, messages, tools, turn, name)
        grown = self._render(messages[: turn + 1], tools, name)
        if len(messages) > turn + 1:
            stable = _common(grown, whole)
        else:  # a template may close the last turn otherwise than the others, as with an end token of its own
            stable = _common(grown, self._continued(messages, tools, name) or grown)
        end = self._last_mark(grown, start, stable)
        if end is None:
            end = self._last_mark(grown, start, len(grown)) if grown == whole else None
        if end is None and not self._writes_marks(grown[start:]) and whole.startswith(grown.rstrip()):
            end = len(grown.rstrip())
        left = self.encoder.special_pattern.sub("", grown[end:]) if end is not None else "moved"
        if end is None or end <= start or left.strip():
            raise self._moved(turn, messages[turn], name)
        return start, end

    def _prompt_end(self, whole: str, messages: list[Message], tools: Any, turn: int, name: str) -> int:
        """The characters before a turn: the conversation so far, with the generation prompt."""
        if turn == 0:
            raise InputError(
                f"{name}: begins with the assistant, so that nothing is given before it; begin with a user"
            )
        before = self._render(messages[:turn], tools, name, prompt=True)
        if whole.startswith(before):
            return len(before)
        plain = self._render(messages[:turn], tools, name)
        if whole.startswith(plain.rstrip()):
            raise InputError(
                f"{name}: {self.name} begins turn {turn} otherwise than its generation prompt, "
                f"{before[len(plain) :]!r}, so that the model would be asked another question than it was "
                "taught; give data.chat_template or data.template_kwargs under which they agree"
            )
        same, earlier = _common(before, whole), range(turn - 1)
        moved = (i for i in earlier if len(self._render(messages[: i + 1], tools, name)) > same)
        raise self._moved(first := next(moved, turn - 1), messages[first], name)

    def _continued(self, messages: list[Message], tools: Any, name: str) -> str | None:
        """The conversation with one more turn of the user; None where the template refuses it."""
        try:
            return self._render([*messages, {"role": "user", "content": "a"}], tools, name)
        except InputError:
            return None

    def _moved(self, turn: int, message: Message, name: str) -> InputError:
        other = "" if self.loss_on == "last_assistant" else "set data.loss_on=last_assistant, or "
        return InputError(
            f"{name}: {self.name} writes turn {turn} (of role {message['role']!r}) otherwise once later turns follow, "
            f"so that what it is trained on is not what it will see; {other}give a data.chat_template that keeps "
            "earlier turns"
        )

    def _marked(self, messages: list[Message], tools: Any, num_turns: int, name: str) -> list[Span]:
        """The spans that the template marks as generated, one for each turn of the assistant."""
        try:
            _, (spans,) = render_jinja_template(  # type: ignore[misc]
                conversations=[messages], tools=tools, chat_template=self.template, return_assistant_tokens_mask=True,
                **self.variables,
            )  # fmt: skip
        except Exception as error:
            raise self._refused(name, error) from None
        if len(spans) != num_turns:
            raise InputError(
                f"{name}: {self.name} marks {len(spans)} parts as generated where the conversation has {num_turns} "
                "turns of the assistant; mend its {% generation %} marks"
            )
        return [(int(start), int(end)) for start, end in spans]

    def _with_mark(self, whole: str, end: int, last_end: int) -> int:
        """The end of a marked span, with the token that ends the turn, and without white space after it.

        The token may follow the span. Then it is the one that follows the last span, after which no turn begins.
        """
        stripped = len(whole[:end].rstrip())
        if self._ends_with_mark(whole[:stripped]):
            return stripped
        follows, closes = (self.encoder.special_pattern.match(whole, place) for place in (end, last_end))
        return follows.end() if follows and closes and follows[0] == closes[0] else end

    def _content_end(self, text: str, start: int) -> int:
        """The end of the last mark if only white space follows it, else the end of the text."""
        end = self._last_mark(text, start, len(text))
        return len(text.rstrip()) if end is None or text[end:].strip() else end

    def _last_mark(self, text: str, start: int, stop: int) -> int | None:
        """Where the last mark between `start` and `stop` ends."""
        ends = [mark.end() for mark in self.encoder.special_pattern.finditer(text, start) if mark.end() <= stop]
        return ends[-1] if ends else None

    def _writes_marks(self, text: str) -> bool:
        return self.encoder.special_pattern.search(text) is not None

    def _ends_with_mark(self, text: str) -> bool:
        return any(mark.end() == len(text) for mark in self.encoder.special_pattern.finditer(text))

    def _protected(self, value: Any) -> Any:
        """A copy of messages or tools in which marks of control tokens are characters, whatever the template does."""
        if isinstance(value, str):
            return self.encoder.as_characters(value)
        if isinstance(value, dict):
            return {key: self._protected(inner) for key, inner in value.items()}
        return [self._protected(inner) for inner in value] if isinstance(value, list) else value

    def _render(self, messages: list[Message], tools: Any, name: str, *, prompt: bool = False) -> str:
        try:
            ((text,), _) = render_jinja_template(  # type: ignore[misc]
                conversations=[messages], tools=tools, chat_template=self.template, add_generation_prompt=prompt,
                **self.variables,
            )  # fmt: skip
        except Exception as error:  # a template is any program
            raise self._refused(name, error) from None
        return text

    def _refused(self, name: str, error: Exception) -> InputError:
        what = "refuses it" if isinstance(error, jinja2.TemplateError) else "fails"
        return InputError(f"{name}: {self.name} {what}: {one_line(error, limit=200)}; mend the row or the template")


def _common(first: str, second: str) -> int:
    """Characters that two texts have in common at their beginning."""
    return next((n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
                min(len(first), len(second)))  # fmt: skip


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own template."""
    template = getattr(tokenizer, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template
    if not template:
        raise InputError(
            f"model.name={tokenizer.name_or_path}: its tokenizer has no chat template, which conversations need; name "
            "an instruction model, or give data.chat_template=FILE.jinja"
        )
    return template


def template_variables(data: DataConfig) -> dict[str, Any]:
    """`data.template_kwargs` with the values that YAML would read, as settings give text alone."""
    return {name: _parsed(value) for name, value in data.template_kwargs.items()}


def _parsed(value: str | bool | int | float) -> Any:
    """The value of a variable: what YAML would read, as the command line gives text alone."""
    words = {"true": True, "false": False, "null": None}
    if not isinstance(value, str):
        return value
    if value.lower() in words:
        return words[value.lower()]
    return int(value) if re.fullmatch(r"-?\d+", value) else value
