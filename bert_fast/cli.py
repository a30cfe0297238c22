"""The command line. Nothing heavy is imported until a command needs it, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from bert_fast import finetune_commands, pretrain_command
from bert_fast.command_options import add_threads, set_threads
from bert_fast.config import QUANTIZATIONS

_DTYPES = ("float32", "bfloat16", "float16")
_SUFFIX_HELP = "text (one per line; - is standard input), .jsonl, .csv, .tsv or .parquet; .gz is decompressed"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `bert-fast` and returns its exit status: 0 well, 1 something is not right, 2 bad input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read our output has gone; Python must not find the pipe broken again when it closes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if getattr(arguments, "debug", False) or not _expected(error):
            traceback.print_exc()
            return 2 if _expected(error) else 1
        print(f"bert-fast: {_one_line(error)}", file=sys.stderr)
        return 2


def _expected(error: Exception) -> bool:
    """Errors that are about what the user gave, and say so in their message; the rest are bugs and show where."""
    return isinstance(error, (ValueError, OSError)) or type(error).__module__.startswith("bert_fast.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error came from")
    parser = argparse.ArgumentParser(
        prog="bert-fast", parents=[common], description="BERT without padding, with the same numbers."
    )
    parser.add_argument("--version", action="version", version=f"bert-fast {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    doctor = commands.add_parser(
        "doctor", parents=[common], help="what runs here, why not the rest, and a self-test of every op"
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(command=_doctor)

    demo = commands.add_parser("demo", parents=[common], help="a trained model on real sentences, beside transformers")
    demo.add_argument("--input", metavar="FILE", help="texts in place of the built-in sentences (" + _SUFFIX_HELP + ")")
    demo.add_argument("--rounds", type=int, default=5, metavar="N", help="of timing; 0 for none (default 5)")
    demo.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    add_threads(demo)
    demo.set_defaults(command=_demo)

    _add_encode(commands, common)
    pretrain_command.add(commands, common)
    finetune_commands.add(commands, common)

    convert = commands.add_parser(
        "convert", parents=[common], help="a TensorFlow-1 or .bin checkpoint to a Hugging Face folder"
    )
    convert.add_argument("source", metavar="SOURCE", help="the checkpoint's folder")
    convert.add_argument("target", metavar="TARGET", help="the folder to write; complete or absent")
    convert.add_argument(
        "--model-class", metavar="NAME", help="such as BertForMaskedLM (default: what the weights are)"
    )
    convert.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: as they are)")
    convert.add_argument(
        "--do-lower-case", action=argparse.BooleanOptionalAction, help="of the tokenizer (default: what the files say)"
    )
    convert.add_argument("--force", action="store_true", help="replace a folder that is there")
    convert.set_defaults(command=_convert)

    _add_tokenizer(commands, common)

    # No prefix: to this parser nothing is an option, and everything goes on to the suite's own.
    bench = commands.add_parser(
        "bench", add_help=False, prefix_chars="\0", help="speed beside peers, right first: kernels, model, latency, ..."
    )
    bench.add_argument("rest", nargs="*")
    bench.set_defaults(command=_bench)
    return parser


def _add_encode(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    encode = commands.add_parser(
        "encode",
        parents=[common],
        help="a file of texts to a file of embeddings",
        description="Embeds every text of INPUT, in order. Killed at any moment, the same command goes on where it "
        "was, to the same bytes. Texts longer than --max-length are cut; the last line says how many.",
    )
    encode.add_argument("source", metavar="INPUT", help=_SUFFIX_HELP)
    encode.add_argument("--model", required=True, metavar="DIR", help="folder of a checkpoint and its tokenizer")
    encode.add_argument("--output", required=True, metavar="FILE", help="ends in .npy, .safetensors or .parquet")
    encode.add_argument("--input-format", choices=("text", "jsonl", "csv", "tsv", "parquet"))
    encode.add_argument(
        "--text-field", "--text-column", metavar="NAME", help="JSON field or column (default: text, or the only column)"
    )
    encode.add_argument("--pooling", choices=("mean", "cls", "max"), help="default: what the folder says, else mean")
    encode.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="to length 1 (default: what the folder says, else no)",
    )
    encode.add_argument("--prompt", metavar="TEXT", help="put before every text")
    encode.add_argument("--max-length", type=int, metavar="N", help="tokens per text (default: what the folder says)")
    encode.add_argument("--max-tokens", type=int, metavar="N", help="tokens per batch (default: 4096; 65536 on a GPU)")
    encode.add_argument("--dtype", choices=_DTYPES, help="default: float32")
    encode.add_argument("--quantization", choices=QUANTIZATIONS, help="of the products, on a CPU with AVX-512 VNNI")
    encode.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    add_threads(encode)
    encode.add_argument("--restart", action="store_true", help="throw away what a stopped run has done")
    encode.add_argument("--overwrite", action="store_true", help="replace an output that is there already")
    encode.add_argument("--quiet", action="store_true", help="no progress, no summary")
    encode.set_defaults(command=_encode)


def _add_tokenizer(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    tokenizer = commands.add_parser("tokenizer", parents=[common], help="train a WordPiece vocabulary")
    actions = tokenizer.add_subparsers(title="actions", metavar="ACTION", required=True)
    train = actions.add_parser(
        "train",
        parents=[common],
        help="a folder with a tokenizer, from texts",
        description="Learns a WordPiece vocabulary and writes a folder that bert_fast and transformers load.",
    )
    train.add_argument("inputs", nargs="+", metavar="INPUT", help=_SUFFIX_HELP)
    train.add_argument("--output", required=True, metavar="DIR", help="the folder to write; complete or absent")
    train.add_argument("--vocab-size", type=int, default=30522, metavar="N", help="the most tokens (default 30522)")
    case = train.add_mutually_exclusive_group()
    case.add_argument("--uncased", dest="lowercase", action="store_true", default=True, help="lower case (default)")
    case.add_argument("--cased", dest="lowercase", action="store_false", help="letters and accents as written")
    train.add_argument("--min-frequency", type=int, default=2, metavar="N", help="of a pair of pieces (default 2)")
    train.add_argument("--alphabet", type=int, default=1000, metavar="N", help="the most characters (default 1000)")
    train.add_argument("--max-length", type=int, default=512, metavar="N", help="tokens of the model (default 512)")
    train.add_argument("--input-format", metavar="NAME", help="default: what the suffix says")
    train.add_argument("--text-field", default="text", metavar="NAME", help="JSON field or column (default: text)")
    train.add_argument("--force", action="store_true", help="replace a folder that is there")
    train.set_defaults(command=_tokenizer_train)


def _version() -> str:
    try:
        return importlib.metadata.version("bert-fast")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _doctor(arguments: argparse.Namespace) -> int:
    import json

    from bert_fast.doctor import examine, render

    found = examine()
    print(json.dumps(found, indent=1) if arguments.json else render(found))
    return 0 if found["ok"] else 1


def _demo(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    from bert_fast.demo import run_demo

    agree = run_demo(arguments.input, arguments.rounds, arguments.device, lambda line: print(line, flush=True))
    return 0 if agree else 1


def _encode(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    from bert_fast.encode import encode_file

    report = encode_file(
        arguments.source,
        arguments.output,
        arguments.model,
        input_format=arguments.input_format,
        text_field=arguments.text_field,
        threads=arguments.threads,
        restart=arguments.restart,
        overwrite=arguments.overwrite,
        quiet=arguments.quiet,
        pooling=arguments.pooling,
        normalize=arguments.normalize,
        prompt=arguments.prompt,
        max_length=arguments.max_length,
        max_tokens=arguments.max_tokens,
        dtype=arguments.dtype,
        device=arguments.device,
        quantization=arguments.quantization,
    )
    if not arguments.quiet:
        print(report, file=sys.stderr)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from bert_fast.checkpoints.convert import convert

    options = {name: getattr(arguments, name) for name in ("model_class", "dtype", "do_lower_case", "force")}
    print(convert(arguments.source, arguments.target, **options))
    return 0


def _tokenizer_train(arguments: argparse.Namespace) -> int:
    from bert_fast.tokenizer.training import train_tokenizer_files

    names = ("input_format", "text_field", "force", "vocab_size", "lowercase", "min_frequency", "alphabet")
    options = {name: getattr(arguments, name) for name in names}
    print(train_tokenizer_files(arguments.inputs, arguments.output, model_max_length=arguments.max_length, **options))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    """Runs the suite of the source checkout that this package is installed from (editable).

    The suite is no part of the package: it compares git revisions, holds peers against the tests' numeric contract,
    and needs what a user of the library does not.
    """
    import importlib
    import importlib.util
    from pathlib import Path

    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    if not (folder / "bench.py").is_file():
        raise ValueError(
            "bench runs the benchmarks of a source checkout, and bert_fast is installed without one: in a checkout, "
            'pip install -e ".[bench]", then bert-fast bench (or, over this very install, python -m benchmarks.bench)'
        )
    if "benchmarks" not in sys.modules:
        # by its place: the checkout on sys.path would make its folder `kernels` importable, which others look for
        spec = importlib.util.spec_from_file_location(
            "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["benchmarks"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module("benchmarks.bench").main(arguments.rest, "bert-fast bench")
