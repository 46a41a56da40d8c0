"""The read path: manifest to order to frames to batches."""
