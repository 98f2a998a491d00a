"""Checkpoints of other libraries in and out: key maps, safetensors, diffusers folders and their pipelines."""
