"""Tiny random models of several families, a tokenizer of as few words, and corpora for them."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize

WORDS = [f"w{i}" for i in range(40)]
VOCABULARY = 48
SHARED = Path(__file__).resolve().parents[3] / "shared"

FAMILIES = {
    # opt-350m's geometry: embeddings narrower than the model, projected in and out, and layer norms after each block.
    "opt-350m": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, do_layer_norm_before=False, dropout=0.1, pad_token_id=1,
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, dropout=0.0, pad_token_id=1,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    ),
}  # fmt: skip


def all_but_first(offsets: np.ndarray) -> np.ndarray:
    """The mask of a corpus whose documents are scored but for their first token."""
    scored = np.ones(offsets[-1], dtype=bool)
    scored[offsets[:-1]] = False
    return scored


def scored_until(length_B: torch.Tensor, width: int) -> torch.Tensor:
    """The mask of rows that are scored up to their lengths, but for their first token."""
    place_T = torch.arange(width)
    return (place_T > 0) & (place_T < length_B[:, None])


def make_base(family: str = "opt", seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A small random model of a family, with weights large enough that its logits differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = FAMILIES[family]()
        for parameter in base.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return base.to(dtype).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, `</s>` put before a text as OPT's tokenizer does."""
    words = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{word: 3 + i for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="</s>", eos_token="</s>"
    )


def make_frame(sizes: dict[str, int], seed: int = 0, longest: int = 12) -> pd.DataFrame:
    """Documents of random words; each task prefers words of its own, so that tasks differ."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, (task, size) in enumerate(sizes.items()):
        weights = rng.dirichlet(np.full(len(WORDS), 0.3))
        weights = 0.5 * weights + 0.5 * np.roll(np.exp(-np.arange(len(WORDS)) / 4), 7 * index) / 4.5
        for _ in range(size):
            words = rng.choice(WORDS, size=rng.integers(3, longest), p=weights / weights.sum())
            rows.append({"task": task, "text": " ".join(words)})
    return pd.DataFrame(rows)


def make_corpus(sizes: dict[str, int] | None = None, seed: int = 0, longest: int = 12) -> TokenizedCorpus:
    """A tokenised corpus of random words: half to train on, a quarter each to validate and test."""
    sizes = sizes or {"a": 16, "b": 10, "c": 8}
    frame = make_frame(sizes, seed, longest)
    place = frame.groupby("task").cumcount()
    frame["split"] = np.select([place % 4 < 2, place % 4 == 2], ["train", "validation"], "test")
    frame = frame.assign(content=None, document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)
    return tokenize(Corpus("made", tuple(sizes), frame, ()), make_tokenizer(), max_tokens=16)
