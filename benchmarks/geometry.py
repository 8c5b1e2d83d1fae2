"""Models of known sizes with random weights, and batches of random tokens for them.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from bora_sweep.config import LoraConfig
from bora_sweep.train.device import keep_freed_memory

Batch = tuple[Tensor, Tensor, Tensor]
"""tokens_BT, place_M (of the scored tokens, all but the first of a row), task_B."""


@dataclass(frozen=True)
class Geometry:
    """A base model's sizes, the adapters on it, and the batches of a step."""

    build: Callable[[], PreTrainedModel]
    rank: int
    num_tasks: int
    rows: int
    tokens: int

    @property
    def lora(self) -> LoraConfig:
        """The paper's: on q_proj and v_proj, scale 1."""
        return LoraConfig(rank=self.rank, target_modules=["q_proj", "v_proj"])

    def base(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """The model, the same weights at each call."""
        with torch.random.fork_rng(), device:
            torch.manual_seed(0)
            base = self.build().eval()
        return base.to(dtype)  # type: ignore[arg-type]  # the decorator that Transformers puts on it hides its types

    def batches(self, number: int, device: torch.device) -> list[Batch]:
        """Rows of full length, as many of each task as can be, in random order."""
        generator = torch.Generator().manual_seed(0)
        with torch.device("meta"):
            vocabulary = self.build().config.vocab_size
        found = []
        for _ in range(number):
            tokens_BT = torch.randint(vocabulary, (self.rows, self.tokens), generator=generator)
            place_M = torch.arange(self.rows * self.tokens).view(self.rows, -1)[:, 1:].flatten()
            task_B = torch.arange(self.rows)[torch.randperm(self.rows, generator=generator)] % self.num_tasks
            found.append((tokens_BT.to(device), place_M.to(device), task_B.to(device)))
        return found


def opt_en_1m() -> PreTrainedModel:
    """The small English OPT of the examples."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=4096, hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=256, dropout=0.0, pad_token_id=1,
        )
    )  # fmt: skip


def opt_350m() -> PreTrainedModel:
    """The paper's."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=50272, hidden_size=1024, word_embed_proj_dim=512, ffn_dim=4096, num_hidden_layers=24,
            num_attention_heads=16, max_position_embeddings=2048, do_layer_norm_before=False, dropout=0.0,
        )
    )  # fmt: skip


def llama_1b() -> PreTrainedModel:
    """Llama 3.2 1B's sizes."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=4096, tie_word_embeddings=True,
        )
    )  # fmt: skip


def smollm2_135m() -> PreTrainedModel:
    """SmolLM2 135M's sizes."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
        )
    )  # fmt: skip


GEOMETRIES = {
    "tiny": Geometry(opt_en_1m, rank=8, num_tasks=14, rows=64, tokens=64),
    "crowd": Geometry(opt_en_1m, rank=8, num_tasks=25, rows=32, tokens=32),
    "opt-350m": Geometry(opt_350m, rank=16, num_tasks=25, rows=64, tokens=128),
    "llama-1b": Geometry(llama_1b, rank=16, num_tasks=25, rows=64, tokens=128),
}


def here() -> tuple[torch.device, torch.dtype]:
    """Where the benchmarks run and in which precision: a GPU in bfloat16, else the CPU in float32.

    On a CPU freed memory is kept, for all contenders, as a fit has it.
    """
    keep_freed_memory()
    return (torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else (torch.device("cpu"), torch.float32)
