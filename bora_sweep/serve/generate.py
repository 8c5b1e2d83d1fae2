"""Generates text with a trial's adapters: one prompt and one seed for the base model, Theta and each task.

Shapes: T tokens, P parameters of one adapter.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from bora_sweep.config import Setting
from bora_sweep.config.paths import local_path
from bora_sweep.data.chat import ChatFormat
from bora_sweep.data.conversation import ASSISTANT, Message, messages_of
from bora_sweep.data.decode import continuation
from bora_sweep.data.encode import Encoder, placeholders, until_text
from bora_sweep.data.task_prompt import name_tokens
from bora_sweep.data.tokens import given_tokens, placeholder_values
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.model.lengths import too_long
from bora_sweep.model.peft_io import GLOBAL
from bora_sweep.model.placement import placed
from bora_sweep.runs.places import given_places
from bora_sweep.runs.storage import Folder
from bora_sweep.serve.load import LoadedTrial, load_trial
from bora_sweep.train.device import make_accelerator
from bora_sweep.trials.fingerprints import check_base_model

BASE_NAME = "base model"


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled: from the model's probabilities to the power of 1 / temperature."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0: always the most likely token."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: need at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature {self.temperature}: need a finite value of 0 or more")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: need 0 or more")


@dataclass(frozen=True)
class Prompt:
    """What a generation begins with. One of `text` and `messages` is given."""

    text: str = ""
    """Running text: how it begins, maybe empty. Prompts and completions: the text of the row's prompt. Conversations:
    what the user says."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Values of further columns that `data.prompt` and `data.template` name."""
    messages: tuple[Message, ...] = ()
    """A conversation, which the chat template writes with the generation prompt after it."""

    @property
    def shown(self) -> str:
        """The prompt as people read it."""
        return self.text or "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)

    def conversation(self, loaded: LoadedTrial) -> list[Message]:
        """The messages; none where the prompt is not a conversation."""
        if loaded.form == "conversation" and not self.messages:
            return [{"role": "user", "content": self.text}]
        return list(self.messages)

    def tokens(self, encoder: Encoder, loaded: LoadedTrial, task: str | None) -> list[int]:
        """The tokens before the first that is generated.

        Args:
            encoder: Of the tokenizer.
            loaded: The trial, whose configuration says how documents are written.
            task: The task; None where none is named, for Theta and the base.

        Raises:
            InputError: The prompt lacks a column or a task that the run's documents have, or the chat template refuses
                it.
        """
        data = loaded.config.data
        if messages := self.conversation(loaded):
            return ChatFormat(encoder, data).prompt_tokens(messages)
        asked = placeholders(f"{data.prompt or ''}{until_text(data.template, data.scored_names)}") - data.scored_names
        if loaded.config.method == "task_prompt":
            asked |= {"task"}
        if "task" in asked and task is None:
            raise InputError(
                "--task _global: the run's prompts name the task; also give --task NAME, whose prompt is taken"
            )
        asked -= {"task"}
        own = sorted(asked - self.columns.keys())
        if len(own) > 1:
            raise InputError(
                f"--column: the run's prompts have the columns {', '.join(own)}; give all but one by --column "
                "NAME=TEXT, and the last as PROMPT"
            )
        if unknown := sorted(self.columns.keys() - asked):
            raise InputError(
                f"--column {unknown[0]}=…: the run's prompts have no such column; they have {own or 'none'}"
            )
        columns = {**self.columns, **dict.fromkeys(own, self.text)}
        is_prompt = loaded.form == "prompt"
        if is_prompt and data.prompt is None:
            columns["prompt"] = self.text
        values = placeholder_values(data, task or "", "" if is_prompt else self.text, columns)
        (given,) = given_tokens(encoder, data, [values])
        (name,) = name_tokens(loaded.config, encoder, (task or "",))
        (body,) = encoder.encode(until_text(data.template, data.scored_names), [values])
        return [*given, *name, *body]


def prompts_of(
    text: str | None, *, chat: bool, system: str | None, file: str | None, columns: Sequence[str]
) -> list[Prompt]:
    """The prompts that the command line gives.

    Args:
        text: PROMPT.
        chat: Whether it is a user's message.
        system: The system's message before it.
        file: A file with a conversation on each line.
        columns: NAME=TEXT each.

    Raises:
        InputError: None or several of them are given, or the file cannot be read.
    """
    if (text is None) == (file is None):
        raise InputError("PROMPT or --messages FILE.jsonl: give one of them")
    if file is not None:
        if chat or system is not None or columns:
            raise InputError(f"--messages {file}: holds whole conversations; drop --chat, --system and --column")
        return [Prompt(messages=messages) for messages in _read_conversations(Path(local_path(file, "--messages")))]
    assert text is not None
    if not chat and system is None:
        pairs = [column.partition("=") for column in columns]
        if wrong := next((column for column, (_, equals, _) in zip(columns, pairs, strict=True) if not equals), None):
            raise InputError(f"--column {wrong}: write NAME=TEXT")
        return [Prompt(text, {name: value for name, _, value in pairs})]
    if columns:
        raise InputError(f"--column {columns[0]}: --chat has no columns; drop one of the two")
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [Prompt(messages=(*before, {"role": "user", "content": text}))]


