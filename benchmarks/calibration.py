"""Whether `method=vi` is calibrated on language models whose true adapters are known, beside the exact posterior.

    python benchmarks/calibration.py

For each tau, adapters theta_k ~ N(Theta, I/tau) are drawn and text is sampled from the model under each; then the
posterior of theta_k given its training text and (Theta, tau) is drawn from in several ways. What is judged is a
function of theta_k, since A and B are not identified themselves: the nll of probes, texts sampled from the base model.
They are drawn without regard to theta_k, so that intervals of the exact posterior hold the truth at their nominal rate;
on test text of the true model they would not, for that text tells of theta_k what training text did not. Some minutes,
in as many processes as there are cores, a thread each. Written to `benchmarks/results/calibration.md`.

Shapes: K tasks, P parameters of one adapter, S draws, N documents, T tokens.
"""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from arguments import start
from provenance import RESULTS, provenance
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from bora_sweep.config import Config, load_config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import nll_nats
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.fit import fit, run_epoch, validate
from bora_sweep.train.methods.variational import VariationalTrainer
from bora_sweep.train.pack import Pack

TAUS = (5.0, 20.0, 80.0)
SIZES = (2, 8, 32)
"""Training documents of a task."""
TASKS_OF_A_SIZE = 12
HELD_OUT = {"validation": 4, "test": 16}
NUM_TOKENS = 16
"""Scored, of each document."""
NUM_PROBES = 16
NUM_DRAWS = 39
LEVELS = (0.5, 0.9)
"""Order statistics r and S + 1 - r of S draws hold a further draw at a rate of 1 - 2 r / (S + 1): these exactly."""
START, VOCABULARY = 1, 32
SETTINGS = ["method=vi", "lora.rank=2", "lora.target_modules=null", "train.device=cpu"]
KNOWN = ["train.learning_rate=1e-12", "train.max_epochs=190", "train.patience=190"]
"""Theta stands still at its true value, and the fit goes on until IVON has settled: 1,520 steps."""


@dataclass(frozen=True)
class World:
    """The truth and what is told of it; `corpus` has `floor_nll_nats` under the truth."""

    adapted: AdaptedModel
    corpus: TokenizedCorpus
    mean_P: Tensor
    theta_KP: Tensor
    probes_NT: Tensor
    tau: float

    def nll(self, split: str, theta_KP: Tensor) -> tuple[Tensor, Tensor]:
        """Task and nats of each document of a split."""
        document_N = self.corpus.split(split)
        task_N = torch.from_numpy(self.corpus.documents["task"].to_numpy()[document_N])
        tokens_NT = torch.from_numpy(self.corpus.tokens.reshape(-1, NUM_TOKENS + 1)[document_N]).long()
        return task_N, score(self.adapted, tokens_NT, theta_KP[task_N])

    @torch.no_grad()
    def probe(self, theta_KP: Tensor) -> Tensor:
        """Nats of each probe under each adapter, shape KN."""
        tokens_NT = self.probes_NT.repeat(len(theta_KP), 1)
        return score(self.adapted, tokens_NT, theta_KP.repeat_interleave(NUM_PROBES, 0)).view(-1, NUM_PROBES)


def score(adapted: AdaptedModel, tokens_NT: Tensor, theta_NP: Tensor) -> Tensor:
    """nll_N; all documents are of one length."""
    scored_NT = torch.ones_like(tokens_NT, dtype=torch.bool)
    scored_NT[:, 0] = False
    return nll_nats(adapted(tokens_NT, theta_NP), tokens_NT, scored_NT).double()


def make_base() -> PreTrainedModel:
    """A small random OPT, with weights large enough that its text is far from uniform."""
    torch.manual_seed(0)
    base = OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )
    for parameter in base.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return base.eval()


@torch.no_grad()
def write(adapted: AdaptedModel, theta_NP: Tensor, generator: torch.Generator) -> Tensor:
    """tokens_NT sampled under each adapter, after the start symbol."""
    tokens_NT = torch.full((len(theta_NP), 1), START)
    for _ in range(NUM_TOKENS):
        next_NV = adapted(tokens_NT, theta_NP)[:, -1].softmax(-1)
        tokens_NT = torch.cat([tokens_NT, torch.multinomial(next_NV, 1, generator=generator)], dim=1)
    return tokens_NT


