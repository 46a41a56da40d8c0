"""What measures, advises and shows."""
