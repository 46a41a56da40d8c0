"""What a dataset is: tar members, frames, index and manifest. No network, no torch, no threads."""
