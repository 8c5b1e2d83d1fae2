"""The base model, its adapters and their prior."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from bora_sweep.config.bounds import need
from bora_sweep.config.paths import local_path
from bora_sweep.errors import InputError

Parametrization = Literal["noncentered", "centered"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The frozen base model."""

    name: str | None = None
    """A Hugging Face name or a local folder; left out with the embedded corpus: its own small OPT."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the base's weights; adapters, prior and moments are float32 (float64 with a float64 base)."""
    max_tokens: int = 128
    """Longest sequence, start and end symbol included; longer documents are cut, and counted."""
    max_text_tokens: int | None = None
    """Longest text, the prompt and the end token not counted; what then exceeds `max_tokens` is cut, be it the end
    token. Left out: a text is as long as prompt and end token leave it room."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Recorded in every result."""

    def __post_init__(self) -> None:
        if self.name is not None:
            object.__setattr__(self, "name", local_path(self.name, "model.name"))
        need(self.max_tokens >= 3, f"model.max_tokens={self.max_tokens}: need at least 3 (start, one token, end)")
        longest = self.max_text_tokens
        need(longest is None or longest >= 1, f"model.max_text_tokens={longest}: need at least 1")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapters, Eq. 3."""

    variant: Literal["lora", "rslora", "lora_plus", "dora", "mora"] = "lora"
    """`lora`: Eq. 3; `rslora`: scaled by alpha / sqrt(r); `lora_plus`: B learns faster than A; `dora`: a magnitude and
    a direction for each output; `mora`: one square matrix with as many parameters. See docs/adapters.md."""
    rank: int = 8
    """r of Eq. 3; with `mora` what its square matrix is sized by."""
    alpha: float | None = None
    """alpha of Eq. 3; left out: equal to the rank, a scale of 1 (sqrt(r) with `rslora`). `mora` has none."""
    learning_rate_ratio: float = 16.0
    """With `lora_plus` alone: the learning rate of B over that of A."""
    target_modules: list[str] | str | None = None
    """Names of modules (the last parts of their paths), one regular expression, or `all-linear`; left out: what PEFT
    adapts by default in this architecture, else all linear layers of its blocks. Modules in which an adapter could not
    act are left out with a note, and refused where they alone are named. See docs/adapters.md."""

    def __post_init__(self) -> None:
        need(self.rank >= 1, f"lora.rank={self.rank}: need at least 1")
        need(self.alpha is None or self.alpha > 0, f"lora.alpha={self.alpha}: need a value above 0")
        need(
            self.alpha is None or self.variant != "mora",
            f"lora.alpha={self.alpha}: lora.variant=mora has no alpha, its scale is 1; drop lora.alpha",
        )
        targets = self.target_modules
        need(targets != "", "lora.target_modules=: names nothing; drop it for what PEFT adapts by default")
        if isinstance(targets, str):
            try:
                re.compile(targets)
            except re.error as error:
                raise InputError(
                    f"lora.target_modules={targets}: is neither a list, [a,b], nor a regular expression ({error})"
                ) from None
        ratio = self.learning_rate_ratio
        need(0 < ratio < math.inf, f"lora.learning_rate_ratio={ratio}: need a finite value above 0")

    @property
    def resolved_alpha(self) -> float:
        """alpha of Eq. 3."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """alpha / r of Eq. 3, alpha / sqrt(r) with rslora."""
        return self.resolved_alpha / (math.sqrt(self.rank) if self.variant == "rslora" else self.rank)


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The prior that ties the tasks together, Eq. 5."""

    tau: float = 100.0
    """Precision of N(theta_d; Theta, I/tau). 0: one model per task; inf: one model for all. A sweep searches it."""
    parametrization: Parametrization = "noncentered"
    """`noncentered`: theta_d = Theta + delta_d, one learning rate for every tau; `centered`: the paper's."""
    penalty: Literal["squared", "tensor_norm"] = "squared"
    """How far a task is from Theta, times tau. `squared`: half the squared distance, Eq. 5; `tensor_norm`: the sum of
    the distances themselves of each matrix, the published code's, which can hold a matrix at Theta altogether."""
    groups: Literal["all", "matrix", "layer"] = "all"
    """Parameters that have a tau of their own. `all`: one tau; `matrix`: one for all A and one for all B; `layer`: one
    for each layer. A sweep searches their scales beside tau."""
    group_scales: dict[str, float] = field(default_factory=dict)
    """Each group's tau divided by `tau`, by its name (A, B; layer_0, …); 1 where it is left out."""

    @property
    def group_taus(self) -> dict[str, float]:
        """tau of each group that has a scale, where a prior acts: 0 < tau < inf."""
        return {name: self.tau * scale for name, scale in self.group_scales.items() if 0 < self.tau < math.inf}

    def __post_init__(self) -> None:
        need(self.tau >= 0, f"prior.tau={self.tau}: need a value from 0 to inf")  # NaN is neither
        need(
            self.groups != "all" or not self.group_scales,
            f"prior.group_scales={self.group_scales}: also give prior.groups=matrix or layer",
        )
        need(
            self.groups == "all" or self.penalty == "squared",
            f"prior.penalty={self.penalty}: has one tau for all parameters; drop it, or prior.groups={self.groups}",
        )
        for name, scale in self.group_scales.items():
            need(0 < scale < math.inf, f"prior.group_scales.{name}={scale}: need a finite value above 0")
