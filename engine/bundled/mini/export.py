"""Writes checkpoints: the released form (original names, FP8 with ue8m0 scales) and a plain f32 form for transformers."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import quant
from .config import BOS_TEXT, EOS_TEXT, tensors
from .model import stacked

LIMIT = 15 * 1024 * 1024  # bytes of a file


def unstack(model):
    """Master parameters by released name, f32, on the CPU; tid2eid as i64."""
    out = {}
    for name, t in tensors(model.shape).items():
        if t.init == "hash":
            out[name] = model.tid2eid[name].cpu()
            continue
        p = model.master[stacked(name)].detach().cpu().float()
        if ".shared_experts." in name:
            p = p[-1]
        elif ".experts." in name:
            p = p[int(name.split(".experts.")[1].split(".")[0])]
        out[name] = p
    return out


def as_stored(model):
    """Tensors as the released form stores them, scales included."""
    out = {}
    for name, p in unstack(model).items():
        kind = tensors(model.shape)[name].kind
        if kind == "fp8":
            q, e = quant.fp8_weight(p)
            out[name] = q
            out[name.removesuffix(".weight") + ".scale"] = e.view(torch.float8_e8m0fnu)
        elif kind == "bf16":
            out[name] = p.bfloat16()
        elif kind == "i64":
            out[name] = p.to(torch.int32)
        elif "_fn" in name:
            # Trained as bf16 copies; the stored f32 holds what was trained.
            out[name] = p.bfloat16().float()
        else:
            out[name] = p
    return out


def dequantised(stored):
    """The same tensors in f32 (tid2eid i64), without scales."""
    out = {}
    for name, p in stored.items():
        if name.endswith(".scale"):
            continue
        scale = stored.get(name.removesuffix(".weight") + ".scale")
        if scale is not None and p.dtype == torch.float8_e4m3fn:
            s = torch.exp2(scale.view(torch.uint8).float() - 127)
            s = s.repeat_interleave(128, 0).repeat_interleave(128, 1)
            out[name] = p.float() * s[: p.shape[0], : p.shape[1]]
        else:
            out[name] = p.long() if p.dtype == torch.int32 else p.float()
    return out


def _shards(stored):
    shard, size = {}, 0
    for name, p in stored.items():
        n = p.numel() * p.element_size()
        if shard and size + n > LIMIT - 256 * 1024:
            yield shard
            shard, size = {}, 0
        shard[name] = p.contiguous()
        size += n
    yield shard


def write(folder, stored, config, tokenizer_file):
    """A Hugging Face folder: config.json, generation_config.json, tokenizer files, safetensors in shards, SHA256SUMS."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in list(folder.glob("model*.safetensors")) + list(folder.glob("model.safetensors.index.json")):
        old.unlink()
    shards = list(_shards(stored))
    index = {}
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update({k: name for k in shard})
    if len(shards) > 1:
        total = sum(p.numel() * p.element_size() for p in stored.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=0)
        (folder / "model.safetensors.index.json").write_text(text + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.8, "top_p": 1.0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TEXT,
        "eos_token": EOS_TEXT,
        "add_bos_token": True,
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2, ensure_ascii=False) + "\n")
    if Path(tokenizer_file).resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    checksums(folder)


def checksums(folder):
    """SHA256SUMS of the folder's files, for `sha256sum -c`."""
    folder = Path(folder)
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".safetensors"))
    sums = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text(sums)


def released(model, folder, tokenizer_file):
    """The form that is bundled."""
    write(folder, as_stored(model), model.shape.released_config(), tokenizer_file)


def plain(model, folder, tokenizer_file):
    """The same values in f32, which transformers loads without FP8 kernels."""
    config = dict(model.shape.released_config())
    del config["quantization_config"]
    config["torch_dtype"] = "float32"
    write(folder, dequantised(as_stored(model)), config, tokenizer_file)
