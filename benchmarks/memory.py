"""How many tasks fit on a GPU together with the base model, as `bora_sweep.train.memory` reckons it.

    python benchmarks/memory.py

Nothing is allocated: the models have sizes and no weights. Written to `benchmarks/results/memory.md` and `.json`.
"""

import json
from dataclasses import asdict
from typing import Any

import torch
from arguments import start
from provenance import RESULTS, provenance
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from bora_sweep.cards import GIGABYTE, USABLE, Card
from bora_sweep.config import load_config
from bora_sweep.model.layout import make_layout
from bora_sweep.train.memory import FitMemory

CARDS = (24, 80, 141)  # gigabytes
ROWS, TOKENS, TASKS = 64, 128, 25
RANK = 16
LONG, QUANTIZED_ROWS = 512, (1, 8, 64)
PASSES = (1, 8)  # per step: train.micro_batch_size=8 cuts 64 rows into eight passes


def bases() -> dict[str, PreTrainedModel]:
    """Models of known sizes, without weights."""
    opt_350m = OPTConfig(
        vocab_size=50272, hidden_size=1024, word_embed_proj_dim=512, ffn_dim=4096, num_hidden_layers=24,
        num_attention_heads=16, max_position_embeddings=2048, do_layer_norm_before=False,
    )  # fmt: skip
    llama_1b = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    llama_8b = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        return {
            "opt-350m": OPTForCausalLM(opt_350m).bfloat16(),
            "Llama 3.2 1B": LlamaForCausalLM(llama_1b).bfloat16(),
            "Llama 3 8B": LlamaForCausalLM(llama_8b).bfloat16(),
        }


def row(name: str, base: PreTrainedModel, targets: list[str] | str, passes: int) -> dict[str, Any]:
    """One row of the table: a model, its adapted modules and the number of forward passes per step."""
    config = load_config([{"lora": {"rank": RANK, "target_modules": targets}}])
    layout = make_layout(base, config.lora)
    reckoned, rows = FitMemory(config, base, layout, TOKENS), ROWS // passes
    memory = reckoned.step(TASKS, rows, passes=passes)
    fitting = {card: reckoned.tasks_that_fit(Card(card).usable_bytes, rows, passes=passes) for card in CARDS}
    return {
        "model": name,
        "targets": targets if isinstance(targets, str) else ", ".join(targets),
        "P": layout.num_parameters,
        "passes": f"{passes} x {rows} rows",
        **{part: size / GIGABYTE for part, size in asdict(memory).items()},
        "peak": memory.peak / GIGABYTE,
        **{f"tasks in {card} GB": number for card, number in fitting.items()},
    }


def quantized_row(base: PreTrainedModel, tasks: int, rows: int) -> dict[str, Any]:
    """One row of the second table: tasks, and documents of a forward pass."""
    own = ["model.quantization=nf4", "train.gradient_checkpointing=true"]
    config = load_config([*own, f"lora.rank={RANK}", "lora.target_modules=all-linear"])
    reckoned, passes = FitMemory(config, base, make_layout(base, config.lora), LONG), ROWS // rows
    memory = reckoned.step(tasks, rows, passes=passes)
    return {
        "model": "Llama 3 8B, nf4",
        "targets": "all-linear",
        "tasks": tasks,
        "passes": f"{passes} x {rows} rows",
        **{part: size / GIGABYTE for part, size in asdict(memory).items()},
        "peak": memory.peak / GIGABYTE,
        "tasks in 16 GB": reckoned.tasks_that_fit(16 * GIGABYTE, rows, passes=passes),
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [list(rows[0]), ["---", "---", "---:", "---", *["---:"] * (len(rows[0]) - 4)]]
    lines += [[_format(cell) for cell in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _format(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.2f}"


def main() -> None:
    """Print the table and write it to `benchmarks/results/`."""
    targets = (["q_proj", "v_proj"], "all-linear")
    rows = [row(name, base, t, passes) for name, base in bases().items() for t in targets for passes in PASSES]
    small = [quantized_row(bases()["Llama 3 8B"], tasks, rows) for tasks in (1, TASKS) for rows in QUANTIZED_ROWS]
    text = f"""# Memory of a step, and how many tasks fit

Gigabytes (10^9 bytes) of a step on {ROWS} documents of {TOKENS} tokens with {TASKS} tasks, by the parts of
`StepMemory`; then the tasks that fit on a card of which {USABLE:.0%} is used. The base is in bfloat16, and so are the
rows of a batch; banks, gradients and moments of adapters of rank {RANK} are in float32. Reckoned, not measured:
`tests/train/test_memory.py` compares with the measured peaks of small models.

{as_markdown(rows)}

## An 8B base in four bits

Llama 3 8B with `model.quantization=nf4` and `train.gradient_checkpointing=true`: rank {RANK}, all-linear,
{TASKS} tasks, {LONG} tokens in a row, {ROWS} documents in a step.

{as_markdown(small)}

{provenance()}
"""
    print(text)
    (RESULTS / "memory.md").write_text(text, encoding="utf-8")
    (RESULTS / "memory.json").write_text(json.dumps(rows + small, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    start(main, __doc__)
