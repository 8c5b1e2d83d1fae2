"""The embedded base model: a small OPT and its tokeniser, pretrained in seconds on the world language, then cached.

Shape suffixes: B documents, T tokens, V vocabulary.
"""

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from bora_sweep.config import SyntheticConfig
from bora_sweep.data.synthetic import VOCABULARY, world_documents
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import cache_folder, give_usual_modes

VERSION = 1
"""To be raised with any change of the folder's bytes: of the grammar, the tokeniser or the training below."""

_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_PAD_ID, _END_ID = 0, 1
_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The base model's sizes and its training."""

    num_layers: int = 2
    width: int = 64
    num_heads: int = 4
    ffn_width: int = 256
    max_positions: int = 128
    num_steps: int = 500
    batch_size: int = 32
    """Documents per step; none is used twice."""
    learning_rate: float = 3e-3
    """At the first step; it falls linearly to 0."""


def base_model_folder(
    config: SyntheticConfig, progress: bool = False, pretraining: Pretraining = Pretraining()
) -> Path:
    """The folder of the embedded base model and its tokeniser, for `from_pretrained`; created at the first call.

    It is in `$BORA_SWEEP_CACHE`, else `$XDG_CACHE_HOME/bora_sweep`, else `~/.cache/bora_sweep`, and is created whole or
    not at all. Its name depends on everything that decides its bytes.

    Args:
        config: Only its seed matters here; it fixes the world language and the model.
        progress: Show a progress bar on stderr while the model is trained.
        pretraining: Sizes and training.

    Raises:
        InputError: The cache folder cannot be written.
    """
    folder = cache_folder() / f"base-{_key(config.seed, pretraining)}"
    with _LOCK:  # threads share torch's generator and number of threads, which are set below
        if not folder.exists():
            _write(folder, config, pretraining, progress)
    return folder


def _key(seed: int, pretraining: Pretraining) -> str:
    versions = {"version": VERSION, "torch": torch.__version__, "transformers": transformers.__version__}
    inputs = {**versions, "seed": seed, **asdict(pretraining)}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _write(folder: Path, config: SyntheticConfig, pretraining: Pretraining, progress: bool) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"{folder.parent}: the base model cannot be saved here ({error.strerror}); set BORA_SWEEP_CACHE to a "
            "folder that you may write to"
        ) from None
    try:
        tokenizer, part = build_tokenizer(), scratch / folder.name  # scratch itself is its owner's alone
        pretrain(config, tokenizer, pretraining, progress).save_pretrained(part)
        tokenizer.save_pretrained(part)
        give_usual_modes(part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.exists():  # if it exists, another process has written the same bytes first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokeniser with one token for each word and full stop; as in OPT, `</s>` both starts and ends a text."""
    symbols = [_PAD, _END, _UNKNOWN, *VOCABULARY]
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_END} $A", special_tokens=[(_END, _END_ID)])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # spaces between words, none before full stops
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_END, eos_token=_END, pad_token=_PAD, unk_token=_UNKNOWN
    )


def pretrain(
    config: SyntheticConfig, tokenizer: PreTrainedTokenizerFast, pretraining: Pretraining, progress: bool = False
) -> OPTForCausalLM:
    """A new OPT, trained on `num_steps * batch_size` world documents by AdamW with a linear schedule to 0.

    The caller's random generator and number of threads are not changed.

    Args:
        config: Its seed fixes the documents and the initial weights.
        tokenizer: From `build_tokenizer`.
        pretraining: Sizes and training.
        progress: Show a progress bar on stderr.
    """
    texts = world_documents(config, pretraining.num_steps * pretraining.batch_size)
    with _reproducible(config.seed):
        model = OPTForCausalLM(_opt_config(tokenizer, pretraining))
        optimizer = torch.optim.AdamW(model.parameters(), lr=pretraining.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=pretraining.num_steps)
        starts = range(0, len(texts), pretraining.batch_size)
        bar = {"console": Console(stderr=True), "transient": True, "disable": not progress}
        for start in track(starts, "Training the base model", **bar):
            nll_nats, num_tokens = score(model, tokenizer, texts[start : start + pretraining.batch_size])
            optimizer.zero_grad()
            (nll_nats / num_tokens).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def score(model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[torch.Tensor, int]:
    """The negative log likelihood of texts, and the number of scored tokens.

    End tokens are scored; start tokens and padding are not.

    Args:
        model: The model.
        tokenizer: Its tokeniser.
        texts: Texts without end tokens.

    Returns:
        A scalar in nats, and a count.
    """
    rows = [torch.tensor([*ids, _END_ID]) for ids in tokenizer(texts)["input_ids"]]
    tokens_BT = pad_sequence(rows, batch_first=True, padding_value=_PAD_ID)
    logits_BTV = model(input_ids=tokens_BT[:, :-1]).logits  # no token depends on padding to its right
    targets_BT = tokens_BT[:, 1:]
    nll_nats = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=_PAD_ID, reduction="sum")
    return nll_nats, int(torch.count_nonzero(targets_BT != _PAD_ID))


def _opt_config(tokenizer: PreTrainedTokenizerFast, pretraining: Pretraining) -> OPTConfig:
    return OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=pretraining.width,
        word_embed_proj_dim=pretraining.width,
        num_hidden_layers=pretraining.num_layers,
        num_attention_heads=pretraining.num_heads,
        ffn_dim=pretraining.ffn_width,
        max_position_embeddings=pretraining.max_positions,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=_PAD_ID,
        bos_token_id=_END_ID,
        eos_token_id=_END_ID,
    )


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Within, the generator is seeded and one thread computes, so that sums always run in the same order."""
    num_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)
