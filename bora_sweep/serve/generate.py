"""Generates text with a trial's adapters: one prompt and one seed for the base model, Theta and each task.

Shapes: T tokens, P parameters of one adapter.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from bora_sweep.config import DataConfig
from bora_sweep.data.decode import continuation
from bora_sweep.data.encode import Encoder, boundary_tokens, until_text
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.model.lengths import too_long
from bora_sweep.model.peft_io import GLOBAL
from bora_sweep.runs.storage import Folder
from bora_sweep.serve.load import load_trial
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


def generate(
    run: Folder, prompt: str, tasks: Sequence[str], trial: str = "best", sampling: Sampling | None = None
) -> list[tuple[str, str]]:
    """Continuations of `prompt` by the base model, Theta and each of `tasks`.

    The prompt stands where a document's text does in training: after the start symbol, or after what `data.prompt` and
    `data.template` put before the task's texts. The base and Theta get those of the first task. Each text is sampled
    with the same seed, so that it does not depend on the other tasks.

    Args:
        run: The run's folder.
        prompt: How the text begins; may be empty.
        tasks: Names of tasks, at least one.
        trial: As in `load_trial`.
        sampling: How tokens are sampled; None: the defaults.

    Returns:
        (name, text) of each, without the prompt; the first two names are `base model` and `_global`.

    Raises:
        InputError: There is no such trial or task; or the base cannot be loaded, is not the run's, or has too few
            positions.
    """
    loaded = load_trial(run, trial)
    loaded.refuse_unknown_tasks(tasks)
    model, data = loaded.config.model, loaded.config.data
    sampling = sampling or Sampling()
    check_base_model(run, model, data)
    tokenizer = load_tokenizer(model, data)
    encoder, (_, end) = Encoder(tokenizer), boundary_tokens(tokenizer)
    prompt_of = {task: _prompt_tokens(encoder, data, task, prompt) for task in tasks}
    longest = max(map(len, prompt_of.values()))
    base = load_base(model, data)
    adapted = AdaptedModel(base.to(make_accelerator(loaded.config).device), loaded.layout)
    if problem := too_long(base, longest + sampling.max_new_tokens):
        raise InputError(
            f"--max-new-tokens {sampling.max_new_tokens}: the prompt has {longest} tokens and {problem}; lower "
            "--max-new-tokens, or shorten the prompt"
        )
    base.generation_config = _generation_config(sampling, end)
    adapters = [(BASE_NAME, None), (GLOBAL, loaded.mean_P), *((task, loaded.theta_of[task]) for task in tasks)]
    texts = []
    for name, theta_P in adapters:
        prompt_T = prompt_of.get(name, prompt_of[tasks[0]])
        with nullcontext() if theta_P is None else adapted.with_adapter(theta_P.to(base.device)):
            tokens_T = _sample(base, prompt_T, sampling.seed)
        texts.append((name, continuation(tokenizer, prompt_T, tokens_T[len(prompt_T) :])))
    return texts


def _prompt_tokens(encoder: Encoder, data: DataConfig, task: str, prompt: str) -> list[int]:
    """The tokens that a task's text begins with, ending with `prompt`, whose special tokens count as plain text."""
    (body,) = encoder.encode(until_text(data.template), [{"task": task, "text": prompt}])
    if data.prompt is None:
        return [*boundary_tokens(encoder.tokenizer)[0], *body]
    return [*encoder.encode(data.prompt, [{"task": task}])[0], *body]


def _generation_config(sampling: Sampling, end: int) -> GenerationConfig:
    """Sampling from the model's own probabilities, without the settings that its authors chose for chats."""
    options = {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if sampling.temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=bool(options), eos_token_id=end, pad_token_id=end, **options
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


def visible(text: str) -> str:
    """The text with control characters as escapes such as `\\x1b`, so that none of them reaches the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
