"""Models of transformers before and after `bert_fast.accelerate`: differences, errors against float64, speed on CPU.

    python -m benchmarks.live_models [--architectures MPNetModel ...] [--json OUT]
    python -m benchmarks.live_models --texts FILE [--limit 512] [--json OUT]

Without --texts: every architecture that this transformers has, 6 layers of 384 with random weights, a batch of 16 whose
lengths differ; a line each as it comes, then a table in Markdown. With it: all-MiniLM-L6-v2 through
sentence-transformers' `encode`, FILE holding one text a line, beside its ONNX and OpenVINO backends where optimum is
installed. Contenders take turns.
"""

import argparse
import copy
import functools
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

import bert_fast
from benchmarks.environment import environment
from benchmarks.rounds import interleaved
from bert_fast.demo.run import model_folder
from bert_fast.integrations.switch import lives
from bert_fast.io import atomic_write

SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
ARCHITECTURES = {
    "BertModel": SIZES,
    "RobertaModel": SIZES,
    "XLMRobertaModel": {**SIZES, "vocab_size": 30522},
    "CamembertModel": SIZES,
    "ElectraModel": {**SIZES, "embedding_size": 128},
    "DistilBertModel": {"dim": 384, "n_layers": 6, "n_heads": 12, "hidden_dim": 1536},
    "MPNetModel": SIZES,
    "AlbertModel": {**SIZES, "embedding_size": 128},
    "GteModel": SIZES,
    "NomicBertModel": SIZES,
    "ModernBertModel": SIZES,
}
ALLOWED = {"float32": 2e-5, "bfloat16": 2.0, "gradient": 2.0}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--limit", type=int, default=512, help="texts read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.texts:
        results, good = _sentences(options)
    else:
        names = [name for name in options.architectures if hasattr(transformers, name)]
        for name in set(options.architectures) - set(names):
            print(f"{name:16s} transformers {transformers.__version__} has none")
        results = {name: _architecture(name, ARCHITECTURES[name], options.rounds) for name in names}
        print("\n" + table(results))
        good = all(row[key] <= bound for row in results.values() for key, bound in ALLOWED.items())
    if options.json:
        report = {"environment": environment(), "results": results}
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0 if good else 1


def _architecture(name: str, sizes: dict, rounds: int) -> dict:
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(getattr(transformers, name.replace("Model", "Config"))(**sizes)).eval()
    lengths = torch.randint(8, 97, (16,))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    batch = {"input_ids": torch.randint(5, 5000, mask.shape).masked_fill(mask == 0, 1), "attention_mask": mask}
    some = {key: value[:4] for key, value in batch.items()}  # float64 takes its time
    ours = bert_fast.accelerate(copy.deepcopy(theirs))
    with torch.no_grad():
        difference = (_states(ours, batch) - _states(theirs, batch)).abs().max().item()
        rounded = copy.deepcopy(theirs).bfloat16()
        truth = _states(copy.deepcopy(rounded).double(), some)
        errors = [_norm(_states(net, some) - truth) for net in (bert_fast.accelerate(copy.deepcopy(rounded)), rounded)]
    exact = _gradients(copy.deepcopy(theirs).double(), some)
    gradients = [_norm(_gradients(copy.deepcopy(net), some) - exact) for net in (ours, theirs)]
    contenders: dict[str, Callable[[], object]] = {
        "theirs": functools.partial(theirs, **batch),
        "exact": functools.partial(ours, **batch),
        "zero": functools.partial(bert_fast.accelerate(copy.deepcopy(theirs), hidden_positions="zero"), **batch),
    }
    with torch.inference_mode():
        seconds = {key: t.median for key, t in interleaved(contenders, rounds).items()}
    row = {
        "float32": difference,
        "bfloat16": errors[0] / errors[1],
        "gradient": gradients[0] / gradients[1],
        "speed": {key: seconds["theirs"] / seconds[key] for key in ("exact", "zero")},
        "padding": 1 - mask.sum().item() / mask.numel(),
        "runs_its_own_code": _reasons(ours, batch),
    }
    print(
        f"{name:16s} float32 {row['float32']:.1e}, bfloat16 error {row['bfloat16']:.2f} of theirs, gradient error "
        f"{row['gradient']:.2f} of theirs, speed {row['speed']['exact']:.2f}x every place, {row['speed']['zero']:.2f}x "
        f"visible places ({row['padding']:.0%} padding); own code: {', '.join(row['runs_its_own_code'])}"
    )
    return row


