"""An accelerated model as an object: what users do to models must work on it, and undoing must leave no trace."""

import copy
import inspect
import pickle
import threading
import warnings

import pytest
import torch
import transformers
from integrations.families import B, S, batch, encoder_of, every_kind_of_padding, labels, model
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

import bert_fast

NAMES = ["BertModel", "RobertaForSequenceClassification", "ElectraForTokenClassification", "DistilBertForMaskedLM"]


def run(net, name="BertModel", **options):
    output = net(**batch(name, every_kind_of_padding()), **options)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def pickled(net):
    return pickle.loads(pickle.dumps(net))


def agree(net, twin, name="BertModel", accelerated=True, **tolerance):
    """``net``, which is accelerated, gives what ``twin`` gives, by the path that is expected."""
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-4}
    live = encoder_of(net)
    before = live.accelerated
    with torch.no_grad():
        torch.testing.assert_close(run(net, name), run(twin, name), **tolerance)
    assert live.accelerated - before == int(accelerated), dict(live.reasons)


@pytest.mark.parametrize("name", NAMES)
def test_restore_leaves_no_trace(name):
    net = model(name)
    before = [(path, type(m), dict(m.__dict__)) for path, m in net.named_modules()]
    state = net.state_dict()
    want = run(net, name)
    assert bert_fast.accelerate(net) is net
    assert all(state[key].data_ptr() == value.data_ptr() for key, value in net.state_dict().items())
    assert bert_fast.restore(bert_fast.accelerate(net)) is net
    after = [(path, type(m), dict(m.__dict__)) for path, m in net.named_modules()]
    for (_, kind, held), (_, kind_now, held_now) in zip(before, after, strict=True):
        assert kind is kind_now
        assert held.keys() == held_now.keys()
    assert torch.equal(run(net, name), want)
    assert bert_fast.restore(net) is net


