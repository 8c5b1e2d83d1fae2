"""Rows that go on over cached keys and values are what they are when run whole, one at a time, in float64."""

import numpy as np
import pytest
import torch
from families import EASY, WORST, make_family
from families import VOCABULARY as FAMILY_VOCABULARY
from tiny import FAMILIES, VOCABULARY, make_base

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base_check import random_adapter
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.row_cache import RowCache, cache_problem, pad_left
from bora_sweep.train.metrics.answers import cached_nats, whole_nats
from bora_sweep.train.metrics.generation import NO_TOKEN, generate

LENGTHS = (7, 3, 11, 7, 1)
END = 2


def make_adapted(base, variant: str = "lora") -> tuple[AdaptedModel, torch.Tensor]:
    """A base with three unlike adapters."""
    layout = make_layout(base, LoraConfig(rank=2, variant=variant))
    theta_KP = torch.stack([random_adapter(base, layout, task) for task in range(3)])
    return AdaptedModel(base, layout), theta_KP.to(torch.promote_types(base.dtype, torch.float32))


def made_up(seed: int, vocabulary: int = VOCABULARY) -> tuple[list[list[int]], list[list[tuple[int, ...]]]]:
    """Prompts of unlike lengths, and for each some candidate answers of unlike lengths."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> list[int]:
        return rng.integers(3, vocabulary, count).tolist()

    prompts = [words(length) for length in LENGTHS]
    return prompts, [[(*words(rng.integers(0, 4)), END) for _ in range(rng.integers(1, 6))] for _ in prompts]


def loop_nats(adapted: AdaptedModel, prompt: list[int], answer: tuple[int, ...], theta_P: torch.Tensor) -> float:
    """-log p(answer | prompt) of one row, token by token."""
    with torch.no_grad(), adapted.with_adapter(theta_P):
        logits_TV = adapted.base(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0].double()
    places = range(len(prompt), len(prompt) + len(answer))
    tokens = [*prompt, *answer]
    return sum((logits_TV[place - 1].logsumexp(0) - logits_TV[place - 1, tokens[place]]).item() for place in places)


def loop_generate(adapted, prompt: list[int], theta_P: torch.Tensor, new_tokens: int) -> list[int]:
    """The likeliest next token of one row that is run whole, again and again."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad(), adapted.with_adapter(theta_P):
            tokens.append(adapted.base(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item())
        if tokens[-1] == END:
            break
    return tokens[len(prompt) :]


def hierarchy_of(theta_KP: torch.Tensor) -> Hierarchy:
    hierarchy = Hierarchy(theta_KP.mean(0), num_tasks=3, tau=1.0, parametrization="noncentered")
    hierarchy.set_adapters_(theta_KP.mean(0), theta_KP)
    return hierarchy


def all_nats(adapted, theta_KP, prompts, answers, task_B, *, cached: bool, rows: int = 3) -> list[np.ndarray]:
    """The nats of each prompt's answers, as rows that go on over a cache, or whole."""
    if cached:
        return cached_nats(adapted, prompts, answers, lambda row_C: theta_KP[task_B[row_C]], rows, padding=END)
    place = [b for b, choices in enumerate(answers) for _ in choices]
    nats = whole_nats(
        Likelihood(adapted, [hierarchy_of(theta_KP)]),
        [prompts[b] for b in place],
        [answer for choices in answers for answer in choices],
        task_B[place],
        padding=END,
    )
    return np.split(nats, np.cumsum([len(choices) for choices in answers])[:-1])


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "whole"])
@pytest.mark.parametrize("variant", ["lora", "dora", "mora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_nats_of_answers_are_those_of_a_plain_loop(family, variant, cached):
    """In batches of mixed tasks, of prompts of unlike lengths, with answers cut into several passes."""
    if family == "opt-350m" and variant == "mora":
        variant = "rslora"
    adapted, theta_KP = make_adapted(make_base(family), variant)
    prompts, answers = made_up(seed=10 * len(family) + len(variant))
    task_B = torch.tensor([2, 0, 1, 0, 2])
    found = all_nats(adapted, theta_KP, prompts, answers, task_B, cached=cached)
    for b, choices in enumerate(answers):
        expected = [loop_nats(adapted, prompts[b], answer, theta_KP[task_B[b]]) for answer in choices]
        assert found[b] == pytest.approx(expected, abs=1e-9, rel=0)


def test_one_adapter_for_all_rows_is_used_for_each():
    adapted, theta_KP = make_adapted(make_base("llama"))
    prompts, answers = made_up(seed=5)
    found = cached_nats(adapted, prompts, answers, lambda _: theta_KP[:1], 4, padding=END)
    for b, choices in enumerate(answers):
        assert found[b] == pytest.approx([loop_nats(adapted, prompts[b], a, theta_KP[0]) for a in choices], abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_mixed_tasks_generate_what_transformers_generates_for_each_alone(family):
    """Token by token, of prompts of unlike lengths, where rows end at unlike places."""
    adapted, theta_KP = make_adapted(make_base(family))
    prompts, _ = made_up(seed=3)
    task_B = torch.tensor([0, 1, 2, 2, 0])
    free = generate(adapted, prompts, theta_KP[task_B], max_new_tokens=9, end_tokens=(), padding=END, use_cache=True)
    ends = {free[0][2], free[2][5], free[3][0]}  # so that some rows end before others
    for max_new_tokens in (1, 4, 9):
        options = {"max_new_tokens": max_new_tokens, "end_tokens": ends, "padding": END}
        found = generate(adapted, prompts, theta_KP[task_B], use_cache=True, **options)
        for b, prompt in enumerate(prompts):
            with adapted.with_adapter(theta_KP[task_B[b]]):
                tokens_1T = torch.tensor([prompt])
                theirs = adapted.base.generate(  # type: ignore[operator]
                    tokens_1T, attention_mask=torch.ones_like(tokens_1T), do_sample=False, pad_token_id=END,
                    max_new_tokens=max_new_tokens, eos_token_id=sorted(ends),
                )[0, len(prompt) :].tolist()  # fmt: skip
            assert found[b] == theirs
            alone = generate(adapted, [prompt], theta_KP[task_B[b]][None], use_cache=False, **options)
            assert alone == [theirs]
    assert len({len(row) for row in found}) > 1


def test_logits_that_are_no_numbers_end_a_row_and_are_told():
    adapted, theta_KP = make_adapted(make_base("opt"))
    prompts, _ = made_up(seed=3)
    theta_BP = theta_KP[[0, 1, 2, 2, 0]]
    options = {"max_new_tokens": 4, "end_tokens": (), "padding": END, "use_cache": True}
    healthy = generate(adapted, prompts, theta_BP, **options)
    theta_BP[1] = torch.nan
    assert generate(adapted, prompts, theta_BP, **options) == [healthy[0], [NO_TOKEN], *healthy[2:]]


def test_a_selected_cache_leaves_the_one_that_it_was_taken_from_as_it_was():
    adapted, theta_KP = make_adapted(make_base("qwen2"))
    tokens_BT, mask_BT = pad_left([[5, 6, 7], [8, 9]], END)
    more = torch.tensor([[11], [12]])

    def cache() -> RowCache:
        begun = RowCache(adapted)
        begun.extend(tokens_BT, mask_BT, theta_KP[:2])
        return begun

    with torch.no_grad():
        used, fresh = cache(), cache()
        for _ in range(2):
            used.select(torch.tensor([1, 1, 0])).extend(torch.full((3, 2), 4), torch.ones(3, 2).long(), theta_KP[:1])
        assert torch.equal(
            used.extend(more, torch.ones_like(more), theta_KP[:2]),
            fresh.extend(more, torch.ones_like(more), theta_KP[:2]),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_families_go_on_over_a_cache(family):
    adapted, _ = make_adapted(make_base(family))
    assert cache_problem(adapted, 1, 11, 4) is None


def test_right_padding_of_prompts_would_be_told_from_left_padding(monkeypatch):
    """The trial finds what is not exact: GPT-2 without positions counts the padding of a row."""
    adapted, _ = make_adapted(make_base("gpt2"))
    begin = RowCache.__init__

    def without_positions(self, adapted):
        begin(self, adapted)
        self.takes_positions = False

    monkeypatch.setattr(RowCache, "__init__", without_positions)
    assert "other logits" in cache_problem(adapted, 3, 9, 4)
    assert cache_problem(adapted, 9, 9, 5) is None  # no padding


@pytest.mark.parametrize(
    ("family", "says"), [("bart", "other logits"), ("roberta", "other logits"), ("mamba", "does not go on")]
)
def test_families_that_cannot_are_found_by_a_trial(family, says):
    adapted, _ = make_adapted(make_family(family))
    assert says in cache_problem(adapted, 3, 9, 5)


FAST = ("gpt_oss", "roberta")


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.families) for name in (*EASY, *WORST)],
)
def test_any_family_has_the_nats_and_the_text_of_a_plain_loop(family):
    """Over a cache where the trial finds that exact, else whole; with sliding windows shorter than the rows."""
    try:
        adapted, theta_KP = make_adapted(make_family(family))
    except InputError:
        pytest.skip("is refused as a base")
    prompts, answers = made_up(seed=1, vocabulary=FAMILY_VOCABULARY)
    task_B = torch.tensor([0, 1, 2, 2, 0])
    limits = length_limits(adapted.base, 2, max(LENGTHS) + 8)
    cached = not limits and cache_problem(adapted, min(LENGTHS), max(LENGTHS), 8) is None
    found = all_nats(adapted, theta_KP, prompts, answers, task_B, cached=cached)
    for b, choices in enumerate(answers):
        expected = [loop_nats(adapted, prompts[b], answer, theta_KP[task_B[b]]) for answer in choices]
        assert found[b] == pytest.approx(expected, rel=2e-4)
    groups = [range(len(prompts))] if cached else [[b] for b in range(len(prompts))]
    for group in groups:
        options = {"max_new_tokens": 8, "end_tokens": (END,), "padding": END, "use_cache": cached}
        new = generate(adapted, [prompts[b] for b in group], theta_KP[task_B[list(group)]], **options)
        for b, row in zip(group, new, strict=True):
            assert row == loop_generate(adapted, prompts[b], theta_KP[task_B[b]], 8)