def _read_conversations(path: Path) -> list[tuple[Message, ...]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--messages {path}: cannot be read ({one_line(error)})") from None
    found = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number + 1}: not JSON: {error}") from None
        value = value.get("messages", value.get("prompt")) if isinstance(value, dict) else value
        messages = messages_of(f"{path}, line {number + 1}", value)
        if messages[-1]["role"] == ASSISTANT:
            raise InputError(f"{path}, line {number + 1}: ends with the assistant; end with the turn to reply to")
        found.append(tuple(messages))
    if not found:
        raise InputError(f"--messages {path}: holds no conversation; write one JSON list of messages per line")
    return found


def generate(
    run: Folder,
    prompts: Sequence[Prompt],
    tasks: Sequence[str],
    trial: str = "best",
    sampling: Sampling | None = None,
    *,
    settings: Sequence[Setting] = (),
) -> Iterator[tuple[Prompt, list[tuple[str, str]]]]:
    """Continuations of each prompt by the base model, Theta and each of `tasks`.

    The prompt stands where it stands in training: running text after the start symbol, or after what `data.prompt` and
    `data.template` put before the task's texts; the prompt of a row in the place of a row's; a conversation as the chat
    template writes it. The base and Theta get those of the first task. Each text is sampled with the same seed, so that
    it does not depend on the other tasks. It ends at the end token, or at the end of the assistant's turn.

    Args:
        run: The run's folder.
        prompts: What the generations begin with.
        tasks: Names of tasks, at least one; `_global` is Theta, which is shown in any case.
        trial: As in `load_trial`.
        sampling: How tokens are sampled; None: the defaults.
        settings: Where the base and the documents are now, as for `bora_sweep.serve.export.export`.

    Yields:
        Each prompt, with (name, text) of each adapter, without the prompt; the first two names are `base model` and
        `_global`.

    Raises:
        InputError: There is no such trial or task; or the base cannot be loaded, is not the run's, or has too few
            positions; or a prompt does not fit the run's documents.
    """
    loaded = load_trial(run, trial, given_places(settings, "generate"))
    tasks = [task for task in tasks if task != GLOBAL or task in loaded.theta_of]
    loaded.refuse_unknown_tasks([task for task in tasks if not loaded.knows(task)])
    model, data = loaded.config.model, loaded.config.data
    sampling = sampling or Sampling()
    check_base_model(run, model, data)
    tokenizer = load_tokenizer(model, data)
    encoder = Encoder(tokenizer)
    tokens_of = [{task: prompt.tokens(encoder, loaded, task) for task in tasks or [None]} for prompt in prompts]
    longest = max(len(prompt_T) for of_task in tokens_of for prompt_T in of_task.values())
    base = load_base(model, data)
    adapted = AdaptedModel(placed(base, make_accelerator(loaded.config).device), loaded.layout)
    if problem := too_long(base, longest + sampling.max_new_tokens):
        raise InputError(
            f"--max-new-tokens {sampling.max_new_tokens}: the prompt has {longest} tokens and {problem}; lower "
            "--max-new-tokens, or shorten the prompt"
        )
    adapters = [(BASE_NAME, None), (GLOBAL, loaded.mean_P), *((task, loaded.adapter(task)) for task in tasks)]
    for prompt, of_task in zip(prompts, tokens_of, strict=True):
        is_chat = bool(prompt.conversation(loaded))
        ends = ChatFormat(encoder, data).end_tokens if is_chat else [encoder.end]
        base.generation_config = _generation_config(sampling, ends)
        texts = []
        for name, theta_P in adapters:
            prompt_T = of_task.get(name, next(iter(of_task.values())))
            with nullcontext() if theta_P is None else adapted.with_adapter(theta_P.to(base.device)):
                tokens_T = _sample(base, prompt_T, sampling.seed)
            texts.append((name, continuation(tokenizer, prompt_T, tokens_T[len(prompt_T) :])))
        yield prompt, texts


def _generation_config(sampling: Sampling, ends: list[int]) -> GenerationConfig:
    """Sampling from the model's own probabilities, without the settings that its authors chose for chats."""
    options = {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if sampling.temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=bool(options),
        eos_token_id=ends,
        pad_token_id=ends[0],
        **options,
    )


def _sample(base: PreTrainedModel, prompt_T: list[int], seed: int) -> list[int]:
    """The prompt's tokens followed by sampled ones."""
    tokens_1T = torch.tensor([prompt_T], device=base.device)
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            tokens_1T = base.generate(tokens_1T, attention_mask=torch.ones_like(tokens_1T))  # type: ignore[operator]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any model's code
            raise InputError(
                f"model.name={base.config.name_or_path}: transformers draws no text from a {type(base).__name__} "
                f"({one_line(error, limit=200)}); its scores are in the results"
            ) from error
    return tokens_1T[0].tolist()