def make_world(base: PreTrainedModel, config: Config, seed: int) -> World:
    """Adapters from the prior, and text from each."""
    generator, tau = torch.Generator().manual_seed(seed), config.tau
    layout = make_layout(base, config.lora)
    mean_P, adapted = layout.initial(base, config.train.seed), AdaptedModel(base, layout)
    sizes_K = [size for size in SIZES for _ in range(TASKS_OF_A_SIZE)]
    theta_KP = mean_P + torch.randn(len(sizes_K), len(mean_P), generator=generator) / tau**0.5
    counts_K = [{"train": size, **HELD_OUT} for size in sizes_K]
    rows = [(k, split) for k, counts in enumerate(counts_K) for split, n in counts.items() for _ in range(n)]
    documents = pd.DataFrame(rows, columns=["task", "split"]).assign(num_tokens=NUM_TOKENS, was_cut=False)
    theta_NP = theta_KP[documents["task"].to_list()]
    tokens_NT = write(adapted, theta_NP, generator)
    with torch.no_grad():
        documents = documents.assign(
            document_id=documents.index.astype(str), floor_nll_nats=score(adapted, tokens_NT, theta_NP).numpy()
        )
    corpus = TokenizedCorpus(
        name="sampled",
        tasks=tuple(f"task {k}" for k in range(len(sizes_K))),
        documents=documents,
        tokens=tokens_NT.numpy().ravel().astype(np.int32),
        scored=(np.arange(tokens_NT.numel()) % (NUM_TOKENS + 1)) > 0,
        offsets=np.arange(len(documents) + 1) * (NUM_TOKENS + 1),
    )
    probes_NT = write(adapted, mean_P.expand(NUM_PROBES, -1), generator)
    return World(adapted, corpus, mean_P, theta_KP, probes_NT, tau)


def exact_draws(world: World, generator: torch.Generator) -> Tensor:
    """theta_SKP of the exact posterior, by Hamiltonian Monte Carlo (Neal 2011): a chain for each task.

    A trajectory is a quarter of the prior's period. Chains begin at draws of the prior; their first third, in which the
    step size seeks an acceptance of 0.8, is left out.
    """

    def potential(theta_KP: Tensor) -> tuple[Tensor, Tensor]:
        theta_KP = theta_KP.detach().requires_grad_()
        task_N, nll_N = world.nll("train", theta_KP)
        prior_K = world.tau / 2 * (theta_KP - world.mean_P).square().sum(1).double()
        energy_K = prior_K.index_add(0, task_N, nll_N)
        return energy_K.detach(), torch.autograd.grad(energy_K.sum(), theta_KP)[0]

    theta_KP = world.mean_P + torch.randn(world.theta_KP.shape, generator=generator) / world.tau**0.5
    energy_K, force_KP = potential(theta_KP)
    size, num_steps, kept = 0.2 / world.tau**0.5, 3 * NUM_DRAWS, []
    for step in range(num_steps):
        momentum_KP = torch.randn(theta_KP.shape, generator=generator)
        before_K = energy_K + momentum_KP.square().sum(1) / 2
        to_KP, slope_KP, to_K = theta_KP, force_KP, energy_K
        for _ in range(math.ceil(math.pi / 2 / (size * world.tau**0.5))):
            momentum_KP = momentum_KP - size / 2 * slope_KP
            to_KP = to_KP + size * momentum_KP
            to_K, slope_KP = potential(to_KP)
            momentum_KP = momentum_KP - size / 2 * slope_KP
        gain_K = before_K - to_K - momentum_KP.square().sum(1) / 2
        moves_K = torch.rand(len(gain_K), generator=generator).log() < gain_K
        theta_KP = torch.where(moves_K[:, None], to_KP, theta_KP)
        force_KP, energy_K = torch.where(moves_K[:, None], slope_KP, force_KP), torch.where(moves_K, to_K, energy_K)
        if step < num_steps - 2 * NUM_DRAWS:
            size *= 1.05 if moves_K.float().mean() > 0.8 else 0.9
        elif step % 2:
            kept.append(theta_KP)
    return torch.stack(kept)


def independent(theta_SKP: Tensor, generator: torch.Generator) -> Tensor:
    """The same marginals without their correlations: each coordinate's draws in an order of its own."""
    return theta_SKP.gather(0, torch.rand(theta_SKP.shape, generator=generator).argsort(0))


