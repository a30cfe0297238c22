"""accelerate(model, quantization="int8"): products of bytes in models of transformers, where they can be."""

import copy
import pickle

import pytest
import torch
from integrations import families

import bert_fast
from bert_fast.layers import quantized
from bert_fast.ops.quantized import int8_reasons

pytestmark = pytest.mark.skipif(bool(int8_reasons()), reason=f"int8 cannot run here: {'; '.join(int8_reasons())}")
COVERED = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DistilBert", "MPNet", "Albert")
OTHERS = tuple(family for family in families.FAMILIES if family not in COVERED)


def calm(family, **changes):
    """A model whose layers do not blow up what differs."""
    model = families.model(f"{family}Model", **changes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and "embedding" not in name:
                p.mul_(0.3)
    return model


def batch():
    mask = families.every_kind_of_padding()
    ids = torch.randint(3, families.VOCAB, mask.shape, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}, mask.bool()


def products(model):
    return {c.backend for c in bert_fast.explain(model).choices if c.op == "linear"}


@pytest.mark.parametrize("family", COVERED)
@torch.no_grad()
def test_near_the_untouched_model_and_explained(family):
    model, (inputs, visible) = calm(family), batch()
    want = model(**inputs).last_hidden_state[visible]
    bert_fast.accelerate(model, quantization="int8")
    got = model(**inputs).last_hidden_state[visible]
    error = ((got - want).square().mean() / want.square().mean()).sqrt()
    assert 1e-4 < error < 0.05
    assert "onednn int8" in products(model)
    bert_fast.accelerate(model)
    plain = model(**inputs).last_hidden_state[visible]
    torch.testing.assert_close(plain, want, rtol=1e-4, atol=2e-5)
    assert "onednn int8" not in products(model)


@pytest.mark.skipif(not OTHERS, reason="this transformers has none of the newer architectures")
@pytest.mark.parametrize("family", OTHERS)
@torch.no_grad()
def test_other_layers_run_as_without_and_say_so(family):
    plain, (inputs, _) = bert_fast.accelerate(families.model(f"{family}Model")), batch()
    model = bert_fast.accelerate(families.model(f"{family}Model"), quantization="int8")
    torch.testing.assert_close(model(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)
    against = {reason for c in bert_fast.explain(model).choices for reason in c.against}
    assert "int8: it is for whole post-norm layers with GELU, of plain modules" in against


@torch.no_grad()
def test_the_bits_of_our_own_model(tmp_path):
    model, (inputs, visible) = calm("Bert"), batch()
    model.save_pretrained(tmp_path)
    own = bert_fast.BertModel.from_pretrained(tmp_path, quantization="int8")
    live = bert_fast.accelerate(model, quantization="int8")
    assert torch.equal(live(**inputs).last_hidden_state[visible], own(**inputs).last_hidden_state[visible])


@torch.no_grad()
def test_copies_keep_it_and_training_is_without(recwarn):
    model, (inputs, _) = bert_fast.accelerate(calm("Bert"), quantization="int8"), batch()
    want = model(**inputs).last_hidden_state
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**inputs).last_hidden_state, want)
    with torch.enable_grad():
        model.train()(**inputs).last_hidden_state.sum().backward()
    assert not [w for w in recwarn if "quantization" in str(w.message)]
    quantized._told.clear()
    with torch.enable_grad(), pytest.warns(RuntimeWarning, match="gradients are enabled"):
        model.eval()(**inputs)


def test_verify_judges_without_it():
    model = bert_fast.accelerate(calm("Bert"), quantization="int8")
    inputs, _ = batch()
    assert all(report.held for report in bert_fast.verify(model, inputs))
    assert "onednn int8" in products_without_gradients(model)


@torch.no_grad()
def products_without_gradients(model):
    return products(model)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"quantization must be None or one of \('int8',\), not 'fp8'"):
        bert_fast.accelerate(calm("Bert"), quantization="fp8")
    with pytest.raises(ValueError, match="batch_invariant=True cannot be had together with quantization"):
        bert_fast.accelerate(calm("Bert"), quantization="int8", batch_invariant=True)
