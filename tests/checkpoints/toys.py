"""Small models and their TensorFlow twins."""

import json
import re

import numpy as np
import torch
import transformers
from checkpoints.bundle_writer import bundle

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{a}{b}" for a in "abcde" for b in "abcdefg")]

CLASSES = [
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
]


def hf_model(name="BertForPreTraining", seed=0, **changes):
    """A random model of transformers, biases and LayerNorms included, so that no two tensors are the same."""
    torch.manual_seed(seed)
    model = getattr(transformers, name)(transformers.BertConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def batch():
    """input_ids, attention_mask and token_type_ids [3, 9], with padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, SIZES["vocab_size"], (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}


def tensorflow_name(name):
    """The name that google-research/bert gives a Hugging Face tensor; None where it has none."""
    if name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        return None
    whole = {
        "cls.predictions.bias": "cls/predictions/output_bias",
        "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
        "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
        "classifier.weight": "output_weights",
        "classifier.bias": "output_bias",
        "qa_outputs.weight": "cls/squad/output_weights",
        "qa_outputs.bias": "cls/squad/output_bias",
    }
    if name in whole:
        return whole[name]
    name = re.sub(r"layer\.(\d+)", r"layer_\1", name).replace(".", "/")
    name = name.replace("LayerNorm/weight", "LayerNorm/gamma").replace("LayerNorm/bias", "LayerNorm/beta")
    return name.replace("_embeddings/weight", "_embeddings").removesuffix("/weight") + ("/kernel" * _is_kernel(name))


def _is_kernel(name):
    return name.endswith("/weight") and not name.endswith("_embeddings/weight")


def tensorflow_tensors(model, slots=True):
    """What google-research/bert would have saved of a transformers model: numpy arrays by name."""
    tensors = {}
    for name, value in model.state_dict().items():
        there = tensorflow_name(name)
        if there is not None:
            tensors[there] = value.numpy().T.copy() if there.endswith("/kernel") else value.numpy().copy()
    if slots:
        for name in list(tensors):
            tensors[f"{name}/adam_m"] = np.zeros_like(tensors[name])
            tensors[f"{name}/adam_v"] = np.ones_like(tensors[name])
        tensors["global_step"] = np.array(20, dtype=np.int64)
    return tensors


def write_google_directory(path, model, name="bert_model.ckpt", shards=1, slots=True, vocab=VOCAB):
    """A directory like one of Google's releases."""
    path.mkdir(parents=True, exist_ok=True)
    bundle(tensorflow_tensors(model, slots), shards).write(path / name)
    (path / "bert_config.json").write_text(json.dumps({**SIZES, "hidden_act": "gelu", "directionality": "bidi"}))
    if vocab:
        (path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab))
    return path


def same_state(ours, theirs):
    """Whether two models have the same names and, bit for bit, the same values."""
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
