"""tau from one shared fit: gradients and Fisher information of the training split, task by task.

Shapes: B rows, S samples, N documents, M batches of a task, K tasks, P parameters of one adapter.
"""

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.batches import collate, group_by_length
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.placement import placed
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.methods.document_gradients import DocumentPass
from bora_sweep.train.methods.task_sums import task_sums
from bora_sweep.train.state import Fit

LEVEL = 0.95
"""Confidence level of the intervals."""
NUM_SAMPLES = 4
"""Draws of each document's next tokens; the estimate of tr(F^2) needs at least two."""
DRAWS_BYTES = {"cpu": 1 << 30}
"""Of the draws' gradients that memory holds at a time. A task with more passes through the model more often."""
DRAWS_BYTES_ELSEWHERE = 4 << 30


@dataclass(frozen=True)
class TauEstimate:
    """tau and the ends of its 95% interval; inf: the data do not show that the tasks differ."""

    tau: float
    low: float
    high: float


@dataclass(frozen=True)
class Curvature:
    """The training split's likelihood around theta_1..K to second order, in nats."""

    nll_K: Tensor
    """-log p(D_k | theta_k)."""
    score_KP: Tensor
    """The gradient of log p(D_k | theta_k)."""
    fisher_KP: Tensor
    """The diagonal of F_k."""
    noise_K: Tensor
    """The trace of the score's covariance, from the scatter of the task's documents; tr F_k if the model is true."""
    trace_square_K: Tensor
    """tr(F_k^2), of the whole matrix."""
    num_tokens_K: Tensor
    """Scored tokens."""


def tau_by_scores(shared: Curvature) -> TauEstimate:
    """tau from one shared fit: a step of Fisher scoring on the evidence as a function of 1/tau, from 1/tau = 0.

    The step (Lin 1997) is 1/tau = sum_d (||s_d||^2 - tr F_d) / sum_d tr(F_d^2), with three changes. First, the scores'
    common part belongs to Theta: s_d is replaced by c_d = s_d - w_d sum_e s_e, where w_d is the task's share of the
    tokens. Second, the noise tr F_d, which assumes the model, is replaced by v_d, estimated from the documents. Third,
    terms have weight 1 / w_d, so that the tasks with most text do not dominate:

        1/tau = sum_d x_d / w_d  /  sum_d y_d / w_d,
        x_d = ||c_d||^2 - (1 - 2 w_d) v_d - w_d^2 sum_e v_e,    y_d = (1 - 2 w_d) tr(F_d^2) + w_d^2 sum_e tr(F_e^2).

    If the F_d differ only by factors, the estimate of 1/tau is unbiased at any Theta and tau. Only traces of F are
    needed, so that correlations of parameters are included. The interval is Student's, from the scatter of the tasks'
    terms. docs/method.md derives it.
    """
    w_K = shared.num_tokens_K.double() / shared.num_tokens_K.sum()
    noise_K, square_K = shared.noise_K.double(), shared.trace_square_K.double()
    common_P = shared.score_KP.sum(0, dtype=torch.float64)
    pairs = zip(shared.score_KP, w_K, strict=True)  # one task's row in float64 at a time
    norm_K = torch.stack([(score_P.double() - w * common_P).square().sum() for score_P, w in pairs])
    x_K = (norm_K - (1 - 2 * w_K) * noise_K - w_K.square() * noise_K.sum()) / w_K
    y_K = ((1 - 2 * w_K) * square_K + w_K.square() * square_K.sum()) / w_K
    variance = (x_K.sum() / y_K.sum()).item()
    freedom = len(w_K) - 1
    scatter = (x_K - variance * y_K).square().sum() * len(w_K) / freedom
    half = (stdtrit(freedom, 0.5 + LEVEL / 2) * scatter.sqrt() / y_K.sum()).item()
    return TauEstimate(*(1 / v if v > 0 else math.inf for v in (variance, variance + half, variance - half)))


def estimate_tau(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, shared: Fit) -> TauEstimate:
    """tau and its interval from one fit at tau = inf (`tau_by_scores`). Costs about three epochs of training.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        base: The base model.
        shared: The fit at tau = inf.
    """
    return tau_by_scores(curvature(config, corpus, base, shared.theta_KP))


def curvature(
    config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, theta_KP: Tensor, num_samples: int = NUM_SAMPLES
) -> Curvature:
    """The training split's likelihood to second order around theta_1..K.

    F is the true Fisher information. Each next token is drawn from the model, given the document's own earlier tokens.
    The gradients of such draws have mean 0 and covariance F. Beside a pass, memory holds the draws of one batch, and
    `DRAWS_BYTES` of others (`bora_sweep.train.methods.task_sums`).

    Args:
        config: Of the fit; its batch size bounds the rows of a pass, its seed decides the draws.
        corpus: The tokenised text.
        base: The base model.
        theta_KP: Where the likelihood is expanded.
        num_samples: S.
    """
    device = make_accelerator(config).device
    adapted = AdaptedModel(placed(base, device), make_layout(base, config.lora))
    likelihood, train = Likelihood(adapted, []), corpus.split("train")
    task_N, tokens_N = (corpus.documents[name].to_numpy() for name in ("task", "num_tokens"))
    limits = length_limits(base, corpus.shortest, corpus.longest)
    bytes_of_document = num_samples * theta_KP.shape[-1] * theta_KP.element_size()
    most = max(1, DRAWS_BYTES.get(device.type, DRAWS_BYTES_ELSEWHERE) // bytes_of_document)
    rows = min(most, config.train.micro_batch_size or config.train.batch_size)
    parts = []
    try:
        for task, theta_P in enumerate(theta_KP.to(device)):
            groups = group_by_length(corpus, train[task_N[train] == task], limits)
            batches = [group_N[i : i + rows] for group_N in groups for i in range(0, len(group_N), rows)]
            tokens_MB = [torch.from_numpy(tokens_N[batch_B]).to(device) for batch_B in batches]
            total = torch.cat(tokens_MB).sum()

            def run(number: int, task: int = task, theta_P: Tensor = theta_P, batches: list = batches) -> DocumentPass:
                seed = (config.train.seed, task, number)
                return DocumentPass(likelihood, collate(corpus, batches[number]), theta_P, num_samples, seed)

            sums = task_sums(run, [tokens_B.double() / total for tokens_B in tokens_MB], theta_P, most)
            row = sums.nll, sums.score_P.to(theta_P), sums.fisher_P, sums.noise(), sums.square, total
            parts.append([value.cpu() for value in row])
    finally:
        adapted.remove_hooks()
    return Curvature(*(torch.stack(column) for column in zip(*parts, strict=True)))
