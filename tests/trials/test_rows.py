"""The rows of `task_scores` are sums and means over each task's documents, however many tasks there are."""

import json

import numpy as np
import pandas as pd
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import load_config
from bora_sweep.model.layout import make_layout
from bora_sweep.train.state import Fit, State
from bora_sweep.trials.rows import document_scores, task_scores


def test_task_scores_are_sums_and_means_of_each_tasks_documents():
    rng, config = np.random.default_rng(0), load_config(["lora.rank=2", "lora.target_modules=all-linear"])
    corpus = make_corpus({f"t{k}": int(count) for k, count in enumerate(rng.integers(4, 12, 60))})
    floor = rng.normal(5, 1, len(corpus.documents))
    corpus.documents["floor_nll_nats"] = np.where(rng.random(len(floor)) < 0.1, np.nan, floor)
    layout = make_layout(make_base("opt"), config.lora)
    theta_KP = torch.randn(60, layout.num_parameters)
    nats = {split: rng.gamma(9, 1, len(corpus.split(split))) for split in ("validation", "test")}
    done = Fit(State(), "patience", nats, torch.zeros(layout.num_parameters), theta_KP, layout, 0, "cpu", "float32")
    documents = document_scores(corpus, done)
    scored = pd.concat(
        documents.assign(metric=metric, score=rng.random(len(documents))) for metric in ("rouge_l", "accuracy")
    ).sample(frac=1, random_state=0)
    rows = task_scores(config, corpus, documents, scored, done).set_index(["task", "split"])
    assert len(rows) == len(corpus.documents[["task", "split"]].drop_duplicates())
    for (task, split), own in documents.groupby(["task", "split"]):
        row = rows.loc[(task, split)]
        np.testing.assert_allclose(row["nll_nats"], own["nll_nats"].sum(), rtol=1e-14)
        np.testing.assert_allclose(row["floor_nll_nats"], own["floor_nll_nats"].sum(skipna=False), rtol=1e-14)
        means = scored.query("task == @task and split == @split").groupby("metric")["score"].agg(np.mean)
        assert list(json.loads(row["metrics"])) == ["accuracy", "rouge_l"]
        np.testing.assert_allclose(list(json.loads(row["metrics"]).values()), means, rtol=1e-14)
    assert rows["floor_nll_nats"].isna()[rows["nll_nats"].notna()].any()
    assert rows["metrics"].isna().eq(rows.index.get_level_values("split") == "train").all()
