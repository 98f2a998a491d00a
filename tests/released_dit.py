"""DiT as its authors released it, out of diffusers' DiTTransformer2DModel.

The released network's 128 frequencies of time are 10,000^(-k / 128), k = 0 ... 127 (diffusers: 10,000^(-k / 127)), and
every layer norm has epsilon 1e-6 (diffusers: 1e-5 before the feed-forward networks). All else is equal.
"""

import diffusers
import torch


def as_released(transformer: diffusers.DiTTransformer2DModel) -> diffusers.DiTTransformer2DModel:
    """The same network, changed in place to what the weights of DiT were trained with."""
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    return transformer


def original_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a diffusers state dict as DiT's own files hold them."""
    embedders = {"timestep_embedder.linear_1": "t_embedder.mlp.0", "timestep_embedder.linear_2": "t_embedder.mlp.2",
                 "class_embedder.embedding_table": "y_embedder.embedding_table"}  # fmt: skip
    blocks = {"norm1.linear": "adaLN_modulation.1", "attn1.to_out.0": "attn.proj", "ff.net.0.proj": "mlp.fc1",
              "ff.net.2": "mlp.fc2"}  # fmt: skip
    whole = {"pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1",
             "proj_out_2": "final_layer.linear"}  # fmt: skip
    tensors = {}
    for end in ("weight", "bias"):
        for theirs, ours in embedders.items():
            if (name := f"transformer_blocks.0.norm1.emb.{theirs}.{end}") in state:
                tensors[f"{ours}.{end}"] = state[name]
        for theirs, ours in whole.items():
            tensors[f"{ours}.{end}"] = state[f"{theirs}.{end}"]
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
        for i in range(depth):
            block = f"transformer_blocks.{i}."
            for theirs, ours in blocks.items():
                tensors[f"blocks.{i}.{ours}.{end}"] = state[f"{block}{theirs}.{end}"]
            tensors[f"blocks.{i}.attn.qkv.{end}"] = torch.cat([state[f"{block}attn1.to_{x}.{end}"] for x in "qkv"])
    return tensors


def with_shared_embedders(transformer: diffusers.DiTTransformer2DModel) -> diffusers.DiTTransformer2DModel:
    """The same network with the first block's embedders in all blocks, as released weights have them."""
    first = transformer.transformer_blocks[0].norm1.emb.state_dict()
    for block in transformer.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first)
    return transformer