def table(results: dict[str, dict]) -> str:
    """A row of Markdown for every architecture."""
    heads = (
        "architecture", "float32: largest difference", "bfloat16: error, of theirs", "gradients: error, of theirs",
        "speed, every place", "speed, visible places", "runs its own code",
    )  # fmt: skip
    rows = [heads, ("---",) * len(heads)]
    for name, row in results.items():
        numbers = (f"{row['float32']:.1e}", f"{row['bfloat16']:.2f}", f"{row['gradient']:.2f}")
        speeds = (f"{row['speed'][key]:.2f}x" for key in ("exact", "zero"))
        rows.append((name.removesuffix("Model"), *numbers, *speeds, ", ".join(row["runs_its_own_code"]) or "nothing"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _reasons(net: nn.Module, batch: dict[str, Tensor]) -> list[str]:
    """Which of the rarer calls run the model's own code, and why."""
    square = torch.ones(*batch["input_ids"].shape, batch["input_ids"].shape[1], dtype=torch.bool)[:, None]
    calls: dict[str, dict] = {
        "attentions": {"output_attentions": True},
        "hidden states": {"output_hidden_states": True},
        "mask of 4 dimensions": {"attention_mask": square},
    }
    (live,) = lives(net)
    found = []
    for name, arguments in calls.items():
        before = sum(live.reasons.values())
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", RuntimeWarning)
            net(**{**batch, **arguments})
        if sum(live.reasons.values()) > before:
            found.append(name)
    return found


def _sentences(options: argparse.Namespace) -> tuple[dict, bool]:
    from sentence_transformers import SentenceTransformer, __version__

    texts = [line.strip() for line in options.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = texts[: options.limit]
    load = functools.partial(SentenceTransformer, str(model_folder()), device="cpu")
    models = {"before": load(), "after": bert_fast.accelerate(load())}
    missing = {}
    for name, package, settings in _BACKENDS:
        if importlib.util.find_spec(package.partition(".")[0]) is None or importlib.util.find_spec(package) is None:
            missing[name] = f"{package} is not installed"
            continue
        models[name] = load(backend=name, model_kwargs={"export": True, **settings(options.threads)})
    wanted = models["before"].encode(texts)
    differences = {name: float(abs(wanted - model.encode(texts)).max()) for name, model in models.items()}
    timings = interleaved({name: functools.partial(m.encode, texts) for name, m in models.items()}, options.rounds)
    seconds = {name: {"median": t.median, "best": t.best, "worst": t.worst} for name, t in timings.items()}
    ratios = {name: timings["before"].median / t.median for name, t in timings.items()}
    print(f"encode of {len(texts)} texts, sentence-transformers {__version__}, {options.threads} threads")
    for name, timing in timings.items():
        print(f"{name:10s} {timing.median:7.2f} s  {ratios[name]:.2f}x  largest difference {differences[name]:.1e}")
    for name, reason in missing.items():
        print(f"{name:10s} {reason}")
    results = {"texts": len(texts), "differences": differences, "seconds": seconds, "times_as_fast": ratios}
    return {**results, "missing": missing}, differences["after"] <= ALLOWED["float32"]


def _onnx_settings(threads: int) -> dict:
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = threads
    return {"session_options": session}


def _openvino_settings(threads: int) -> dict:
    # float32 like the others: by itself it takes bfloat16 where the processor has it
    return {"ov_config": {"INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": "f32"}}


# The other backends of sentence-transformers, what they need, and how they are told the threads.
_BACKENDS: tuple[tuple[str, str, Callable[[int], dict]], ...] = (
    ("onnx", "optimum.onnxruntime", _onnx_settings),
    ("openvino", "optimum.intel", _openvino_settings),
)


def _states(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return net(**batch).last_hidden_state.double()


def _gradients(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    states = _states(net.train(False), batch)
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])


def _norm(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


if __name__ == "__main__":
    sys.exit(main())
