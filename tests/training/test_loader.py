"""Loaders: any workers and ranks make the same batches; resumed in the middle, an epoch ends as unbroken."""

import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from training.test_collate import CONFIG

from bert_fast import BertConfig, BertForSequenceClassification
from bert_fast.training.data import BatchPlan, Example, PackedCollator, PackedLoader, StoredExamples

RNG = np.random.default_rng(0)
EXAMPLES = [
    Example(RNG.integers(1, 50, n), labels=int(n % 3), info=f"row {i}") for i, n in enumerate(RNG.integers(2, 30, 53))
]
LENGTHS = [len(example) for example in EXAMPLES]


def loader(examples=EXAMPLES, collate=None, **options):
    plan = BatchPlan(LENGTHS, batch_size=8, shuffle=True, group_by_length=True, seed=4)
    return PackedLoader(examples, plan, collate or PackedCollator("class"), **options)


def facts(batch):
    packed = batch["input_ids"]
    tensors = (
        packed.input_ids,
        packed.cu_seqlens,
        packed.position_ids,
        batch["labels"],
        torch.from_numpy(batch.indices),
    )
    return [t.tolist() for t in tensors], packed.max_seqlen, batch.infos, batch.label_counts, batch.tokens, batch.filler


def epochs(load, count):
    return [[facts(batch) for batch in load] for _ in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    before = torch.random.get_rng_state()
    assert epochs(loader(num_workers=workers), 2) == epochs(loader(), 2)
    assert torch.equal(torch.random.get_rng_state(), before), "the model's dropout draws from it"


def test_every_epoch_holds_every_example_once_in_another_order():
    load = loader()
    assert len(load) == 7
    first, second = epochs(load, 2)
    assert load.epoch == 2 and len(first) == 7
    for epoch in (first, second):
        assert sorted(info for _, _, infos, *_ in epoch for info in infos) == sorted(e.info for e in EXAMPLES)
    assert [f[2] for f in first] != [f[2] for f in second]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 6, 7, 8, 13])
def test_resumed_anywhere_a_run_goes_on_as_unbroken(stop, workers):
    unbroken = sum(epochs(loader(), 3), [])
    load, done = loader(num_workers=workers), []
    while len(done) < stop:
        for batch in load:
            done.append(facts(batch))
            if len(done) == stop:
                break
    state = load.state_dict()
    again = loader(num_workers=workers)
    again.load_state_dict(state)
    while again.epoch < 3:
        done += [facts(batch) for batch in again]
    assert done == unbroken
    assert again.state_dict() == {"epoch": 3, "part": 0, "step": 0, "of": state["of"]}


def test_batches_that_are_done_are_not_made_again():
    made = []

    def collate(examples):
        made.append(len(examples))
        return PackedCollator("class")(examples)

    load = loader(collate=collate)
    load.load_state_dict(load.state_dict() | {"epoch": 1, "part": 0, "step": 5})
    assert len(list(load)) == len(made) == 2


def test_left_in_the_middle_a_loader_goes_on_there():
    load = loader()
    first = [facts(batch) for batch, _ in zip(load, range(3), strict=False)]
    rest = [facts(batch) for batch in load]
    # zip had taken a fourth when it found the range to be at its end
    assert len(first) + 1 + len(rest) == 7


@pytest.mark.parametrize("world_size", [2, 3, 11])
def test_ranks_share_every_batch_and_none_is_left_behind(world_size):
    model = BertForSequenceClassification(BertConfig(**CONFIG, num_labels=3)).eval()
    loads = [loader(rank=rank, world_size=world_size) for rank in range(world_size)]
    fillers = 0
    for whole, *shares in zip(loader(), *loads, strict=True):
        assert sorted(np.concatenate([s.indices for s in shares])) == sorted(whole.indices)
        assert sum(s.tokens for s in shares) == whole.tokens
        counts = [s.label_counts["labels"] for s in shares]
        with torch.no_grad():
            losses = [model(**s).loss for s in shares]
            expected = model(**whole).loss
        weighted = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
        assert torch.allclose(weighted, expected, atol=1e-6), "weighted by counts, the ranks' losses are the batch's"
        for share, count in zip(shares, counts, strict=True):
            assert share.filler == (share.indices.size == 0) == (count == 0)
            assert len(share.infos) == share.indices.size
            fillers += share.filler
    assert (fillers > 0) == (world_size > 5)