def test_the_class_the_signature_and_the_parameters_are_theirs():
    net = model()
    kind, signature, parameters = type(net), inspect.signature(net.forward), list(net.named_parameters())
    bert_fast.accelerate(net)
    assert type(net) is kind
    assert inspect.signature(net.forward) == signature
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(parameters, net.named_parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_stand_by_themselves(name, copied):
    net = bert_fast.accelerate(model(name))
    twin = copied(net)
    live = encoder_of(twin)
    assert live is not encoder_of(net) and any(m is live.module for m in twin.modules())
    agree(twin, model(name), name)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    agree(net, model(name), name)
    assert not any("forward" in m.__dict__ for m in bert_fast.restore(twin).modules())


def test_changed_weights_are_seen():
    net, twin = bert_fast.accelerate(model()), model()
    agree(net, twin)
    for change in (
        lambda m: m.half(),
        lambda m: m.float(),
        lambda m: m.load_state_dict(model(num_hidden_layers=2, hidden_act="relu").state_dict()),
        lambda m: m.encoder.layer[0].output.dense.weight.data.mul_(2),
        lambda m: setattr(m.encoder.layer[1].attention.self.query, "weight", nn.Parameter(torch.randn(48, 48))),
        lambda m: setattr(m.encoder.layer[1].output, "dense", nn.Linear(90, 48)),
        lambda m: m.resize_token_embeddings(120, mean_resizing=False),
        lambda m: m.to(torch.float64),
    ):
        for each in (net, twin):
            torch.manual_seed(3)
            change(each)
        loose = {"rtol": 2e-2, "atol": 2e-2} if next(net.parameters()).dtype == torch.float16 else {}
        agree(net, twin, **loose)


def test_saved_and_loaded_again(tmp_path):
    name = "BertForSequenceClassification"
    net = bert_fast.accelerate(model(name))
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert not any("forward" in m.__dict__ for m in again.modules())
    agree(bert_fast.accelerate(again), model(name), name)


def test_optimizer_steps_between_evaluations():
    name = "BertForSequenceClassification"
    nets = [bert_fast.accelerate(model(name)), model(name)]
    for net in nets:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
        for _ in range(3):
            net.train()(**batch(name, every_kind_of_padding()), **labels(name)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            net.eval()
            with torch.no_grad():
                run(net, name)
    agree(*nets, name, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel"])
def test_gradient_checkpointing(name):
    grads = []
    for net in (bert_fast.accelerate(model(name)), model(name)):
        net.train().gradient_checkpointing_enable({"use_reentrant": False})
        run(net, name).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        if "forward" in net.__dict__:
            assert net.forward.parts().encoder.gradient_checkpointing
            net.gradient_checkpointing_disable()
            assert not net.forward.parts().encoder.gradient_checkpointing
            assert net.forward.accelerated == 1
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_dropout_follows_the_mode_of_their_modules():
    net = bert_fast.accelerate(model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    agree(net, model())
    net.train()
    assert not torch.equal(run(net), run(net))
    net.eval()
    agree(net, model())
    for module in net.modules():  # Monte Carlo dropout: the attention follows its own module, not its dropout's
        module.training = isinstance(module, nn.Dropout)
    assert not torch.equal(run(net), run(net))
    assert net.forward.parts().encoder.layer[0].attention.self.training is False


def test_eight_threads_share_one_model():
    name = "BertForSequenceClassification"
    net = bert_fast.accelerate(model(name))
    with torch.no_grad():
        want = run(net, name)
    bert_fast.accelerate(net)  # forgets what was derived: the threads have to make it at once
    results = []

    def work():
        with torch.no_grad():
            results.extend(run(net, name) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    for result in results:
        torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5)


def test_compiled(name="BertModel"):
    net, twin = bert_fast.accelerate(model(name, num_hidden_layers=1)), model(name, num_hidden_layers=1)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    results = []
    for each in (compiled, twin):
        results.append(run(each, name))
        results[-1].square().sum().backward()
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    for (key, mine), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=key)


def test_exported():
    net, twin = (bert_fast.accelerate(model(num_hidden_layers=1)), model(num_hidden_layers=1))
    program = torch.export.export(net, (), batch("BertModel", every_kind_of_padding()), strict=False)
    torch.testing.assert_close(run(program.module()), run(twin), rtol=1e-4, atol=1e-4)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp2", "fsdp2 of each layer"])
def test_wrapped(one_process, wrapped):
    net, twin = bert_fast.accelerate(model()), model()
    if wrapped == "ddp":
        whole = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    else:
        for layer in net.encoder.layer if wrapped.endswith("layer") else ():
            fully_shard(layer)
        whole = fully_shard(net)
    with warnings.catch_warnings():
        # Its hooks around each layer are what makes the weights whole: there the original code runs.
        warnings.filterwarnings("ignore" if wrapped.endswith("layer") else "error", message="bert_fast")
        for each in (whole, twin):
            run(each).square().sum().backward()
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            grad = mine.grad.full_tensor() if isinstance(mine.grad, DTensor) else mine.grad
            torch.testing.assert_close(grad, theirs.grad, rtol=1e-3, atol=1e-3)
    assert net.forward.accelerated == int(not wrapped.endswith("layer"))


def test_a_users_own_module_that_holds_encoders():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([model("BertModel"), model("RobertaModel")])

        def forward(self, ids, mask):
            return sum(part(ids, mask).last_hidden_state for part in self.parts)

    net = Mine().eval()
    mask = every_kind_of_padding()
    ids = batch("RobertaModel", mask)["input_ids"]
    want = net(ids, mask)
    torch.testing.assert_close(bert_fast.accelerate(net)(ids, mask), want, rtol=1e-4, atol=1e-4)
    assert all(part.forward.accelerated == 1 for part in net.parts)


def test_hidden_positions_by_wish():
    net, mask = model(), every_kind_of_padding()
    want = run(net)
    got = run(bert_fast.accelerate(net, hidden_positions="zero"))
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], rtol=1e-4, atol=1e-4)
    hidden = mask == 0
    hidden[:, 0] = False
    assert (got[hidden] == 0).all()


def test_what_is_refused():
    with pytest.raises(TypeError, match="torch.nn.Module, not str"):
        bert_fast.accelerate("bert-base-uncased")
    with pytest.raises(TypeError, match="torch.nn.Module, not str"):
        bert_fast.restore("bert-base-uncased")
    with pytest.raises(ValueError, match="no encoder in this Linear that is known: .*BertModel"):
        bert_fast.accelerate(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="hidden_positions must be one of"):
        bert_fast.accelerate(model(), hidden_positions="some")


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def _hooked(net):
    net.encoder.layer[0].register_forward_hook(lambda module, inputs, output: None)


class _Kept(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def _replaced(net):
    net.encoder.layer[1].output = _Kept(net.encoder.layer[1].output)


def _own_forward(net):
    dense = net.encoder.layer[0].output
    dense.forward = type(dense).forward.__get__(dense)


def _decoder(net):
    net.config.is_decoder = True


def _activation(net):
    net.encoder.layer[0].intermediate.intermediate_act_fn = nn.Softsign()


CHANGES = {
    "hook": (_hooked, "has a hook"),
    "forward": (_own_forward, "forward of encoder.layer.0.output was replaced"),
    "decoder": (_decoder, "is_decoder"),
    "module": (_replaced, "_Kept .* stands where"),
    "activation": (_activation, "activation Softsign is not known"),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_cannot_be_carried_runs_its_own_code_and_says_why(change, after):
    alter, reason = CHANGES[change]
    net, twin = model(), model()
    alter(twin)
    if after:
        bert_fast.accelerate(net)
        alter(net)
    else:
        alter(net)
        with pytest.warns(RuntimeWarning, match=reason):
            bert_fast.accelerate(net)
    with pytest.warns(RuntimeWarning, match=reason):
        got = run(net)
    assert torch.equal(got, run(twin))
    assert sum(net.forward.reasons.values()) == 1 and net.forward.accelerated == 0


OLD = transformers.__version__.startswith("4.")
# What version 4 makes of 3 dimensions is its own; version 5 adds a mask of 4 to the scores, be it bool.
SQUARE = torch.ones(B, S, S).tril() if OLD else torch.ones(B, 1, S, S, dtype=torch.bool).tril()
CALLS = {
    "attentions": ({"output_attentions": True}, "output_attentions are"),
    "square mask": ({"attention_mask": SQUARE}, "attention_mask is"),
    "argument": ({"head_mask": torch.tensor([1.0, 0, 1, 1])} if OLD else {"anything": 1}, "the argument "),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_cannot_be_carried_runs_their_code_with_one_warning(call):
    arguments, reason = CALLS[call]
    attention = {"attn_implementation": "sdpa" if OLD and "mask" in call else "eager"}
    net, twin = bert_fast.accelerate(model(**attention)), model(**attention)
    given = {**batch("BertModel", every_kind_of_padding()), **arguments}
    with pytest.warns(RuntimeWarning, match=reason):
        got = net(**given)
    want = twin(**given)
    assert torch.equal(got.last_hidden_state, want.last_hidden_state)
    assert len(got) == len(want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(**given)
    assert sum(net.forward.reasons.values()) == 2 and net.forward.accelerated == 0
    agree(net, twin)


def test_their_errors_are_theirs():
    net = bert_fast.accelerate(model())
    ids = batch()["input_ids"]
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds|both input_ids and inputs_embeds"):
        net(input_ids=ids, inputs_embeds=torch.zeros(B, S, 48))
    with pytest.raises(IndexError):
        net(input_ids=ids + 101)


def test_a_parametrised_and_a_hooked_leaf_are_called():
    """Leaves are read only where that is all they do; transformers' own mark on the embeddings is no obstacle."""
    net, twin = bert_fast.accelerate(model()), model()
    for each in (net, twin):
        parametrize.register_parametrization(each.encoder.layer[0].intermediate.dense, "weight", _Doubled())
        each.enable_input_require_grads()
    agree(net, twin)


def test_what_wraps_the_forward_later_is_left_and_restore_still_undoes():
    net, twin = bert_fast.accelerate(model()), model()
    live, calls = net.forward, []
    net.forward = lambda *args, **kwargs: calls.append(1) or live(*args, **kwargs)
    with torch.no_grad():
        run(bert_fast.accelerate(net))
        assert live.accelerated == 1 and len(calls) == 1
        assert torch.equal(run(bert_fast.restore(net)), run(twin))
    assert live.accelerated == 1 and len(calls) == 2


def test_a_forward_that_is_not_the_classs_is_not_touched():
    net = model()
    net.forward = own = lambda *args, **kwargs: 5
    with pytest.warns(RuntimeWarning, match="not accelerated: its forward was replaced"):
        bert_fast.accelerate(net)
    assert net.forward is own and net(1) == 5


@pytest.mark.parametrize("name", ["BertModel", "DistilBertForMaskedLM"])
def test_under_autocast(name):
    net, twin = bert_fast.accelerate(model(name)), model(name)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = run(net, name), run(twin, name)
    assert got.dtype == want.dtype
    exact = run(model(name).double(), name)
    assert (got - exact).square().mean() <= 4 * (want - exact).square().mean()


def test_a_replica_of_data_parallel_runs_its_own_code():
    net = bert_fast.accelerate(model())
    replica = net._replicate_for_data_parallel()
    assert "forward" not in replica.__dict__
    assert torch.equal(run(replica), run(model()))
