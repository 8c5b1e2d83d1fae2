"""Two runs in one table: does a larger rank help, and which speakers?

Every run keeps its numbers as Parquet tables. `read_results` reads several runs as one set of DataFrames.
"""

import numpy as np

import bora_sweep

runs = [
    bora_sweep.fit(
        "prior.tau=150",
        model={"max_tokens": 64},
        lora={"rank": rank, "target_modules": "all-linear"},
        train={"learning_rate": 5e-3, "max_epochs": 5},
        data={"synthetic": {"num_tasks": 6}},
    )
    for rank in (2, 8)
]
results = bora_sweep.read_results([run.trials["run"].item() for run in runs])
print(results.trials[["run", "lora_rank", "test_perplexity", "train_seconds"]])

# The key of a trial is its run and its ID. Add up nats and tokens first, and divide once.
keys = ["run", "trial_id"]
scores = results.task_scores.query("split == 'test'").merge(results.trials[[*keys, "lora_rank"]], on=keys)
print(scores.pivot_table(index="task", columns="lora_rank", values="perplexity").round(2))
sums = scores.groupby("lora_rank")[["nll_nats", "num_tokens"]].sum()
print(np.exp(sums["nll_nats"] / sums["num_tokens"]).rename("perplexity of all speakers together"))
