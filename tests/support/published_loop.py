"""The paper's published algorithm written anew, from the rows of a file to what it reports.

It is PEFT's `set_adapter`, a loop over tasks, torch's own AdamW and pandas; nothing of it is ours.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_base, make_tokenizer
from torch.nn import functional as F

BATCH = 6


def published_splits(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of training and validation in the published code's order, before it shuffles.

    Args:
        frame: Columns task and text, in the order of the file.
    """
    train, validation = [], []
    for _, rows in frame.groupby("task"):
        trained = rows.sample(frac=0.5, random_state=42)
        others = rows.drop(trained.index)
        train.append(trained)
        validation.append(others.sample(frac=0.5, random_state=42))
    return {"train": pd.concat(train), "validation": pd.concat(validation)}


class PublishedLoop:
    """The published code's training and validation, in float64, over a PEFT model with an adapter for each task."""

    def __init__(self, frame: pd.DataFrame, tau: float, rate: float, max_tokens: int, max_text: int, trainer) -> None:
        self.tau, tokenizer = tau, make_tokenizer()
        splits = published_splits(frame)
        self.sizes = splits["train"]["task"].value_counts().to_dict()
        self.tasks = sorted(self.sizes)
        self.end = tokenizer.eos_token_id

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        self.rows: dict[str, list[tuple[str, list[int], list[int]]]] = {"train": [], "validation": []}
        for split, rows in self.rows.items():
            for row in splits[split].to_dict("records"):
                prompt, text = encode(f" [task] {row['task']}"), encode(f" [text] {row['text']}")[:max_text]
                tokens = (prompt + text + [self.end])[:max_tokens]
                labels = ([-100] * len(prompt) + text + [self.end])[:max_tokens]
                rows.append((row["task"], tokens, labels))
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model: Any = get_peft_model(make_base(), lora, adapter_name="base_adapter", autocast_adapter_dtype=False)
        for task in self.tasks:
            self.model.add_adapter(task, lora, autocast_adapter_dtype=False)
        self.model.to(torch.float64).eval()
        for adapter, theta_P in zip(["base_adapter", *self.tasks], self.of(trainer), strict=True):
            for bank, values in zip(self.banks(adapter), self.cut(theta_P), strict=True):
                bank.data.copy_(values.view_as(bank))
        self.model.base_model.set_adapter(["base_adapter", *self.tasks])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0)

    @staticmethod
    def of(trainer) -> list[torch.Tensor]:
        """Theta, then each task's."""
        return [trainer.hierarchy.mean_P.detach(), *trainer.hierarchy.theta_KP()]

    def banks(self, adapter: str) -> list[torch.nn.Parameter]:
        return [bank for name, bank in self.model.named_parameters() if f".{adapter}." in name]

    def cut(self, theta_P: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return theta_P.split([bank.numel() for bank in self.banks("base_adapter")])

    def theta(self, adapter: str) -> torch.Tensor:
        return torch.cat([bank.detach().flatten() for bank in self.banks(adapter)])

    def batches(self, split: str) -> list[list]:
        """The shuffled rows, `BATCH` at a time, the same in each epoch."""
        order = np.random.default_rng(42).permutation(len(self.rows[split]))
        return [[self.rows[split][n] for n in order[i : i + BATCH]] for i in range(0, len(order), BATCH)]

    def task_losses(self, batch: list) -> dict[str, torch.Tensor]:
        width = max(len(tokens) for _, tokens, _ in batch)
        losses = {}
        for task in self.tasks:
            own = [(tokens, labels) for name, tokens, labels in batch if name == task]
            if not own:
                continue
            tokens = torch.tensor([row + [self.end] * (width - len(row)) for row, _ in own])
            labels = torch.tensor([row + [self.end] * (width - len(row)) for _, row in own])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in own])
            self.model.base_model.set_adapter(task)
            logits = self.model(input_ids=tokens, attention_mask=mask).logits
            losses[task] = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        self.model.base_model.set_adapter(["base_adapter", *self.tasks])
        return losses

    def train(self, batch: list) -> float:
        loss: Any = sum(self.sizes[task] * value for task, value in self.task_losses(batch).items())
        if self.tau > 0:
            for task in self.tasks:
                for bank, base in zip(self.banks(task), self.banks("base_adapter"), strict=True):
                    loss = loss + self.tau * torch.norm(base - bank)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def validate(self) -> tuple[float, float, dict[str, float]]:
        """Log-likelihood that selects, overall perplexity, and each task's."""
        logs: dict[str, list[tuple[float, int]]] = {}
        for batch in self.batches("validation"):
            losses = {task: loss.item() for task, loss in self.task_losses(batch).items()}
            mean = sum(losses.values()) / len(losses)
            for name, value in {**losses, "loglik": -mean, "perplexity": math.exp(mean)}.items():
                logs.setdefault(name, []).append((value, len(batch)))
        means = {name: np.average([v for v, _ in found], weights=[n for _, n in found]) for name, found in logs.items()}
        return means["loglik"], means["perplexity"], {task: math.exp(means[task]) for task in self.tasks}
