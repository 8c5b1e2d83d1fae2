"""Seconds of a training step where little is scored: prompts of 192 tokens with answers of 16.

    python benchmarks/prompts.py [tiny] [smollm2-135m]

Ours with only the answers scored and with all tokens scored, and one PEFT adapter with the loss that Transformers (and
TRL's `SFTTrainer`) computes where the labels of a prompt are -100: logits of all positions. All in turn on the same
batches, models with random weights, float32 on a CPU, bfloat16 on a GPU. Beside it the time of the head and its loss
alone. Written to `benchmarks/results/prompts.md` and `.json`, on a GPU to `prompts_gpu`.
"""

import torch
from arguments import start
from geometry import Batch, Geometry, here, opt_en_1m, smollm2_135m
from loops import OneAdapter, Ours
from provenance import record
from timing import interleaved, release
from torch import Tensor

from bora_sweep.model.linear_cross_entropy import linear_nll

PROMPT, ANSWER = 192, 16
GEOMETRIES = {
    "tiny": Geometry(opt_en_1m, rank=8, num_tasks=14, rows=16, tokens=PROMPT + ANSWER),
    "smollm2-135m": Geometry(smollm2_135m, rank=8, num_tasks=25, rows=8, tokens=PROMPT + ANSWER),
}
ROUNDS = {"tiny": 15, "smollm2-135m": 5}


def answers_only(batch: Batch) -> Batch:
    """The batch with the last `ANSWER` tokens of each row scored alone."""
    tokens_BT, _, task_B = batch
    place_BT = torch.arange(tokens_BT.numel(), device=tokens_BT.device).view_as(tokens_BT)
    return tokens_BT, place_BT[:, PROMPT:].flatten(), task_B


class OneAdapterOnAnswers(OneAdapter):
    """One PEFT adapter, the loss of Transformers with the prompt's labels set to -100."""

    def step(self, batch: Batch) -> float:
        """See the module."""
        labels_BT = batch[0].clone()
        labels_BT[:, :PROMPT] = -100
        loss = self.model(input_ids=batch[0], labels=labels_BT).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def head_step(loop: Ours, number_of_positions: int):
    """The head and its loss with the gradient of its input, alone."""
    head, device = loop.likelihood.adapted.head, here()[0]
    assert head is not None
    hidden_MH = torch.randn(number_of_positions, head.in_features, device=device, dtype=head.weight.dtype)
    target_M = torch.randint(len(head.weight), (number_of_positions,), device=device)

    def step(_: int) -> Tensor:
        nll = linear_nll(hidden_MH.requires_grad_(), head, target_M).sum()
        return torch.autograd.grad(nll, hidden_MH)[0]

    return step


def compare(size: str) -> tuple[list[dict], list[str]]:
    """The rows of one size's table, and what is to be said below it."""
    device, dtype = here()
    geometry = GEOMETRIES[size]
    ours, peft = Ours(geometry, device, dtype), OneAdapterOnAnswers(geometry, device, dtype)
    batches = geometry.batches(4, device)
    answers = [answers_only(batch) for batch in batches]
    scored, every = geometry.rows * ANSWER, geometry.rows * (PROMPT + ANSWER - 1)
    names = {
        "ours, answers scored": lambda n: ours.step(answers[n % 4]),
        "ours, all scored": lambda n: ours.step(batches[n % 4]),
        "one PEFT adapter, answers scored": lambda n: peft.step(batches[n % 4]),
        f"head and loss alone, {scored} positions": head_step(ours, scored),
        f"head and loss alone, {every} positions": head_step(ours, every),
    }
    times = interleaved(list(names.values()), ROUNDS[size])
    rows = [
        {"step": name, "ms": 1e3 * taken.median, "± %": 100 * taken.spread, "time over ours": taken.over(times[0])}
        for name, taken in zip(names, times, strict=True)
    ]
    release()
    share, positions = times[3].over(times[4]), scored / every
    about = f"{geometry.num_tasks} tasks, {geometry.rows} rows of {PROMPT} + {ANSWER} tokens, rank {geometry.rank}"
    return rows, [
        f"{about}; medians of {ROUNDS[size]} steps, ± half the distance between the quartiles.",
        f"{positions:.1%} of the positions are scored, and the head and its loss take {share:.1%} of the time.",
    ]


def run(sizes: list[str]) -> None:
    """A table for each size; none: for all."""
    device, dtype = here()
    name = "prompts_gpu" if device.type == "cuda" else "prompts"
    for size in sizes or GEOMETRIES:
        record(name, f"Long prompts, short answers, {str(dtype).removeprefix('torch.')}", size, *compare(size))


if __name__ == "__main__":
    start(run, __doc__, "SIZE", choices=GEOMETRIES)