def settled(config: Config, world: World, base: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """theta_KP and std_KP of a fit that is not stopped."""
    trainer = VariationalTrainer(config, Pack(config, world.corpus, base, make_accelerator(config)))
    validate(trainer.pack, [trainer])
    while trainer.stopped_by is None:
        run_epoch(trainer.pack, [trainer])
    trainer.pack.close()
    return trainer.hierarchy.theta_KP(), trainer.ivon.std_KP()


def posteriors(tau: float) -> tuple[World, dict[str, tuple[Tensor, Tensor]]]:
    """Of each kind, its mean theta_KP and draws theta_SKP."""
    base = make_base()
    config = load_config([*SETTINGS, f"prior.tau={tau}"])
    world, generator = make_world(base, config, seed=1), torch.Generator().manual_seed(2)
    exact_SKP = exact_draws(world, generator)
    exact = exact_SKP.mean(0)
    found = {"exact": (exact, exact_SKP), "exact marginals, independent": (exact, independent(exact_SKP, generator))}
    stopped = fit(config, world.corpus, base)
    assert stopped.std_KP is not None
    fits = {
        "vi, settled, Theta known": settled(load_config(KNOWN, base=config), world, base),
        "vi, as `fit` leaves it": (stopped.theta_KP, stopped.std_KP),
    }
    for name, (mean_KP, std_KP) in fits.items():
        noise_SKP = torch.randn(exact_SKP.shape, generator=generator)
        found[name] = mean_KP, mean_KP + std_KP * noise_SKP
    return world, found


@torch.no_grad()
def coverage(nll_SKN: Tensor, true_KN: Tensor, level: float) -> Tensor:
    """For each task, the share of probes whose true nll lies in the central interval of the draws', in %."""
    rank = round((1 - level) / 2 * (NUM_DRAWS + 1))
    low_KN, high_KN = nll_SKN.sort(0).values[[rank - 1, NUM_DRAWS - rank]]
    return 100 * ((low_KN <= true_KN) & (true_KN <= high_KN)).double().mean(1)


@torch.no_grad()
def excess(world: World, theta_SKP: Tensor) -> Tensor:
    """Test nats per token of the draws' averaged predictions, beyond those of the truth, for each task."""
    scores = [world.nll("test", theta_KP) for theta_KP in theta_SKP]
    nll_SN = torch.stack([nll_N for _, nll_N in scores])
    documents = world.corpus.documents.iloc[world.corpus.split("test")]
    lost_N = math.log(len(nll_SN)) - nll_SN.neg().logsumexp(0) - torch.tensor(documents["floor_nll_nats"].to_numpy())
    lost_K = torch.zeros(len(world.theta_KP), dtype=lost_N.dtype).index_add(0, scores[0][0], lost_N)
    return lost_K / (HELD_OUT["test"] * NUM_TOKENS)


def judge(tau: float) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of both tables for one tau."""
    torch.set_num_threads(1)
    world, found = posteriors(tau)
    true_KN = world.probe(world.theta_KP)
    by_kind, by_size = [], []
    for name, (mean_KP, theta_SKP) in found.items():
        nll_SKN = torch.stack([world.probe(theta_KP) for theta_KP in theta_SKP])
        covered = [said(coverage(nll_SKN, true_KN, level), 0) for level in LEVELS]
        lost = [said(excess(world, draws), 3) for draws in (mean_KP[None], theta_SKP)]
        by_kind.append([f"{tau:g}", name, *covered, *lost])
        width_K = tau**0.5 * theta_SKP.var(0).mean(1).sqrt().double()
        error_K = (world.probe(mean_KP) - true_KN).square().mean(1).sqrt()
        cells = [f"{value:.3f}" for value in width_K.view(len(SIZES), -1).mean(1).tolist()]
        cells += [f"{value:.2f}" for value in error_K.view(len(SIZES), -1).mean(1).tolist()]
        width = pd.Series(width_K.tolist())
        others = (np.repeat(SIZES, TASKS_OF_A_SIZE), error_K.tolist())
        cells += [f"{width.corr(pd.Series(other), method='spearman'):.2f}" for other in others]
        by_size.append([f"{tau:g}", name, *cells])
    return by_kind, by_size


def said(value_K: Tensor, digits: int) -> str:
    """The mean over tasks and its standard error."""
    return f"{value_K.mean():.{digits}f} ± {value_K.std() / len(value_K) ** 0.5:.{digits}f}"


def as_markdown(rows: list[list[str]]) -> str:
    """The first row is the header."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def run() -> None:
    """All fits, and both tables."""
    by_kind = [["tau", "posterior", *(f"{100 * level:.0f}% interval holds, %" for level in LEVELS)]]
    by_kind[0] += ["excess at the mean, nats per token", "of the averaged predictions"]
    by_size = [["tau", "posterior", *(f"width, {size} documents" for size in SIZES)]]
    by_size[0] += [*(f"error, {size} documents" for size in SIZES), "rank correlation of width with size", "with error"]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for kinds, sizes in pool.map(judge, TAUS):
            by_kind, by_size = by_kind + kinds, by_size + sizes
    told = (
        "Width: root mean square of the marginal standard deviations, over the prior's. Error: root mean square, in "
        f"nats, of the probes' nll at the mean. {TASKS_OF_A_SIZE} tasks of each of {len(SIZES)} sizes; ± is the "
        "standard error over tasks."
    )
    tables = (as_markdown(by_kind), told, as_markdown(by_size))
    text = "\n\n".join(["# Calibration of the variational posterior", *tables, provenance()])
    print(text)
    (RESULTS / "calibration.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__)
