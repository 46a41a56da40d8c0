"""Model weights: from safetensors files at any URL to tensors, or to a verified folder on this machine."""
