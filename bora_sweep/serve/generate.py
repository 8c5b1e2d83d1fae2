"""Text from a trial's adapters: the same prompt and the same draws under the base, under Theta and under each task.

Shapes: T tokens, P parameters of one adapter.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from bora_sweep.config import DataConfig
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

BASE = "base model"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from the model's own probabilities to the power of 1 / temperature."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0: the likeliest token each time."""
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
    """How the base model, then Theta, then each of `tasks` goes on from `prompt`.

    The prompt follows the start symbol as a document does in training, or what `data.prompt` and `data.template` put
    before the task's documents; before the base and Theta, that of the first task. One base is in memory; each text is
    drawn with the same seed, so that it does not depend on which others are asked for.

    Args:
        run: The run's folder.
        prompt: How the text begins; may be empty.
        tasks: Names.
        trial: As in `load_trial`.
        sampling: How tokens are drawn; left out: the defaults.

    Returns:
        (name, text) of each, the prompt left out; the first two are `base model` and `_global`.

    Raises:
        InputError: There is no such trial or task, the base cannot be loaded, is another than the run's, or has too few
            positions.
    """
    trained = load_trial(run, trial)
    trained.refuse_unknown(tasks)
    model, data = trained.config.model, trained.config.data
    sampling = sampling or Sampling()
    check_base_model(run, model, data)
    tokenizer = load_tokenizer(model, data)
    encoder, (_, end) = Encoder(tokenizer), boundary_tokens(tokenizer)
    opening_of = {task: _opening(encoder, data, task, prompt) for task in tasks}
    longest = max(map(len, opening_of.values()))
    base = load_base(model, data)
    adapted = AdaptedModel(base.to(make_accelerator(trained.config).device), trained.layout)
    if problem := too_long(base, longest + sampling.max_new_tokens):
        raise InputError(
            f"--max-new-tokens {sampling.max_new_tokens}: the prompt has {longest} tokens and {problem}; shorten either"
        )
    base.generation_config = _plain(sampling, end)
    texts = []
    for name, theta_P in [(BASE, None), (GLOBAL, trained.mean_P), *((task, trained.theta_of[task]) for task in tasks)]:
        opening_T = opening_of.get(name, opening_of[tasks[0]])
        with nullcontext() if theta_P is None else adapted.attached(theta_P.to(base.device)):
            whole_T = _draw(base, opening_T, sampling.seed)
        texts.append((name, _continuation(tokenizer, opening_T, whole_T)))
    return texts


def _opening(encoder: Encoder, data: DataConfig, task: str, prompt: str) -> list[int]:
    """The tokens that a task's text begins with, `prompt` the last of them; what `prompt` says is text."""
    (body,) = encoder.encode(until_text(data.template), [{"task": task, "text": prompt}])
    if data.prompt is None:
        return [*boundary_tokens(encoder.tokenizer)[0], *body]
    return [*encoder.encode(data.prompt, [{"task": task}])[0], *body]


def _continuation(tokenizer: PreTrainedTokenizerBase, opening_T: list[int], whole_T: list[int]) -> str:
    """The text of what follows the opening; by itself it would lose a first space."""
    opening, whole, alone = (
        str(tokenizer.decode(tokens_T, skip_special_tokens=True))
        for tokens_T in (opening_T, whole_T, whole_T[len(opening_T) :])
    )
    return whole.removeprefix(opening) if whole.startswith(opening) else alone


def _plain(sampling: Sampling, end: int) -> GenerationConfig:
    """The model's own probabilities, whatever its authors set for chats."""
    drawn = {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if sampling.temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=bool(drawn), eos_token_id=end, pad_token_id=end, **drawn
    )


def _draw(base: PreTrainedModel, prompt_T: list[int], seed: int) -> list[int]:
    """The prompt's tokens and those that follow."""
    tokens_1T = torch.tensor([prompt_T], device=base.device)
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            found_1T = base.generate(tokens_1T, attention_mask=torch.ones_like(tokens_1T))  # type: ignore[operator]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each architecture has its own
            raise InputError(
                f"model.name={base.config.name_or_path}: transformers draws no text from a {type(base).__name__} "
                f"({one_line(error, limit=200)}); its scores are in the results"
            ) from error
    return found_1T[0].tolist()


def visible(text: str) -> str:
    """With control characters spelt out, as `\\x1b`: neither a model nor a task's name commands the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
