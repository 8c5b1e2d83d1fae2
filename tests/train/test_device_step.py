"""A step as a device sees it, without one.

On torch's meta device no numbers are computed, and a read of one is an error. So a tensor that is on another device
than the rest, and a place where the host waits for the device, show here.
"""

from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from families import make_family
from tiny import make_corpus
from torch.utils._python_dispatch import TorchDispatchMode

from bora_sweep.config import load_config
from bora_sweep.model import adapted as adapted_module
from bora_sweep.model.hierarchy import sum_by_task
from bora_sweep.train import pack as pack_module
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step

META = torch.device("meta")
# Not `vi`, whose draws need a generator on the device. The published code looks at gradients and masks.
KINDS = {
    "tau=100": ["prior.tau=100"],
    "tau=0": ["prior.tau=0"],
    "tau=inf": ["prior.tau=inf"],
    "centered": ["prior.tau=100", "prior.parametrization=centered", "train.global_update=mean"],
    "adamw": ["prior.tau=100", "train.solver=adamw"],
    "tensor_norm": ["prior.tau=100", "prior.penalty=tensor_norm"],
    "groups": ["prior.tau=100", "prior.groups=matrix", "prior.group_scales={A: 2.0}"],
    "lora_plus": ["prior.tau=100", "lora.variant=lora_plus"],
    "mora": ["prior.tau=100", "lora.variant=mora", "lora.rank=4"],
    "documents": ["prior.tau=100", "train.likelihood=documents"],
    "pfedme": ["prior.tau=100", "method=pfedme"],
    "rslora": ["prior.tau=100", "lora.variant=rslora"],
    "two passes": ["prior.tau=100", "train.micro_batch_size=5"],
    "checkpointed": ["prior.tau=100", "train.gradient_checkpointing=true"],
    "buckets": ["prior.tau=100", "train.length_bucket=8"],
    "cosine": ["prior.tau=100", "train.schedule=cosine", "train.warmup_steps=2"],
}


class Watch(TorchDispatchMode):
    """Counts reads of a device's numbers by the host, gives zeros for those of a copy, and counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.operations = 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations[func.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        device = (kwargs or {}).get("device")
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and device is not None and device.type == "cpu":
            self.reads += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def meta(monkeypatch):
    """A pack of fits on the meta device, where nothing can be found out about the base by running it."""
    monkeypatch.setattr(adapted_module, "_linear_head", lambda base, _: base.get_output_embeddings())
    monkeypatch.setattr(adapted_module, "has_causal_attention", lambda *_: True)
    monkeypatch.setattr(pack_module, "length_limits", lambda *_: ())

    def make(settings: list[str], family: str = "llama", fits: int = 1):
        base = make_family(family, dtype=torch.bfloat16).to(META)
        plain = ["train.batch_size=12", *([] if "lora.rank=4" in settings else ["lora.rank=2"])]
        config = load_config([*plain, *settings, "train.device=cpu"])
        accelerator = make_accelerator(config)
        PartialState._shared_state["device"] = META
        accelerator.state.__dict__["device"] = META
        pack = Pack(config, make_corpus(), base, accelerator)
        with Watch():
            return pack, [make_trainer(config, pack) for _ in range(fits)]

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_for_the_device_once_in_a_step(kind, meta):
    pack, fits = meta(KINDS[kind])
    batches = fits[0].batches(epoch=1)
    for document_B in batches[:2]:
        with Watch() as watch:
            step(pack, fits, document_B, len(batches))
        assert watch.reads == 1


def test_fits_of_a_pack_wait_once_for_all(meta):
    pack, fits = meta(["prior.tau=100"], fits=4)
    batches = fits[0].batches(epoch=1)
    with Watch() as watch:
        step(pack, fits, batches[0], len(batches))
    assert watch.reads == 1


def test_a_step_sees_an_unexpected_read(meta, monkeypatch):
    """The test above can fail: a number that the host asks for is an error or a second read."""
    pack, fits = meta(["prior.tau=100"])
    plain = pack.forward_batches
    monkeypatch.setattr(pack, "forward_batches", lambda n: (fits[0].hierarchy.mean_P.sum().cpu(), plain(n))[1])
    with Watch() as watch:
        step(pack, fits, fits[0].batches(epoch=1)[0], 3)
    assert watch.reads == 2


def test_no_gradient_is_added_in_an_order_that_changes(meta):
    """Operations that add rows in any order on a GPU do not meet two rows of one place."""
    pack, fits = meta(["prior.tau=100"])
    with Watch() as watch:
        step(pack, fits, fits[0].batches(epoch=1)[0], 3)
    unordered = {"scatter_add", "index_put", "index_put_", "_index_put_impl_", "embedding_dense_backward"}
    assert not unordered & watch.operations.keys()
    assert (
        watch.operations["index_add"] + watch.operations["index_add_"] <= 1
    )  # of hidden states, each to its own place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_are_summed_by_task_as_by_a_loop(dtype):
    """The product with indicators, which a GPU makes, and the sum on a CPU."""
    task_B = torch.randint(5, (13,))
    rows_BP, expected = torch.randn(13, 7).to(dtype), torch.zeros(6, 7, dtype=torch.float64)
    for task, row_P in zip(task_B.tolist(), rows_BP, strict=True):
        expected[task] += row_P.double()
    found = sum_by_task(rows_BP, task_B, 6, torch.promote_types(dtype, torch.float32))
    indicator_KB = (torch.arange(6)[:, None] == task_B).to(dtype)
    by_product = indicator_KB.double() @ rows_BP.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_product, expected, rtol=1e-12, atol=1e-12)
    meta = sum_by_task(rows_BP.to(META), task_B.to(META), 6, torch.float32)
    assert (meta.shape, meta.dtype) == ((6, 7), torch.float32)
