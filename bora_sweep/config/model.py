"""Sections `model`, `lora` and `prior`: the base model, its adapters and the prior that ties them."""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from bora_sweep.config.bounds import Bounds, Count, Positive, Tau, check_bounds
from bora_sweep.config.paths import local_path
from bora_sweep.errors import InputError, require

Groups = Literal["all", "matrix", "layer", "task"]
Parametrization = Literal["noncentered", "centered"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The frozen base model."""

    name: str | None = None
    """A Hugging Face name or a local folder. Left out, with the embedded corpus only: a small OPT made for it."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Type of the base model's weights. `auto`: bfloat16 where a fit has a GPU that computes in it, else float32. The
    column `dtype` of `trials` says which. Adapters, prior and Adam's moments are float32 (float64 with float64)."""
    quantization: Literal["nf4", "int8", "fp8"] | None = None
    """Keep the weights of the base's linear layers in 4 bits (`nf4`) or 8 (`int8`, `fp8`), all but the head. Left out:
    in `dtype`, as all other weights and the adapters. See docs/performance.md."""
    device_map: Literal["auto"] | None = None
    """`auto`: spread the base's layers over the GPUs that a fit's process has, for a base that is too large for one.
    Left out: the whole base on one device. See docs/performance.md."""
    max_tokens: Annotated[int, Bounds(3)] = 128
    """Most tokens of a sequence, with start symbol and end token. `long_documents` says what becomes of longer
    documents."""
    long_documents: Literal["cut", "chunk"] = "cut"
    """What becomes of a document with more than `max_tokens`. `cut`: what is beyond is lost, and counted. `chunk`: it
    is read as several sequences that overlap, and every token that is scored is scored once. See docs/data.md."""
    chunk_overlap: Count | None = None
    """With `long_documents=chunk`: how many tokens of the document a chunk repeats from the one before. They are given,
    not scored. Left out: a quarter of `max_tokens`."""
    max_text_tokens: Count | None = None
    """Most tokens of a text, without prompt and end token. The whole is then cut at `max_tokens`, which may cut off the
    end token. Left out: a text gets the room that prompt and end token leave."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Every result records it."""

    @property
    def overlap(self) -> int | None:
        """`chunk_overlap`, or its default; None where long documents are cut."""
        if self.long_documents == "cut":
            return None
        return max(1, self.max_tokens // 4) if self.chunk_overlap is None else self.chunk_overlap

    def __post_init__(self) -> None:
        check_bounds(self, "model")
        if self.name is not None:
            object.__setattr__(self, "name", local_path(self.name, "model.name"))
        require(
            self.quantization is None or self.dtype != "float64",
            f"model.quantization={self.quantization}: keeps fewer digits than model.dtype={self.dtype} computes with; "
            "set model.dtype=bfloat16 or float32",
        )
        given = self.chunk_overlap
        require(
            given is None or self.long_documents == "chunk",
            f"model.chunk_overlap={given}: model.long_documents={self.long_documents} makes no chunks; drop it, or set "
            "model.long_documents=chunk",
        )
        require(
            given is None or given <= self.max_tokens - 2,
            f"model.chunk_overlap={given}: need 1 to {self.max_tokens - 2}, so that a chunk of model.max_tokens="
            f"{self.max_tokens} also has a start symbol and a new token",
        )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The low-rank adapters, Eq. 3."""

    variant: Literal["lora", "rslora", "lora_plus", "dora", "mora"] = "lora"
    """Kind of adapter. `lora`: Eq. 3. `rslora`: scaled by alpha / sqrt(r). `lora_plus`: B has a higher learning rate
    than A. `dora`: a magnitude and a direction for each output. `mora`: one square matrix with as many parameters. See
    docs/adapters.md."""
    rank: Count = 8
    """Rank r of Eq. 3. With `mora` it sets the size of the square matrix."""
    alpha: Positive | None = None
    """alpha of Eq. 3. Left out: the rank, so that the scale is 1 (sqrt(r) with `rslora`). `mora` has no alpha."""
    learning_rate_ratio: Positive = 16.0
    """With `lora_plus` only: learning rate of B divided by that of A."""
    target_modules: list[str] | str | None = "all-linear"
    """Modules that get an adapter. `all-linear`: every linear layer but the head, routed experts and their routers. Or
    a list of names (the ends of their paths), or one regular expression. null: PEFT's default for the architecture,
    attention alone in many. Modules where an adapter would have no effect are left out with a note; it is an error to
    name only such modules. See docs/adapters.md."""

    def __post_init__(self) -> None:
        check_bounds(self, "lora")
        require(
            self.alpha is None or self.variant != "mora",
            f"lora.alpha={self.alpha}: lora.variant=mora has no alpha, its scale is 1; drop lora.alpha",
        )
        targets = self.target_modules
        require(targets != "", "lora.target_modules=: is empty; drop it for all linear layers")
        if isinstance(targets, str):
            try:
                re.compile(targets)
            except re.error as error:
                raise InputError(
                    f"lora.target_modules={targets}: is neither a list [a,b] nor a regular expression ({error})"
                ) from None

    @property
    def resolved_alpha(self) -> float:
        """`alpha`; left out: the rank."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """The scale of Eq. 3: alpha / r, or alpha / sqrt(r) with `rslora`."""
        return self.resolved_alpha / (math.sqrt(self.rank) if self.variant == "rslora" else self.rank)


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The prior that ties the tasks together, Eq. 5."""

    tau: Tau | Literal["learn"] = 100.0
    """Precision of the prior N(theta_d; Theta, I/tau). 0: one model per task. inf: one model for all. `learn`: found on
    validation while the fit runs, for the price of one fit. A sweep searches it, and has such a fit beside the search
    with `learnt` in `search.baselines`. Where tasks are in groups, it ties a task to its group, N(theta_d; Theta_g,
    I/tau)."""
    tau_2: Tau | None = None
    """Precision of the prior N(Theta_g; Theta, I/tau_2) that ties groups of tasks together, with `data.group_column` or
    `data.groups_path`. 0: nothing passes between groups. inf: groups do not matter. Left out: a sweep searches it, and
    a fit takes `tau` for it, or with `tau=learn` learns it as well."""
    parametrization: Parametrization = "noncentered"
    """Coordinates of the optimiser. `noncentered`: theta_d = Theta + delta_d, where one learning rate suits every tau.
    `centered`: theta_d itself, as in the paper."""
    penalty: Literal["squared", "tensor_norm"] = "squared"
    """Distance between a task and Theta, which the prior multiplies by tau. `squared`: half the squared distance, Eq.
    5. `tensor_norm`: the sum of the norms of each matrix's difference, as in the published code; it can keep a matrix
    exactly at Theta."""
    groups: Groups = "all"
    """What has a tau of its own. `all`: one tau for all. `matrix`: one for all A and one for all B. `layer`: one for
    each layer. `task`: one for each task. A sweep searches the scales of `matrix` and `layer` beside tau; `tau=learn`
    learns those of any."""
    group_scales: dict[str, Positive] = field(default_factory=dict)
    """Each group's tau divided by `tau`, by the group's name (A, B; layer_0, …; a task). Left out: 1. With `tau=learn`:
    what the fit begins with."""

    @property
    def group_taus(self) -> dict[str, float]:
        """tau of each group that has a scale; empty at tau = 0 and tau = inf, and while it is learnt."""
        tau = self.tau
        if tau == "learn" or not 0 < tau < math.inf:
            return {}
        return {name: tau * scale for name, scale in self.group_scales.items()}

    def __post_init__(self) -> None:
        check_bounds(self, "prior")
        require(
            self.groups != "all" or not self.group_scales,
            f"prior.group_scales={self.group_scales}: also give prior.groups=matrix, layer or task",
        )
        require(
            self.groups == "all" or self.penalty == "squared",
            f"prior.penalty={self.penalty}: needs one tau for all parameters; drop it, or prior.groups={self.groups}",
        )
