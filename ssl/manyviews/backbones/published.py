"""The names by which others publish the weights of ViTs, as their authors' and timm's."""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

BLOCK = r"(?:encoder\.|model\.)?layers?\.(?P<block>\d+)\."
QKV = re.compile(BLOCK + r"attention\.(?:attention\.)?(?P<which>query|key|value|q_proj|k_proj|v_proj)\.(?P<kind>\w+)")
RENAMED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (BLOCK, r"blocks.\g<block>."),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
        (r"^embeddings\.", ""),
        (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"^layernorm\.", "norm."),
        (r"(?:intermediate\.dense|mlp\.weights_in|mlp\.up_proj)\.", "mlp.fc1."),
        (r"(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", "mlp.fc2."),
        (r"layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
    )
]
"""The names of `transformers`, in the order in which they are replaced."""


def of_transformers(state: State) -> State:
    """`transformers`' ViT, ViT-MAE, DINOv2 and DINOv3 by their authors' names and layout; any other as it is."""
    begin = next((name.removesuffix(CLASS) for name in state if name.endswith(CLASS)), None)
    if begin is None:
        return state
    found: State = {}
    parts: dict[tuple[str, str], State] = {}
    for name, value in state.items():
        mine = name.removeprefix(begin)
        if not name.startswith(begin):
            found[name] = value
        elif match := QKV.fullmatch(mine):
            parts.setdefault((match["block"], match["kind"]), {})[match["which"][0]] = value
        else:
            for pattern, replacement in RENAMED:
                mine = pattern.sub(replacement, mine)
            found[mine] = value
    for (block, kind), each in parts.items():
        if each.keys() == {"q", "k", "v"}:
            found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([each[which] for which in "qkv"])
        else:  # the keys of DINOv3 have no bias
            found |= {f"blocks.{block}.attn.{which}_{kind}": value for which, value in each.items()}
    if "register_tokens" in found and "pos_embed" not in found:  # DINOv3, whose positions are rotations
        found["storage_tokens"] = found.pop("register_tokens")
    return found


CLASS = "embeddings.cls_token"
"""The name by which a file of `transformers` is known."""


def of_open_clip(state: State) -> State:
    """The image tower of a CLIP with open_clip's own ViT, or with timm's, by timm's names; any other as it is."""
    if "visual.class_embedding" not in state:
        return state
    found: State = {}
    for name, value in state.items():
        mine = name
        if name.startswith("visual."):
            for pattern, replacement in CLIP_RENAMED:
                mine = pattern.sub(replacement, mine)
            if mine in ("visual.cls_token", "visual.pos_embed"):
                value = value.view(1, -1, value.shape[-1])
        found[mine] = value
    return found


OPENAI = {"input_resolution", "context_length", "vocab_size"}
"""What OpenAI's own files hold beside the towers, whose activation is QuickGELU."""
CLIP_RENAMED = [
    (re.compile(rf"^visual\.{pattern}"), f"visual.{replacement}")
    for pattern, replacement in (
        (r"conv1\.", "patch_embed.proj."),
        (r"class_embedding$", "cls_token"),
        (r"positional_embedding$", "pos_embed"),
        (r"ln_pre\.", "norm_pre."),
        (r"ln_post\.", "norm."),
        (r"proj$", "head.proj"),
        (r"transformer\.resblocks\.(\d+)\.ln_", r"blocks.\1.norm"),
        (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"transformer\.resblocks\.(\d+)\.attn\.out_proj", r"blocks.\1.attn.proj"),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc", r"blocks.\1.mlp.fc1"),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj", r"blocks.\1.mlp.fc2"),
    )
]
