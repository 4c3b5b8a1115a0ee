"""Any causal language model that transformers can read (GGUF too), measured on the same held-out texts."""

import math
from pathlib import Path

import torch


@torch.no_grad()
def bits_per_byte(path, texts, prefix, log=print):
    """Mean bits per byte of `texts`, every document on its own after the token `prefix` (a document's beginning for
    that model). `path`: folder, or one GGUF file (weights are dequantised to f32; needs the packages gguf and accelerate)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(path)
    where, extra = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    tokenizer = AutoTokenizer.from_pretrained(where, **extra)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **extra).eval()
    start = tokenizer.convert_tokens_to_ids(prefix)
    if start is None or tokenizer.convert_ids_to_tokens(start) != prefix:
        raise SystemExit(f"{path}: its tokenizer has no token {prefix!r}; --peer-prefix names one that it has")
    nats = size = count = 0
    for i, text in enumerate(texts):
        ids = torch.tensor([[start] + tokenizer(text, add_special_tokens=False).input_ids])
        logp = model(ids).logits[0, :-1].float().log_softmax(-1)
        nats -= logp.gather(-1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
        size += len(text.encode())
        if i % 50 == 49:
            log(f"{path.name}: {i + 1} of {len(texts)} documents")
    return {"bits_per_byte": round(nats / math.log(2) / size, 4), "nats_per_token": round(nats / count, 4), "documents": len(texts)}