def test_a_run_goes_on_with_another_number_of_ranks():
    load = loader(rank=1, world_size=2)
    for _, batch in zip(range(3), load, strict=False):
        assert batch.indices.size
    loads = [loader(rank=rank, world_size=3) for rank in range(3)]
    for other in loads:
        other.load_state_dict(load.state_dict())
    seen = [np.concatenate([s.indices for s in shares]) for shares in zip(*loads, strict=True)]
    expected = BatchPlan(LENGTHS, batch_size=8, shuffle=True, group_by_length=True, seed=4).batches(0)[3:]
    assert [sorted(s) for s in seen] == [sorted(e) for e in expected]


def test_examples_on_disk_are_the_same_and_take_no_memory():
    def many(count):
        for k in range(count):
            yield Example(np.full(300, k), np.zeros(300, np.int32), labels=k, info={"row": k}, numbers=np.array([k]))

    stored = StoredExamples(iter(EXAMPLES))
    assert stored.lengths.tolist() == LENGTHS and len(stored) == 53
    assert epochs(loader(stored, num_workers=1), 1) == epochs(loader(pickle.loads(pickle.dumps(stored))), 1)
    assert epochs(loader(stored), 1) == epochs(loader(), 1)
    assert stored[-1].info == "row 52" and [e.info for e in stored] == [e.info for e in EXAMPLES]
    with pytest.raises(IndexError, match="example 53 of 53"):
        stored[53]
    assert len(StoredExamples([])) == 0
    folder = stored._path.parent
    del stored
    assert not folder.exists()
    tracemalloc.start()
    try:
        stored = StoredExamples(many(2000))
        plan = BatchPlan(stored.lengths, batch_size=8, shuffle=True)
        seen = {k for batch in PackedLoader(stored, plan, PackedCollator("class")) for k in batch["labels"].tolist()}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == set(range(2000)) and stored[7].numbers.tolist() == [7]
    assert peak < 1_000_000, f"{peak:,} bytes for {2000 * 2400:,} bytes of tokens"


def test_a_bad_example_in_a_worker_is_an_error_here():
    bad = [*EXAMPLES[:-1], Example([1], labels="x")]
    with pytest.raises(ValueError, match="example . of the batch has 'x'"):
        list(loader(bad, num_workers=1))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="the plan is for 53 examples, not 52"):
        loader(EXAMPLES[1:])
    with pytest.raises(ValueError, match="rank must be in 0 .. world_size - 1 = 1, not 2"):
        loader(rank=2, world_size=2)
    with pytest.raises(ValueError, match="no of and part and step in the loader's state"):
        loader().load_state_dict({"epoch": 1})
    for options in ({"seed": 5}, {"batch_size": 9}, {"shuffle": False}):
        plan = replace(BatchPlan(LENGTHS, batch_size=8, shuffle=True, group_by_length=True, seed=4), **options)
        with pytest.raises(ValueError, match="of another plan or other examples"):
            PackedLoader(EXAMPLES, plan, PackedCollator("class")).load_state_dict(loader().state_dict())
    assert list(PackedLoader([], BatchPlan([], batch_size=1), PackedCollator())) == []


@pytest.mark.gpu
def test_pinned_batches_move_without_waiting():
    for batch in loader(num_workers=1, pin_memory=True):
        assert batch["input_ids"].input_ids.is_pinned() and batch["labels"].is_pinned()
        moved = batch.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert facts(moved.to("cpu")) == facts(batch)
