"""Logits of a fixed prompt from the training framework, for a test of the engine."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from .config import BOS

#: Long enough that the indexer has to choose (more than 4 x index_topk tokens) and two HCA rows close.
STORY = (
    "Once upon a time, there was a little fox who lived near a river. Every morning he walked along the water and looked for "
    "shiny stones. One day he found a stone that was as blue as the sky. \"I will give it to my grandmother,\" said the fox. "
    "\"She is old and her eyes are weak, but she will see this blue.\"\nOn the way home it began to rain. The fox ran under "
    "a big tree, and there sat a wet bird with a broken wing. \"Please help me,\" said the bird. \"I cannot fly, and my "
    "children wait for me on the hill.\" The fox put the stone into the grass, took the bird on his back and climbed the "
    "hill. It was dark when he came back, and the blue stone was gone.\nThe fox was sad. He went to his grandmother with "
    "nothing in his paws. But when she opened the door, the bird's husband sat on her shoulder, and in front of him lay the blue "
    "stone. \"We looked for it all evening,\" he said, \"because you carried the mother of my children home.\" The "
    "grandmother held the stone close to her eyes and smiled. \"What a beautiful blue,\" she said. \"And what a good fox.\""
)


def write(model, tokenizer, folder, every=130):
    """golden.safetensors: `ids`, `positions`, `exact` (no rounding of cache rows) and `rounded` logits there, f32."""
    ids = [BOS] + tokenizer.encode(STORY, add_special_tokens=False).ids
    positions = sorted({*range(every - 1, len(ids), every), len(ids) - 1})
    x = torch.tensor([ids])
    with torch.no_grad():
        exact = model.logits(x, rounding=0.0)[0][0, positions]
        rounded = model.logits(x, rounding=1.0)[0][0, positions]
    tensors = {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "positions": torch.tensor(positions, dtype=torch.int32),
        "exact": exact.float().contiguous(),
        "rounded": rounded.float().contiguous(),
    }
    save_file(tensors, Path(folder) / "golden.safetensors")
    return json.dumps({"tokens": len(ids), "positions": positions})
