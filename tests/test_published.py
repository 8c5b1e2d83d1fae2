"""`protocol=published_code` against its algorithm written anew, and each of its options against a loop.

The other side is PEFT's `set_adapter`, a loop over tasks, and torch's own AdamW; nothing of it is ours.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_base, make_corpus, make_frame, make_tokenizer
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from bora_sweep.config import load_config
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.split import sample_documents
from bora_sweep.data.tokens import collate, tokenize, tokenize_for
from bora_sweep.errors import InputError
from bora_sweep.model.prior import Hierarchy, tensor_norms
from bora_sweep.train import fit
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score, score_documents
from bora_sweep.train.loop import run_epoch, step, validate
from bora_sweep.train.reported import ScoredSplit
from bora_sweep.train.trainer import make_trainer

TASKS = ["a", "b", "c"]
SIZES = {"a": 16, "b": 24, "c": 4}  # so few of c that batches of 6 lack it
SETTINGS = [
    "lora.rank=2", "lora.alpha=4", "lora.target_modules=[q_proj,v_proj]", "train.device=cpu", "train.batch_size=6",
    "train.max_epochs=3", "train.lr_per_tau=1e-4", "train.learning_rate=3e-3", "model.max_tokens=16",
]  # fmt: skip


def published(*settings: str):
    return load_config(["protocol=published_code", *SETTINGS, *settings])


def split_frame() -> pd.DataFrame:
    frame = make_frame(SIZES, longest=14)
    place = frame.groupby("task").cumcount()
    frame["split"] = np.select([place % 4 < 2, place % 4 == 2], ["train", "validation"], "test")
    return frame.assign(document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)


def trainer_of(config, corpus, base):
    return make_trainer(config, corpus, base, make_accelerator(config))


class PublishedLoop:
    """The published code's training and validation, in float64, over a PEFT model with an adapter for each task."""

    def __init__(self, frame: pd.DataFrame, tau: float, rate: float, max_tokens: int, max_text: int, trainer) -> None:
        self.tau, self.sizes = tau, frame.query("split == 'train'")["task"].value_counts().to_dict()
        tokenizer = make_tokenizer()
        self.end = tokenizer.eos_token_id

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        self.rows = {split: [] for split in ("train", "validation")}
        for row in frame[frame["split"] != "test"].to_dict("records"):
            prompt, text = encode(f" [task] {row['task']}"), encode(f" [text] {row['text']}")[:max_text]
            tokens = (prompt + text + [self.end])[:max_tokens]
            labels = ([-100] * len(prompt) + text + [self.end])[:max_tokens]
            self.rows[row["split"]].append((row["task"], tokens, labels))
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model = get_peft_model(make_base(), lora, adapter_name="base_adapter", autocast_adapter_dtype=False)
        for task in TASKS:
            self.model.add_adapter(task, lora, autocast_adapter_dtype=False)
        self.model.to(torch.float64).eval()
        for adapter, theta_P in zip(["base_adapter", *TASKS], self.of(trainer), strict=True):
            for bank, values in zip(self.banks(adapter), self.cut(theta_P), strict=True):
                bank.data.copy_(values.view_as(bank))
        self.model.base_model.set_adapter(["base_adapter", *TASKS])
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
        order = np.random.default_rng(42).permutation(len(self.rows[split]))
        return [[self.rows[split][n] for n in order[i : i + 6]] for i in range(0, len(order), 6)]

    def task_losses(self, batch: list) -> dict[str, torch.Tensor]:
        width = max(len(tokens) for _, tokens, _ in batch)
        losses = {}
        for task in TASKS:
            own = [(tokens, labels) for name, tokens, labels in batch if name == task]
            if not own:
                continue
            tokens = torch.tensor([row + [self.end] * (width - len(row)) for row, _ in own])
            labels = torch.tensor([row + [self.end] * (width - len(row)) for _, row in own])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in own])
            self.model.base_model.set_adapter(task)
            logits = self.model(input_ids=tokens, attention_mask=mask).logits
            losses[task] = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        self.model.base_model.set_adapter(["base_adapter", *TASKS])
        return losses

    def train(self, batch: list) -> float:
        loss = sum(self.sizes[task] * value for task, value in self.task_losses(batch).items())
        if self.tau > 0:
            for task in TASKS:
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
        means = {name: np.average(*zip(*values, strict=True)) for name, values in logs.items()}
        means = {name: np.average([v for v, _ in found], weights=[n for _, n in found]) for name, found in logs.items()}
        return means["loglik"], means["perplexity"], {task: math.exp(means[task]) for task in TASKS}


@pytest.mark.parametrize("tau", [0.0, 30.0])
def test_it_equals_the_published_algorithm_step_by_step(tau):
    """Twenty steps over several epochs, with documents that are cut, padded and absent, and what each epoch reports."""
    config, frame, base = published(f"prior.tau={tau}", "model.max_text_tokens=11"), split_frame(), make_base()
    corpus = tokenize_for(config, Corpus("made", tuple(TASKS), frame, ()), make_tokenizer())
    trainer = trainer_of(config, corpus, base)
    loop = PublishedLoop(frame, tau, config.learning_rate, 16, 11, trainer)
    ours: list[float] = []
    likelihood = trainer.loss

    def noted(*arguments):
        found = likelihood(*arguments)
        ours[-1] += found.item()
        return found

    trainer.loss = noted
    reported: list[tuple[float, dict[str, float]]] = []
    steps = 0
    while steps < 20:
        batches = trainer.batches(trainer.state.epoch + 1)
        theirs = loop.batches("train")
        assert len(batches) == len(theirs)
        assert any({corpus.documents["task"][n] for n in batch} != {0, 1, 2} for batch in batches)
        for document_B, batch in zip(batches, theirs, strict=True):
            ours.append(-trainer.hierarchy.log_prior().item())
            step([trainer], document_B, len(batches))
            assert ours[-1] == pytest.approx(loop.train(batch), rel=0, abs=1e-9)
            for theta_P, name in zip(loop.of(trainer), ["base_adapter", *TASKS], strict=True):
                torch.testing.assert_close(theta_P, loop.theta(name), rtol=0, atol=1e-9)
            steps += 1
        trainer.end_epoch()
        validate([trainer])
        loglik, perplexity, by_task = loop.validate()
        reported.append((perplexity, by_task))
        found = trainer.validation.numbers(score_documents([trainer], "validation", padded=trainer.validation.batches)[0])
        assert found.nats == pytest.approx(-loglik, abs=1e-9)
        assert trainer.state.reported_perplexity == pytest.approx(min(value for value, _ in reported), abs=1e-9)
        lowest = [min(epoch[task] for _, epoch in reported) for task in TASKS]
        assert np.exp(trainer.state.reported_nats) == pytest.approx(lowest, abs=1e-9)
    trainer.adapted.detach()
